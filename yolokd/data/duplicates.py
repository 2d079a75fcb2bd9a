"""Images that nearly equal an image of the validation or test split: they must not be trained on, labelled or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from ultralytics.utils import NUM_THREADS
from ultralytics.utils.patches import imread

Thumb = NDArray[np.uint8]  # (64, 64), grey

# Measured on 1,102 images (Aquarium, BCCD, COCO). JPEG quality 50, 60 % of the size, 25 grey levels brighter, 20 %
# darker, mirrored, and mirror + size + contrast + JPEG: at most 8 bits apart, correlation at least .982. Contrast
# x 1.2, which clips: 6 bits and .964 in 99 of 100. Training against validation and test images (120,000 pairs): one
# pair is kept, a field of blood cells photographed twice (6 bits, .960); the next with 10 bits or fewer show one scene
# with other animals and correlate by .910 at most. Of all 274,000 pairs three are kept, each one view taken twice.
# Neither number is enough alone: distinct images come down to 6 bits, and dark ones 30 bits apart reach .974.
NEAR_BITS = 10
ALIKE = 0.95
_SIDE = 64
_FLAT = 1.0  # grey levels of standard deviation; below, hash and correlation are those of the noise
_READ_AT_ONCE = 1024  # files
_COMPARED_AT_ONCE = 64  # images


class _Known(NamedTuple):
    """The images to compare with."""

    files: list[str]
    thumbs: Thumb  # (M, 64, 64)
    hashes: NDArray[np.uint64]  # (M, 2): the image's, its mirror image's


def near_duplicates(files: Sequence[str], against: Sequence[str], workers: int = NUM_THREADS) -> dict[str, str]:
    """Find the files that show what another image shows, also re-encoded, resized, brightened or mirrored.

    A perceptual hash picks the candidates, the correlation of small grey images decides. Memory grows with
    ``len(against)`` only (4 KiB each). A copy that is cut at its borders is not found, and an image of one tone
    resembles nothing.

    Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010,
    https://www.phash.org/docs/pubs/thesis_zauner.pdf, section 3.2.1. Departure: the image is reduced by averages over
    areas, which stands in for the paper's mean filter.

    Args:
        files: images that might be trained on.
        against: validation and test images. Unreadable ones are passed over on both sides.
        workers: threads that read.

    Returns:
        each such file and the image of ``against`` that it resembles, in the order of ``files``.
    """
    read = list(_thumbnails(against, workers))
    if not read:
        return {}
    hashes = np.array([[perceptual_hash(thumb), perceptual_hash(thumb[:, ::-1])] for _, thumb in read], np.uint64)
    known = _Known([file for file, _ in read], np.stack([thumb for _, thumb in read]), hashes)
    closest = ((file, _closest(thumb, known)) for file, thumb in _thumbnails(files, workers))
    return {file: other for file, other in closest if other is not None}


def perceptual_hash(thumb: Thumb) -> int:
    """Hash an image by the signs of its low frequencies, around their median.

    Args:
        thumb: ``(64, 64)``, grey.

    Returns:
        64 bits; similar images differ in few of them.
    """
    small = cv2.resize(thumb, (_SIDE // 2, _SIDE // 2), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[1:9, 1:9]  # without the first row and column: they follow the lighting
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def _thumbnails(files: Sequence[str], workers: int) -> Iterator[tuple[str, Thumb]]:
    """Small images of the files in their order, without those that cannot be read or show nothing."""
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for start in range(0, len(files), _READ_AT_ONCE):
            part = files[start : start + _READ_AT_ONCE]
            for file, thumb in zip(part, pool.map(_thumbnail, part), strict=True):
                if thumb is not None:
                    yield file, thumb


def _thumbnail(file: str) -> Thumb | None:
    try:
        image = imread(file, flags=cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # e.g. more pixels than OpenCV allows
        return None
    if image is None:
        return None
    thumb: Thumb = np.asarray(cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    return thumb if thumb.std() >= _FLAT else None


def _closest(thumb: Thumb, known: _Known) -> str | None:
    """The image that a small image resembles: of those with the nearest hashes the one that correlates most."""
    distances = count_ones(known.hashes ^ np.uint64(perceptual_hash(thumb))).min(axis=1)  # (M,)
    near = np.flatnonzero(distances <= NEAR_BITS)
    near = near[np.argsort(distances[near], kind="stable")]
    sides = _normalized(np.stack([thumb, thumb[:, ::-1]]))  # (2, 4096)
    for start in range(0, len(near), _COMPARED_AT_ONCE):  # of a fixed camera all may be near
        part = near[start : start + _COMPARED_AT_ONCE]
        alike = (_normalized(known.thumbs[part]) @ sides.T).max(axis=1)
        best = int(alike.argmax())
        if alike[best] >= ALIKE:
            return known.files[int(part[best])]
    return None


def _normalized(thumbs: Thumb) -> NDArray[np.float32]:
    """``(K, 64, 64)`` to ``(K, 4096)`` of mean 0 and length 1, so that a product is a correlation."""
    rows = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)  # not 0: nothing flat comes here
    return rows


def count_ones(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """How many bits are set in each value; NumPy can tell from version 2 on.

    >>> count_ones(np.array([0, 1, 2**64 - 1], np.uint64)).tolist()
    [0, 1, 64]
    """
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(values), np.uint8)
    in_bytes = np.ascontiguousarray(values)[..., None].view(np.uint8)  # (..., 8)
    return np.asarray(np.unpackbits(in_bytes, axis=-1).sum(axis=-1), np.uint8)
