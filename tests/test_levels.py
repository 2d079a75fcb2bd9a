"""Levels by stride over image, and a finer grid's answers on a coarser one: what is taken must be what lies there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assignment, head, predictions
from yolokd.compat.boxes import anchor_points, bins_of, decode, expected_distances
from yolokd.levels import (
    LevelMatch,
    anchors_of,
    assigned_at,
    grid_sizes,
    match_levels,
    on_students_grid,
    restrict,
    take_levels,
)
from yolokd.predictions import HeadInfo, Predictions

PYRAMIDS = {"p3": (8, 16, 32), "p2": (4, 8, 16, 32), "p6": (8, 16, 32, 64)}


def of(strides: tuple[int, ...], widths: tuple[int, ...] | None = None, reg_max: int = 16) -> HeadInfo:
    given = tuple(range(10, 10 + len(strides))) if widths is None else widths
    return HeadInfo({0: "a"}, strides, given, reg_max, False)


@pytest.mark.parametrize(
    ("student", "teacher", "ratio", "ours", "theirs", "whole"),
    [
        ("p3", "p3", 1, (0, 1, 2), (0, 1, 2), True),
        ("p2", "p3", 1, (1, 2, 3), (0, 1, 2), False),
        ("p3", "p2", 1, (0, 1, 2), (1, 2, 3), False),
        ("p6", "p3", 1, (0, 1, 2), (0, 1, 2), False),
        ("p2", "p6", 1, (1, 2, 3), (0, 1, 2), False),
        ("p3", "p3", 2, (0, 1, 2), (1, 2, 2), False),  # the student's P5 is the teacher's, averaged down
        ("p3", "p6", 2, (0, 1, 2), (1, 2, 3), False),
        ("p3", "p2", 2, (0, 1, 2), (2, 3, 3), False),
        ("p3", "p3", 1.5, (0, 1, 2), (0, 1, 2), False),
        ("p2", "p3", 2, (0, 1, 2, 3), (0, 1, 2, 2), False),
        ("p2", "p3", 1.5, (1, 2, 3), (0, 1, 2), False),
    ],
)
def test_levels_are_matched_by_stride_over_image(
    student: str, teacher: str, ratio: float, ours: tuple[int, ...], theirs: tuple[int, ...], whole: bool
) -> None:
    match = match_levels(of(PYRAMIDS[student]), of(PYRAMIDS[teacher]), ratio)
    assert (match.student, match.teacher, match.whole) == (ours, theirs, whole)
    assert match.strides == tuple(PYRAMIDS[teacher][t] / ratio for t in theirs)


def test_no_level_in_common() -> None:
    assert match_levels(of((8, 16)), of((4, 32))).student == ()


def test_a_teacher_without_a_grid_speaks_at_every_level() -> None:
    match = match_levels(of((8, 16, 32)), of((), ()), 2)
    assert (match.student, match.teacher, match.whole) == ((0, 1, 2), (), True)
    cut = match.only({1, 2})
    assert (cut.student, cut.teacher, cut.whole, cut.ratio) == ((1, 2), (), False, 2)


def test_only_some_levels() -> None:
    match = match_levels(of((4, 8, 16, 32)), of((8, 16, 32)))
    assert match.only({0, 1, 2, 3}) is match
    assert match.only({2, 3}) == LevelMatch((2, 3), (1, 2), (16.0, 32.0), 1.0, False)


def test_a_restricted_head() -> None:
    hidden = (((1, 2, 3), (4, 5, 6)), ((7, 8, 9), (10, 11, 12)))
    info = restrict(replace(of((8, 16, 32)), hidden=hidden), (0, 2))
    assert (info.strides, info.widths) == ((8, 32), (10, 12))
    assert info.hidden == (((1, 3), (4, 6)), ((7, 9), (10, 12)))
    assert restrict(of((8, 16), ()), (1,)).widths == ()


def test_anchors_of_levels_by_hand() -> None:
    sizes = [(2, 3), (1, 2), (1, 1)]  # anchors 0..5, 6..7, 8
    assert anchors_of(sizes, (1, 2)).tolist() == [6, 7, 8]
    assert anchors_of(sizes, (0, 2)).tolist() == [0, 1, 2, 3, 4, 5, 8]
    assert anchors_of(sizes, (2, 1)).tolist() == [8, 6, 7]
    assert anchors_of(sizes, ()).tolist() == []


def test_grid_sizes_are_those_of_a_network() -> None:
    assert grid_sizes(64, 96, (8, 16, 32)) == [(8, 12), (4, 6), (2, 3)]
    assert grid_sizes(72, 72, (32,)) == [(3, 3)]  # a convolution with padding rounds up


def test_predictions_and_assignment_are_cut_alike() -> None:
    said, assigned = predictions(), assignment(foreground=(5, 17))
    hidden = (said.feats, said.feats)
    edges = torch.rand(2, 4, 20) > 0.5
    cut = take_levels(replace(said, hidden=hidden, taps=said.feats, edges=edges), [(4, 4), (2, 2)], (1,))  # type: ignore[arg-type]
    for name in ("scores", "boxes"):
        assert torch.equal(getattr(cut, name), getattr(said, name)[..., 16:])
    assert torch.equal(cut.edges, edges[..., 16:])  # type: ignore[arg-type]
    assert said.feats is not None
    assert cut.feats is not None
    assert cut.hidden is not None
    assert cut.feats[0] is said.feats[1]
    assert [len(branch) for branch in cut.hidden] == [1, 1]
    assert cut.taps is said.feats  # layers of the backbone are no levels of the head
    here = assigned_at(assigned, [(4, 4), (2, 2)], (1,))
    assert here.foreground.nonzero().tolist() == [[0, 1], [1, 1]]
    for name in ("labels", "boxes", "scores", "gt_index", "weight"):
        assert torch.equal(getattr(here, name), getattr(assigned, name)[:, 16:]), name
    assert here.strides.tolist() == [16.0] * 4
    assert torch.equal(here.anchors, assigned.anchors[16:])
    assert here.normalizer == assigned.normalizer  # the detection loss's own
    assert here.gt_boxes is assigned.gt_boxes
    assert here.seen is None
    seen = (assigned.scores, assigned.boxes)
    cut_too = assigned_at(replace(assigned, seen=seen), [(4, 4), (2, 2)], (1,)).seen
    assert cut_too is not None
    assert all(torch.equal(here, whole[:, 16:]) for here, whole in zip(cut_too, seen, strict=True))


def grids(side: int, ratio: float, teacher: HeadInfo, student: HeadInfo) -> tuple[list[tuple[int, int]], ...]:
    larger = round(side * ratio)
    return grid_sizes(larger, larger, teacher.strides), grid_sizes(side, side, student.strides)


def where_it_is(sizes: list[tuple[int, int]]) -> torch.Tensor:
    """``(1, 2, A)`` the centre of each cell over the side of the image, as (x, y)."""
    xy = []
    for h, w in sizes:
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        xy.append(torch.stack([x.flatten(), y.flatten()]))
    return torch.cat(xy, 1)[None]


@pytest.mark.parametrize("ratio", [2, 4, 1.5, 1.25])
def test_every_cell_says_what_the_teacher_said_at_that_place(ratio: float) -> None:
    """A teacher whose probabilities are its cells' positions: the student's cells must read their own ones."""
    info = of((8, 16, 32))
    side = 128
    theirs, ours = grids(side, ratio, info, info)
    place = where_it_is(theirs)
    feats = tuple(p.view(1, 2, *s) for p, s in zip(place.split([h * w for h, w in theirs], 2), theirs, strict=True))
    match = match_levels(info, info, ratio)
    got = on_students_grid(Predictions(place.logit(), None, feats), match, theirs, ours, info)
    assert got.scores is not None
    assert got.feats is not None
    # Cells of 2 to 1 fall together exactly; of 3 to 2 they overlap, by less than half of a teacher's cell.
    cells = torch.cat([torch.full((h * w,), 1 / h) for h, w in ours])
    allowed = 1e-5 if float(ratio).is_integer() else cells / 2
    assert ((got.scores.sigmoid() - where_it_is(ours))[0].abs() <= allowed).all()
    assert [tuple(f.shape[-2:]) for f in got.feats] == ours
    level = torch.cat([f.flatten(2) for f in got.feats], 2)
    assert torch.allclose(level, got.scores.sigmoid(), atol=1e-5)


def test_equal_strides_are_taken_as_they_are() -> None:
    info = of((8, 16, 32))
    theirs, ours = grids(64, 2, info, info)
    raw = torch.randn(1, 3, sum(h * w for h, w in theirs))
    got = on_students_grid(Predictions(raw, None, None), match_levels(info, info, 2), theirs, ours, info)
    assert got.scores is not None
    # The teacher's P4 (8 x 8 of 128 px) is the student's P3 of 64 px.
    assert torch.equal(got.scores[..., :64], raw[..., 256:320])
    assert torch.equal(got.scores[..., 64:80], raw[..., 320:336])
    # The student's P5 is the mean of four of the teacher's, in probabilities.
    mean = raw[..., 320:336].sigmoid().view(1, 3, 2, 2, 2, 2).mean((3, 5)).flatten(2)
    assert torch.allclose(got.scores[..., 80:].sigmoid(), mean, atol=1e-6)


def surest_cell(
    ratio: float, reg_max: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, LevelMatch]:
    """Boxes in the student's pixels: of the cell that is sure under each coarse cell, and what was made of it."""
    g = torch.Generator().manual_seed(seed)
    info = of((8, 16, 32), reg_max=reg_max)
    theirs, ours = grids(128, ratio, info, info)
    total = sum(h * w for h, w in theirs)
    scores = torch.randn(1, 1, total, generator=g)
    distances = torch.rand(1, total, 4, generator=g) * 4 + 1
    match = match_levels(info, info, ratio)
    raw = bins_of(distances, reg_max).transpose(1, 2)
    got = on_students_grid(Predictions(scores, raw, None), match, theirs, ours, info)
    assert got.boxes is not None
    assert got.edges is not None
    points, strides = anchor_points(tuple(torch.zeros(1, 1, *s) for s in theirs), info.strides)
    every = decode(distances[0], points, strides) / ratio  # what the teacher said, in the student's pixels
    starts = [sum(h * w for h, w in theirs[:i]) for i in range(3)]
    expected = []
    for t, (rows, columns) in zip(match.teacher, ours, strict=True):
        height, width = theirs[t]
        for y in range(rows):
            for x in range(columns):
                up, down = y * height // rows, -(-(y + 1) * height // rows)
                left, right = x * width // columns, -(-(x + 1) * width // columns)
                cells = [starts[t] + i * width + j for i in range(up, down) for j in range(left, right)]
                expected.append(every[max(cells, key=lambda cell: float(scores[0, 0, cell]))])
    points, strides = anchor_points(tuple(torch.zeros(1, 1, *s) for s in ours), info.strides)
    decoded = decode(expected_distances(got.boxes[0].T), points, strides)
    return torch.stack(expected), decoded, got.edges[0].T, points, match


@pytest.mark.parametrize("ratio", [2, 1.5, 4])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_the_box_of_the_surest_cell_lands_at_the_same_pixels(ratio: float, seed: int) -> None:
    expected, decoded, edges, points, _ = surest_cell(ratio, 16, seed)
    assert ((decoded - expected).abs()[edges] < 0.05).all()
    # What does not count is what the bins cannot say from there: an edge on the other side of the anchor.
    beyond = torch.cat([expected[:, :2] > points, expected[:, 2:] < points], 1)
    assert torch.equal(~edges, beyond) or ((decoded - expected).abs()[~edges & ~beyond] < 0.05).all()
    assert not edges[beyond & ((expected - torch.cat([points, points], 1)).abs() > 0.05)].any()


def test_plain_distances_say_every_edge() -> None:
    expected, decoded, edges, _, _ = surest_cell(2, 1, 3)
    assert torch.allclose(decoded, expected, atol=1e-3)
    assert edges.all()


def test_a_box_too_large_for_the_bins_does_not_count() -> None:
    student, teacher = of((16,), reg_max=4), of((16,), reg_max=4)
    distances = torch.tensor([[[3.0, 1.0, 1.0, 1.0]] * 4])  # four cells of 8 px in the student's image
    raw = bins_of(distances, 4).transpose(1, 2)
    scores = torch.tensor([[[0.0, 0.0, 0.0, 5.0]]])  # the lower right cell is the surest
    got = on_students_grid(
        Predictions(scores, raw, None), match_levels(student, teacher, 2), [(2, 2)], [(1, 1)], student
    )
    assert got.boxes is not None
    assert got.edges is not None
    # Its centre is a quarter of the coarse cell right of and below the coarse one's: 1.5 - .25, .5 - .25, .5 + .25.
    assert expected_distances(got.boxes[0].T)[0].tolist() == pytest.approx([1.25, 0.25, 0.75, 0.75], abs=1e-4)
    assert got.edges.all()
    far = Predictions(scores, bins_of(distances.clamp(max=0), 4).transpose(1, 2), None)  # a point, beside the anchor
    got = on_students_grid(far, match_levels(student, teacher, 2), [(2, 2)], [(1, 1)], student)
    assert got.edges is not None
    assert got.edges[0, :, 0].tolist() == [False, False, True, True]


def test_edges_that_did_not_count_still_do_not() -> None:
    info = of((8,), reg_max=1)
    silent = torch.ones(1, 4, 16, dtype=torch.bool)
    silent[:, 2] = False
    said = Predictions(torch.zeros(1, 1, 16), torch.ones(1, 4, 16), None, edges=silent)
    got = on_students_grid(said, match_levels(info, info, 2), [(4, 4)], [(2, 2)], info)
    assert got.edges is not None
    assert got.edges[0, :, 0].tolist() == [True, True, False, True]


def test_a_hidden_level_of_another_order_is_no_concern_of_taps() -> None:
    info = head()
    said = replace(predictions(), taps=predictions().feats)
    assert on_students_grid(said, match_levels(info, info), [(4, 4), (2, 2)], [(4, 4), (2, 2)], info).taps is said.taps
