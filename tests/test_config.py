from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from yolokd.config import DistillConfig, build_config, check_against_epochs, split_keys
from yolokd.errors import UserError
from yolokd.losses.base import DEFAULT_LOSSES
from yolokd.values import GUARD_PATIENCE


def refusal(ours: dict[str, Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        build_config({"teacher": "t.pt", **ours})
    return caught.value


def test_defaults_are_the_measured_recipe() -> None:
    config = build_config({"teacher": "t.pt"})
    assert config.losses == DEFAULT_LOSSES
    assert config.schedule == "constant"
    assert config.kd_close == config.refine_epochs == config.closing == 0
    assert config.balance is None
    assert config.guard_patience == GUARD_PATIENCE
    assert config.taps == ()
    assert config.teacher_precision == "auto"
    assert not config.trust


@pytest.mark.parametrize(
    ("ours", "problem", "remedy"),
    [
        ({"losses": "bx"}, "'bx' is not a loss", "Did you mean box?"),
        ({"losses": "cls:-1"}, "the gain of cls is negative: -1", "positive"),
        ({"losses": {"cls": -0.5}}, "the gain of cls is negative: -0.5", "positive"),
        ({"losses": "cls:0"}, "zero throughout", "Leave cls out"),
        ({"losses": "cls:0,box:0"}, "the gain of box is zero throughout", "Leave cls out"),
        ({"losses": "cls:lots"}, "not a number: lots", "positive"),
        ({"losses": "cls:nan"}, "not a number: nan", "positive"),
        ({"losses": {"cls": True}}, "not a number: True", "positive"),
        ({"losses": "cls,cls"}, "names cls twice", "losses=NAME:GAIN"),
        ({"losses": "cls,,box"}, "empty name", "losses=NAME:GAIN"),
        ({"losses": 3}, "losses=3", "losses=NAME:GAIN"),
        ({"cwd.temprature": 2}, "cwd has no option 'temprature'", "temperature"),
        ({"cwdd.temperature": 2}, "'cwdd' is not a loss", "cwd.temperature"),
        ({"losses": "cls", "cwd.temperature": 2}, "cwd is not among the losses", "Add cwd"),
        ({"cwd.temperature": "hot"}, "cwd.temperature=hot is not a float", "default"),
        ({"cwd.temperature": True}, "cwd.temperature=True is not a float", "default"),
        ({"schedule": "linear"}, "schedule=linear", "constant and cosine"),
        ({"teacher_precision": "int8"}, "teacher_precision=int8", "bf16"),
        ({"kd_close": -1}, "kd_close=-1", "epochs"),
        ({"refine_epochs": -2}, "refine_epochs=-2", "epochs"),
        ({"kd_close": 3, "refine_epochs": 2}, "kd_close and refine_epochs both", "Keep one of the two"),
        ({"balance": 2}, "balance=2", "at most 1"),
        ({"balance": 0.1, "losses": "cls:1,box"}, "balance= sets the gains", "losses=cls,box"),
        ({"balance": 0.1, "losses": "none"}, "there are no losses", "leave out balance="),
        ({"guard": "maybe"}, "guard=maybe", "guard=off"),
        ({"guard_patience": 0}, "guard_patience=0", "1, 2, 3"),
        ({"taps": "4:"}, "taps=4:", "taps=STUDENT:TEACHER"),
        ({"taps": "4,6", "losses": "cls,box"}, "no loss looks at layers", "Losses that do: "),
        ({"losses": "cls,corsskd"}, "'corsskd' is not a loss", "Did you mean crosskd?"),
        ({"losses": "mdg"}, "'mdg' is not a loss", "Did you mean mgd?"),
        ({"losses": "fitnet"}, "'fitnet' is not a loss", "Did you mean fitnets?"),
        ({"trust": "yes"}, "trust=yes", "trust=True"),
        ({"class_map": "motorbike"}, "class_map=motorbike", "TEACHER:STUDENT"),
        ({"teacher": None}, "teacher= is missing", "losses=none"),
    ],
)
def test_each_mistake_is_named(ours: dict[str, Any], problem: str, remedy: str) -> None:
    error = refusal(ours)
    assert problem in error.problem
    assert remedy in error.remedy
    assert "\n" not in error.problem + error.remedy


def test_all_mistakes_are_named_at_once() -> None:
    error = refusal({"losses": "bx,cls:-1", "cls.heat": 1, "schedule": "x", "kd_close": -3})
    for piece in ("'bx'", "negative: -1", "no option 'heat'", "schedule=x", "kd_close=-3"):
        assert piece in error.problem
    assert "not among the losses" not in error.problem  # cls was asked for, however badly


def test_a_plain_run_needs_no_teacher() -> None:
    assert build_config({"losses": "none"}).teacher == ""


FULL = {
    "teacher": "big.pt",
    "losses": "cls:0.5,cwd:2",
    "cwd.temperature": 4,
    "schedule": "cosine",
    "kd_close": 5,
    "teacher_precision": "bf16",
    "class_map": "a:b",
    "trust": True,
}


NEW: list[dict[str, Any]] = [
    {"balance": 0.1, "losses": "cls,mgd", "mgd.ratio": 0.5},
    {"balance": 1},
    {"balance": 1e-5},
    {"guard": "off"},
    {"guard_patience": 7},
    {"taps": (4, 6, 10), "losses": "cwd:2"},
    {"taps": 4, "balance": 0.2, "refine_epochs": 3, "guard": False, "losses": "at"},
    {"taps": "4:4,6:6,10:9", "losses": "cls:1,fitnets:2"},
    {"refine_epochs": 3},
]


@pytest.mark.parametrize("ours", [FULL, {}, {"losses": "none"}, {"losses": "none", "guard": "off"}, *NEW])
def test_round_trips(ours: dict[str, Any]) -> None:
    config = build_config({"teacher": "t.pt", **ours})
    through_json = DistillConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    through_yaml = DistillConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict())))
    as_recipe = build_config(split_keys(yaml.safe_load(config.to_yaml()))[0])
    assert through_json == through_yaml == as_recipe == config


def test_layers_come_back_as_they_were_paired() -> None:
    config = build_config({"teacher": "t.pt", "taps": "4:4,10:9"})
    assert config.taps == DistillConfig.from_dict(json.loads(json.dumps(config.to_dict()))).taps == ((4, 4), (10, 9))
    assert "taps: 4:4,10:9\n" in config.to_yaml()
    one = build_config({"teacher": "t.pt", "taps": "4:6"})
    assert yaml.safe_load(one.to_yaml())["taps"] == "4:6"  # bare, YAML 1.1 takes it for 4 minutes 6 seconds


def test_the_recipe_of_a_balanced_run_names_no_gains() -> None:
    recipe = yaml.safe_load(build_config({"teacher": "t.pt", "losses": "cls,mgd", "balance": 0.1}).to_yaml())
    assert (recipe["losses"], recipe["balance"]) == ("cls,mgd", 0.1)


def test_settings_of_before_these_keys_still_load() -> None:
    """``distill.pt`` of a run that began before there were a guard, balance and taps."""
    old = {
        "teacher": "t.pt",
        "losses": {"cls": 3.0, "cwd": 1.0},
        "loss_options": {"cwd": {"temperature": 2.0}},
        "schedule": "cosine",
        "kd_close": 2,
        "teacher_precision": "fp32",
        "class_map": {"a": "b"},
        "trust": True,
    }
    config = DistillConfig.from_dict(old)
    assert {key: config.to_dict()[key] for key in old} == old
    assert config.guard_patience is None  # the run goes on as it began
    assert (config.refine_epochs, config.balance, config.taps, config.closing) == (0, None, (), 2)


def test_a_key_of_a_later_version_is_an_error() -> None:
    with pytest.raises(TypeError, match="later"):
        DistillConfig.from_dict({"teacher": "t.pt", "losses": {}, "later": 1})


@pytest.mark.parametrize("key", ["kd_close", "refine_epochs"])
def test_the_end_without_distillation_must_leave_an_epoch(key: str) -> None:
    config = build_config({"teacher": "t", key: 3})
    assert config.closing == 3
    check_against_epochs(config, 4)
    for epochs in (3, 2):
        with pytest.raises(UserError, match=f"{key}=3 with epochs={epochs}: every gain is zero throughout") as caught:
            check_against_epochs(config, epochs)
        assert f"{key} must be below {epochs}" in caught.value.remedy


@pytest.mark.parametrize("key", ["kd_close", "refine_epochs"])
def test_epochs_at_the_end_need_a_known_end(key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}=3 counts epochs, and with time=0\.5 nobody knows") as caught:
        check_against_epochs(build_config({"teacher": "t", key: 3}), 100, 0.5)
    assert f"leave out {key}" in caught.value.remedy
    check_against_epochs(build_config({"teacher": "t"}), 100, 0.5)


def test_a_plain_run_may_close_as_early_as_it_likes() -> None:
    config = build_config({"losses": "none", "kd_close": 3})
    check_against_epochs(config, 3)
    with pytest.raises(UserError, match="every gain is zero"):  # the same beside a loss
        check_against_epochs(replace(config, losses={"cls": 1.0}), 3)


def test_balance_needs_epochs_after_the_ramp() -> None:
    config = build_config({"teacher": "t.pt", "losses": "cls", "balance": 0.1, "kd_close": 7})
    with pytest.raises(UserError, match=r"after the warm-up of 3 epochs, and kd_close=7 of 10 epochs leaves nothing"):
        check_against_epochs(config, 10, warmup=3.0)
    check_against_epochs(config, 11, warmup=3.0)
    check_against_epochs(replace(config, balance=None), 10, warmup=3.0)


@pytest.mark.parametrize(
    "ours",
    [
        {"teacher": "a.pt:red+dark blue,b.pt:green", "teacher_weights": [1 / 3, 2 / 3]},
        {"teacher": ["a.pt", "b.pt"], "teacher_weights": "2,1e-3"},
        {"teacher": "self:levels", "kd_start": 3},
        {"teacher": "self", "teacher_imgsz": 1280, "teacher_every": 4, "teacher_compile": True},
    ],
)
def test_the_settings_of_teachers_come_back(ours: dict[str, Any]) -> None:
    config = build_config(ours)
    assert DistillConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert build_config(split_keys(yaml.safe_load(config.to_yaml()))[0]) == config


def test_teachers_as_text_and_as_list() -> None:
    assert build_config({"teacher": [" a.pt", "b.pt:dog"]}).teacher == "a.pt,b.pt:dog"
    config = build_config({"teacher": "a.pt , b.pt", "teacher_weights": (2, 1)})
    assert (config.teacher, config.teacher_weights) == ("a.pt,b.pt", (2.0, 1.0))
    assert build_config({"teacher": "t.pt"}).teacher_every == 1


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ({"teacher": "t.pt", "teacher_weights": 2}, "weighs several teachers, and here is one"),
        ({"teacher": "a.pt,b.pt", "teacher_weights": "1"}, "is not a positive number for each of 2 teachers"),
        ({"teacher": "a.pt,b.pt", "teacher_weights": "1,0"}, "is not a positive number for each of 2 teachers"),
        ({"teacher": "a.pt,b.pt", "teacher_weights": "1,x"}, "is not a positive number"),
        ({"teacher": "a.pt,b.pt", "teacher_weights": "1,nan"}, "is not a positive number"),
        ({"teacher": "a.pt,"}, "empty place"),
        ({"teacher": "self,a.pt"}, "cannot be one of several"),
        ({"teacher_imgsz": "big"}, "teacher_imgsz=big is not a number of pixels"),
        ({"teacher_every": 1.5}, "teacher_every=1.5 is not a number of steps"),
        ({"teacher_compile": "yes"}, "teacher_compile=yes is neither True nor False"),
        ({"kd_start": -1}, "kd_start=-1 is not a number of epochs"),
    ],
)
def test_mistakes_about_teachers(ours: dict[str, Any], said: str) -> None:
    assert said in refusal(ours).problem


def test_the_start_without_distillation_must_leave_an_epoch() -> None:
    config = build_config({"teacher": "t.pt", "kd_start": 3, "kd_close": 1})
    check_against_epochs(config, 5)
    for epochs in (4, 3):
        with pytest.raises(UserError, match="kd_start=3 of"):
            check_against_epochs(config, epochs)
    balanced = build_config({"teacher": "t.pt", "kd_start": 3, "balance": 0.1})
    check_against_epochs(balanced, 6, warmup=2)
    with pytest.raises(UserError, match="balance= measures"):
        check_against_epochs(replace(balanced, kd_close=1), 6, warmup=2)


def test_what_an_exported_teacher_is_told_survives_every_form() -> None:
    config = build_config({"teacher": "t.onnx", "teacher_names": "person, bicycle", "teacher_boxes": "xywhn"})
    assert config.exported == {"precision": "auto", "names": ("person", "bicycle"), "box_format": "xywhn"}
    assert DistillConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert build_config(yaml.safe_load(config.to_yaml())) == config
    without = build_config({"teacher": "t_openvino_model"})
    assert without.exported == {"precision": "auto", "names": None, "box_format": None}
    assert "teacher_names" not in without.to_yaml()
    assert build_config({"teacher": "m/m.xml", "teacher_names": "person"}).teacher_names == ("person",)
    with pytest.raises(UserError, match=r"teacher_names is for an exported teacher, and teacher=t\.pt is none"):
        build_config({"teacher": "t.pt", "teacher_names": ["a"]})
    with pytest.raises(UserError, match="has an empty place"):
        build_config({"teacher": "t.onnx", "teacher_names": "a,,b"})


@pytest.mark.parametrize(
    ("written", "device"),
    [
        (1, "cuda:1"),
        ("1", "cuda:1"),
        (0, "cuda:0"),
        ("cuda", "cuda:0"),
        ("CUDA:12", "cuda:12"),
        (" cpu ", "cpu"),
        ("mps:0", "mps"),
        (torch.device("cuda", 1), "cuda:1"),
        ("", ""),
        (None, ""),
    ],
)
def test_the_teachers_device(written: Any, device: str) -> None:
    config = build_config({"teacher": "t.pt", "teacher_device": written})
    assert config.teacher_device == device
    assert DistillConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert build_config(split_keys(yaml.safe_load(config.to_yaml()))[0]) == config
    assert ("teacher_device" in config.to_yaml()) is bool(device)
    if device:
        assert str(torch.device(device)) == device
    assert build_config({"teacher": "t.pt"}).teacher_device == ""


@pytest.mark.parametrize("written", ["gpu", "cuda:", "cuda:-1", -1, "0,1", [0, 1], True, 1.5, "cuda:01", "cuda:300"])
def test_what_is_no_device(written: Any) -> None:
    error = refusal({"teacher_device": written})
    assert error.problem == f"teacher_device={written} is not one device."
    assert error.remedy == "Write teacher_device=1, cuda:1 or cpu; it is one for all."


@pytest.mark.parametrize("teacher", ["self", "self:levels"])
def test_a_student_that_teaches_itself_has_no_precision_of_its_own(teacher: str) -> None:
    assert build_config({"teacher": teacher, "teacher_precision": "auto"}).teacher == teacher
    assert refusal({"teacher": teacher, "teacher_precision": "bf16"}).remedy == "Leave out teacher_precision."


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ({"teacher_every": 0}, "teacher_every=0 is not a number of steps"),
        ({"teacher_imgsz": 0}, "teacher_imgsz=0 is not a number of pixels"),
        ({"teacher_imgsz": -32}, "teacher_imgsz=-32 is not a number of pixels"),
        ({"teacher_cache": True}, "teacher_cache=True names no folder"),
    ],
)
def test_what_would_mean_nothing_or_a_folder_called_true(ours: dict[str, Any], said: str) -> None:
    error = refusal(ours)
    assert said in error.problem
    assert "0" not in error.remedy


def test_a_folder_that_is_switched_off_in_a_recipe_is_none() -> None:
    for off in (False, None, ""):
        assert build_config({"teacher": "t.pt", "teacher_cache": off}).teacher_cache == ""
    assert build_config({"teacher": "t.pt", "teacher_cache": 2024}).teacher_cache == "2024"
