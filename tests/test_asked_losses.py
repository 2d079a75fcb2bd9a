"""What losses= and NAME.OPTION= say."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from yolokd.config import build_config, split_keys
from yolokd.losses.base import LOSSES


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


def test_an_integer_option_becomes_the_type_of_its_default() -> None:
    value = build_config({"teacher": "t.pt", "losses": "cwd", "cwd.temperature": 4}).loss_options["cwd"]["temperature"]
    assert value == 4
    assert isinstance(value, float)


def test_whether_losses_were_named_is_not_lost_on_the_way() -> None:
    assert not build_config({"teacher": "t.pt"}).chosen
    assert build_config({"teacher": "t.pt", "losses": "cls"}).chosen
    # In the run folder they all are, so that a run that begins again has the losses that it began with.
    assert build_config(split_keys(yaml.safe_load(build_config({"teacher": "t.pt"}).to_yaml()))[0]).chosen
