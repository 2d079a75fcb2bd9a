"""The keys about images: read, refused, written down and read again."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from yolokd.config import DistillConfig, build_config, split_keys
from yolokd.errors import UserError
from yolokd.image_config import ImageConfig


def build(**ours: Any) -> DistillConfig:
    return build_config({"teacher": "t.pt", **ours})


def refusal(**ours: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        build(**ours)
    return caught.value


def test_nothing_is_asked_by_default() -> None:
    assert build().images == ImageConfig()
    assert not build().images.paired


def test_folders_ratio_and_precision() -> None:
    images = build(unlabelled="a/, b.txt,c.mp4", unlabelled_ratio=4, pseudo_precision=0.8, unlabelled_seconds=2).images
    assert images.unlabelled == ("a/", "b.txt", "c.mp4")
    assert (images.unlabelled_ratio, images.pseudo_precision, images.unlabelled_seconds) == (4.0, 0.8, 2.0)
    assert build(unlabelled=["a", "b"]).images.unlabelled == ("a", "b")
    assert build(unlabelled="a").images.unlabelled_ratio is None
    assert build(unlabelled="a", teacher="selfie.pt").images.unlabelled == ("a",)
    assert build(unlabelled="a", pseudo_precision=False).images.pseudo_precision is None  # YAML reads off so
    assert build(unlabelled="a", pseudo_precision="off").images.pseudo_precision is None


@pytest.mark.parametrize(
    ("ours", "problem"),
    [
        ({"unlabelled": True}, "unlabelled=True is not a list of names"),
        ({"unlabelled": "a,,b"}, "is not a list of names"),
        ({"unlabelled": "a", "unlabelled_ratio": 0}, "unlabelled_ratio=0 is not a positive number"),
        ({"unlabelled": "a", "unlabelled_ratio": "many"}, "not a positive number"),
        ({"unlabelled": "a", "unlabelled_seconds": -1}, "unlabelled_seconds=-1"),
        ({"unlabelled": "a", "pseudo_precision": 90}, "pseudo_precision=90 is not a share"),
        ({"unlabelled": "a", "pseudo_precision": True}, "pseudo_precision=True is not a share"),
        ({"pseudo_precision": 0.8}, "pseudo_precision without unlabelled="),
        ({"unlabelled_ratio": 1, "domain": "adapt"}, "unlabelled_ratio, domain without unlabelled="),
        ({"unlabelled": "a", "losses": "none"}, "without a teacher's losses"),
        ({"unlabelled": "a", "teacher": "self"}, "teacher=self trains here"),
        ({"unlabelled": "a", "teacher": "peer:a"}, "trains here"),
        ({"unlabelled": "a", "teacher": "self:levels"}, "trains here"),
        ({"unlabelled": "a", "domain": "adapt", "teacher": "self"}, "trains here"),
        ({"unlabelled": "a", "teacher_every": 2}, "teacher_every="),
        ({"unlabelled": "a", "domain": "target"}, "domain=target is not a domain"),
        ({"student_view": "night"}, "student_view=night is not a view"),
        ({"student_view": "dark", "teacher_images": "rgb"}, "teacher_images and student_view"),
        ({"unlabelled": "a", "domain": "adapt", "student_view": "dark"}, "domain and student_view"),
        ({"teacher_images": "rgb", "losses": "none"}, "teacher_images= without a teacher"),
        ({"teacher_images": "rgb", "teacher_cache": "c"}, "teacher_images= and teacher_cache"),
        ({"student_view": "half", "teacher_imgsz": 1280}, "student_view= and teacher_imgsz"),
        ({"student_view": "half", "teacher": "self:levels"}, "student_view= has no meaning"),
        ({"student_classes": "person,car,person"}, "names a class twice"),
        ({"student_classes": ""}, ""),
    ],
)
def test_what_cannot_be_is_refused(ours: dict[str, Any], problem: str) -> None:
    if problem:
        assert problem in refusal(**ours).problem
    else:
        assert build(**ours).images == ImageConfig()


@pytest.mark.parametrize(
    "ours",
    [
        {},
        {"unlabelled": "a,b", "unlabelled_ratio": 2, "pseudo_precision": "off", "unlabelled_seconds": 0.5},
        {"unlabelled": ["a"], "domain": "adapt"},
        {"student_classes": "person,car", "student_view": "gray"},
        {"teacher_images": "rgb"},
    ],
)
def test_round_trips(ours: dict[str, Any]) -> None:
    config = build(**ours)
    assert DistillConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    recipe = yaml.safe_load(config.to_yaml())
    assert "unlabelled_ratio" not in recipe or "unlabelled" in recipe
    assert build_config(split_keys(recipe)[0]) == config


def test_a_run_that_began_before_there_were_such_keys_goes_on() -> None:
    plain = build().to_dict()
    del plain["images"]
    assert DistillConfig.from_dict(plain).images == ImageConfig()
