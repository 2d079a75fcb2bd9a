"""Running a teacher over images and filling its cache: resumable, one file at the end, never a torn one."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader

from yolokd.compat.checkpoint import sha256
from yolokd.compat.files import PARTIAL, atomic_replace
from yolokd.compat.images import Letterboxed, read_letterboxed
from yolokd.errors import UserError
from yolokd.predictions import HeadInfo
from yolokd.teachers.cache import Cache
from yolokd.teachers.cache_file import SUFFIX, Found, Recipe, Record, encode, raw_hash, row_type, write
from yolokd.teachers.extraction import extract
from yolokd.teachers.live import Teacher, refuse_not_finite

SAVE_EVERY = 60.0  # seconds of finished work that a kill can cost
_HASHES = ".images.json"
_FRESH = 2_000_000_000  # ns: a file hashed so soon after it was written may have been written again since
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

Progress = Callable[[int, int], None]


def build_cache(
    teacher: Teacher,
    teacher_sha256: str,
    images: Sequence[str | Path],
    folder: Path,
    imgsz: int,
    *,
    conf: float = 0.1,
    iou: float = 0.7,
    top_k: int = 5,
    max_det: int = 300,
    workers: int = 0,
    batch: int = 16,
    channels: int = 3,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Cache:
    """Store what a teacher sees in images and in their mirror images; what is stored already is kept.

    The file does not depend on ``workers`` or on where an earlier run was killed: the images run in the order of their
    hashes, in the same batches. (``batch`` and the device change the last bits of what a network computes.) Of several
    processes that are asked for the same cache one builds and the others wait.

    Args:
        teacher: gives raw predictions on a grid, or detections, for ``{"img": (B, C, imgsz, imgsz)}`` in [0, 1].
        teacher_sha256: of the teacher's file.
        images: the image files.
        folder: where caches lie.
        imgsz: side of the square that the images are letterboxed to, pixels.
        conf: see `Recipe`; so are ``iou``, ``top_k`` and ``max_det``.
        iou: see above.
        top_k: see above.
        max_det: see above.
        workers: processes that read images; 0 reads them here. The teacher runs here.
        batch: images that the teacher sees at once.
        channels: of the images, as the data set's YAML says.
        device: where the teacher runs; None: the CPU.
        progress: told how many images are done, of how many.

    Raises:
        UserError: no images, a size that the grid does not divide, an image that cannot be read, a teacher that says
            NaN, more rows than fit, or a damaged cache.
    """
    if not images:
        raise UserError("There are no images to cache a teacher's detections of.", "Check train: in the data YAML.")
    if any(imgsz % stride for stride in teacher.info.strides):
        raise UserError(f"teacher_imgsz={imgsz} is not a multiple of {max(teacher.info.strides)}.", "Round it.")
    folder.mkdir(parents=True, exist_ok=True)
    hashes = image_hashes(images, folder, workers)
    precision = _PRECISIONS[getattr(teacher, "dtype", torch.float32)]
    recipe = Recipe(teacher_sha256, imgsz, conf, iou, top_k, max_det, precision)
    parts = folder / f"{recipe.key}.parts"
    with FileLock(folder / f".{recipe.key}.lock"):
        done = _finished(folder, recipe, parts)
        wanted = dict(sorted((digest, file) for file, digest in hashes.items()))
        stored = {bytes(digest) for part in done for digest in part.index["hash"]}
        missing = {digest: file for digest, file in wanted.items() if raw_hash(digest) not in stored}
        run = _Run(teacher, recipe, channels, device or torch.device("cpu"), batch, workers)
        told = (lambda n: progress(len(wanted) - len(missing) + n, len(wanted))) if progress else None
        if missing:
            parts.mkdir(exist_ok=True)
            done += [_save(records, recipe, teacher.info, parts) for records in run(missing, told)]
        if parts.exists():
            _merge(done, folder / f"{recipe.key}{SUFFIX}", recipe, teacher.info)
            del done  # Windows removes no file that is open
            shutil.rmtree(parts)
    return Cache.open(folder, recipe, hashes)


def image_hashes(images: Sequence[str | Path], folder: Path, workers: int = 0) -> dict[str, str]:
    """The SHA-256 of each image file, remembered in the folder, so that the next start only looks at sizes and times.

    A file is read again where its size, its time of modification or that of its entry differ, or where it was written
    within two seconds of being read.

    Args:
        images: the files.
        folder: where the hashes are remembered.
        workers: threads that read.

    Returns:
        file, as given, to hash.

    Raises:
        UserError: a file is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{_HASHES}.lock"):  # what one process has read the next one knows
        known = _known_hashes(folder / _HASHES)
        paths = {str(file): os.path.abspath(file) for file in images}
        unsure = [path for path in dict.fromkeys(paths.values()) if not _as_it_was(path, known.get(path))]
        if unsure:
            with ThreadPoolExecutor(max(workers, 1)) as pool:
                known |= dict(zip(unsure, pool.map(_entry, unsure), strict=True))
            _sweep(folder, _HASHES)
            atomic_replace(folder / _HASHES, lambda partial: partial.write_text(json.dumps(known), encoding="utf-8"))
    return {file: str(known[path][4]) for file, path in paths.items()}


def _state(path: str) -> list[int]:
    """Size in bytes, and the times of the last change of content and of entry, in ns."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", "Check the data set's files.") from None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _as_it_was(path: str, entry: list[Any] | None) -> bool:
    state = _state(path)
    return entry is not None and entry[:3] == state and max(state[1:]) < entry[3] - _FRESH


def _entry(path: str) -> list[Any]:
    """What is remembered of a file: its state, the time when it was read, its hash."""
    return [*_state(path), time.time_ns(), sha256(path)]


def _known_hashes(file: Path) -> dict[str, list[Any]]:
    """What was remembered; nothing where that is damaged: everything is then read again."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return {str(path): list(entry) for path, entry in known.items() if len(entry) == 5}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


class _Run:
    """A teacher on its way over images; it hands out finished records whenever `SAVE_EVERY` seconds have gone by."""

    def __init__(
        self, teacher: Teacher, recipe: Recipe, channels: int, device: torch.device, batch: int, workers: int
    ) -> None:
        self.teacher = teacher
        self.recipe = recipe
        self.channels = channels
        self.device = device
        self.batch = batch
        self.workers = workers
        self.kind = row_type(teacher.info, recipe)

    def __call__(self, images: Mapping[str, str], told: Callable[[int], None] | None) -> Iterator[list[Record]]:
        """Records of the images (hash to file), in their order."""
        reader: Any = _Reader(list(images.values()), self.recipe.imgsz, self.channels)
        own = torch.Generator()  # else the loader draws from the one that training goes on with
        loader = DataLoader(reader, self.batch, num_workers=self.workers, collate_fn=list, generator=own)
        digests = iter(images)
        records: list[Record] = []
        done, saved = 0, time.monotonic()
        for items in loader:
            boxed = [self._readable(item) for item in items]
            views = self._both(torch.stack([item.image for item in boxed]))
            for item, seen in zip(boxed, views, strict=True):
                records.append(encode(next(digests), *item[1:], seen, self.recipe.imgsz, self.kind))
            done += len(boxed)
            if told is not None:
                told(done)
            if time.monotonic() - saved >= SAVE_EVERY or done == len(images):
                yield records
                records, saved = [], time.monotonic()

    def _readable(self, item: Letterboxed | str) -> Letterboxed:
        if isinstance(item, str):
            raise UserError(f"{item} is no image that can be read.", "Take it out of the data set, or mend it.")
        return item

    def _both(self, images: Tensor) -> list[tuple[Found, Found]]:
        """What the teacher sees in each image of ``(B, C, imgsz, imgsz)`` uint8, and in its mirror image.

        The letterboxed image is mirrored, borders and all, as the augmentation does.
        """
        scaled = images.to(self.device).float() / 255
        return list(zip(self._see(scaled), self._see(scaled.flip(-1)), strict=True))

    @torch.no_grad()
    def _see(self, images: Tensor) -> list[Found]:
        said = self.teacher({"img": images})
        refuse_not_finite(said, self.teacher)
        r = self.recipe
        return extract(said, self.teacher.info, r.imgsz, len(images), conf=r.conf, iou=r.iou, max_det=r.max_det)


class _Reader:
    """The images for a loader; a file that is none comes as its name: a UserError does not survive a worker process."""

    def __init__(self, files: list[str], imgsz: int, channels: int) -> None:
        self.files = files
        self.imgsz = imgsz
        self.channels = channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Letterboxed | str:
        return read_letterboxed(self.files[i], self.imgsz, self.channels) or self.files[i]


def _finished(folder: Path, recipe: Recipe, parts: Path) -> list[Cache]:
    """What is there already: the cache, if there is one, and the parts of a run that was killed.

    Raises:
        UserError: the cache is damaged. A damaged part is removed and made anew.
    """
    _sweep(folder, recipe.key)
    whole = folder / f"{recipe.key}{SUFFIX}"
    found = [Cache.open(folder, recipe)] if whole.exists() else []
    for file in sorted(parts.glob(f"*{SUFFIX}")):
        try:
            found.append(Cache(file))
        except UserError:
            file.unlink()
    return found


def _sweep(folder: Path, name: str) -> None:
    """Remove what a killed process was writing; the caller holds the lock on these files."""
    for rest in folder.glob(f".{name}*{PARTIAL}"):
        rest.unlink()


def _save(records: list[Record], recipe: Recipe, info: HeadInfo, parts: Path) -> Cache:
    file = parts / f"{bytes(records[0].image['hash'][0]).hex()[:16]}{SUFFIX}"
    write(file, recipe, info, records)
    return Cache(file)


def _merge(parts: Sequence[Cache], file: Path, recipe: Recipe, info: HeadInfo) -> None:
    """One file of several; an image that is in two of them is taken from the first."""
    records: dict[bytes, Record] = {}
    for part in parts:
        for record in part.records():
            records.setdefault(bytes(record.image["hash"][0]), record)
    write(file, recipe, info, list(records.values()))
