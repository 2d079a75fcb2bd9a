from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest

from yolokd.guard import FADE, Guard

ROW = tuple[float | None, dict[str, float]]


def run(guard: Guard, rows: Sequence[ROW], first: int = 0) -> list[str | None]:
    return [guard.end_epoch(first + i, fitness, losses) for i, (fitness, losses) in enumerate(rows)]


def falling(*fitness: float | None) -> list[ROW]:
    """Epochs with a distillation loss of 1, 0.9, 0.8 ..."""
    return [(f, {"a": 1 - 0.1 * i}) for i, f in enumerate(fitness)]


def test_it_trips_where_fitness_stands_and_the_loss_falls() -> None:
    guard = Guard(3)
    said = run(guard, falling(0.1, 0.3, 0.2, 0.3, 0.25, 0.2, 0.2))
    assert [bool(text) for text in said] == [False] * 4 + [True, False, False]  # epoch 4 is 3 after the best, once
    # From 0.9 to 0.6.
    assert said[4] == (
        "Over-distillation: the validation fitness has not risen since epoch 2 (0.3000), while the distillation loss "
        "fell by 33.3%. Distillation fades out over the next 5 epochs and stays out; guard=off keeps it."
    )


@pytest.mark.parametrize(
    "rows",
    [
        falling(0.1, 0.3, 0.2, 0.2),  # one epoch too few
        falling(0.1, 0.3, 0.2, 0.2, 0.31, 0.2, 0.2),  # it rose in time
        falling(0, 0, 0, 0, 0, 0),  # nothing found yet
        falling(0.3, None, None, None, None, None),  # no validation
        falling(0.3, math.nan, math.nan, math.nan, math.nan),
        [(0.3 - 0.01 * i, {"a": 1.0}) for i in range(8)],  # the loss stands still
        [(0.3 - 0.01 * i, {"a": 1 - 0.001 * i}) for i in range(8)],  # 0.7 % is not a fall
        [(0.3 - 0.01 * i, {"a": 1 + 0.1 * i}) for i in range(8)],  # the loss rises
        # sqrt(0.5 * 2.2) > 1: one falls, the other rises by more
        [(0.3, {"a": 1.0, "b": 1000.0}), *[(0.2, {"a": 2.2, "b": 500.0})] * 6],
        # 0 (the teacher rested), NaN, and what the best epoch lacks do not count
        [(0.3, {"a": 0.0, "b": math.nan, "c": 1.0}), *[(0.2, {"a": 1.0, "b": 0.1, "c": 0.0, "d": 0.1})] * 6],
        [(0.3, {}), *[(0.2, {})] * 6],
    ],
)
def test_near_misses(rows: list[ROW]) -> None:
    guard = Guard(3)
    assert run(guard, rows) == [None] * len(rows)
    assert guard.factor(100) == 1


def test_an_epoch_in_which_the_teacher_was_not_asked_is_nobodys_best() -> None:
    rows: list[ROW] = [(0.3, {"a": 1.0}), (0.4, {}), (0.3, {"a": 0.5}), (0.3, {"a": 0.4})]
    assert [bool(said) for said in run(Guard(2), rows)] == [False, False, True, False]


def test_terms_are_compared_by_their_ratio() -> None:
    # sqrt(0.5 * 1.9) = 0.975: the small term's fall outweighs the large one's rise, though the sum grows.
    rows: list[ROW] = [(0.3, {"a": 0.01, "b": 100.0}), (0.2, {"a": 0.005, "b": 190.0})]
    text = Guard(1)
    said = run(text, rows)
    assert said[1] is not None
    assert "fell by 2.5%" in said[1]


def test_a_fall_of_one_percent_is_enough() -> None:
    assert run(Guard(1), [(0.3, {"a": 1.0}), (0.3, {"a": 0.9899})])[1]
    assert not run(Guard(1), [(0.3, {"a": 1.0}), (0.3, {"a": 0.9901})])[1]


def test_zero_fitness_at_first_does_not_count() -> None:
    rows = falling(0, 0, 0, 0, 0.1, 0.1, 0.1)
    assert run(Guard(3), rows) == [None] * 7
    assert run(Guard(2), rows)[6]


def test_distillation_fades_and_stays_out() -> None:
    guard = Guard(1)
    run(guard, falling(0.3, 0.2))  # trips at the end of epoch 1: two epochs are done
    values = {1.5: 1, 2: 1, 2.5: 0.9, 3: 0.8, 4: 0.6, 6.5: 0.1, 2 + FADE: 0, 50: 0}
    assert {epoch: guard.factor(epoch) for epoch in values} == pytest.approx(values)
    assert run(guard, falling(0.9, 0.8, 0.7), first=2) == [None] * 3  # a rise does not bring it back
    assert guard.factor(50) == 0


def test_off() -> None:
    guard = Guard(None)
    assert run(guard, falling(0.3, 0.2, 0.2, 0.2, 0.2)) == [None] * 5
    assert guard.factor(10) == 1


@pytest.mark.parametrize("patience", [0, -1])
def test_patience_is_checked(patience: int) -> None:
    with pytest.raises(ValueError, match="guard_patience"):
        Guard(patience)


@pytest.mark.parametrize("cut", range(6))
def test_a_resumed_guard_goes_on(cut: int) -> None:
    rows = falling(0.1, 0.3, 0.2, 0.2, 0.2, 0.2)
    whole = Guard(3)
    expected = run(whole, rows)
    before, after = Guard(3), Guard(3)
    said = run(before, rows[:cut])
    after.load(json.loads(json.dumps(before.state())))
    assert said + run(after, rows[cut:], first=cut) == expected
    assert after.state() == whole.state()
    assert [after.factor(e) for e in (5, 6, 20)] == [whole.factor(e) for e in (5, 6, 20)]
