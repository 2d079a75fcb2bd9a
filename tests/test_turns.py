"""Who goes next, whose random numbers these are, and how all of them end."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from yolokd.turns import Place, Turns


def seeded(turns: Turns, *names: str) -> None:
    for seed, name in enumerate(names):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        turns.keep_streams(name)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_one_furthest_behind_goes_next_and_the_first_of_two_that_are_equally_far() -> None:
    turns, said = Turns(["a", "b"]), []
    seeded(turns, "a", "b")

    def work(name: str, places: list[Place]) -> Callable[[], None]:
        def go() -> None:
            for place in places:
                turns.wait(name, place)
                said.append((name, *place))

        return go

    # b has half as many batches an epoch, and is set back once
    turns.run(
        {
            "a": work("a", [(0, 0.0), (0, 0.25), (0, 0.5), (0, 0.75), (1, 0.0)]),
            "b": work("b", [(0, 0.0), (0, 0.5), (0, 0.0), (0, 0.5), (1, 0.0)]),
        }
    )
    order = "a0.0 b0.0 a0.25 a0.5 b0.5 b0.0 b0.5 a0.75 a1.0 b1.0"
    assert [f"{name}{epoch + part}" for name, epoch, part in said] == order.split()


@pytest.mark.parametrize("together", [("a",), ("b",), ("a", "b"), ("a", "b", "c")])
def test_what_one_draws_does_not_depend_on_the_others(together: tuple[str, ...]) -> None:
    turns, drawn = Turns(together), {name: [] for name in together}  # type: ignore[var-annotated]
    for name in together:
        seed = ord(name)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        turns.keep_streams(name)

    def work(name: str) -> None:
        for step in range(3):
            drawn[name].append(draw())
            turns.wait(name, (0, step))
            drawn[name].append(draw())

    turns.run({name: lambda name=name: work(name) for name in together})  # type: ignore[misc]
    for name in together:
        random.seed(ord(name))
        np.random.seed(ord(name))
        torch.manual_seed(ord(name))
        assert drawn[name] == [draw() for _ in range(6)]


def test_an_error_in_one_ends_all_and_is_raised_here() -> None:
    threads = threading.active_count()  # other tests leave some, of libraries
    turns, ended = Turns(["a", "b", "c"]), []
    seeded(turns, "a", "b", "c")

    def work(name: str) -> None:
        try:
            for step in range(10):
                turns.wait(name, (0, step))
                if (name, step) == ("b", 3):
                    raise ZeroDivisionError("b")
        finally:
            ended.append((name, step))

    with pytest.raises(ZeroDivisionError, match="b") as caught:
        turns.run({name: lambda name=name: work(name) for name in "abc"})  # type: ignore[misc]
    assert any(entry.name == "work" for entry in caught.traceback)  # where it was raised, not only where it was seen
    assert sorted(ended) == [("a", 4), ("b", 3), ("c", 3)]
    assert threading.active_count() == threads


def test_one_that_never_began_does_not_begin() -> None:
    turns, begun = Turns(["a", "b"]), []
    seeded(turns, "a", "b")

    def fails() -> None:
        raise KeyError("a")

    with pytest.raises(KeyError):
        turns.run({"a": fails, "b": lambda: begun.append("b")})
    assert begun == []


def test_an_interrupt_here_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.active_count()
    turns, steps, running = Turns(["a", "b"]), [], threading.Event()
    seeded(turns, "a", "b")

    def work(name: str) -> None:
        for step in range(100_000):
            turns.wait(name, (step, 0.0))
            steps.append(name)
            running.set()

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        monkeypatch.undo()
        running.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        turns.run({name: lambda name=name: work(name) for name in "ab"})  # type: ignore[misc]
    assert len(steps) < 200_000
    assert threading.active_count() == threads


def test_one_that_has_ended_no_longer_takes_turns() -> None:
    turns, said = Turns(["a", "b"]), []
    seeded(turns, "a", "b")

    def work(name: str, epochs: int) -> None:
        for epoch in range(epochs):
            turns.wait(name, (epoch, 0.0))
            said.append((name, epoch))

    turns.run({"a": lambda: work("a", 1), "b": lambda: work("b", 3)})
    assert said == [("a", 0), ("b", 0), ("b", 1), ("b", 2)]
