from itertools import pairwise

import pytest

from yolokd.schedule import Schedule


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Schedule("constant", 10, 2), {0: 0, 1: 0.5, 2: 1, 9.99: 1, 10: 0}),
        (Schedule("constant", 2, 3), {0: 0, 0.5: 0.5, 1: 1}),  # the ramp is cut to epochs - 1
        (Schedule("constant", 1, 3), {0: 1, 0.5: 1}),  # one epoch: no ramp
        (Schedule("constant", 10, 0, close=4), {0: 1, 5.9: 1, 6: 0, 9: 0}),
        (Schedule("constant", 10, 2, start=3), {0: 0, 2.9: 0, 3: 0, 4: 0.5, 5: 1, 9.9: 1, 10: 0}),
        (Schedule("constant", 10, 0, start=3), {2.9: 0, 3: 1}),
        (Schedule("constant", 5, 3, start=3), {3: 0, 3.5: 0.5, 4: 1}),  # an epoch at full strength is left
        (Schedule("cosine", 15, 2, close=1, start=2), {1.9: 0, 3: 0.5, 4: 1, 9: 0.5, 14: 0}),
        (Schedule("cosine", 12, 2), {0: 0, 1: 0.5, 2: 1, 7: 0.5, 12: 0}),
        (Schedule("cosine", 12, 0, close=2), {0: 1, 5: 0.5, 10: 0}),
    ],
)
def test_factor(schedule: Schedule, values: dict[float, float]) -> None:
    for epoch, value in values.items():
        assert schedule(epoch) == pytest.approx(value), epoch


def test_cosine_falls_without_a_jump() -> None:
    schedule = Schedule("cosine", 20, 3, close=5)
    factors = [schedule(3 + i * 0.01) for i in range(1200)]
    assert all(0 <= a - b < 0.01 for a, b in pairwise(factors))
    assert factors[0] == 1
    assert factors[-1] < 1e-4


@pytest.mark.parametrize(
    ("epochs", "warmup", "ramp"), [(10, 3, 3), (10, 0, 0), (2, 3, 1), (1, 3, 0), (10, 2.5, 2.5), (0.5, 3, 0)]
)
def test_the_ramp_ends_before_the_last_epoch(epochs: float, warmup: float, ramp: float) -> None:
    schedule = Schedule("constant", epochs, warmup)
    assert schedule.ramp == ramp
    assert schedule(ramp) == (1 if ramp < epochs else 0)
    assert schedule(ramp * 0.99) < 1 or ramp == 0
