"""Losses under several teachers: each with adapters of its own, all of them trained, none of the teachers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers import assignment, head, leaves, predictions
from yolokd.losses.base import LOSSES, build_losses
from yolokd.losses.each import EachTeacher, build_for_all, of_each
from yolokd.predictions import Pair

PAIRS = [Pair(head(), head(widths=(3, 5))), Pair(head(), head(widths=(7, 8)))]
GAINS = {"cls": 1.0, "cwd": 1.0, "fitnets": 1.0}


def build(weights: tuple[float, ...] = (0.75, 0.25), pairs: list[Pair] = PAIRS, seed: int = 0) -> torch.nn.ModuleDict:
    return build_for_all(GAINS, {"cwd": {"temperature": 2.0}}, pairs, (), seed, weights)


def test_responses_once_features_for_each() -> None:
    losses = build()
    assert list(losses) == list(GAINS)
    assert isinstance(losses["cwd"], EachTeacher)
    assert not isinstance(losses["cls"], EachTeacher)
    widths = [[conv.out_channels for conv in loss.adapter.levels] for loss in losses["cwd"].each]  # type: ignore[union-attr]
    assert widths == [[3, 5], [7, 8]]
    assert all(loss.temperature == 2.0 for loss in losses["cwd"].each)  # type: ignore[union-attr]


def test_one_teacher_has_what_it_always_had() -> None:
    alone, before = build(pairs=PAIRS[:1], weights=(1.0,)), build_losses(GAINS, {}, PAIRS[0], 0)
    assert list(alone.state_dict()) == list(before.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), before.parameters(), strict=True))


def test_equal_teachers_get_other_adapters_and_the_stream_is_repeated() -> None:
    losses = build(pairs=[PAIRS[0], PAIRS[0]])
    first, second = losses["cwd"].each  # type: ignore[union-attr]
    assert not torch.equal(first.adapter.levels[0].weight, second.adapter.levels[0].weight)
    again = build(pairs=[PAIRS[0], PAIRS[0]])
    assert all(torch.equal(a, b) for a, b in zip(losses.parameters(), again.parameters(), strict=True))


def test_the_value_is_the_weighted_mean_over_the_members() -> None:
    losses = build()
    members = (predictions(widths=(3, 5), seed=1), predictions(widths=(7, 8), seed=2))
    teacher = replace(predictions(seed=3), feats=None, members=members)
    student, assigned = predictions(seed=4), assignment()
    alone = [loss(student, m, assigned) for loss, m in zip(losses["cwd"].each, members, strict=True)]  # type: ignore[union-attr]
    got = losses["cwd"](student, teacher, assigned)
    assert got.item() == pytest.approx(0.75 * alone[0].item() + 0.25 * alone[1].item())
    # ... whatever the weights' sum is.
    assert EachTeacher(losses["cwd"].each, (3.0, 1.0)).shares == (0.75, 0.25)  # type: ignore[arg-type]


def test_the_gradient_reaches_all_adapters_and_no_teacher() -> None:
    losses = build()
    members = tuple(leaves(predictions(widths=w, seed=i)) for i, w in enumerate(((3, 5), (7, 8))))
    student = leaves(predictions(seed=4))
    teacher = replace(predictions(seed=3), feats=None, members=members)
    losses["cwd"](student, teacher, assignment()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in losses["cwd"].parameters())
    assert student.feats is not None
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in student.feats)
    assert all(f.grad is None for m in members for f in m.feats or ())


def test_another_number_of_members_is_refused() -> None:
    losses = build()
    for teacher in (predictions(), replace(predictions(), members=(predictions(widths=(3, 5)),))):
        with pytest.raises(ValueError, match="2 teachers expected"):
            losses["cwd"](predictions(), teacher, assignment())


def test_what_a_loss_tells_is_the_weighted_mean() -> None:
    losses = build_for_all({"adv": 1.0}, {}, PAIRS, (), 0, (0.75, 0.25))
    first, second = losses["adv"].each  # type: ignore[union-attr]
    first.logged, second.logged = {"accuracy": torch.tensor(1.0)}, {"accuracy": torch.tensor(0.6)}
    assert losses["adv"].logged["accuracy"].item() == pytest.approx(0.9)  # type: ignore[index, union-attr]
    assert build()["cwd"].logged == {}


def test_the_depth_is_that_of_each() -> None:
    hidden = (((4, 4), (5, 5)), ((4, 4), (5, 5)))
    pairs = [Pair(replace(head(), hidden=hidden), replace(head(), hidden=hidden))] * 2
    losses = build_for_all({"crosskd": 1.0}, {"crosskd": {"depth": 2}}, pairs, (), 0, (1.0, 1.0))
    assert losses["crosskd"].depth == 2


def test_layers_have_the_widths_of_each_teacher() -> None:
    looks = [replace(p, teacher=replace(p.teacher, widths=w)) for p, w in zip(PAIRS, ((2, 2), (9, 9)), strict=True)]
    losses = build_for_all(GAINS, {}, PAIRS, looks, 0, (1.0, 1.0))
    widths = [[conv.out_channels for conv in loss.adapter.levels] for loss in losses["cwd"].each]  # type: ignore[union-attr]
    assert widths == [[2, 2], [9, 9]]


def test_every_loss_of_the_table_is_on_one_side() -> None:
    assert [name for name in LOSSES if not of_each(name)] == ["kd", "cls", "box", "iou"]
