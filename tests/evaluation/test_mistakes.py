from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.evaluation.results import image
from yolokd.compat.validation import ImageResult
from yolokd.evaluation.annotations import from_labels
from yolokd.evaluation.mistakes import found, matches, overlaps, sizes, sure_of

NAMES = {0: "cat", 1: "dog"}
A, B = (0, 0, 100, 100), (200, 200, 300, 300)
NEAR_A = (0, 0, 100, 80)  # IoU .8 with A
HALF_A, BELOW = (0, 0, 100, 50), (0, 0, 100, 49)  # IoU .5 and .49


def crowded(seed: int, count: int = 12) -> list[ImageResult]:
    """Images full of boxes that overlap, of two classes."""
    rng = np.random.default_rng(seed)

    def boxes(n: int) -> list[tuple[float, float, float, float]]:
        corner, side = rng.uniform(0, 60, (n, 2)), rng.uniform(30, 60, (n, 2))
        return [tuple(row) for row in np.concatenate([corner, corner + side], 1).tolist()]

    return [
        image(
            f"{i}.jpg",
            [(box, float(rng.random()), int(rng.integers(2))) for box in boxes(int(rng.integers(0, 15)))],
            [(box, int(rng.integers(2))) for box in boxes(int(rng.integers(0, 8)))],
        )
        for i in range(count)
    ]


def test_the_surest_takes_the_label_it_overlaps_most() -> None:
    one = image(found=[(NEAR_A, 0.5, 0), (A, 0.9, 0), (B, 0.8, 1), (B, 0.7, 0)], truth=[(B, 0), (A, 0)])
    (label,) = matches([one], NAMES)
    assert label.tolist() == [-1, 1, -1, 0]  # second on A; A; a dog where a cat is; B
    assert found(label, 2).tolist() == [True, True]


def test_the_threshold_belongs_to_the_match() -> None:
    (label,) = matches([image(found=[(HALF_A, 0.9, 0)], truth=[(A, 0)])], NAMES)
    assert label.tolist() == [0]
    (label,) = matches([image(found=[(BELOW, 0.9, 0)], truth=[(A, 0)])], NAMES)
    assert label.tolist() == [-1]
    assert found(label, 1).tolist() == [False]


def test_images_without_anything_keep_their_place() -> None:
    full = image(found=[(A, 0.9, 1)], truth=[(B, 1), (A, 1)])
    empty = image(found=[], truth=[])
    only_label, only_found = image(truth=[(A, 0)]), image(found=[(A, 0.9, 0)])
    result = matches([empty, full, only_label, only_found, full], NAMES)
    assert [label.tolist() for label in result] == [[], [1], [], [-1], [1]]
    assert matches([], NAMES) == []


@pytest.mark.parametrize("seed", range(5))
def test_as_many_are_right_as_pycocotools_says(seed: int) -> None:
    images = crowded(seed)
    data = from_labels(images, NAMES)
    with contextlib.redirect_stdout(io.StringIO()):
        truth, seen = COCO(), COCO()
        truth.dataset, seen.dataset = data.truth, {**data.truth, "annotations": data.detections}
        truth.createIndex()
        seen.createIndex()
        judge = COCOeval(truth, seen, iouType="bbox")
        judge.evaluate()
    right, hit = 0, 0
    for one in judge.evalImgs:
        if one is not None and one["aRng"] == judge.params.areaRng[0]:
            right += int((one["dtMatches"][0] > 0).sum())
            hit += int((one["gtMatches"][0] > 0).sum())
    result = matches(images, NAMES)
    assert sum(int((label >= 0).sum()) for label in result) == right > 0
    assert sum(found(label, len(i.true_boxes)).sum() for label, i in zip(result, images, strict=True)) == hit
    for label, i in zip(result, images, strict=True):
        pairs = np.flatnonzero(label >= 0)
        assert (i.classes[pairs] == i.true_classes[label[pairs]]).all()
        iou = overlaps(i.boxes, i.true_boxes)
        assert (iou[pairs, label[pairs]] >= 0.5).all()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_unsure_changes_no_other_match(seed: int) -> None:
    images = crowded(seed)
    for one, whole in zip(images, matches(images, NAMES), strict=True):
        (kept,) = matches([sure_of(one, 0.5)], NAMES)
        assert kept.tolist() == whole[one.scores >= 0.5].tolist()


def test_more_than_a_hundred_detections_of_a_class() -> None:
    many = [(B, 0.9 - i / 1000, 0) for i in range(150)] + [(A, 0.1, 0)]
    (label,) = matches([image(found=many, truth=[(A, 0)])], NAMES)
    assert label.tolist() == [-1] * 150 + [0]


def test_a_class_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="not among"):
        matches([image(found=[(A, 0.9, 7)])], NAMES)


def test_sure_of_keeps_the_limit() -> None:
    one = sure_of(image(found=[(A, 0.25, 0), (B, 0.2499, 1)], truth=[(A, 0)]), 0.25)
    assert one.classes.tolist() == [0]
    assert one.boxes.shape == (1, 4)
    assert one.true_boxes.shape == (1, 4)


def test_sizes_are_coco_s() -> None:
    boxes = np.array([[0, 0, 31.9, 32], [0, 0, 32, 32], [5, 5, 100, 101], [0, 0, 96, 96], [3, 3, 3, 3]])
    assert sizes(boxes).tolist() == ["small", "medium", "medium", "large", "small"]
    assert sizes(np.zeros((0, 4))).tolist() == []


def test_overlaps_of_nothing() -> None:
    box = np.array([A], float)
    assert overlaps(box, np.array([HALF_A, B], float)).tolist() == [[0.5, 0.0]]
    assert overlaps(box, np.zeros((0, 4))).shape == (1, 0)
    assert overlaps(np.zeros((0, 4)), box).shape == (0, 1)
