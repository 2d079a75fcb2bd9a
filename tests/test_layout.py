import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import ANCHORS, grid, predictions
from tests.test_criterion import detector
from yolokd.compat.boxes import anchor_points, decode, expected_distances
from yolokd.layout import BACKGROUND, gather_detections, lay_out
from yolokd.predictions import Predictions, SoftDetections
from yolokd.teachers.live import LiveTeacher

POINTS, STRIDES = grid()
BOX = [8.0, 8.0, 24.0, 24.0]


def detections(
    boxes: list[list[float]], scores: list[list[float]], image: list[int] | None = None, **more: Tensor
) -> SoftDetections:
    count = len(boxes)
    return SoftDetections(
        torch.tensor(boxes).view(-1, 4),
        torch.tensor(scores).view(count, -1) if count else torch.zeros(0, 2),
        torch.tensor([0] * count if image is None else image, dtype=torch.long),
        more.pop("edges", torch.ones(count, 4, dtype=torch.bool)),
        **more,
    )


def student_at(
    offsets: dict[int, float], batch: int = 1, classes: int = 2, reg_max: int = 8, sure: tuple[int, ...] = ()
) -> Predictions:
    """Says 1/2 for each class, more where it is sure; its box is BOX, at some anchors so many pixels to the right."""
    distances = torch.cat([POINTS - 8, 24 - POINTS], 1)
    for anchor, offset in offsets.items():
        distances[anchor] += torch.tensor([-offset, 0, offset, 0])
    place = (distances / STRIDES[:, None]).clamp(0, reg_max - 1.001)
    p = (1 - (place[..., None] - torch.arange(reg_max)).abs()).clamp(min=0)
    raw = p.clamp(min=1e-30).log().view(ANCHORS, -1).T
    scores = torch.zeros(batch, classes, ANCHORS)
    scores[:, :, list(sure)] = 6
    return Predictions(scores, raw.expand(batch, -1, -1).clone(), None)


def laid(found: SoftDetections, student: Predictions, classes: Tensor | None = None) -> Predictions:
    return lay_out(found, student, POINTS, STRIDES, classes)


def probabilities(said: Predictions) -> Tensor:
    assert said.scores is not None
    return said.scores.sigmoid()


def distances_at(said: Predictions, image: int, anchor: int) -> list[float]:
    assert said.boxes is not None
    distances: list[float] = expected_distances(said.boxes[image, :, anchor][None])[0].tolist()
    return distances


def test_by_hand_on_the_small_grid() -> None:
    # Anchors in (8, 24): 5, 6, 9, 10 at stride 8, at (12, 12) ... (20, 20). Anchor 5 fits exactly, the others are 2 px
    # off: IoU 14 * 16 / (2 * 256 - 224) = 7/9; CIoU also counts how far the middles are apart.
    said = laid(detections([BOX], [[0.9, 0.2]]), student_at({6: 2, 9: 2, 10: 2}))
    ciou = 7 / 9 - 4 / (18**2 + 16**2)
    share = ciou**6
    p = probabilities(said)
    assert p[0, :, 5].tolist() == pytest.approx([0.9, 0.2], rel=1e-5)
    for anchor in (6, 9, 10):
        mixed = [BACKGROUND + share * (x - BACKGROUND) for x in (0.9, 0.2)]
        assert p[0, :, anchor].tolist() == pytest.approx(mixed, rel=1e-3)
    given = [5, 6, 9, 10]
    assert said.edges is not None
    assert said.edges.any(1)[0].nonzero().flatten().tolist() == given
    rest = [a for a in range(ANCHORS) if a not in given]
    assert p[0, :, rest].flatten().tolist() == pytest.approx([BACKGROUND] * 2 * len(rest), rel=1e-4)
    assert distances_at(said, 0, 5) == pytest.approx([0.5, 0.5, 1.5, 1.5], abs=1e-5)
    assert distances_at(said, 0, 6) == pytest.approx([1.5, 0.5, 0.5, 1.5], abs=1e-5)
    # Half a bin is shared by its two neighbours, as Ultralytics' DFL shares it.
    assert said.boxes is not None
    assert said.boxes[0, :4, 5].softmax(0).tolist() == pytest.approx([0.5, 0.5, 0, 0], abs=1e-6)
    assert torch.isfinite(said.boxes).all()


def test_the_label_is_the_most_probable_class_and_columns_are_not_indices() -> None:
    # Columns 0 and 1 are the student's classes 3 and 1. The student is sure of class 3 at anchor 5, of 1 at 10.
    student = student_at({}, classes=4)
    assert student.scores is not None
    student.scores[0, 3, 5] = 6
    student.scores[0, 1, 10] = 6
    classes = torch.tensor([3, 1])
    for scores, best in (([0.8, 0.1], 5), ([0.1, 0.8], 10)):
        p = probabilities(laid(detections([BOX], [scores]), student, classes))
        assert p.shape == (1, 2, ANCHORS)
        assert p[0, :, best].tolist() == pytest.approx(scores, rel=1e-5)
        other = 15 - best  # the other sure anchor is the wrong class's: sqrt of 1/2 over sigmoid(6)
        assert p[0, :, other].amax().item() == pytest.approx(0.8 * math.sqrt(0.5 / 0.99753), rel=1e-3)
    said = laid(detections([BOX], [[0.8, 0.1]]), student, classes)
    assert said.classes is classes


@pytest.mark.parametrize("reg_max", [8, 1])
def test_no_detection_and_an_empty_image(reg_max: int) -> None:
    student = predictions(2, reg_max=reg_max)
    none = laid(detections([], []), student)
    assert none.boxes is not None
    assert none.edges is not None
    assert none.boxes.shape == (2, 4 * reg_max, ANCHORS)
    assert not none.edges.any()
    assert probabilities(none).unique().tolist() == pytest.approx([BACKGROUND], rel=1e-4)
    student = student_at({}, batch=2) if reg_max > 1 else replace(student, boxes=torch.ones(2, 4, ANCHORS))
    one = laid(detections([BOX], [[0.9, 0.1]], image=[1]), student)
    assert one.edges is not None
    assert not one.edges[0].any()
    assert one.edges[1].any()
    assert probabilities(one)[0].amax().item() == pytest.approx(BACKGROUND, rel=1e-4)
    # A box without area, so that it is never taken for a good answer (matching.py looks at every anchor).
    area = decode(expected_distances(one.boxes[0].T), POINTS, STRIDES)  # type: ignore[index]
    assert (area[:, 2:] - area[:, :2]).abs().max() < 1e-5


def test_images_in_any_order() -> None:
    boxes = [BOX, [0.0, 0, 12, 12], [2, 2, 30, 30], [16, 16, 32, 32]]
    scores = [[0.9, 0.1], [0.2, 0.7], [0.6, 0.5], [0.3, 0.4]]
    student = predictions(2, reg_max=8, seed=3)
    one = laid(detections(boxes, scores, [0, 0, 1, 1]), student)
    order = [2, 0, 3, 1]
    other = laid(detections([boxes[i] for i in order], [scores[i] for i in order], [1, 0, 1, 0]), student)
    for name in ("scores", "boxes", "edges"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    for i in range(2):  # an image does not know of the others
        alone = replace(student, scores=student.scores[i, None], boxes=student.boxes[i, None])  # type: ignore[index]
        rows = slice(2 * i, 2 * i + 2)
        assert torch.equal(laid(detections(boxes[rows], scores[rows]), alone).scores[0], one.scores[i])  # type: ignore[index]


def source(anchor: int, bins: Tensor, box: list[float], score: float = 0.9, **more: Tensor) -> SoftDetections:
    return detections(
        [box],
        [[score, 0.1]],
        bins=bins.view(1, -1),
        points=POINTS[anchor, None],
        strides=more.pop("strides", STRIDES[anchor, None]),
        **more,
    )


def spread(distances: list[float], reg_max: int = 8) -> Tensor:
    """Logits of four edges, each with half of its mass beside its middle."""
    p = torch.zeros(4, reg_max)
    for edge, d in enumerate(distances):
        p[edge, int(d) - 1 : int(d) + 2] = torch.tensor([0.25, 0.5, 0.25])
    return p.clamp(min=1e-30).log()


def test_bins_move_with_the_anchor_exactly_where_it_is_a_whole_number() -> None:
    # From anchor 5 (12, 12) the box (-4, -4, 28, 28) is 2 strides away on each side; seen from anchor 6 (20, 12),
    # left is 3 and right 1.
    box = [-4.0, -4, 28, 28]
    said = laid(source(5, spread([2, 2, 2, 2]), box), student_at({}, sure=(5, 6)))
    assert said.boxes is not None
    p = said.boxes[0, :, 6].view(4, 8).softmax(-1)
    wanted = spread([3, 2, 1, 2]).softmax(-1)
    assert torch.allclose(p, wanted, atol=1e-7)
    assert said.edges is not None
    assert said.edges[0, :, 6].all()


def test_bins_between_anchors_and_at_the_ends() -> None:
    # The source is a quarter of a stride to the right of anchor 5: seen from there left is nearer, right farther.
    found = source(5, spread([2, 2, 2, 2]), [-2.0, -4, 30, 28])
    found = replace(found, points=POINTS[5, None] + torch.tensor([2.0, 0]))
    p = laid(found, student_at({}, sure=(5, 6))).boxes[0, :, 5].view(4, 8).softmax(-1)  # type: ignore[index]
    assert p[0].tolist() == pytest.approx([0.25 * 0.25, 0.25 * 0.75 + 0.5 * 0.25, 0.4375, 0.1875, 0, 0, 0, 0], abs=1e-6)
    assert (p @ torch.arange(8.0)).tolist() == pytest.approx([1.75, 2, 2.25, 2], abs=1e-5)
    # What would leave the range stays in the last bin: one bin to the left of 0.
    found = source(5, spread([1, 2, 1, 2]), [4.0, -4, 21, 28])
    p = laid(found, student_at({}, sure=(5, 6))).boxes[0, :, 6].view(4, 8).softmax(-1)  # type: ignore[index]
    assert p[2].tolist() == pytest.approx([0.75, 0.25, 0, 0, 0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("why", ["scaled", "other level", "other bins", "clipped"])
def test_bins_that_hold_no_more_give_the_expected_distance(why: str) -> None:
    bins, strides = spread([2, 2, 2, 2]), STRIDES[5, None]
    edges = torch.ones(1, 4, dtype=torch.bool)
    if why == "scaled":
        strides = torch.zeros(1)
    elif why == "other level":
        strides = torch.full((1,), 16.0)
    elif why == "other bins":
        bins = spread([2, 2, 2, 2], reg_max=5)
    else:
        edges[0, 0] = False
    said = laid(source(5, bins, [2.0, -4, 28, 28], strides=strides, edges=edges), student_at({}, sure=(5,)))
    assert said.boxes is not None
    assert said.edges is not None
    p = said.boxes[0, :8, 5].softmax(0).tolist()
    assert p == pytest.approx([0, 0.75, 0.25, 0, 0, 0, 0, 0], abs=1e-6)  # 10 px are 1.25 strides
    assert said.edges[0, :, 5].tolist() == [why != "clipped", True, True, True]
    top = said.boxes[0, 8:16, 5].softmax(0).tolist()  # the clipped edge's neighbour keeps its distribution
    assert top[1] == pytest.approx(0.25 if why == "clipped" else 0, abs=1e-6)


def test_an_edge_out_of_reach_is_clamped_and_masked() -> None:
    said = laid(detections([[8.0, 8, 44, 24]], [[0.9, 0.1]]), student_at({5: -1}, reg_max=3))
    assert said.edges is not None
    assert said.edges[0, :, 5].tolist() == [True, True, False, True]  # 32 px are 4 strides, the last bin is 2
    assert distances_at(said, 0, 5) == pytest.approx([0.5, 0.5, 2, 1.5], abs=1e-5)


def test_without_bins_the_student_gets_plain_distances() -> None:
    student = replace(student_at({}), boxes=torch.cat([POINTS - 8, 24 - POINTS], 1).T[None] / STRIDES)
    said = laid(source(5, spread([2, 2, 2, 2]), [2.0, -4, 28, 28]), student)
    assert said.boxes is not None
    assert said.boxes.shape == (1, 4, ANCHORS)
    assert said.boxes[0, :, 5].tolist() == pytest.approx([1.25, 2, 2, 2])


def test_no_shared_class_leaves_the_boxes() -> None:
    found = replace(detections([BOX], [[1.0]]), scores=torch.zeros(1, 0))
    said = laid(found, student_at({}), torch.zeros(0, dtype=torch.long))
    assert said.scores is None
    assert said.edges is not None
    assert said.edges[0].any(0).sum() == 4


def test_a_detection_that_the_student_overlaps_nowhere_is_left_out() -> None:
    student = student_at(dict.fromkeys(range(ANCHORS), 0.0))
    student.boxes[:] = 0  # type: ignore[index]
    student.boxes[:, ::8] = 50.0  # type: ignore[index]  # every edge at distance 0
    said = laid(detections([BOX], [[0.9, 0.1]]), student)
    assert said.edges is not None
    assert not said.edges.any()
    assert torch.isfinite(said.scores).all()  # type: ignore[arg-type]


def test_two_that_come_from_one_anchor_give_it_to_the_surer() -> None:
    sure, unsure = (source(5, spread([2] * 4), [-4.0, -4, 28, 28], score) for score in (0.9, 0.5))
    for pair in ((sure, unsure), (unsure, sure)):
        both = SoftDetections(*(torch.cat([getattr(d, name) for d in pair]) for name in vars(sure)))
        assert probabilities(laid(both, student_at({})))[0, 0, 5].item() == pytest.approx(0.9, rel=1e-5)


def test_of_two_boxes_in_one_place_the_surer_is_laid_out() -> None:
    for scores in ([[0.9, 0.1], [0.2, 0.4]], [[0.2, 0.4], [0.9, 0.1]]):
        said = laid(detections([BOX, BOX], scores), student_at({}))
        given = said.edges.any(1)[0]  # type: ignore[union-attr]
        assert given.sum() == 4
        assert probabilities(said)[0, 0, given].tolist() == pytest.approx([0.9] * 4, rel=1e-5)


def test_no_gradient_reaches_anybody() -> None:
    student = student_at({})
    leaves = replace(
        student,
        scores=student.scores.requires_grad_(),  # type: ignore[union-attr]
        boxes=student.boxes.requires_grad_(),  # type: ignore[union-attr]
    )
    found = detections([BOX], [[0.9, 0.1]])
    said = laid(replace(found, boxes=found.boxes.requires_grad_(), scores=found.scores.requires_grad_()), leaves)
    for output in (said.scores, said.boxes):
        assert output is not None
        assert not output.requires_grad


@given(seed=st.integers(0, 10_000), reg_max=st.sampled_from([1, 4, 16]), count=st.integers(0, 12))
@settings(max_examples=25, deadline=None)
def test_anything_gives_finite_targets(seed: int, reg_max: int, count: int) -> None:
    g = torch.Generator().manual_seed(seed)
    ends = (torch.rand(count, 2, 2, generator=g) * 32).sort(1).values.flatten(1)
    found = SoftDetections(
        ends,
        torch.rand(count, 2, generator=g),
        torch.randint(3, (count,), generator=g),
        torch.rand(count, 4, generator=g) < 0.8,
        torch.randn(count, 4 * reg_max, generator=g).half(),
        torch.rand(count, 2, generator=g) * 32,
        torch.tensor([0.0, 8, 16])[torch.randint(3, (count,), generator=g)],
    )
    said = laid(found, predictions(3, reg_max=reg_max, seed=seed))
    assert said.scores is not None
    assert said.boxes is not None
    assert said.edges is not None
    assert torch.isfinite(said.scores).all()
    assert torch.isfinite(said.boxes).all()
    assert said.scores.shape == (3, 2, ANCHORS)
    assert said.edges.shape == (3, 4, ANCHORS)
    for image in range(3):  # never surer of a class than the teacher
        mine = found.scores[found.image == image]
        most = mine.amax(0) if len(mine) else torch.zeros(2)
        assert (said.scores[image].sigmoid().amax(1) <= most.clamp(min=BACKGROUND) + 1e-5).all()


@given(seed=st.integers(0, 10_000), reg_max=st.sampled_from([1, 5, 16]))
@settings(max_examples=25, deadline=None)
def test_without_bins_each_anchor_decodes_to_the_box_it_was_given(seed: int, reg_max: int) -> None:
    g = torch.Generator().manual_seed(seed)
    boxes = (torch.rand(3, 2, 2, generator=g) * 32).sort(1).values.flatten(1)
    found = SoftDetections(boxes, torch.rand(3, 2, generator=g), torch.zeros(3).long(), torch.ones(3, 4).bool())
    said = laid(found, predictions(1, reg_max=reg_max, seed=seed))
    assert said.boxes is not None
    assert said.edges is not None
    given_to = said.edges[0].all(0).nonzero().flatten()
    raw = said.boxes[0].T[given_to]
    decoded = decode(expected_distances(raw), POINTS[given_to], STRIDES[given_to])
    slack = 1e-3 + STRIDES[given_to] / 2 * (reg_max > 1)  # half a bin out of range is still said, by the last bin
    apart = (decoded[:, None] - boxes).abs().amax(2).amin(1)
    assert (apart <= slack).all()


def test_identity_is_the_live_teacher_to_float16() -> None:
    """The detections of a real head, stored in float16, at the anchors they come from, under another student."""
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    teacher = LiveTeacher(detector("yolov8n.yaml", 0), torch.device("cpu"), "fp32")
    live = teacher.forward(images)
    other = LiveTeacher(detector("yolo11n.yaml", 1), torch.device("cpu"), "fp32").forward(images)
    assert live.feats is not None
    assert live.scores is not None
    assert live.boxes is not None
    points, strides = anchor_points(live.feats, teacher.info.strides)
    g = torch.Generator().manual_seed(1)
    raw = live.boxes.transpose(1, 2) + torch.randn(2, len(points), 64, generator=g)  # random weights: all edges alike
    scores = (live.scores + 5 + torch.randn(live.scores.shape, generator=g)).transpose(1, 2)
    image, anchor = (torch.rand(2, len(points), generator=g) < 0.2).nonzero(as_tuple=True)
    found = SoftDetections(
        decode(expected_distances(raw), points, strides)[image, anchor].half(),
        scores.sigmoid()[image, anchor].half(),
        image,
        torch.ones(len(image), 4, dtype=torch.bool),
        raw[image, anchor].half(),
        points[anchor],
        strides[anchor],
    )
    said = lay_out(found, other, points, strides)
    assert said.scores is not None
    assert said.boxes is not None
    assert said.edges is not None
    assert said.edges[image, :, anchor].all()
    assert torch.allclose(said.scores.sigmoid()[image, :, anchor], scores.sigmoid()[image, anchor], atol=5e-4)
    bins, wanted = (x.view(-1, 4, 16).softmax(-1) for x in (said.boxes[image, :, anchor], raw[image, anchor]))
    assert torch.allclose(bins, wanted, atol=1e-3)


def test_gathered_are_the_surest_of_each_image_and_what_is_no_number() -> None:
    boxes = torch.arange(24.0).view(2, 3, 4)
    scores = torch.tensor([[[0.1, 0.9], [0.2, 0.3], [0.6, 0.0]], [[0.01, 0.0], [0.04, 0.0], [0.0, 0.0]]])
    found = gather_detections(boxes, scores, confidence=0.05, most=2)
    assert found.image.tolist() == [0, 0]
    assert found.boxes.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert found.scores.flatten().tolist() == pytest.approx([0.1, 0.9, 0.6, 0.0])
    scores[1, 1] = float("nan")
    assert gather_detections(boxes, scores).image.tolist() == [0, 0, 0, 1]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="laid out by the student's"):
        laid(detections([], []), Predictions(None, None, None))
    with pytest.raises(ValueError, match="2 classes against 3"):
        laid(detections([BOX], [[0.9, 0.1]]), predictions(1, classes=3))


@pytest.mark.parametrize("known", [None, [1], []], ids=["all", "one", "none"])
def test_what_the_assigner_saw_of_the_student_is_taken_over(known: list[int] | None) -> None:
    student = student_at({5: 0, 6: 3, 9: 1}, sure=(5, 6))
    assert student.scores is not None
    assert student.boxes is not None
    boxes = decode(expected_distances(student.boxes.transpose(1, 2)), POINTS, STRIDES)
    seen = (student.scores.sigmoid().transpose(1, 2), boxes)
    found = detections([BOX], [[0.8, 0.4][: 2 if known is None else len(known)]])
    classes = None if known is None else torch.tensor(known, dtype=torch.long)
    plainly = laid(found, student, classes)
    again = lay_out(found, student, POINTS, STRIDES, classes, seen)
    for name in ("scores", "boxes", "edges"):
        one, other = getattr(plainly, name), getattr(again, name)
        assert (one is None and other is None) or torch.equal(one, other)
    # And it is what counts: a student that saw nothing there is given nothing.
    blind = lay_out(found, student, POINTS, STRIDES, classes, (seen[0], torch.zeros_like(boxes)))
    assert blind.edges is not None
    assert not blind.edges.any()
    assert plainly.edges is not None
    assert plainly.edges.any()
