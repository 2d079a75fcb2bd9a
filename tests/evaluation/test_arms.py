"""What an arm may say, and what is refused because the arms would no longer be comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lively import save_tiny_detr
from yolokd.errors import UserError
from yolokd.evaluation.arms import Arm, look_at, read_arms, settings_of

COMMON: dict[str, Any] = {"epochs": 3, "imgsz": 64, "batch": 4, "device": "cpu", "seed": 0}


@pytest.fixture
def teacher(here: Path) -> str:
    """Files that are called models, beside each other."""
    for name in ("t.pt", "u.pt"):
        (here / name).write_text(name)
    return str(here / "t.pt")


def recipe(name: str, /, **content: Any) -> str:
    Path(name).write_text(yaml.safe_dump(content))
    return name


def test_the_three_arms(teacher: str) -> None:
    ours = {"teacher": teacher, "losses": "cls", "cwd.temperature": 2}
    arms = read_arms("plain, native,yolokd", ours)
    assert [(arm.name, arm.kind, arm.way) for arm in arms] == [(name,) * 3 for name in ("plain", "native", "yolokd")]
    assert [dict(arm.keys) for arm in arms] == [{}, {"distill_model": teacher}, ours]
    assert read_arms(["plain", "native"], {"teacher": "t.pt"}, dis=2)[1].keys == {"distill_model": teacher, "dis": 2}


def test_a_recipe_has_the_teacher_and_its_own_keys_only(teacher: str, here: Path) -> None:
    ours = {"teacher": teacher, "class_map": "a:b", "losses": "cls"}
    mine = recipe("mine.yaml", losses="cwd:1", lr0=0.1, teacher_cache="answers")
    other = recipe("other.yaml", teacher="u.pt")
    arms = {arm.name: arm for arm in read_arms(f"yolokd,{mine},{other}", ours)}
    cache = str(here / "answers")
    assert arms["mine"].keys == {
        "teacher": teacher,
        "class_map": "a:b",
        "losses": "cwd:1",
        "lr0": 0.1,
        "teacher_cache": cache,
    }
    assert (arms["mine"].kind, arms["mine"].way, arms["mine"].recipe) == ("recipe", "yolokd", str(here / mine))
    assert arms["other"].keys == {"teacher": str(here / "u.pt"), "class_map": "a:b"}


def test_a_recipe_for_ultralytics_own_distillation(teacher: str, here: Path) -> None:
    weak, other = recipe("weak.yaml", dis=1), recipe("other.yaml", distill_model="u.pt", lr0=0.1)
    first, second = read_arms([weak, other], {"teacher": teacher, "trust": True})
    assert (first.kind, first.way, first.keys) == ("recipe", "native", {"distill_model": teacher, "dis": 1})
    assert second.keys == {"distill_model": str(here / "u.pt"), "lr0": 0.1}


@pytest.mark.parametrize(
    ("arms", "ours", "words"),
    [
        ("plain,natve", {}, "'natve' is not an arm"),
        ("plain", {}, "a comparison takes two"),
        ("plain,plain", {}, "has plain twice"),
        ("plain,,native", {}, "'' is not an arm"),
        ("plain,none.yaml", {}, "none.yaml: no such file"),
        ("plain,native", {}, "Arm native: teacher= is missing"),
        ("plain,native", {"teacher": "x.pt"}, "x.pt: no such file"),
        ("plain,native", {"teacher": "t.pt,u.pt"}, "takes one .pt file, not teacher=t.pt,u.pt"),
        ("plain,native", {"teacher": "self"}, "takes one .pt file, not teacher=self"),
        ("plain,native", {"teacher": "t.pt:a"}, "takes one .pt file"),
        ("plain,native", {"teacher": "t.pt", "losses": "cls"}, "losses= is for the arm yolokd, which is not in arms="),
        ("plain,yolokd", {"teacher": "t.pt,"}, "empty place"),
    ],
)
def test_refused(teacher: str, arms: str, ours: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        read_arms(arms, ours)
    assert words in error.value.problem
    assert error.value.remedy


@pytest.mark.parametrize("dis", [0, -1, True, "six"])
def test_a_gain_of_native_that_is_none(teacher: str, dis: Any) -> None:
    with pytest.raises(UserError, match="is not a positive number"):
        read_arms("plain,native", {"teacher": teacher}, dis)
    with pytest.raises(UserError, match="dis= is for the arm native"):
        read_arms("plain,yolokd", {"teacher": teacher}, dis=2)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("data", "x.yaml", "cannot be compared"),
        ("epochs", 5, "cannot be compared"),
        ("seed", 1, "cannot be compared"),
        ("imgsz", 96, "cannot be compared"),
        ("fraction", 0.5, "cannot be compared"),
        ("time", 1, "cannot be compared"),
        ("single_cls", True, "cannot be compared"),
        ("classes", [0], "cannot be compared"),
        ("patience", 1, "different numbers of epochs"),
        ("pretrained", "x.pt", "from the same weights"),
        ("student", "x.pt", "from the same weights"),
        ("model", "x.pt", "from the same weights"),
        ("split", "test", "choose best.pt on other images"),
        ("name", "x", "says where its runs lie"),
        ("device", 0, "says where its runs lie"),
    ],
)
def test_a_recipe_that_would_make_the_arms_incomparable(teacher: str, key: str, value: Any, why: str) -> None:
    mine = recipe("mine.yaml", losses="cls", **{key: value})
    with pytest.raises(UserError, match=f"arms=mine.yaml says {key}: .*{why}"):
        read_arms(f"plain,{mine}", {"teacher": teacher})


def test_an_empty_key_of_a_recipe_is_not_given(teacher: str) -> None:
    mine = read_arms(["plain", recipe("mine.yaml", losses="cls", freeze=None, seed=None)], {"teacher": teacher})[1]
    assert (mine.keys["losses"], "freeze" in mine.keys, "seed" in mine.keys) == ("cls", False, False)


def test_names_that_are_taken_or_mixed_up(teacher: str) -> None:
    for name in ("plain.yaml", "teacher.yaml", "analysis.yaml", "truth.yaml"):
        with pytest.raises(UserError, match="is taken"):
            read_arms(["plain", recipe(name, losses="cls")], {"teacher": teacher})
    Path("sub").mkdir()
    with pytest.raises(UserError, match="has mine twice"):
        read_arms([recipe("mine.yaml", losses="cls"), recipe("sub/mine.yaml", lr0=1)], {"teacher": teacher})
    with pytest.raises(UserError, match="losses cannot work beside Ultralytics' own"):
        read_arms(["plain", recipe("both.yaml", dis=1, losses="cls")], {"teacher": teacher})
    with pytest.raises(UserError, match=r"'lossses' in arms typo\.yaml"):
        read_arms(["plain", recipe("typo.yaml", lossses="cls")], {"teacher": teacher})


@pytest.mark.parametrize("change", [{"name": "../x"}, {"name": ""}, {"name": ".x"}, {"kind": "x"}, {"way": "recipe"}])
def test_an_arm_that_a_damaged_manifest_could_name(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no arm"):
        Arm(**{"name": "a", "kind": "recipe", "way": "yolokd", **change})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"teacher": "t.pt", "via": "u.pt"}, "several trainings"),
        ({"teacher": "born-again"}, "several trainings"),
        ({"teacher": "t.pt", "losses": "clss"}, "'clss' is not a loss"),
        ({"losses": "cls"}, "teacher= is missing"),
        ({"teacher": "t.pt", "kd_close": 3}, "kd_close=3 with epochs=3"),
        ({"losses": "none", "lr0": "much"}, "lr0"),
    ],
)
def test_keys_that_no_training_would_take(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings_of(keys, COMMON)


@pytest.mark.e2e
def test_arms_are_tried_before_anything_is_written(
    toy_data: Path, toy_student: Path, toy_teacher: Path, here: Path
) -> None:
    common = {**COMMON, "data": str(toy_data), "model": str(toy_student)}
    assert look_at(Arm("plain", "plain", "plain"), common, False) == []
    assert look_at(Arm("native", "native", "native", {"distill_model": str(toy_teacher)}), common, False) == []
    lines = look_at(Arm("yolokd", "yolokd", "yolokd", {"teacher": str(toy_teacher), "losses": "cls"}), common, False)
    assert "classes: 3 of 3 mapped" in lines
    assert list(here.iterdir()) == []


def test_arms_that_cannot_work_say_which(toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path) -> None:
    detr = str(save_tiny_detr(tmp_path / "detr.pt"))
    common = {**COMMON, "data": str(toy_data), "model": str(toy_student)}
    for arm, words in (
        (Arm("native", "native", "native", {"distill_model": detr}), "Arm native: .* is an RT-DETR"),
        (Arm("mine", "recipe", "yolokd", {"teacher": detr, "losses": "crosskd"}), "Arm mine: .*crosskd"),
        (Arm("plain", "plain", "plain", {}), "Arm plain: .*nowhere"),
    ):
        given = {**common, **({"pretrained": "nowhere.pt"} if arm.name == "plain" else {})}
        with pytest.raises(UserError, match=words):
            look_at(arm, given, False)
