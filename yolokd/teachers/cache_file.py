"""The file of a teacher's soft detections: its form, and how it is written.

It holds a header (JSON), one record an image sorted by the image's SHA-256, the values of the bins, and one record a
detection. It is named after the hash of everything that its detections depend on beside the images (`Recipe.key`),
which stands in the header as well; an image is found by the SHA-256 of its file. CRC-32 sums of header and body are
compared whenever a file is opened: at some GB/s that takes less than a second even for COCO, so that a damaged file is
refused before training and not in the middle of it.

How a detection is stored, and what that loses:

- box: four 16-bit fixed-point numbers in units of the original image's sides, wrong by at most 1/131070 of a side
  (.005 px of 640). Not derived from bins and anchor: teachers without bins have boxes too, and the coding of the bins
  may be coarser than that of a box.
- class probabilities: the ``top_k`` highest as float16, and the sum of the others. Classes are sigmoids, so that sum
  may be anything from 0 on; when read it is spread evenly over those classes. The score is the highest probability.
- bins: the log-probability of each bin that holds at least ``SMALLEST_MASS``, as float16, and a bit a bin that tells
  which these are. The others are read as ``MISSING_MASS``, the fill with the smallest divergence for YOLOv8-s on COCO:
  1e-4 nats an edge on average and 3e-4 at most, with 29 instead of 64 values a detection.
- anchor: its index in the grid of all levels, where there are bins.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolokd.compat.files import atomic_replace
from yolokd.errors import UserError
from yolokd.predictions import HeadInfo

FORMAT = 1
SUFFIX = ".soft"
REBUILD = "Delete it; it is built again."
MAX_ROWS = (1 << 32) - 1  # where an image begins is written in four bytes
SMALLEST_MASS = 1e-4
MISSING_MASS = 2e-5
FULL = 65535  # the right or lower border of an image in fixed point
_MAGIC = b"yolokdSD"
_PROLOGUE = struct.Struct("<8sII")  # magic, bytes of the header, its CRC-32
_CHUNK = 1 << 24
_SAID = {"teacher": "the teacher", "imgsz": "teacher_imgsz", "version": "the format"}

Floats = NDArray[np.float32]
Rows = NDArray[Any]  # records
IMAGE = np.dtype(
    [
        ("hash", "S32"),
        ("shape", "<u4", (2,)),  # (height, width) of the original
        ("resized", "<u2", (2,)),  # ... of the image inside the teacher's square
        ("pad", "<u2", (2,)),  # (top, left) there
        ("row", "<u4"),  # the first row
        ("counts", "<u2", (2,)),  # rows of the image as it is, and of its mirror image, which follow
        ("value", "<u8"),  # the first value; its rows count on from there
    ]
)


@dataclass(frozen=True)
class Recipe:
    """What stored detections depend on, beside the image.

    Attributes:
        teacher: SHA-256 of the teacher's file.
        imgsz: side of the teacher's square input, pixels.
        conf: detections whose highest class probability is above it are kept.
        iou: of two boxes of one class that overlap more, the less sure one is dropped.
        top_k: class probabilities kept a detection.
        max_det: detections kept an image.
        precision: number format of the teacher's forward pass.
        version: of the file's format.
    """

    teacher: str
    imgsz: int
    conf: float = 0.1
    iou: float = 0.7
    top_k: int = 5
    max_det: int = 300
    precision: str = "fp32"
    version: int = FORMAT

    @property
    def key(self) -> str:
        """The name of the file: 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What another recipe, as a header holds it, has otherwise: for people."""
        mine = asdict(self)
        return [
            f"{_SAID.get(name, name)} is {str(mine[name])[:12]}, was {str(other.get(name))[:12]}"
            for name in mine
            if mine[name] != other.get(name)
        ]


@dataclass(frozen=True)
class Found:
    """What a teacher sees in one image, the surest first.

    Attributes:
        boxes: ``(N, 4)`` (x1, y1, x2, y2) in pixels of the teacher's square input.
        scores: ``(N, C)`` class probabilities.
        bins: ``(N, 4 * reg_max)`` edge logits, or None.
        anchors: ``(N,)`` index of the anchor that the bins are measured from, or None.
    """

    boxes: Floats
    scores: Floats
    bins: Floats | None = None
    anchors: NDArray[np.int64] | None = None


class Record(NamedTuple):
    """An image with its detections, ready to be written: an `IMAGE` record, its rows, their values."""

    image: Rows
    rows: Rows
    values: NDArray[np.float16]


def raw_hash(digest: str) -> bytes:
    """64 hexadecimal digits as a numpy record gives the hash back: without zeros at its end."""
    return bytes.fromhex(digest).rstrip(b"\0")


def row_type(info: HeadInfo, recipe: Recipe) -> np.dtype[Any]:
    """The record of a detection."""
    classes = len(info.names)
    kept = min(recipe.top_k, classes)
    fields: list[Any] = [
        ("box", "<u2", (4,)),
        ("top", "u1" if classes <= 256 else "<u2", (kept,)),  # the classes of probs
        ("probs", "<f2", (kept,)),
        ("rest", "<f2"),
    ]
    if info.reg_max > 1:
        held = ("held", "u1", (-(-4 * info.reg_max // 8),))  # a bit a bin
        fields += [("anchor", "<u4"), ("value", "<u4"), held]
    return np.dtype(fields)


def encode(
    digest: str,
    shape: tuple[int, int],
    resized: tuple[int, int],
    pad: tuple[int, int],
    views: tuple[Found, Found],
    imgsz: int,
    kind: np.dtype[Any],
) -> Record:
    """Bring what was seen in an image into the form of the file.

    A box without area inside the image (it lay in the letterbox's border) is left out.

    Args:
        digest: SHA-256 of the image file.
        shape: (height, width) of the original, pixels.
        resized: ... of the image inside the teacher's square.
        pad: (top, left) there.
        views: what was seen in the image, and in its mirror image.
        imgsz: side of the square.
        kind: the record of a detection.
    """
    top, left = pad
    parts = []
    values: list[NDArray[np.float16]] = []
    for found, start in zip(views, (left, imgsz - left - resized[1]), strict=True):
        inside = (found.boxes - np.array([start, top] * 2)) / np.array([*resized[::-1]] * 2)
        fixed = np.rint(inside.clip(0, 1) * FULL).astype(np.uint16)
        rows = np.zeros(len(fixed), kind)
        rows["box"] = fixed
        _encode_scores(rows, found.scores)
        seen = (fixed[:, 2:] > fixed[:, :2]).all(1)
        rows = rows[seen]
        if found.bins is not None and found.anchors is not None:
            rows["anchor"] = found.anchors[seen]
            values.append(_encode_bins(rows, found.bins[seen], sum(map(len, values))))
        parts.append(rows)
    image = np.zeros(1, IMAGE)
    image["hash"], image["shape"], image["resized"], image["pad"] = bytes.fromhex(digest), shape, resized, pad
    image["counts"] = [len(rows) for rows in parts]
    return Record(image, np.concatenate(parts), np.concatenate([np.zeros(0, np.float16), *values]))


def _encode_scores(rows: Rows, scores: Floats) -> None:
    kept = rows["top"].shape[1]
    top = np.argsort(-scores, 1, kind="stable")[:, :kept]  # of equal ones, the first
    rows["top"] = top
    rows["probs"] = np.take_along_axis(scores, top, 1)
    rest = scores.copy()
    np.put_along_axis(rest, top, 0, 1)
    rows["rest"] = rest.sum(1)


def _encode_bins(rows: Rows, bins: Floats, start: int) -> NDArray[np.float16]:
    """Fill in which bins are held and where; return their values. ``start``: values of the image before these."""
    edges = bins.reshape(len(bins), 4, bins.shape[1] // 4).astype(np.float64)
    edges = edges - edges.max(2, keepdims=True)
    logs = (edges - np.log(np.exp(edges).sum(2, keepdims=True))).reshape(bins.shape)
    held = logs >= np.log(SMALLEST_MASS)
    counts = held.sum(1)
    rows["held"] = np.packbits(held, axis=1)
    rows["value"] = start + counts.cumsum() - counts
    values: NDArray[np.float16] = logs[held].astype(np.float16)
    return values


def write(file: Path, recipe: Recipe, info: HeadInfo, records: Sequence[Record]) -> None:
    """Write a file whole or not at all; the same bytes whatever the order of the records.

    Args:
        file: where it belongs.
        recipe: what the detections depend on.
        info: the teacher's head: names, strides and reg_max are kept.
        records: the images, each once.

    Raises:
        UserError: more than ``MAX_ROWS`` detections.
    """
    records = sorted(records, key=lambda record: bytes(record.image["hash"][0]))
    rows = np.array([len(record.rows) for record in records], np.int64)
    values = np.array([len(record.values) for record in records], np.int64)
    refuse_rows(int(rows.sum()))
    index = np.concatenate([record.image for record in records])
    index["row"], index["value"] = rows.cumsum() - rows, values.cumsum() - values
    facts = {
        "recipe": asdict(recipe),
        "names": {str(i): name for i, name in info.names.items()},
        "strides": list(info.strides),
        "reg_max": info.reg_max,
        "images": len(records),
        "values": int(values.sum()),
        "rows": int(rows.sum()),
    }
    body = [index, *(record.values for record in records), *(record.rows for record in records)]

    def save(partial: Path) -> None:
        with partial.open("wb") as out:
            out.write(_header({**facts, "crc": crc(body)}))
            for part in body:
                out.write(part.tobytes())

    atomic_replace(file, save)


def refuse_rows(rows: int) -> None:
    """Refuse more detections than a file can hold.

    Raises:
        UserError: there are more than ``MAX_ROWS``.
    """
    if rows > MAX_ROWS:
        raise UserError(
            f"The teacher's cache would hold {rows:,} detections; it can hold {MAX_ROWS:,}.",
            "Take a part of the images with fraction=, or leave out teacher_cache= and let the teacher run.",
        )


def crc(parts: Iterable[NDArray[Any]]) -> int:
    """The CRC-32 of arrays one after the other."""
    total = 0
    for part in parts:
        flat = np.ascontiguousarray(part).view(np.uint8)
        for start in range(0, len(flat), _CHUNK):
            total = zlib.crc32(flat[start : start + _CHUNK].data, total)
    return total


def _header(facts: Mapping[str, Any]) -> bytes:
    text = json.dumps(facts, sort_keys=True).encode()
    text += b" " * (-(len(text) + _PROLOGUE.size) % 64)  # what follows is aligned
    return _PROLOGUE.pack(_MAGIC, len(text), zlib.crc32(text)) + text


def read_header(file: Path) -> tuple[dict[str, Any], int, int]:
    """The header, its checksum, and where the body begins.

    Raises:
        UserError: the file is none of ours, damaged at its beginning, or written by another version.
    """
    with file.open("rb") as stream:
        prologue = stream.read(_PROLOGUE.size)
        magic, length, seal = _PROLOGUE.unpack(prologue) if len(prologue) == _PROLOGUE.size else (b"", 0, 0)
        text = stream.read(length) if magic == _MAGIC else b""
    if magic != _MAGIC or len(text) != length or zlib.crc32(text) != seal:
        raise UserError(f"{file} is no teacher's cache, or its beginning is damaged.", REBUILD)
    facts: dict[str, Any] = json.loads(text)
    if facts["recipe"]["version"] != FORMAT:
        raise UserError(f"{file} was written by another version of yolokd.", REBUILD)
    return facts, seal, _PROLOGUE.size + length
