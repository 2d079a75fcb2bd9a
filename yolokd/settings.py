"""The settings of a run: asked for anew, taken up again, or handed to a worker."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ultralytics.utils import DEFAULT_CFG, LOGGER
from ultralytics.utils.files import get_latest_run

from yolokd.compat.checkpoint import find_checkpoint, sha256
from yolokd.compat.files import recover
from yolokd.config import DistillConfig, build_config, check_against_epochs, split_keys
from yolokd.errors import UserError
from yolokd.preflight import preflight, preflight_plain
from yolokd.sidecar import Sidecar, load_sidecar

_ENVIRONMENT = "YOLOKD_SETTINGS"  # how they reach the spawned workers of a multi-GPU run
_CHANGEABLE = {"teacher", "trust", "teacher_precision"}  # ... when a run is resumed


def settle(overrides: dict[str, Any], worker: bool) -> tuple[DistillConfig, Sidecar, dict[str, Any]]:
    """Part yolokd's keys from Ultralytics'; check what can be checked before a run folder exists.

    Args:
        overrides: both kinds of keys, mixed.
        worker: this process is one of a multi-GPU run, whose parent has checked everything.

    Returns:
        our settings, what is to stand in ``distill.pt``, and Ultralytics' keys.

    Raises:
        UserError: the settings, the pair or the data cannot work.
    """
    if worker and _ENVIRONMENT in os.environ:
        handed = json.loads(os.environ[_ENVIRONMENT])
        return DistillConfig.from_dict(handed["config"]), Sidecar(handed["config"], handed["sha256"]), overrides
    ours, theirs = split_keys(overrides)
    if theirs.get("resume"):
        return *_resumed(ours, theirs), theirs
    config = build_config(ours)
    epochs, warmup = (theirs.get(key, getattr(DEFAULT_CFG, key)) for key in ("epochs", "warmup_epochs"))
    check_against_epochs(config, int(epochs or DEFAULT_CFG.epochs), theirs.get("time"), float(warmup or 0))
    if not config.losses:
        preflight_plain(config, theirs)
        return config, Sidecar(config.to_dict(), ""), theirs  # without losses too: resume reads the settings there
    report = preflight(config, theirs)
    for line in report.lines:
        LOGGER.info(line)
    # Absolute, so that the run can be resumed from another folder.
    config = replace(config, teacher=str(report.teacher_file))
    return config, Sidecar(config.to_dict(), sha256(report.teacher_file)), theirs


def _resumed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[DistillConfig, Sidecar]:
    """The settings of the run that is resumed; the teacher's file may have moved, but not changed."""
    resume = theirs["resume"]
    last = Path(get_latest_run() if isinstance(resume, bool) or str(resume) == "True" else resume)
    recover(last.parent)
    sidecar = load_sidecar(last.parent)
    settings = dict(sidecar.config) | {key: ours[key] for key in _CHANGEABLE if key in ours}
    if ignored := sorted(set(ours) - _CHANGEABLE):
        LOGGER.warning(f"Resume ignores {', '.join(ignored)}: the run goes on with the settings it began with.")
    config = DistillConfig.from_dict(settings)
    if config.losses:
        file = find_checkpoint(config.teacher, role="teacher")
        if sha256(file) != sidecar.teacher_sha256:
            raise UserError(
                f"The teacher {config.teacher} is not the file that this run began with (its SHA-256 differs).",
                "Give that file with teacher=PATH, or start a new run.",
            )
        config = replace(config, teacher=str(file))
    return config, replace(sidecar, config=config.to_dict())  # where the teacher lies now


@contextmanager
def handed_down(config: DistillConfig, sidecar: Sidecar) -> Iterator[None]:
    """Let the settings stand in the environment while workers are spawned."""
    os.environ[_ENVIRONMENT] = json.dumps({"config": config.to_dict(), "sha256": sidecar.teacher_sha256})
    try:
        yield
    finally:
        del os.environ[_ENVIRONMENT]
