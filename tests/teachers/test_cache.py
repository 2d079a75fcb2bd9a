from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolokd.errors import UserError
from yolokd.predictions import HeadInfo
from yolokd.teachers import cache_file
from yolokd.teachers.cache import Cache, Recipe
from yolokd.teachers.cache_file import SUFFIX, Found, encode, row_type, write

INFO = HeadInfo({i: f"class {i}" for i in range(12)}, (8, 16, 32), (), 16, end2end=False)
RECIPE = Recipe("a" * 64, 64)
ANCHORS = 8 * 8 + 4 * 4 + 2 * 2
WIDE, TALL, EMPTY = "1" * 64, "2" * 62 + "00", "3" * 64  # a hash may end with zeros


def found(count: int, seed: int, info: HeadInfo = INFO) -> Found:
    rng = np.random.default_rng(seed)
    low = rng.uniform(16, 30, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 15, (count, 2))], 1).astype(np.float32)
    scores = rng.uniform(0, 1, (count, len(info.names))).astype(np.float32) ** 4
    if info.reg_max == 1:
        return Found(boxes, scores)
    bins = rng.normal(0, 4, (count, 4 * info.reg_max)).astype(np.float32)
    return Found(boxes, scores, bins, rng.integers(0, ANCHORS, count))


def views(seed: int, info: HeadInfo = INFO) -> tuple[Found, Found]:
    return found(4, seed, info), found(3, seed + 1, info)


def store(folder: Path, info: HeadInfo = INFO, recipe: Recipe = RECIPE) -> Path:
    """Three images: 100 x 200, 99 x 33 and one in which nothing was seen."""
    kind = row_type(info, recipe)
    nothing = (found(0, 0, info), found(0, 0, info))
    file = folder / f"{recipe.key}{SUFFIX}"
    records = [
        encode(EMPTY, (50, 50), (64, 64), (0, 0), nothing, 64, kind),
        encode(TALL, (99, 33), (64, 22), (0, 21), views(20, info), 64, kind),
        encode(WIDE, (100, 200), (32, 64), (16, 0), views(10, info), 64, kind),
    ]
    write(file, recipe, info, records)
    return file


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    store(tmp_path)
    return Cache.open(tmp_path, RECIPE)


def test_rows_are_counted_through_the_file(cache: Cache) -> None:
    assert len(cache) == 14
    assert [cache.rows(image, flip) for image in (WIDE, TALL, EMPTY) for flip in (False, True)] == [
        range(4), range(4, 7), range(7, 11), range(11, 14), range(14, 14), range(14, 14),
    ]  # fmt: skip
    assert cache.info == INFO
    assert cache.imgsz == 64


@pytest.mark.parametrize(
    ("image", "flip", "seed", "pad", "sides"),
    [
        (WIDE, False, 10, (0, 16), (64, 32)),
        (WIDE, True, 11, (0, 16), (64, 32)),
        (TALL, False, 20, (21, 0), (22, 64)),
        (TALL, True, 21, (21, 0), (22, 64)),
    ],
)
def test_what_was_written_comes_back(
    cache: Cache, image: str, flip: bool, seed: int, pad: tuple[int, int], sides: tuple[int, int]
) -> None:
    rows = cache.rows(image, flip)
    was, got = found(len(rows), seed), cache.take(np.array(rows))
    expected = ((was.boxes - np.tile(pad, 2)) / np.tile(sides, 2)).clip(0, 1)
    assert np.abs(cache.boxes(rows) - expected).max() < 1 / 131070 + 1e-6
    assert np.array_equal(cache.boxes(rows), cache.boxes(np.array(rows)))

    order = np.argsort(-was.scores, 1)
    top, rest = order[:, :5], order[:, 5:]
    taken, given_ = (np.take_along_axis(s, top, 1) for s in (got.scores, was.scores))
    assert np.allclose(taken, given_, rtol=2**-10)
    evenly = np.take_along_axis(was.scores, rest, 1).mean(1, keepdims=True)
    assert np.allclose(np.take_along_axis(got.scores, rest, 1), evenly, rtol=2**-10, atol=1e-7)

    assert got.bins is not None
    assert was.bins is not None
    p, q = (softmax(x.reshape(-1, 4, 16)) for x in (was.bins, got.bins))
    assert (p * np.log(p / q)).sum(2).max() < 1.5e-3
    sure = p > cache_file.SMALLEST_MASS
    logs = got.bins.reshape(-1, 4, 16)
    assert np.allclose(logs[sure], np.log(p[sure]), rtol=2**-10, atol=1e-6)
    assert np.allclose(logs[~sure], np.log(2e-5))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def test_points_and_strides_are_those_of_the_original(tmp_path: Path) -> None:
    """A 101 x 45 image lies at x 18 to 46 of 64 pixels, its mirror image at 17 to 45 wherever the padding is odd."""
    kind = row_type(INFO, RECIPE)
    seen = tuple(replace(found(2, 1), anchors=np.array([9, 81])) for _ in range(2))  # cell (1, 1) of P3; (0, 1) of P5
    write(
        tmp_path / f"{RECIPE.key}{SUFFIX}", RECIPE, INFO,
        [encode(WIDE, (101, 45), (64, 29), (0, 17), (seen[0], seen[1]), 64, kind)],
    )  # fmt: skip
    cache = Cache.open(tmp_path)
    got = cache.take(np.arange(4))
    assert got.points is not None
    assert got.strides is not None
    expected = [
        [(12 - 17) / 29, 12 / 64],
        [(48 - 17) / 29, 16 / 64],
        [(12 - 18) / 29, 12 / 64],
        [(48 - 18) / 29, 16 / 64],
    ]
    assert np.allclose(got.points, expected, atol=1e-6)
    assert np.allclose(got.strides, np.array([8, 32, 8, 32]) * 101 / 64)


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(0, 13), max_size=20))
def test_rows_come_in_any_order(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    folder = tmp_path_factory.mktemp("any")
    store(folder)
    cache = Cache.open(folder)
    everything, some = cache.take(np.arange(14)), cache.take(np.array(ids, np.int64))
    for name in ("scores", "bins", "points", "strides"):
        assert np.array_equal(getattr(some, name), getattr(everything, name)[ids])


@pytest.mark.parametrize("ids", [[-1], [14], [0, 99]])
def test_a_row_that_is_not_there(cache: Cache, ids: list[int]) -> None:
    with pytest.raises(IndexError):
        cache.take(np.array(ids))


def test_a_head_without_bins(tmp_path: Path) -> None:
    info = replace(INFO, reg_max=1, names={0: "a", 1: "b"}, strides=())
    store(tmp_path, info)
    cache = Cache.open(tmp_path)
    got = cache.take(np.arange(len(cache)))
    assert (got.bins, got.points, got.strides) == (None, None, None)
    assert np.allclose(got.scores[:4], found(4, 10, info).scores, rtol=2**-10)  # two classes: nothing is left to spread


def test_of_equal_classes_the_first_are_kept() -> None:
    info = replace(INFO, names={i: str(i) for i in range(80)}, reg_max=1)
    seen = replace(found(1, 0, info), scores=np.full((1, 80), 0.25, np.float32))
    record = encode(WIDE, (64, 64), (64, 64), (0, 0), (seen, seen), 64, row_type(info, RECIPE))
    assert record.rows["top"].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert record.rows["rest"].tolist() == [75 * 0.25] * 2


def test_a_box_in_the_border_is_left_out(tmp_path: Path) -> None:
    seen = found(3, 0)
    seen.boxes[1] = [20, 2, 40, 14]  # above the image, which begins at 16
    seen.boxes[2] = [20, 2, 40, 24]
    record = encode(WIDE, (100, 200), (32, 64), (16, 0), (seen, found(0, 0)), 64, row_type(INFO, RECIPE))
    assert list(record.rows["anchor"]) == [seen.anchors[0], seen.anchors[2]]  # type: ignore[index]
    assert record.rows["box"][1].tolist() == [round(20 / 64 * 65535), 0, round(40 / 64 * 65535), 16384]


def test_the_order_of_the_images_changes_nothing(tmp_path: Path) -> None:
    first = store(tmp_path).read_bytes()
    cache = Cache.open(tmp_path)
    write(tmp_path / f"again{SUFFIX}", RECIPE, INFO, list(cache.records())[::-1])
    assert (tmp_path / f"again{SUFFIX}").read_bytes() == first


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_or_a_lost_end_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    file = store(folder)
    whole = file.read_bytes()
    if data.draw(st.booleans()):
        at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    else:
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(UserError) as error:
        Cache.open(folder)
    assert len(str(error.value).splitlines()) == 2
    assert str(file) in error.value.problem


def test_a_longer_file_is_refused(tmp_path: Path) -> None:
    file = store(tmp_path)
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(UserError, match="bytes instead of"):
        Cache.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": "b" * 64}, "the teacher is bbbbbbbbbbbb, was aaaaaaaaaaaa"),
        ({"imgsz": 128}, "teacher_imgsz is 128, was 64"),
        ({"conf": 0.2}, "conf is 0.2, was 0.1"),
        ({"iou": 0.5}, "iou is 0.5, was 0.7"),
        ({"top_k": 3}, "top_k is 3, was 5"),
        ({"max_det": 10}, "max_det is 10, was 300"),
        ({"precision": "bf16"}, "precision is bf16, was fp32"),
        ({"version": 0}, "the format is 0, was 1"),
        ({"conf": 0.2, "iou": 0.5}, "conf is 0.2, was 0.1; iou is 0.5, was 0.7"),
    ],
)
def test_what_changed_is_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    store(tmp_path)
    with pytest.raises(UserError) as error:
        Cache.open(tmp_path, replace(RECIPE, **change))  # type: ignore[arg-type]
    assert said in error.value.problem
    assert len(str(error.value).splitlines()) == 2


def test_a_file_under_another_name_is_refused(tmp_path: Path) -> None:
    other = replace(RECIPE, conf=0.2)
    store(tmp_path).rename(tmp_path / f"{other.key}{SUFFIX}")
    with pytest.raises(UserError, match="named for other settings"):
        Cache.open(tmp_path, other)


def test_an_unknown_image_is_named(tmp_path: Path) -> None:
    store(tmp_path)
    with pytest.raises(UserError, match=r"does not hold 1 of 2 images.*b\.jpg"):
        Cache.open(tmp_path, RECIPE, {"a.jpg": WIDE, "b.jpg": "4" * 64})
    cache = Cache.open(tmp_path, RECIPE, {"a.jpg": WIDE, "c.jpg": EMPTY})
    with pytest.raises(UserError, match="4444444444444444"):
        cache.rows("4" * 64, False)


def test_none_there_and_one_of_many(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no teacher's cache"):
        Cache.open(tmp_path, RECIPE)
    store(tmp_path)
    store(tmp_path, recipe=replace(RECIPE, conf=0.2))
    assert Cache.open(tmp_path, RECIPE).recipe == RECIPE
    with pytest.raises(UserError, match="holds 2 caches"):
        Cache.open(tmp_path)


def test_a_worker_gets_the_same_file_or_none(cache: Cache, tmp_path: Path) -> None:
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).boxes(range(14)), cache.boxes(range(14)))
    before = cache.boxes(range(14))
    records = list(cache.records())[:2]
    write(cache.file, RECIPE, INFO, records)  # as a run that adds images does
    assert np.array_equal(cache.boxes(range(14)), before)  # what is open stays as it was
    with pytest.raises(UserError, match="replaced"):
        pickle.loads(sent)


def test_more_rows_than_a_file_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_file, "MAX_ROWS", 13)
    with pytest.raises(UserError, match="14 detections; it can hold 13"):
        store(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(45, 101), (101, 45), (64, 64)])
def test_a_bin_is_measured_along_the_longer_side(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Of an image that is wide as of one that is tall: by that side it was brought to the teacher's square."""
    kind = row_type(INFO, RECIPE)
    seen = replace(found(2, 1), anchors=np.array([9, 81]))  # a cell of P3 and one of P5
    resized = tuple(round(side * 64 / max(shape)) for side in shape)
    pad = tuple((64 - side) // 2 for side in resized)
    record = encode(WIDE, shape, (resized[0], resized[1]), (pad[0], pad[1]), (seen, seen), 64, kind)
    write(tmp_path / f"{RECIPE.key}{SUFFIX}", RECIPE, INFO, [record])
    got = Cache.open(tmp_path).take(np.arange(4))
    assert got.strides is not None
    assert np.allclose(got.strides, np.array([8, 32, 8, 32]) * max(shape) / 64)
