"""Replay: the teacher runs once over the images, and training hears what it said then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils import LOGGER, TQDM

from yolokd.compat.dataset import check_data, image_files
from yolokd.config import DistillConfig
from yolokd.errors import UserError
from yolokd.predictions import HeadInfo
from yolokd.teachers.cache import Cache
from yolokd.teachers.cache_file import SUFFIX, Recipe
from yolokd.teachers.caching import build_cache, image_hashes
from yolokd.teachers.opening import find_teacher, fingerprint, open_teacher
from yolokd.teachers.spec import TeacherSpec, read_teachers

# Always this one: `auto` differs from machine to machine, and a cache is made once.
_PRECISION = "fp32"
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
    config: DistillConfig, files: Sequence[str], side: int, channels: int, theirs: Mapping[str, Any]
) -> tuple[Cache, dict[str, str]]:
    """Store what the teacher says of these images and of their mirror images, where that is not stored already.

    Args:
        config: the validated settings, with ``teacher_cache``.
        files: the images.
        side: of the student's images, pixels.
        channels: of the images.
        theirs: Ultralytics' train arguments; ``device`` and ``workers`` are looked at.

    Returns:
        the cache, and the hash by which it knows each image.

    Raises:
        UserError: see `build_cache`.
    """
    folder, recipe = Path(config.teacher_cache), recipe_of(config, side)
    workers = int(theirs.get("workers") or 0)
    if (folder / f"{recipe.key}{SUFFIX}").is_file():
        cache, hashes = Cache.open(folder, recipe), image_hashes(files, folder, workers)
        if all(digest in cache for digest in hashes.values()):
            return cache, hashes
    device, spec = _device(theirs.get("device")), cached_teacher(config)
    told = config.exported | {"precision": _PRECISION}
    # Before anything is written: it may be none.
    teacher = open_teacher(spec, device, _NO_HEAD, _nobody, {}, recipe.imgsz, config.trust, **told)
    _make(folder)
    LOGGER.info(f"{spec.path} looks at {len(files)} images and their mirror images, once, for {folder}.")
    with TQDM(total=len(files), desc="teacher_cache") as bar:
        cache = build_cache(
            *(teacher, recipe.teacher, files, folder, recipe.imgsz),
            workers=workers,
            channels=channels,
            device=device,
            progress=lambda done, _: bar.update(done - bar.n),
        )
    return cache, image_hashes(files, folder, workers)  # they are remembered


def fill_from(config: DistillConfig, theirs: Mapping[str, Any], side: int) -> Cache:
    """`fill_cache` for the training images of ``data=``.

    Args:
        config: the validated settings, with ``teacher_cache``.
        theirs: Ultralytics' train arguments; ``data``, ``fraction``, ``device`` and ``workers`` are looked at.
        side: of the student's images, pixels.

    Raises:
        UserError: see `build_cache`; or the data cannot serve.
    """
    recipe_of(config, side)  # first: it may refuse
    data = check_data(theirs.get("data"), "train")
    files, share = image_files(data, "train"), float(theirs.get("fraction") or 1)
    used = files[: max(round(len(files) * share), 1)]  # as Ultralytics takes them
    return fill_cache(config, used, side, int(data["channels"]), theirs)[0]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"teacher_cache={folder} is no folder and cannot become one: {error.strerror}.",
            "Name a folder that can be written to.",
        ) from None


def _device(wanted: Any) -> torch.device:
    text = str(wanted if wanted is not None else "").lower().removeprefix("cuda:").split(",")[0].strip("[]() ")
    if text == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(text) if text.isdigit() else 0)


def _nobody() -> Any:
    raise AssertionError("a cached teacher is a file of its own")
