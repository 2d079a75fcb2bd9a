from __future__ import annotations

import numpy as np
import pytest

from yolokd.evaluation.agreement import compare_boxes


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


A = (0.0, 0.0, 10.0, 10.0, 0.9, 1.0)
B = (20.0, 20.0, 40.0, 40.0, 0.8, 2.0)


def test_the_same_boxes_agree_entirely_in_any_order() -> None:
    found = compare_boxes([boxes(A, B)], [boxes(B, A)])
    assert (found.boxes, found.matched, found.box, found.score) == (2, 1.0, 0.0, 0.0)


def test_differences_are_the_largest_edge_and_score() -> None:
    moved = (0.0, 1.5, 10.0, 9.0, 0.7, 1.0)
    found = compare_boxes([boxes(A, B)], [boxes(moved, B)])
    assert found.matched == 1.0
    assert found.box == pytest.approx(1.5)
    assert found.score == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("other", "share"),
    [
        (boxes(A), 2 / 3),  # one is missing: 2 of the 3 boxes have a partner
        (boxes(A, B, (50, 50, 60, 60, 0.5, 0)), 4 / 5),  # one too many
        (boxes(A, (*B[:5], 3.0)), 2 / 4),  # the class differs
        (boxes(A, (20.0, 20.0, 40.0, 29.0, 0.8, 2.0)), 2 / 4),  # IoU 9 / 20 is below .5
        (boxes(A, (20.0, 20.0, 40.0, 31.0, 0.8, 2.0)), 1.0),  # IoU 11 / 20 is above
        (boxes(), 0.0),
    ],
)
def test_share_with_a_partner(other: np.ndarray, share: float) -> None:
    assert compare_boxes([boxes(A, B)], [other]).matched == pytest.approx(share)


def test_a_box_has_one_partner_only_and_the_best() -> None:
    near, far = (0, 0, 10, 9, 0.3, 1), (0, 0, 10, 7, 0.9, 1)
    found = compare_boxes([boxes(A)], [boxes(far, near)])
    assert found.matched == pytest.approx(2 / 3)
    assert found.box == pytest.approx(1.0)  # that of the nearer one
    assert found.score == pytest.approx(0.6)


def test_images_are_compared_one_by_one() -> None:
    assert compare_boxes([boxes(A), boxes()], [boxes(), boxes(A)]).matched == 0.0


def test_nothing_found_by_either_has_no_share() -> None:
    assert compare_boxes([boxes()], [boxes()]).matched is None


def test_another_number_of_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        compare_boxes([boxes(A)], [])
