from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from yolokd.config import DistillConfig, build_config, check_against_epochs, split_keys
from yolokd.errors import UserError
from yolokd.losses.base import DEFAULT_LOSSES, LOSSES


def refusal(ours: dict[str, Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        build_config({"teacher": "t.pt", **ours})
    return caught.value


def test_defaults_are_the_measured_recipe() -> None:
    config = build_config({"teacher": "t.pt"})
    assert config.losses == DEFAULT_LOSSES
    assert config.schedule == "constant"
    assert config.kd_close == 0
    assert config.teacher_precision == "auto"
    assert not config.trust


@pytest.mark.parametrize(
    ("written", "losses"),
    [
        ("cls:0.25,box:2", {"cls": 0.25, "box": 2.0}),
        (" cwd : 3 , cls", {"cwd": 3.0, "cls": LOSSES["cls"].gain}),
        ({"cls": 0.25, "box": None}, {"cls": 0.25, "box": LOSSES["box"].gain}),
        (["cls:0.25", "box"], {"cls": 0.25, "box": LOSSES["box"].gain}),
        ("none", {}),
        ("None", {}),
        (None, {}),
        ({}, {}),
    ],
)
def test_losses_as_text_list_and_mapping(written: Any, losses: dict[str, float]) -> None:
    config = build_config({"teacher": "t.pt", "losses": written})
    assert config.losses == losses
    assert list(config.losses) == list(losses)  # in the order asked for


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
        ({"kd_close": 1.5}, "kd_close=1.5", "epochs"),
        ({"trust": "yes"}, "trust=yes", "trust=True"),
        ({"class_map": "motorbike"}, "class_map=motorbike", "TEACHER:STUDENT"),
        ({"class_map": "a:b,a:c"}, "class_map=a:b,a:c", "TEACHER:STUDENT"),
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


def test_class_map_as_text_and_mapping() -> None:
    wanted = {"motorbike": "motorcycle", "traffic light": "lamp"}
    assert build_config({"teacher": "t", "class_map": "motorbike:motorcycle, traffic light:lamp"}).class_map == wanted
    assert build_config({"teacher": "t", "class_map": wanted}).class_map == wanted


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


@pytest.mark.parametrize("ours", [FULL, {"teacher": "t.pt"}, {"losses": "none"}])
def test_round_trips(ours: dict[str, Any]) -> None:
    config = build_config(ours)
    through_json = DistillConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    through_yaml = DistillConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict())))
    as_recipe = build_config(split_keys(yaml.safe_load(config.to_yaml()))[0])
    assert through_json == through_yaml == as_recipe == config


def test_an_integer_option_becomes_the_type_of_its_default() -> None:
    value = build_config(FULL).loss_options["cwd"]["temperature"]
    assert value == 4
    assert isinstance(value, float)


def test_kd_close_must_leave_an_epoch() -> None:
    config = build_config({"teacher": "t", "kd_close": 3})
    check_against_epochs(config, 4)
    with pytest.raises(UserError, match="zero throughout"):
        check_against_epochs(config, 3)
    check_against_epochs(build_config({"losses": "none", "kd_close": 3}), 3)
