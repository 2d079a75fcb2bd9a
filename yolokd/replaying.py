"""Replay: the teacher runs once over the images, and training hears what it said then."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils import DEFAULT_CFG, LOGGER, TQDM

from yolokd.compat.dataset import image_files, used_files
from yolokd.compat.images import read_letterboxed
from yolokd.config import DistillConfig
from yolokd.errors import UserError
from yolokd.learning import data_of, unlabelled_of
from yolokd.predictions import HeadInfo
from yolokd.teachers.cache import Cache
from yolokd.teachers.cache_file import SUFFIX, Recipe
from yolokd.teachers.caching import build_cache, image_hashes
from yolokd.teachers.live import refuse_channels
from yolokd.teachers.opening import find_teacher, fingerprint, open_teacher
from yolokd.teachers.spec import TeacherSpec, read_teachers

# Always this one: `auto` differs from machine to machine, and a cache is made once.
_PRECISION = "fp32"
BATCH = 16  # images that the teacher sees at once
_NAMED = 5  # of the images that are passed over
_NO_HEAD = HeadInfo({}, (), (), 1, False)


def cached_teacher(config: DistillConfig) -> TeacherSpec:
    """The one teacher whose answers are stored.

    Raises:
        UserError: there are several, or it changes while it teaches; or something is asked of a teacher that runs.
    """
    specs = read_teachers(config.teacher)
    if len(specs) > 1 or specs[0].kind in ("self", "levels", "peer"):
        raise UserError(
            f"teacher_cache= stores the answers of one teacher that stays as it is, not of teacher={config.teacher}.",
            "Name one file as teacher, or leave out teacher_cache=.",
        )
    running: dict[str, Any] = {"taps": config.taps, "teacher_compile": config.teacher_compile}
    running["teacher_device"] = config.teacher_device
    running["teacher_precision"] = config.teacher_precision not in ("auto", _PRECISION)
    if asked := [f"{key}=" for key, value in running.items() if value]:
        raise UserError(
            f"{' and '.join(asked)} and teacher_cache= do not go together: the teacher does not run in training, and "
            f"its boxes and scores are stored in {_PRECISION}.",
            f"Leave out {' and '.join(asked)}, or leave out teacher_cache=.",
        )
    return find_teacher(specs[0])


def recipe_of(config: DistillConfig, side: int) -> Recipe:
    """What the stored answers of a run depend on, beside the images.

    Args:
        config: the validated settings, with ``teacher_cache``.
        side: of the student's images, pixels.
    """
    told = (*config.teacher_names, config.teacher_boxes)  # what an exported teacher says depends on these, too
    teacher = "+".join([fingerprint(cached_teacher(config)), *filter(None, told)])
    return Recipe(teacher, config.teacher_imgsz or side, precision=_PRECISION)


def open_cache(config: DistillConfig, side: int) -> Cache:
    """The cache of a run, which is there already.

    Raises:
        UserError: it is not, or it is another one.
    """
    return Cache.open(Path(config.teacher_cache), recipe_of(config, side))


def fill_cache(
    config: DistillConfig,
    files: Sequence[str],
    side: int,
    channels: int,
    theirs: Mapping[str, Any],
    *,
    batch: int = BATCH,
    strict: bool = True,
) -> tuple[Cache, dict[str, str]]:
    """Store what the teacher says of these images and of their mirror images, where that is not stored already.

    Args:
        config: the validated settings, with ``teacher_cache``.
        files: the images.
        side: of the student's images, pixels.
        channels: of the images.
        theirs: Ultralytics' train arguments; ``device`` and ``workers`` are looked at.
        batch: images that the teacher sees at once.
        strict: refuse a file that is no image; else it is left out.

    Returns:
        the cache, and the hash of each image, by which it knows those that it holds.

    Raises:
        UserError: see `build_cache`.
    """
    folder, recipe = Path(config.teacher_cache), recipe_of(config, side)
    device = _device(theirs.get("device"))
    asked = theirs.get("workers")
    # On a CPU, as in Ultralytics' training, none: reading takes a fiftieth of the time of a small teacher.
    workers = int(asked) if asked is not None else 0 if device.type == "cpu" else int(DEFAULT_CFG.workers)
    if (folder / f"{recipe.key}{SUFFIX}").is_file():
        cache, hashes = Cache.open(folder, recipe), image_hashes(files, folder, workers)
        missing = (file for file, digest in hashes.items() if digest not in cache)
        if not any(strict or read_letterboxed(file, 32, channels) for file in missing):
            return cache, hashes
    spec, told = cached_teacher(config), config.exported | {"precision": _PRECISION}
    # Before anything is written: it may be none.
    teacher = open_teacher(spec, device, _NO_HEAD, _nobody, {}, recipe.imgsz, config.trust, **told)
    refuse_channels(teacher, channels)
    _make(folder)
    LOGGER.info(f"{spec.path} looks at {len(files)} images and their mirror images, once, for {folder}.")
    with TQDM(total=len(files), desc="teacher_cache") as bar:
        cache = build_cache(
            *(teacher, recipe.teacher, files, folder, recipe.imgsz),
            workers=workers,
            channels=channels,
            device=device,
            progress=lambda done, _: bar.update(done - bar.n),
            batch=batch,
            strict=strict,
        )
    return cache, image_hashes(files, folder, workers)  # they are remembered


def fill_from(config: DistillConfig, theirs: Mapping[str, Any], side: int, batch: int = BATCH) -> Cache:
    """`fill_cache` for the training images of ``data=``; a file that cannot be read is passed over, as in training.

    Args:
        config: the validated settings, with ``teacher_cache``.
        theirs: Ultralytics' train arguments; ``data``, ``fraction``, ``device`` and ``workers`` are looked at.
        side: of the student's images, pixels.
        batch: images that the teacher sees at once.

    Raises:
        UserError: see `build_cache`; or the data cannot serve.
    """
    recipe_of(config, side)  # first: it may refuse, and so may the device
    _device(theirs.get("device"))
    data = data_of(config, theirs)
    files = [
        *used_files(image_files(data, "train"), theirs.get("fraction")),
        *unlabelled_of(config, data, theirs.get("fraction")),
    ]
    there = [file for file in files if os.path.isfile(file) and os.access(file, os.R_OK)]
    cache, hashes = fill_cache(config, there, side, int(data["channels"]), theirs, batch=batch, strict=False)
    if passed := [file for file in files if hashes.get(file) not in cache]:
        named = ", ".join(passed[:_NAMED]) + (" and others" if len(passed) > _NAMED else "")
        LOGGER.warning(f"{len(passed)} of {len(files)} images cannot be read and are passed over: {named}.")
    return cache


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"teacher_cache={folder} is no folder and cannot become one: {error.strerror}.",
            "Name a folder that can be written to.",
        ) from None


def _device(wanted: Any) -> torch.device:
    """Where the teacher runs: the first of the devices of the training, if it is a GPU.

    Raises:
        UserError: PyTorch sees no such GPU.
    """
    text = str(wanted if wanted is not None else "").lower().strip("[]() ").removeprefix("cuda:")
    text = text.split(",")[0].strip().replace("cuda", "0")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text.isdigit() and int(text) >= gpus:
        seen = ", ".join(map(str, range(gpus))) or "no GPU"
        raise UserError(f"device={wanted} is not there: PyTorch sees {seen} here.", "Name one that is, or device=cpu.")
    if text == "cpu" or not gpus:
        return torch.device("cpu")
    return torch.device("cuda", int(text) if text.isdigit() else 0)


def _nobody() -> Any:
    raise AssertionError("a cached teacher is a file of its own")
