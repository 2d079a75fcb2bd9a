"""Boxes on their way, by hand; through Ultralytics' own transforms they are tested in test_replay_transforms.py."""

from __future__ import annotations

import numpy as np
import pytest

from yolokd.compat.replay_carried import BOX, GAIN, ROW, SEEN, SHIFT, SIZE, Carried, axes, corners, project

ORIGINAL, LOADED = (100, 200), (50, 100)  # height and width


def placed(mirrored: bool, polygons: bool = False) -> Carried:
    box = np.array([[0.1, 0.2, 0.4, 0.6]])
    return Carried.place(np.array([7]), box, np.array([mirrored]), ORIGINAL, LOADED, polygons)


def test_a_box_of_the_image_and_one_of_its_mirror_image() -> None:
    assert placed(False).boxes.tolist() == [pytest.approx([10, 10, 40, 30])]
    assert placed(True).boxes.tolist() == [pytest.approx([60, 10, 90, 30])]


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_matrix_leads_from_the_stored_box_to_the_one_here(mirrored: bool) -> None:
    one = placed(mirrored)
    whole = project(corners(one.stored[:, 1:5]), one.matrix)
    assert np.concatenate([whole.min(1), whole.max(1)], 1) == pytest.approx(one.boxes, abs=1e-4)


def test_what_lands_says_where_it_came_from() -> None:
    one = placed(False)
    (row,) = one.land(100, 50)
    assert row[ROW] == 7
    assert row[BOX] == pytest.approx([0.1, 0.2, 0.4, 0.6], abs=1e-6)
    assert row[SEEN].tolist() == [1, 1, 1, 1]
    assert row[GAIN] == pytest.approx([1, 1])
    assert row[SHIFT] == pytest.approx([0, 0])
    assert row[SIZE].tolist() == [200, 100]


def test_an_edge_that_was_cut_off_is_not_seen() -> None:
    one = placed(False)
    one.instances.clip(25, 50)  # the right edge is at 40
    (row,) = one.land(25, 50)
    assert row[SEEN].tolist() == [1, 1, 0, 1]
    assert row[BOX] == pytest.approx([0.4, 0.2, 1.0, 0.6], abs=1e-6)


def test_of_both_sets_that_one_lands_which_is_the_right_way_round() -> None:
    both = Carried.join([placed(False), placed(True)])
    assert len(both) == 2
    assert len(both.land(100, 50)) == 1
    flipped = Carried(both.instances, both.stored, axes((-1, 100)) @ both.matrix)
    (row,) = flipped.land(100, 50)
    assert row[GAIN] == pytest.approx([1, 1])  # the mirror image, mirrored back


def test_a_turned_box_has_no_gain() -> None:
    one = placed(False)
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    (row,) = Carried(one.instances, one.stored, turn @ one.matrix).land(100, 50)
    assert row[GAIN].tolist() == [0, 0]


def test_a_transform_keeps_some_and_says_which_by_class() -> None:
    both = Carried.join([placed(False), placed(True)])
    labels = both.labels(first=0)
    labels["instances"], labels["cls"] = labels["instances"][[1]], labels["cls"][[1]]
    left = both.after(labels, axes((2, 5), (2, 0)))
    assert left.stored.tolist() == both.stored[[1]].tolist()
    assert left.matrix[0] == pytest.approx(axes((2, 5), (2, 0)) @ both.matrix[1])
