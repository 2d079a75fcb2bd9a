"""``compare.yaml`` and the results beside it, whole and damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.evaluation.runs import finish
from yolokd.errors import UserError
from yolokd.evaluation.arms import Arm
from yolokd.evaluation.comparison import Comparison, machine_facts
from yolokd.evaluation.splits import EvalSplit


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    arms = [
        Arm("plain", "plain", "plain"),
        Arm("mine", "recipe", "yolokd", {"teacher": "t.pt", "lr0": 0.5}, "mine.yaml"),
    ]
    settings = {"epochs": 3, "lr0": 0.1, "seed": 9}
    split = EvalSplit("data.yaml", "test", held_out=True, note="held out")
    made = Comparison(tmp_path, "n.pt", "t.pt", "t.pt", split, settings, arms, [0, 4], False, 1, True)
    made.save()
    return made


def test_it_is_read_as_it_was_written_and_may_be_moved(comparison: Comparison, tmp_path: Path) -> None:
    assert Comparison.load(tmp_path) == comparison
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "compare.yaml").rename(moved / "compare.yaml")
    assert Comparison.load(moved) == replace(comparison, folder=moved)
    assert Comparison.load(moved).data == str(moved / "data.yaml")


def test_the_keys_of_a_run(comparison: Comparison, tmp_path: Path) -> None:
    assert comparison.keys(comparison.arm("mine"), 4) == {
        "epochs": 3,
        "lr0": 0.5,  # the arm's own
        "seed": 4,
        "teacher": "t.pt",
        "model": "n.pt",
        "data": str(tmp_path / "data.yaml"),
        "save_dir": str(tmp_path / "mine" / "seed4"),
        "mode": "train",
    }
    with pytest.raises(UserError, match="has no arm other"):
        comparison.arm("other")


def test_what_is_left(comparison: Comparison) -> None:
    runs = [("plain", 0), ("mine", 0), ("plain", 4), ("mine", 4)]
    assert comparison.left() == [("teacher", 0), *runs]
    finish(comparison, "teacher", 0)
    finish(comparison, "mine", 0)
    assert comparison.left() == [runs[0], *runs[2:]]
    comparison.judged = ""
    assert comparison.left() == [runs[0], *runs[2:]]
    (comparison.run_folder("mine", 0) / "best.npz").unlink()
    assert comparison.result("mine", 0) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"scores": {"best": {}}}', '{"scores": {"best": {"ap": 1}}}'])
def test_a_damaged_result_is_named(comparison: Comparison, text: str) -> None:
    finish(comparison, "plain", 0)
    file = comparison.run_folder("plain", 0) / "result.json"
    file.write_text(text)
    with pytest.raises(UserError, match=f"{file} cannot be read"):
        comparison.left()


def change(file: Path, **more: object) -> None:
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **more}))


@pytest.mark.parametrize(
    "more",
    [
        {"arms": [{"name": "../../x", "kind": "plain", "way": "plain"}]},
        {"arms": [{"name": "x", "kind": "plain", "way": "other"}]},
        {"arms": "plain"},
        {"seeds": ["x"]},
        {"split": {"source": "x"}},
        {"surprise": 1},
    ],
)
def test_a_damaged_manifest_is_refused(comparison: Comparison, more: dict[str, object]) -> None:
    change(comparison.folder / "compare.yaml", **more)
    with pytest.raises(UserError, match=r"compare\.yaml cannot be read"):
        Comparison.load(comparison.folder)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\x80"])
def test_a_torn_manifest_is_refused(comparison: Comparison, text: str) -> None:
    (comparison.folder / "compare.yaml").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match="cannot be read"):
        Comparison.load(comparison.folder)


def test_another_format_or_none(comparison: Comparison, tmp_path: Path) -> None:
    change(comparison.folder / "compare.yaml", version=99)
    with pytest.raises(UserError, match=r"another version of yolokd \(format 99, here 1\)"):
        Comparison.load(comparison.folder)
    with pytest.raises(UserError, match="holds no comparison"):
        Comparison.load(tmp_path / "nowhere")


def test_a_setting_that_yaml_cannot_hold(comparison: Comparison) -> None:
    comparison.settings["augmentations"] = [object()]
    with pytest.raises(UserError, match="cannot be written down"):
        comparison.text()


def test_where_and_how_it_runs_makes_no_other_comparison(comparison: Comparison, tmp_path: Path) -> None:
    other = replace(comparison, jobs=4, robustness=False, date="2000-01-01", judged="", machine={"cpu": "x"})
    other = replace(other, settings={**comparison.settings, "device": "0", "workers": 2})
    comparison.refuse_other(other)
    other.files = {"n.pt": "0"}
    with pytest.raises(UserError, match=r"n\.pt is not what this comparison began with"):
        comparison.refuse_other(other)


def test_the_machine() -> None:
    facts = machine_facts()
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["memory_gb"] > 0.1
    assert all(facts[word][0].isdigit() for word in ("python", "torch", "ultralytics", "yolokd"))
