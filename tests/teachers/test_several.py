"""One answer of several teachers, by hand: probabilities, classes by index, boxes, who counts how much."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from yolokd.compat.boxes import bins_of, expected_distances
from yolokd.predictions import Predictions
from yolokd.teachers.several import average


def logit(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).logit()


def said(
    scores: list[list[float]], classes: list[int] | None = None, distance: float = 1.0, reg_max: int = 4
) -> Predictions:
    """One image; a row of probabilities a class; every edge of every box at the same distance."""
    probabilities = torch.tensor(scores)[None]
    distances = torch.full((1, probabilities.shape[2], 4), distance)
    known = None if classes is None else torch.tensor(classes)
    return Predictions(probabilities.logit(), bins_of(distances, reg_max).transpose(1, 2), None, known)


def distances(predictions: Predictions) -> Tensor:
    assert predictions.boxes is not None
    return expected_distances(predictions.boxes[0].T)


def probabilities(predictions: Predictions) -> list[list[float]]:
    assert predictions.scores is not None
    return [[round(float(p), 4) for p in row] for row in predictions.scores.sigmoid()[0]]


def test_probabilities_are_averaged_not_logits() -> None:
    got = average([said([[0.9], [0.1]]), said([[0.1], [0.1]])], (0.5, 0.5), 2)
    assert probabilities(got) == [[0.5], [0.1]]  # the mean of the logits of .9 and .01 would not be this
    got = average([said([[0.99]]), said([[0.5]])], (0.5, 0.5), 1)
    assert probabilities(got) == [[0.745]]
    assert 1 / (1 + math.exp(-(math.log(99) + 0) / 2)) == pytest.approx(0.9087, abs=1e-4)  # ... by logits
    assert got.classes is None


def test_weights() -> None:
    assert probabilities(average([said([[0.9]]), said([[0.1]])], (0.75, 0.25), 1)) == [[0.7]]
    # Weights are shares already, but a common factor changes nothing.
    assert probabilities(average([said([[0.9]]), said([[0.1]])], (3.0, 1.0), 1)) == [[0.7]]


def test_each_class_by_those_who_know_it() -> None:
    """A knows 0 and 2, B knows 2 and 3, nobody knows 1."""
    a, b = said([[0.9], [0.2]], [0, 2]), said([[0.6], [0.3]], [2, 3])
    got = average([a, b], (0.5, 0.5), 4)
    assert got.classes is not None
    assert got.classes.tolist() == [0, 2, 3]
    assert probabilities(got) == [[0.9], [0.4], [0.3]]  # not .45: who does not know a class has no word on it
    assert got.members == (a, b)


def test_specialists_that_know_all_together() -> None:
    got = average([said([[0.9], [0.2]], [2, 0][::-1]), said([[0.3]], [1])], (0.5, 0.5), 3)
    assert got.classes is None  # every class, in order
    assert probabilities(got) == [[0.9], [0.3], [0.2]]


def test_certain_probabilities_have_a_finite_logit() -> None:
    both = replace(said([[0.5]]), scores=torch.tensor([[[200.0]]]))
    got = average([both, both], (0.5, 0.5), 1)
    assert got.scores is not None
    assert torch.isfinite(got.scores).all()


def test_bins_are_averaged_with_weights() -> None:
    a, b = said([[0.5]], distance=1.0), said([[0.5]], distance=3.0)
    got = average([a, b], (0.75, 0.25), 1)
    assert got.boxes is not None
    spread = got.boxes.view(4, 4, 1).softmax(1)[0, :, 0]
    assert spread.tolist() == pytest.approx([0, 0.75, 0, 0.25], abs=1e-6)  # two places, not one in between
    assert distances(got)[0].tolist() == pytest.approx([1.5] * 4, abs=1e-5)
    assert got.edges is None


def test_heads_with_other_bins_give_the_mean_distance() -> None:
    a, b = said([[0.5, 0.5]], distance=1.0, reg_max=4), said([[0.5, 0.5]], distance=6.0, reg_max=8)
    got = average([a, b], (0.75, 0.25), 1)
    assert got.boxes is not None
    assert got.boxes.shape == (1, 4, 2)
    assert got.boxes.flatten().tolist() == pytest.approx([2.25] * 8, abs=1e-4)
    plain = Predictions(None, torch.full((1, 4, 2), 6.0), None)
    assert distances(average([replace(a, scores=None), plain], (0.5, 0.5), 1))[0].tolist() == pytest.approx(
        [3.5] * 4, abs=1e-4
    )


def test_a_specialist_is_heard_on_a_box_as_much_as_it_is_sure_of_a_class_of_its_own() -> None:
    # Anchor 0 is A's object, anchor 1 is B's.
    a, b = said([[0.9, 0.1]], [0], distance=1.0), said([[0.1, 0.7]], [1], distance=2.0)
    got = distances(average([a, b], (0.5, 0.5), 2))
    assert got[:, 0].tolist() == pytest.approx([(0.9 * 1 + 0.1 * 2) / 1, (0.1 * 1 + 0.7 * 2) / 0.8], abs=1e-4)
    same = [replace(m, classes=torch.tensor([0])) for m in (a, b)]
    assert distances(average(same, (0.5, 0.5), 2))[:, 0].tolist() == pytest.approx([1.5, 1.5], abs=1e-4)


def test_where_no_specialist_sees_anything_the_weights_alone_count() -> None:
    nothing = torch.full((1, 1, 1), -200.0)  # a probability that is 0 in float32
    a, b = (replace(said([[0.5]], [i], distance=1.0 + i), scores=nothing) for i in (0, 1))
    assert distances(average([a, b], (0.75, 0.25), 2))[0].tolist() == pytest.approx([1.25] * 4, abs=1e-4)


def test_edges_of_members() -> None:
    a, b = said([[0.5, 0.5]], distance=1.0), said([[0.5, 0.5]], distance=2.0)
    silent = torch.tensor([[[True, False]] * 4])
    got = average([replace(a, edges=silent), b], (0.5, 0.5), 1)
    assert got.edges is not None
    assert got.edges.all()  # B has a word on all
    assert distances(got)[:, 0].tolist() == pytest.approx([1.5, 2.0], abs=1e-4)
    got = average([replace(a, edges=silent), replace(b, edges=silent)], (0.5, 0.5), 1)
    assert got.edges is not None
    assert torch.equal(got.edges, silent)
    assert torch.isfinite(got.boxes).all()  # type: ignore[arg-type]


def test_a_member_without_boxes_or_scores() -> None:
    a, b = said([[0.9]]), said([[0.1]])
    assert average([a, replace(b, boxes=None)], (0.5, 0.5), 1).boxes is None
    assert probabilities(average([a, replace(b, scores=None)], (0.5, 0.5), 1)) == [[0.9]]
    assert average([replace(a, scores=None), replace(b, scores=None)], (0.5, 0.5), 1).scores is None


def test_features_are_not_averaged() -> None:
    a = replace(said([[0.5]]), feats=(torch.ones(1, 2, 1, 1),))
    got = average([a, a], (0.5, 0.5), 1)
    assert got.feats is None
    assert got.members == (a, a)


def test_half_precision_members_are_averaged_in_float32() -> None:
    half = [replace(m, scores=m.scores.half(), boxes=m.boxes.half()) for m in (said([[0.9]]), said([[0.2]]))]  # type: ignore[union-attr]
    got = average(half, (0.5, 0.5), 1)
    assert got.scores is not None
    assert got.boxes is not None
    assert (got.scores.dtype, got.boxes.dtype) == (torch.float32, torch.float32)
    assert got.scores.sigmoid().item() == pytest.approx(0.55, abs=1e-3)
