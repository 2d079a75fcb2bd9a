from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ultralytics.utils import DEFAULT_CFG_DICT

from yolokd.errors import UserError
from yolokd.keys import OUR_KEYS, known_keys, load_recipe, refuse_native, split_keys


def refusal(**overrides: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        split_keys(overrides)
    assert "\n" not in caught.value.problem + caught.value.remedy
    return caught.value


def test_keys_are_parted() -> None:
    ours, theirs = split_keys({"teacher": "t.pt", "student": "s.pt", "epochs": 3, "cwd.temperature": 2, "box": 7.0})
    assert ours == {"teacher": "t.pt", "cwd.temperature": 2}
    assert theirs == {"model": "s.pt", "epochs": 3, "box": 7.0}


def test_no_key_of_ours_is_a_key_of_ultralytics() -> None:
    assert not set(OUR_KEYS) & set(DEFAULT_CFG_DICT)


def test_a_mistyped_key_is_suggested_from_both_lists() -> None:
    assert refusal(techer="t.pt").remedy.startswith("Did you mean teacher")
    assert "epochs" in refusal(epoch=3).remedy
    both = refusal(epoch=3, losess="cls")
    assert "'epoch', 'losess'" in both.problem
    assert "epochs" in both.remedy
    assert "losses" in both.remedy
    assert "--help" in refusal(qqqqqq=1).remedy


def test_keys_that_ultralytics_renames_still_pass() -> None:
    assert split_keys({"half": True, "save_dir": "x"})[1] == {"half": True, "save_dir": "x"}


def test_student_is_model() -> None:
    assert split_keys({"student": "a.pt", "model": "a.pt"})[1]["model"] == "a.pt"
    assert "student=a.pt and model=b.pt" in refusal(student="a.pt", model="b.pt").problem


@pytest.mark.parametrize("native", [{"distill_model": "t.pt"}, {"dis": 3.0}])
def test_ultralytics_own_distillation_is_refused(native: dict[str, Any]) -> None:
    assert next(iter(native)) in refusal(teacher="t.pt", **native).problem


def test_defaults_of_a_cfg_file_are_no_request_for_native_distillation() -> None:
    split_keys({"dis": DEFAULT_CFG_DICT["dis"], "distill_model": None})
    with pytest.raises(UserError, match="dis"):
        refuse_native({"dis": DEFAULT_CFG_DICT["dis"]}, typed=True)


@pytest.mark.parametrize("wrong", [{"epochs": "many"}, {"lr0": 3.0}, {"optimizer": 3}, {"rect": 3}, {"epochs": None}])
def test_values_of_the_wrong_type_are_refused(wrong: dict[str, Any]) -> None:
    assert next(iter(wrong)) in refusal(**wrong).problem


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


def test_the_command_line_wins_over_the_recipe(tmp_path: Path) -> None:
    recipe = write(tmp_path, "teacher: t.pt\nstudent: s.pt\nlosses: cls:1,cwd:2\ncwd.temperature: 4\nepochs: 5\n")
    ours, theirs = split_keys({"recipe": str(recipe), "epochs": 7, "teacher": "u.pt"})
    assert ours == {"teacher": "u.pt", "losses": "cls:1,cwd:2", "cwd.temperature": 4}
    assert theirs == {"model": "s.pt", "epochs": 7}


def test_losses_chosen_anew_leave_the_recipes_options_of_others_behind(tmp_path: Path) -> None:
    recipe = write(tmp_path, "losses: cls:1,cwd:2\ncwd.temperature: 4\nmodel: s.pt\n")
    assert split_keys({"recipe": recipe, "losses": "cls"})[0] == {"losses": "cls"}
    assert split_keys({"recipe": recipe, "losses": "cwd"})[0] == {"losses": "cwd", "cwd.temperature": 4}
    assert split_keys({"recipe": recipe, "student": "other.pt"})[1] == {"model": "other.pt"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a\n- b\n", "holds no keys"),
        ("", "holds no keys"),
        ("a: [1\n", "is not YAML"),
        ("kd_clos: 3\n", "'kd_clos' in recipe"),
        ("recipe: other.yaml\n", "'recipe' in recipe"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path: Path, text: str, problem: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UserError, match=r"mine\.yaml") as caught:
        load_recipe(file)
    assert problem in caught.value.problem
    assert "\n" not in caught.value.problem


def test_a_missing_recipe_is_named() -> None:
    assert "nowhere.yaml: no such file" in refusal(recipe="nowhere.yaml").problem


def test_options_of_losses_are_known_keys() -> None:
    assert "cwd.temperature" in known_keys()
