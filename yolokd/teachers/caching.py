"""Running a teacher over images and filling its cache: resumable, one file at the end, never a torn one."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from yolokd.compat.checkpoint import sha256
from yolokd.compat.files import PARTIAL, atomic_replace, locked, written_in
from yolokd.compat.images import Letterboxed, read_letterboxed
from yolokd.errors import UserError
from yolokd.predictions import HeadInfo
from yolokd.teachers.cache import Cache
from yolokd.teachers.cache_file import SUFFIX, Found, Recipe, Record, encode, raw_hash, refuse_rows, row_type, write
from yolokd.teachers.extraction import extract
from yolokd.teachers.live import Teacher, refuse_not_finite

SAVE_EVERY = 60.0  # seconds of finished work that a kill can cost
_HASHES = ".images.json"
_ELSEWHERE = "Make room there, or name another folder; what is finished is kept."
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
    strict: bool = True,
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
        strict: refuse a file that is no image; else it is left out.

    Raises:
        UserError: no images, a size that the grid does not divide, a file that is no image (or none is), a teacher
            that says NaN, more rows than fit, a damaged cache, or a folder that cannot be written to.
    """
    if not images:
        raise UserError("There are no images to cache a teacher's detections of.", "Check train: in the data YAML.")
    if any(imgsz % stride for stride in teacher.info.strides):
        raise UserError(f"teacher_imgsz={imgsz} is not a multiple of {max(teacher.info.strides)}.", "Round it.")
    hashes = image_hashes(images, folder, workers)
    precision = _PRECISIONS[getattr(teacher, "dtype", torch.float32)]
    recipe = Recipe(teacher_sha256, imgsz, conf, iou, top_k, max_det, precision)
    run = _Run(teacher, recipe, channels, device or torch.device("cpu"), batch, workers, strict)
    with locked(folder / f".{recipe.key}.lock") as refusal:
        if refusal is not None:
            with written_in(folder, _ELSEWHERE):
                raise refusal
        _fill(run, folder, dict(sorted((digest, file) for file, digest in hashes.items())), progress)
    if not strict and not (folder / f"{recipe.key}{SUFFIX}").is_file():
        raise UserError(f"None of {len(images)} images can be read, such as {images[0]}.", "Check that they are whole.")
    return Cache.open(folder, recipe, hashes if strict else None)


def _fill(run: _Run, folder: Path, wanted: Mapping[str, str], progress: Progress | None) -> None:
    """Let the teacher look at those of the wanted images (hash to file) that are not stored yet, and store it all."""
    recipe, info = run.recipe, run.teacher.info
    parts = folder / f"{recipe.key}.parts"
    done = _finished(folder, recipe, parts)
    stored = {bytes(digest) for part in done for digest in part.index["hash"]}
    missing = {digest: file for digest, file in wanted.items() if raw_hash(digest) not in stored}
    told = (lambda n: progress(len(wanted) - len(missing) + n, len(wanted))) if progress else None
    for records in run(missing, told) if missing else ():
        if records:
            with written_in(folder, _ELSEWHERE):
                done.append(_save(records, recipe, info, parts))
            refuse_rows(sum(map(len, done)))  # now, not when all is done
    if parts.exists():
        with written_in(folder, _ELSEWHERE):
            _merge(done, folder / f"{recipe.key}{SUFFIX}", recipe, info)
        del done  # Windows removes no file that is open
        shutil.rmtree(parts)


def image_hashes(images: Sequence[str | Path], folder: Path, workers: int = 0) -> dict[str, str]:
    """The SHA-256 of each image file, remembered in the folder, so that the next start only looks at sizes and times.

    A file is read again where its size, its time of modification or that of its entry differ, or where it was written
    within two seconds of being read. A folder that cannot be written to remembers nothing new.

    Args:
        images: the files.
        folder: where the hashes are remembered.
        workers: threads that read.

    Returns:
        file, as given, to hash.

    Raises:
        UserError: a file cannot be read.
    """
    with locked(folder / f"{_HASHES}.lock") as refusal:  # what one process has read the next one knows
        known = _known_hashes(folder / _HASHES)
        paths = {str(file): os.path.abspath(file) for file in images}
        unsure = [path for path in dict.fromkeys(paths.values()) if not _as_it_was(path, known.get(path))]
        if unsure:
            with ThreadPoolExecutor(max(workers, 1)) as pool:
                known |= dict(zip(unsure, pool.map(_entry, unsure), strict=True))
            with suppress(OSError):  # where nothing can be remembered, they are read again next time
                if refusal is None:
                    _sweep(folder, _HASHES)
                    text = json.dumps(known)
                    atomic_replace(folder / _HASHES, lambda partial: partial.write_text(text, encoding="utf-8"))
    return {file: str(known[path][4]) for file, path in paths.items()}


def _state(path: str) -> list[int]:
    """Size in bytes, and the times of the last change of content and of entry, in ns."""
    with _reading(path):
        stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _as_it_was(path: str, entry: list[Any] | None) -> bool:
    state = _state(path)
    return entry is not None and entry[:3] == state and max(state[1:]) < entry[3] - _FRESH


def _entry(path: str) -> list[Any]:
    """What is remembered of a file: its state, the time when it was read, its hash."""
    with _reading(path):
        return [*_state(path), time.time_ns(), sha256(path)]


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", "Check the data set's files.") from None


def _known_hashes(file: Path) -> dict[str, list[Any]]:
    """What was remembered; nothing where that is damaged: everything is then read again."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return {str(path): list(entry) for path, entry in known.items() if len(entry) == 5}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@dataclass(frozen=True)
class _Run:
    """A teacher on its way over images; it hands out finished records whenever `SAVE_EVERY` seconds have gone by."""

    teacher: Teacher
    recipe: Recipe
    channels: int
    device: torch.device
    batch: int
    workers: int
    strict: bool

    def __call__(self, images: Mapping[str, str], told: Callable[[int], None] | None) -> Iterator[list[Record]]:
        """Records of the images (hash to file), in their order."""
        kind = row_type(self.teacher.info, self.recipe)
        reader: Any = _Reader(list(images.values()), self.recipe.imgsz, self.channels)
        own = torch.Generator()  # else the loader draws from the one that training goes on with
        batches = -(-len(images) // self.batch)
        workers = min(self.workers, os.cpu_count() or 1, batches if batches > 1 else 0)  # as Ultralytics has it
        loader = DataLoader(reader, self.batch, num_workers=workers, collate_fn=list, generator=own)
        digests = iter(images)
        records: list[Record] = []
        done, saved = 0, time.monotonic()
        for items in loader:
            named = zip(items, digests, strict=False)
            boxed: list[tuple[Letterboxed, str]] = [(item, name) for item, name in named if self._readable(item)]
            seen = self._both([item.image for item, _ in boxed])
            for (item, digest), views in zip(boxed, seen, strict=True):
                records.append(encode(digest, *item[1:], views, self.recipe.imgsz, kind))
            done += len(items)
            if told is not None:
                told(done)
            if time.monotonic() - saved >= SAVE_EVERY or done == len(images):
                yield records
                records, saved = [], time.monotonic()

    def _readable(self, item: Letterboxed | str) -> bool:
        if isinstance(item, str) and self.strict:
            raise UserError(f"{item} is no image that can be read.", "Take it out of the data set, or mend it.")
        return not isinstance(item, str)

    def _both(self, images: Sequence[Tensor]) -> list[tuple[Found, Found]]:
        """What the teacher sees in each image, ``(C, imgsz, imgsz)`` uint8, and in its mirror image.

        The letterboxed image is mirrored, borders and all, as the augmentation does.
        """
        if not images:
            return []
        scaled = torch.stack(list(images)).to(self.device).float() / 255
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
    parts.mkdir(exist_ok=True)
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
