"""What a person sees of several trainings that are under way at the same time."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import pytest
import ultralytics.engine.trainer as engine

from yolokd.compat.bars import headed, side_by_side

COLUMNS = "\n      Epoch   box_loss"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    monkeypatch.setattr("ultralytics.utils.VERBOSE", True)
    file = io.StringIO()
    with side_by_side():
        yield file


def opened(name: str, screen: io.StringIO) -> engine.TQDM:
    made = []

    def make() -> None:
        made.append(engine.TQDM(range(2), total=2, file=screen, mininterval=0, disable=False))

    thread = threading.Thread(target=make, name=name)
    thread.start()
    thread.join()
    return made[0]


def test_each_peer_ends_in_a_line_of_its_own_and_the_newest_is_live(screen: io.StringIO) -> None:
    first, second = opened("1-n", screen), opened("2-s", screen)
    screen.truncate(0)
    first.set_description("  1/9")
    assert screen.getvalue() == ""
    second.set_description("  1/9")
    assert "         2-s  1/9: 0%" in screen.getvalue()
    for bar in (first, second):
        bar.update(2)
        bar.close()
    lines = screen.getvalue().split("\n")
    assert [line.rpartition("\r\033[K")[2].split(":")[0].split() for line in lines[:-1]] == [
        ["1-n", "1/9"],
        ["2-s", "1/9"],
    ]
    assert all("100%" in line for line in lines[:-1])
    assert lines[-1] == ""


def test_one_header_stands_above_the_bars_of_all(screen: io.StringIO) -> None:
    header = "\n        Peer      Epoch   box_loss"
    assert headed(COLUMNS) == header
    bars = [opened("1-n", screen), opened("2-s", screen)]
    assert headed(COLUMNS).strip("\r\033[K") == ""
    for bar in bars:
        bar.close()
    assert headed(COLUMNS) == header


def test_afterwards_ultralytics_has_its_own_bars_again() -> None:
    before = engine.TQDM
    with side_by_side():
        assert engine.TQDM is not before
        headed(COLUMNS)
        opened("1-n", io.StringIO())
    assert engine.TQDM is before
    assert headed(COLUMNS) != ""
