"""The settings of a run: asked for anew, taken up again, or handed to a worker."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from ultralytics.utils import DEFAULT_CFG, LOGGER
from ultralytics.utils.files import get_latest_run

from yolokd.compat.files import recover
from yolokd.config import PRECISIONS, DistillConfig, build_config, check_against_epochs, split_keys
from yolokd.errors import UserError
from yolokd.needs import refuse_device
from yolokd.preflight import preflight, preflight_plain
from yolokd.replaying import fill_from
from yolokd.sidecar import Sidecar, load_sidecar
from yolokd.teachers.opening import NOBODY, Networks, find_teacher, fingerprint
from yolokd.teachers.spec import read_teachers
from yolokd.values import Problems, choice, folder, teacher_device

# Our settings, what is to stand in distill.pt, and Ultralytics' keys.
Settled: TypeAlias = tuple[DistillConfig, Sidecar, dict[str, Any]]
_ENVIRONMENT = "YOLOKD_SETTINGS"  # how they reach the spawned workers of a multi-GPU run
_CHANGEABLE = {"teacher", "teacher_cache", "trust", "teacher_precision", "teacher_device"}  # ... when a run is resumed


def settle(overrides: dict[str, Any], worker: bool, peers: Networks = NOBODY) -> Settled:
    """Part yolokd's keys from Ultralytics'; check what can be checked before a run folder exists.

    Args:
        overrides: both kinds of keys, mixed.
        worker: this process is one of a multi-GPU run, whose parent has checked everything.
        peers: whom ``teacher=peer:NAME`` asks.

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
        config = replace(config, images=config.images.placed())
        preflight_plain(config, theirs)
        return config, Sidecar(config.to_dict(), ""), theirs  # without losses too: resume reads the settings there
    report = preflight(config, theirs, peers)
    for line in report.lines:
        LOGGER.info(line)
    config = report.config  # teachers' paths are absolute there, so that the run can be resumed from another folder
    if config.teacher_cache:
        config = replace(config, teacher_cache=str(Path(config.teacher_cache).resolve()))
        fill_from(config, theirs, report.side)
    return config, Sidecar(config.to_dict(), _fingerprints(config.teacher)), theirs


def _fingerprints(teachers: str) -> str:
    return ",".join(fingerprint(spec) for spec in read_teachers(teachers))


def _resumed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[DistillConfig, Sidecar]:
    """The settings of the run that is resumed; the teacher's file may have moved, but not changed."""
    resume = theirs["resume"]
    last = Path(get_latest_run() if isinstance(resume, bool) or str(resume) == "True" else resume)
    recover(last.parent)
    sidecar = load_sidecar(last.parent)
    settings = dict(sidecar.config) | {key: ours[key] for key in _CHANGEABLE if key in ours}
    if ignored := sorted(set(ours) - _CHANGEABLE):
        LOGGER.warning(f"Resume ignores {', '.join(ignored)}: the run goes on with the settings it began with.")
    problems = Problems()
    if "teacher_device" in ours:
        settings["teacher_device"] = teacher_device(ours, problems)
    if "teacher_precision" in ours:
        settings["teacher_precision"] = choice(ours, "teacher_precision", "precision", PRECISIONS, problems)
    if "teacher_cache" in ours:
        settings["teacher_cache"] = folder(ours, "teacher_cache", problems)
    problems.raise_if_any()
    config = DistillConfig.from_dict(settings)
    if config.teacher_cache:
        config = replace(config, teacher_cache=str(Path(config.teacher_cache).resolve()))
    if bool(config.teacher_cache) != bool(sidecar.config.get("teacher_cache")):
        raise UserError(
            f"This run began {'without' if config.teacher_cache else 'with'} teacher_cache=, and it stays so.",
            "Say only where the cache lies now, or start a new run.",
        )
    if config.losses:
        config = replace(config, teacher=_found_again(config.teacher, sidecar))
        refuse_device(config, theirs)
    return config, replace(sidecar, config=config.to_dict())  # where the teacher lies now


def _found_again(teacher: str, sidecar: Sidecar) -> str:
    """``teacher=`` with the absolute paths of the files that the run began with.

    Raises:
        UserError: another number of teachers, another file, or other classes to speak for.
    """
    began, specs = read_teachers(str(sidecar.config["teacher"])), read_teachers(teacher)
    if len(specs) != len(began):
        raise UserError(
            f"teacher={teacher} names {len(specs)}, and this run began with {len(began)}: {sidecar.config['teacher']}.",
            "Name the same ones in the same order, or leave out teacher= where they have not moved.",
        )
    found = []
    for before, spec, known in zip(began, specs, sidecar.teacher_sha256.split(","), strict=True):
        if spec.levels != before.levels or spec.classes not in ((), before.classes):
            raise UserError(f"teacher={spec}: this run began with {before}.", "Write it as it was, or start a new run.")
        place = replace(find_teacher(spec), classes=before.classes)
        if fingerprint(place) != known:
            raise UserError(
                f"The teacher {spec.path} is not the file that this run began with (its SHA-256 differs).",
                "Give that file with teacher=PATH, or start a new run.",
            )
        found.append(str(place))
    return ",".join(found)


@contextmanager
def handed_down(config: DistillConfig, sidecar: Sidecar) -> Iterator[None]:
    """Let the settings stand in the environment while workers are spawned."""
    os.environ[_ENVIRONMENT] = json.dumps({"config": config.to_dict(), "sha256": sidecar.teacher_sha256})
    try:
        yield
    finally:
        del os.environ[_ENVIRONMENT]
