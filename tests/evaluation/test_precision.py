from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from tests.evaluation.results import Box, image
from yolokd.compat.validation import ImageResult
from yolokd.evaluation import precision
from yolokd.evaluation.annotations import CocoData, from_labels
from yolokd.evaluation.coco import coco_scores
from yolokd.evaluation.precision import match, matched

NAMES = {0: "cat", 1: "dog", 2: "eel", 3: "fox"}  # nobody ever draws a fox
LARGE: Box = (100, 100, 300, 300)
MEDIUM: Box = (400, 100, 450, 150)
SMALL: Box = (500, 300, 520, 320)


def random_split(seed: int, images: int = 12, ties: bool = False) -> list[ImageResult]:
    """Objects of three classes, found more or less well, and false alarms; some images are empty."""
    rng = np.random.default_rng(seed)
    split = []
    for i in range(images):
        truth, found = [], []
        for _ in range(rng.integers(0, 5)):
            x, y, w, h = rng.uniform(0, 300), rng.uniform(0, 200), rng.uniform(10, 200), rng.uniform(10, 200)
            label = int(rng.choice(3, p=[0.6, 0.35, 0.05]))
            truth.append(((x, y, x + w, y + h), label))
            for _ in range(rng.integers(0, 3)):  # missed, found, or found twice
                dx, dy = rng.normal(0, 0.1, 2) * (w, h)
                found.append(((x + dx, y + dy, x + dx + w, y + dy + h), float(rng.beta(4, 2)), label))
        for _ in range(rng.integers(0, 4)):
            x, y = rng.uniform(0, 300, 2)
            found.append(((x, y, x + 60, y + 60), float(rng.beta(2, 3)), int(rng.integers(4))))
        if ties:
            found = [(box, round(score, 1), label) for box, score, label in found]
        split.append(image(f"{i}.jpg", found=found, truth=truth))
    return split


def random_data(seed: int, crowds: bool = False, ties: bool = False) -> CocoData:
    data = from_labels(random_split(seed, ties=ties), NAMES)
    if crowds:
        for annotation in data.truth["annotations"][::4]:
            annotation["iscrowd"] = 1
    return data


def repeated(data: CocoData, weights: np.ndarray) -> CocoData:
    """The same data with each image there as often as its weight says, copies beside each other."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for entry, weight in zip(data.truth["images"], weights, strict=True):
        for _ in range(weight):
            new = len(images) + 1
            images.append({**entry, "id": new})
            for source, target in ((data.truth["annotations"], annotations), (data.detections, found)):
                for row in source:
                    if row["image_id"] == entry["id"]:
                        target.append({**row, "image_id": new, "id": len(target) + 1})
    return CocoData({**data.truth, "images": images, "annotations": annotations}, found)


def loop_ap(split: list[ImageResult], label: int, overlap: float) -> float | None:
    """AP of one class from COCO's definition, in plain loops and without pycocotools."""
    found = [
        (-float(score), i, n)
        for i, im in enumerate(split)
        for n, score in enumerate(im.scores)
        if im.classes[n] == label
    ]
    objects = sum(int((im.true_classes == label).sum()) for im in split)
    if not objects:
        return None
    taken: dict[int, set[int]] = defaultdict(set)
    curve, right = [], 0
    for rank, (_, i, n) in enumerate(sorted(found), 1):
        best, partner = overlap, None
        for m, box in enumerate(split[i].true_boxes):
            if split[i].true_classes[m] == label and m not in taken[i]:
                a, b = split[i].boxes[n], box
                w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                inter = max(w, 0) * max(h, 0)
                iou = inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
                if iou >= best:
                    best, partner = iou, m
        if partner is not None:
            taken[i].add(partner)
            right += 1
        curve.append((right / objects, right / rank))
    total = 0.0
    for step in np.linspace(0, 1, 101):  # to its last bit: whether 14 of 50 objects are .28 is a matter of rounding
        total += max((p for r, p in curve if r >= step), default=0.0)
    return total / 101


@pytest.mark.parametrize("seed", range(4))
def test_a_plain_loop_and_pycocotools_agree(seed: int) -> None:
    split = random_split(seed)
    overlaps = [0.5 + 0.05 * i for i in range(10)]
    classes = {}
    for label, name in NAMES.items():
        values = [loop_ap(split, label, t) for t in overlaps]
        classes[name] = None if values[0] is None else float(np.mean([v for v in values if v is not None]))
    ap = np.mean([v for v in classes.values() if v is not None])
    assert 0.1 < ap < 0.9
    ours, theirs = matched(split, NAMES), coco_scores(from_labels(split, NAMES))
    assert ours.ap() == pytest.approx(ap, abs=1e-12)
    assert theirs.ap == pytest.approx(ap, abs=1e-12)
    assert ours.ap_per_class() == pytest.approx(classes, abs=1e-12)
    assert ours.ap_per_class()["fox"] is None


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_each_image_once_is_pycocotools(seed: int, crowds: bool, ties: bool) -> None:
    data = random_data(seed, crowds, ties)
    ours, theirs = match(data), coco_scores(data)
    for weights in (None, np.ones(12), np.full(12, 3)):
        if weights is not None and weights[0] > 1 and ties:
            continue
        assert ours.ap(weights) == pytest.approx(theirs.ap, abs=1e-12)
        assert ours.ap50(weights) == pytest.approx(theirs.ap50, abs=1e-12)
        assert ours.ap_per_class(weights) == pytest.approx(theirs.per_class, abs=1e-12)
    if crowds:
        assert any(c.ignored.any() for c in ours.categories.values())


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_weights_are_repeated_images(seed: int, crowds: bool) -> None:
    data = random_data(seed, crowds)
    ours = match(data)
    draws = np.random.default_rng(seed).multinomial(12, np.full(12, 1 / 12), size=8)
    aps = ours.resampled(draws)
    for weights, ap in zip(draws, aps, strict=True):
        theirs = coco_scores(repeated(data, weights))
        assert ap == pytest.approx(theirs.ap, abs=1e-12)
        assert ours.ap(weights) == pytest.approx(ap, abs=1e-15)
        assert ours.ap50(weights) == pytest.approx(theirs.ap50, abs=1e-12)
        assert ours.ap_per_class(weights) == pytest.approx(theirs.per_class, abs=1e-12)


def test_copies_of_equal_scores_stay_together() -> None:
    """The one departure: right and wrong with the very same score come as R R W W here, R W R W in a longer list."""
    data = from_labels([image(truth=[(LARGE, 0)], found=[(LARGE, 0.5, 0), (SMALL, 0.5, 0)])], NAMES)
    assert match(data).ap([2]) == pytest.approx(1)
    assert coco_scores(repeated(data, np.array([2]))).ap == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_rounded_scores_change_little() -> None:
    data = random_data(0, ties=True)
    draws = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=20)
    theirs = np.array([coco_scores(repeated(data, weights)).ap for weights in draws])
    # Eleven scores for some sixty detections: real ones hardly ever coincide.
    assert np.abs(match(data).resampled(draws) - theirs).max() < 0.03


def test_a_class_that_is_not_drawn_does_not_count() -> None:
    cat = image("1.jpg", truth=[(LARGE, 0)], found=[(LARGE, 0.9, 0)])
    dog = image("2.jpg", truth=[(LARGE, 1)])
    ours = matched([cat, dog], NAMES)
    assert ours.ap() == pytest.approx(0.5)
    assert ours.ap([2, 0]) == pytest.approx(1)
    assert ours.ap_per_class([2, 0]) == {"cat": pytest.approx(1), "dog": None, "eel": None, "fox": None}
    assert ours.ap([0, 0]) is None
    assert ours.ap50([0, 0]) is None
    np.testing.assert_allclose(ours.resampled([[1, 1], [0, 1], [0, 0]]), [0.5, 0, np.nan])
    np.testing.assert_allclose(ours.resampled([[1, 1], [0, 1]], category="cat"), [1, np.nan])


def test_a_background_image_counts() -> None:
    found = image("1.jpg", truth=[(LARGE, 0)], found=[(LARGE, 0.5, 0)])
    background = image("2.jpg", found=[(SMALL, 0.9, 0)])
    ours = matched([found, background], NAMES)
    assert ours.ap() == pytest.approx(1 / 2)
    assert ours.ap([1, 3]) == pytest.approx(1 / 4)
    assert ours.ap([1, 0]) == pytest.approx(1)
    assert ours.ap([1, 0.5]) == pytest.approx(1 / 1.5)  # weights need not be whole


def test_a_hundred_detections_count_and_no_more() -> None:
    wrong = [((0.0, 0.0, 5.0 + i, 5.0), 0.9, 0) for i in range(100)]
    for kept, ap in ((100, 0.0), (99, 1 / 100)):
        split = [image(truth=[(LARGE, 0)], found=[*wrong[:kept], (LARGE, 0.1, 0)])]
        assert matched(split, NAMES).ap() == pytest.approx(ap)


@pytest.mark.parametrize("split", [[], [image()], [image(found=[(LARGE, 0.9, 0)])]])
def test_nothing_to_find_is_none(split: list[ImageResult]) -> None:
    assert matched(split, NAMES).ap() is None
    assert set(matched(split, NAMES).ap_per_class().values()) == {None}


def test_nothing_found_is_zero() -> None:
    assert matched([image(truth=[(LARGE, 0)])], NAMES).ap() == 0


def test_memory_is_bounded_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = match(random_data(1))
    draws = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=30)
    whole = ours.resampled(draws)
    monkeypatch.setattr(precision, "MOST_CELLS", 1)  # one resample at a time
    np.testing.assert_allclose(ours.resampled(draws), whole, rtol=1e-14)


@pytest.mark.parametrize("weights", [[1.0], [1.0] * 13, [-1.0] + [1.0] * 11, [[1.0] * 12]])
def test_wrong_weights_are_refused(weights: list[Any]) -> None:
    with pytest.raises(ValueError, match="weights"):
        match(random_data(0)).ap(weights)


def test_the_order_of_images_is_kept() -> None:
    split = random_split(2)
    assert matched(split, NAMES).files == tuple(im.file.name for im in split)
    first = matched(split, NAMES).categories["cat"].objects
    np.testing.assert_array_equal(first, [(im.true_classes == 0).sum() for im in split])
    np.testing.assert_array_equal(matched(split[::-1], NAMES).categories["cat"].objects, first[::-1])


def test_pycocotools_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    match(random_data(0))
    assert capsys.readouterr().out == ""
