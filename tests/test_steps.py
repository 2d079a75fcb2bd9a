"""The manifest of a chain; what chains and peers do with it is tested in test_chain.py and test_peers.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yolokd.errors import UserError
from yolokd.steps import FINISHED, Chain, Step, refuse_changes


def chain(folder: Path, *fitness: float | None, born_again: bool = False) -> Chain:
    steps = [
        Step(f"{i}-n", "n.pt", state="waiting" if value is None else FINISHED, fitness=value)
        for i, value in enumerate(fitness)
    ]
    return Chain(folder, born_again, {"epochs": 3, "losses": {"cls": 0.5}}, steps, {"n.pt": "0" * 64})


def test_what_is_saved_is_loaded_also_from_another_place(tmp_path: Path) -> None:
    made = chain(tmp_path / "a", 0.5, None)
    made.folder.mkdir()
    made.save()
    made.folder.rename(tmp_path / "b")
    loaded = Chain.load(tmp_path / "b")
    assert loaded.folder == tmp_path / "b"
    assert (loaded.steps, loaded.settings, loaded.files) == (made.steps, made.settings, made.files)


def test_the_step_that_counts(tmp_path: Path) -> None:
    assert chain(tmp_path, 0.5, 0.3, None).best.name == "1-n"  # of a chain the newest
    assert chain(tmp_path, 0.5, 0.3, None, born_again=True).best.name == "0-n"  # of generations the best
    assert chain(tmp_path, 0.5, 0.5, born_again=True).best.name == "0-n"  # the earlier of two that are equal


@pytest.mark.parametrize("change", [{"data": "missing.yaml"}, {"teacher_device": "gpu"}, {"teacher_precision": "fp8"}])
def test_changes_that_no_step_could_train_with(change: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        refuse_changes(change)


def test_changes_that_a_step_can_train_with(toy_data: Path) -> None:
    for change in ({"data": str(toy_data)}, {"device": "cpu", "batch": 4}, {"teacher_device": "cpu"}, {}):
        before = dict(change)
        refuse_changes(change)
        assert change == before
