"""A teacher's soft detections read back from disk: one memory-mapped file (its form: `cache_file`)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolokd.compat.boxes import grid
from yolokd.errors import UserError
from yolokd.predictions import HeadInfo
from yolokd.teachers.cache_file import (
    FULL,
    IMAGE,
    MISSING_MASS,
    REBUILD,
    SUFFIX,
    Floats,
    Recipe,
    Record,
    Rows,
    crc,
    raw_hash,
    read_header,
    row_type,
)

__all__ = ["Cache", "Recipe", "Stored"]

_MAKE = "run `yolokd cache`."


@dataclass(frozen=True)
class Stored:
    """N detections as the cache gives them back.

    Attributes:
        scores: ``(N, C)`` class probabilities, the teacher's classes.
        bins: ``(N, 4 * reg_max)`` edge log-probabilities, which are logits; edges (left, top, right, bottom) of the
            stored image, the mirror image where the row belongs to that. None without bins.
        points: ``(N, 2)`` (x, y) of the anchor, in units of the stored image's sides. An anchor in the letterbox's
            border lies outside [0, 1]. None without bins.
        strides: ``(N,)`` pixels of the original image a bin. None without bins.
    """

    scores: Floats
    bins: Floats | None
    points: Floats | None
    strides: Floats | None


class Cache:
    """The soft detections of a teacher on many images, read from one memory-mapped file.

    A detection is a row, ``0 <= id < len(cache)``. Rows of an image are sorted by score, the highest first. A pickled
    cache opens the same file again, or refuses one that was put in its place.

    Args:
        file: the file.
        seal: only a file with this header will do; it was looked through before. None looks through it.

    Raises:
        UserError: it is not a cache, or it was truncated or altered.
    """

    def __init__(self, file: Path, seal: int | None = None) -> None:
        self.file = file
        header, self._seal, start = read_header(file)
        if seal not in (None, self._seal):
            raise UserError(f"{file} was replaced while it was in use.", "Start again.")
        self.recipe = Recipe(**header["recipe"])
        self.imgsz = self.recipe.imgsz
        names = {int(i): name for i, name in header["names"].items()}
        self.info = HeadInfo(names, tuple(header["strides"]), (), header["reg_max"], end2end=False)
        kind = row_type(self.info, self.recipe)
        ends = np.cumsum(
            [start, header["images"] * IMAGE.itemsize, header["values"] * 2, header["rows"] * kind.itemsize]
        )
        if file.stat().st_size != ends[-1]:
            raise UserError(f"{file} has {file.stat().st_size} bytes instead of {ends[-1]}.", REBUILD)
        raw = np.memmap(file, np.uint8, mode="r").view(np.ndarray)
        if seal is None and crc([raw[start:]]) != header["crc"]:
            raise UserError(f"{file} was altered or damaged: its checksum is wrong.", REBUILD)
        self.index = raw[ends[0] : ends[1]].view(IMAGE)
        self.values = raw[ends[1] : ends[2]].view("<f2")
        self.rowdata = raw[ends[2] : ends[3]].view(kind)

    def __reduce__(self) -> tuple[Any, ...]:
        return Cache, (self.file, self._seal)

    def __len__(self) -> int:
        """Rows in all."""
        return len(self.rowdata)

    @classmethod
    def open(cls, folder: Path, recipe: Recipe | None = None, images: Mapping[str, str] | None = None) -> Cache:
        """Open the cache in a folder, if it is the wanted one.

        Args:
            folder: where caches lie.
            recipe: what the detections must depend on; None: whatever the only cache there depends on.
            images: file to SHA-256 of all images that it must hold (see `caching.image_hashes`).

        Raises:
            UserError: none there, damaged, or made by another teacher, with other settings, or of other images.
        """
        cache = cls(_find(folder, recipe))
        if cache.file.stem != cache.recipe.key:
            raise UserError(f"{cache.file} is named for other settings than it holds.", REBUILD)
        absent = [file for file, digest in (images or {}).items() if digest not in cache]
        if absent:
            raise UserError(
                f"{cache.file} does not hold {len(absent)} of {len(images or {})} images: they changed or are new, "
                f"such as {absent[0]}.",
                "Run `yolokd cache` again: only these are added.",
            )
        return cache

    def __contains__(self, image_hash: object) -> bool:
        return isinstance(image_hash, str) and self._position(image_hash) is not None

    def rows(self, image_hash: str, mirrored: bool) -> range:
        """The ids of an image's detections.

        Args:
            image_hash: SHA-256 of the image file, 64 hexadecimal digits.
            mirrored: those of its left-right mirror image.

        Raises:
            UserError: the image is not in the cache.
        """
        position = self._position(image_hash)
        if position is None:
            raise UserError(f"{self.file} does not hold the image {image_hash[:16]}.", "Run `yolokd cache` again.")
        image = self.index[position]
        plain, flipped = (int(count) for count in image["counts"])
        first = int(image["row"]) + (plain if mirrored else 0)
        return range(first, first + (flipped if mirrored else plain))

    def boxes(self, rows: range | NDArray[np.int64]) -> Floats:
        """``(N, 4)`` (x1, y1, x2, y2) in [0, 1] of the image's sides; of a mirrored row, of the mirror image."""
        part = self.rowdata[rows.start : rows.stop] if isinstance(rows, range) else self.rowdata[rows]
        return part["box"].astype(np.float32) / np.float32(FULL)

    def take(self, ids: NDArray[np.int64]) -> Stored:
        """Read rows.

        Args:
            ids: ``(N,)`` in any order, repetitions allowed.

        Raises:
            IndexError: there is no such row.
        """
        ids = np.asarray(ids, np.int64)
        if len(ids) and (ids.min() < 0 or ids.max() >= len(self)):
            raise IndexError(f"rows {ids.min()} to {ids.max()} of {len(self)}")
        rows = self.rowdata[ids]
        classes = len(self.info.names)
        spread = rows["rest"].astype(np.float32) / max(classes - rows["top"].shape[1], 1)
        scores = np.repeat(spread[:, None], classes, 1)
        np.put_along_axis(scores, rows["top"].astype(np.int64), rows["probs"].astype(np.float32), 1)
        if self.info.reg_max == 1:
            return Stored(scores, None, None, None)
        images = self.index[np.searchsorted(self._starts, ids, side="right") - 1]
        anchors, strides = self._grid
        shape, resized, pad = (images[name].astype(np.float32) for name in ("shape", "resized", "pad"))
        flipped = ids - images["row"] >= images["counts"][:, 0]
        left = np.where(flipped, self.imgsz - pad[:, 1] - resized[:, 1], pad[:, 1])
        points = (anchors[rows["anchor"]] - np.stack([left, pad[:, 0]], 1)) / resized[:, ::-1]
        return Stored(scores, self._bins(rows, images), points, strides[rows["anchor"]] * shape.max(1) / self.imgsz)

    def _bins(self, rows: Rows, images: Rows) -> Floats:
        held = np.unpackbits(rows["held"], axis=1, count=4 * self.info.reg_max).astype(bool)
        bins = np.full(held.shape, np.log(MISSING_MASS), np.float32)
        counts = held.sum(1)
        before = counts.cumsum() - counts
        first = images["value"].astype(np.int64) + rows["value"]
        bins[held] = self.values[np.repeat(first - before, counts) + np.arange(counts.sum())]
        return bins

    @cached_property
    def _starts(self) -> NDArray[np.uint32]:
        return np.ascontiguousarray(self.index["row"])

    @cached_property
    def _grid(self) -> tuple[Floats, Floats]:
        points, strides = grid(self.imgsz, self.info.strides)
        return points.numpy(), strides.numpy()

    def _position(self, image_hash: str) -> int | None:
        digest = raw_hash(image_hash)
        position = bisect_left(self.index["hash"], digest)
        return position if position < len(self.index) and self.index["hash"][position] == digest else None

    def records(self) -> Iterator[Record]:
        """The images as they are written; nothing is read before it is used."""
        ends = np.append(self.index["row"], len(self.rowdata)), np.append(self.index["value"], len(self.values))
        for i in range(len(self.index)):
            rows, values = (slice(int(end[i]), int(end[i + 1])) for end in ends)
            yield Record(self.index[i : i + 1], self.rowdata[rows], self.values[values])


def _find(folder: Path, recipe: Recipe | None) -> Path:
    """The file of a recipe, or the only one there."""
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not files:
        raise UserError(f"There is no teacher's cache in {folder}.", f"Make one: {_MAKE}")
    if recipe is None:
        if len(files) > 1:
            raise UserError(f"{folder} holds {len(files)} caches.", "Say which teacher and which settings.")
        return files[0]
    file = folder / f"{recipe.key}{SUFFIX}"
    if file.is_file():
        return file
    others: list[list[str]] = [recipe.differences(read_header(other)[0]["recipe"]) for other in files]
    raise UserError(
        f"The teacher's cache in {folder} was made otherwise: {'; '.join(sorted(others, key=len)[0])}.",
        f"Go back to what it was made with, or make another: {_MAKE}",
    )
