from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from yolokd.data import duplicates, shapes
from yolokd.data.duplicates import count_ones, near_duplicates, perceptual_hash

Picture = NDArray[np.uint8]


def scene(seed: int, size: tuple[int, int] = (120, 160)) -> Picture:
    """Blurred blobs: like a photograph, most of it is in the low frequencies."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(30, 226, (7, 9, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 6, coarse.shape)
    return np.clip(coarse + grain, 0, 255).astype(np.uint8)


def save(file: Path, picture: Picture, quality: int = 95) -> str:
    assert cv2.imwrite(str(file), picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return str(file)


def smaller(picture: Picture) -> Picture:
    return cv2.resize(picture, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)


def toned(picture: Picture, factor: float, shift: float) -> Picture:
    return np.clip((picture.astype(np.float32) - 128) * factor + 128 + shift, 0, 255).astype(np.uint8)


COPIES: dict[str, tuple[Callable[[Picture], Picture], int]] = {
    "same": (lambda picture: picture, 95),
    "quality 50": (lambda picture: picture, 50),
    "60 %": (smaller, 95),
    "brighter": (lambda picture: toned(picture, 1.0, 25), 95),
    "contrast": (lambda picture: toned(picture, 1.2, 0), 95),
    "mirrored": (lambda picture: picture[:, ::-1].copy(), 95),
    "all of it": (lambda picture: toned(smaller(picture)[:, ::-1], 1.1, 10), 50),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Ten validation images."""
    folder = tmp_path_factory.mktemp("kept")
    return [save(folder / f"{seed}.jpg", scene(seed)) for seed in range(10)]


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_found_and_named_with_its_original(copy: str, kept: list[str], tmp_path: Path) -> None:
    change, quality = COPIES[copy]
    copies = [save(tmp_path / f"{seed}.jpg", change(scene(seed)), quality) for seed in range(10)]
    assert near_duplicates(copies, kept) == dict(zip(copies, kept, strict=True))


def test_distinct_images_are_kept(kept: list[str], tmp_path: Path) -> None:
    others = [save(tmp_path / f"{seed}.jpg", scene(seed)) for seed in range(10, 60)]
    assert near_duplicates(others, kept) == {}


def test_distinct_images_of_shapes_are_kept(tmp_path: Path) -> None:
    root = shapes.generate(tmp_path / "set", images=(60, 30, 1))
    train, val = ([str(file) for file in sorted((root / "images" / s).iterdir())] for s in ("train", "val"))
    assert near_duplicates(train, val) == {}


@pytest.mark.parametrize(("seed", "axes"), [(1, (14, 6)), (2, (14, 6)), (3, (30, 12))])
def test_what_is_the_same_but_for_one_object_is_told_apart(seed: int, axes: tuple[int, int], tmp_path: Path) -> None:
    """The hash alone would take them for one; the correlation does not."""
    before, after = scene(seed), scene(seed)
    cv2.ellipse(after, (50, 60), axes, 20, 0, 360, (255, 255, 255), -1)
    one, other = save(tmp_path / "1.png", before), save(tmp_path / "2.png", after)
    (_, first), (_, second) = duplicates._thumbnails([one, other], 1)
    assert bin(perceptual_hash(first) ^ perceptual_hash(second)).count("1") <= duplicates.NEAR_BITS
    assert near_duplicates([one], [other]) == {}


def test_of_several_the_most_alike_is_named(kept: list[str], tmp_path: Path) -> None:
    worse = save(tmp_path / "worse.jpg", toned(scene(3), 1.2, 20), 30)
    file = save(tmp_path / "file.png", scene(3))
    assert near_duplicates([file], [worse, *kept]) == {file: kept[3]}


def test_unreadable_files_are_passed_over_on_both_sides(kept: list[str], tmp_path: Path) -> None:
    text, empty = tmp_path / "text.jpg", tmp_path / "empty.png"
    text.write_text("no image")
    empty.write_bytes(b"")
    bad = [str(text), str(empty), str(tmp_path / "missing.jpg")]
    copy = save(tmp_path / "copy.jpg", scene(4))
    assert near_duplicates([*bad, copy], [*bad, *kept]) == {copy: kept[4]}
    assert near_duplicates([copy], bad) == {}
    assert near_duplicates([], kept) == {}


def test_images_of_one_tone_resemble_nothing(tmp_path: Path) -> None:
    black, grey = (save(tmp_path / f"{tone}.png", np.full((64, 64, 3), tone, np.uint8)) for tone in (0, 128))
    assert near_duplicates([black], [black, grey]) == {}


def test_colour_grey_and_other_formats_are_compared(kept: list[str], tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", cv2.cvtColor(scene(2), cv2.COLOR_BGR2GRAY))
    clear = save(tmp_path / "clear.png", cv2.cvtColor(scene(5), cv2.COLOR_BGR2BGRA))
    assert near_duplicates([grey, clear], kept) == {grey: kept[2], clear: kept[5]}


def test_ones_are_counted_with_and_without_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 2**63, (5, 2), dtype=np.uint64)
    wanted = [[bin(int(value)).count("1") for value in row] for row in values]
    assert count_ones(values).tolist() == wanted
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert count_ones(values).tolist() == wanted
    assert count_ones(values[:, ::-1]).tolist() == [row[::-1] for row in wanted]


def test_memory_does_not_grow_with_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where each hash is near to all others, as of a fixed camera."""
    rng = np.random.default_rng(0)
    one = cv2.resize(rng.integers(0, 256, (8, 8), dtype=np.uint8), (64, 64))
    thumbs = np.clip(one + rng.normal(0, 8, (200, 64, 64)), 0, 255).astype(np.uint8)
    monkeypatch.setattr(duplicates, "_thumbnail", lambda file: thumbs[int(file)])
    monkeypatch.setattr(duplicates, "ALIKE", 2.0)  # never reached: everything is compared
    names = [str(i) for i in range(200)]
    peaks = []
    for number in (50, 200):
        tracemalloc.start()
        assert near_duplicates(names[:number], names, workers=1) == {}
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    table = thumbs.nbytes
    assert peaks[1] < peaks[0] + table  # with all pairs at once the peak would be 200 times the table and more
    assert peaks[1] < 8 * table


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "twice"), [("bccd416", {"BloodImage_00038": "BloodImage_00037"}), ("aquarium416", {})]
)
def test_real_training_images_are_kept_but_for_a_view_taken_twice(
    name: str, twice: dict[str, str], shared: Path
) -> None:
    """Blood cells all look alike, and of an aquarium many photographs show one scene."""
    images = shared / "data" / name / "images"
    train = [str(file) for file in sorted((images / "train").glob("*.jpg"))]
    others = [str(file) for split in ("val", "test") for file in sorted((images / split).glob("*.jpg"))]
    assert train
    found = near_duplicates(train, others)
    assert {Path(file).stem: Path(other).stem for file, other in found.items()} == twice


@pytest.mark.shared
@pytest.mark.parametrize("name", ["bccd416", "aquarium416", "tinycoco100"])
def test_copies_of_real_images_are_found(name: str, shared: Path, tmp_path: Path) -> None:
    originals = [str(file) for file in sorted((shared / "data" / name / "images" / "val").glob("*.jpg"))]
    wanted = {}
    for i, file in enumerate(originals[::5]):
        change, quality = list(COPIES.values())[i % len(COPIES)]
        wanted[save(tmp_path / f"{i}.jpg", change(cv2.imread(file)), quality)] = file
    assert near_duplicates(list(wanted), originals) == wanted
