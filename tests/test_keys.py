from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ultralytics.utils import DEFAULT_CFG_DICT

from yolokd.errors import UserError
from yolokd.keys import OUR_KEYS, known_keys, load_recipe, loss_pairs, refuse_native, split_keys


def refusal(**overrides: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        split_keys(overrides)
    assert "\n" not in caught.value.problem + caught.value.remedy
    return caught.value


def test_keys_are_parted() -> None:
    ours, theirs = split_keys({"teacher": "t.pt", "student": "s.pt", "epochs": 3, "cwd.temperature": 2, "box": 7.0})
    assert ours == {"teacher": "t.pt", "cwd.temperature": 2}
    assert theirs == {"model": "s.pt", "epochs": 3, "box": 7.0}


def test_the_keys_of_the_loss_library_are_ours() -> None:
    asked = {"balance": 0.1, "guard": False, "guard_patience": 5, "refine_epochs": 2, "taps": (4, 6), "mgd.ratio": 0.5}
    assert split_keys({**asked, "epochs": 3}) == (asked, {"epochs": 3})
    assert set(asked) - {"mgd.ratio"} <= set(OUR_KEYS)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("balanse", "balance"),
        ("gaurd", "guard"),
        ("guard_patiance", "guard_patience"),
        ("refine_epoch", "refine_epochs"),
    ],
)
def test_the_keys_of_the_loss_library_are_suggested(wrong: str, right: str) -> None:
    assert right in refusal(**{wrong: 1}).remedy


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


def test_a_recipe_may_switch_off_in_yamls_own_words(tmp_path: Path) -> None:
    text = "teacher: t.pt\nlosses: cls,cwd\nbalance: off\nguard: off\ntaps: 4,6,10\nrefine_epochs: 2\n"
    recipe = write(tmp_path, text)
    assert split_keys({"recipe": recipe})[0] == {
        "teacher": "t.pt",
        "losses": "cls,cwd",
        "balance": False,
        "guard": False,
        "taps": "4,6,10",
        "refine_epochs": 2,
    }
    above = split_keys({"recipe": recipe, "balance": 0.2, "taps": "off"})[0]
    assert (above["balance"], above["taps"]) == (0.2, "off")


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
    assert {"cwd.temperature", "mgd.ratio", "crosskd.depth"} <= set(known_keys())


@pytest.mark.parametrize(
    ("written", "pairs"),
    [
        ("cls:1,mgd", {"cls": 1.0, "mgd": None}),
        (" cls : 0.5 , mgd:x", {"cls": 0.5, "mgd": "x"}),
        (["cls", "mgd:2"], {"cls": None, "mgd": 2.0}),
        ({"cls": 2, "mgd": None}, {"cls": 2, "mgd": None}),
        ("none", {}),
        ("", {}),
        (None, {}),
    ],
)
def test_losses_are_read_without_judging_them(written: Any, pairs: dict[str, Any]) -> None:
    assert loss_pairs(written) == pairs


@pytest.mark.parametrize("written", ["cls,,mgd", "cls,cls:2", 3])
def test_losses_that_cannot_be_read(written: Any) -> None:
    with pytest.raises(ValueError, match=f"losses={written}"):
        loss_pairs(written)
