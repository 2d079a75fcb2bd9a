"""Parts of an analysis: made once, and again where they must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import yolokd
from yolokd.evaluation.parts import stored


class Maker:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> dict[Any, Any]:
        self.count += 1
        return {"made": self.count, 3: (1, None)}


def test_made_once_and_the_same_when_read(tmp_path: Path) -> None:
    make, file = Maker(), tmp_path / "part.json"
    first = stored(file, {"a": ("x", 1)}, make)
    assert first == stored(file, {"a": ("x", 1)}, make) == {"made": 1, "3": [1, None]}
    assert [file.name for file in tmp_path.iterdir()] == ["part.json"]


def test_made_again_from_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, file = Maker(), tmp_path / "part.json"
    stored(file, {"run": "1"}, make)
    assert stored(file, {"run": "2"}, make)["made"] == 2
    assert stored(file, {"run": "2"}, make)["made"] == 2
    monkeypatch.setattr(yolokd, "__version__", "9.9")
    assert stored(file, {"run": "2"}, make)["made"] == 3


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"content": 1}', "\xff"])
def test_what_is_not_ours_is_written_over(tmp_path: Path, text: str) -> None:
    make, file = Maker(), tmp_path / "part.json"
    file.write_bytes(text.encode("latin1"))
    assert stored(file, {}, make)["made"] == 1
    assert json.loads(file.read_text())["content"]["made"] == 1


def test_killed_while_making_nothing_is_stored(tmp_path: Path) -> None:
    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "part.json", {}, killed)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_gone_is_drawn_again(tmp_path: Path) -> None:
    picture = tmp_path / "0.jpg"
    drawn: list[int] = []

    def draw() -> list[str]:
        drawn.append(1)
        picture.touch()
        return ["0.jpg"]

    for _ in range(2):
        stored(tmp_path / "part.json", {}, draw, pictures=lambda names: [tmp_path / name for name in names])
    assert len(drawn) == 1
    picture.unlink()
    stored(tmp_path / "part.json", {}, draw, pictures=lambda names: [tmp_path / name for name in names])
    assert len(drawn) == 2
    assert picture.is_file()
