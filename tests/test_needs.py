from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.helpers import STRIDES, head, predictions
from tests.helpers import pair as make_pair
from yolokd.classes import ClassMap
from yolokd.config import DistillConfig, build_config
from yolokd.errors import UserError
from yolokd.needs import refuse_channels, refuse_pair, refuse_settings, refuse_what_is_missing, trial_losses
from yolokd.predictions import Pair

HIDDEN = (((4, 4), (5, 5)), ((4, 4), (5, 5)))  # two depths, two levels


def config(losses: str = "cls,box,cwd", **ours: Any) -> DistillConfig:
    return build_config({"teacher": "big.pt", "losses": losses, **ours})


def refused(call: Callable[..., object], *args: Any) -> bool:
    """Whether it is refused; for what must pass, so that a test says that it does."""
    try:
        call(*args)
    except UserError:
        return True
    return False


def refusal(check: Any, *args: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        check(*args)
    assert "\n" not in caught.value.problem + caught.value.remedy
    return caught.value


def test_one_image_is_too_few_for_a_loss_that_compares_images() -> None:
    error = refusal(refuse_settings, config("cls,sp"), {"batch": 1})
    assert error.problem == "The loss sp compares the images of a batch and needs 2; batch=1."
    assert error.remedy == "Take batch=2 or more, or leave sp out of losses=."


@pytest.mark.parametrize("device", ["0,1,2,3", (0, 1, 2, 3), [0, 1, 2, 3]])
@pytest.mark.parametrize(("batch", "each"), [(4, 1), (7, 1), (3, 0)])
def test_a_batch_is_shared_by_the_devices(device: Any, batch: int, each: int) -> None:
    error = refusal(refuse_settings, config("sp"), {"batch": batch, "device": device})
    assert f"needs 2; batch={batch} is {each} on each of 4 devices." in error.problem
    assert error.remedy.startswith("Take batch=8 or more")
    refuse_settings(config("sp"), {"batch": 8, "device": device})
    refuse_settings(config("cwd"), {"batch": batch, "device": device})


@pytest.mark.parametrize(
    "theirs",
    [
        {},
        {"batch": 2},
        {"batch": 2, "device": "cpu"},
        {"batch": 2, "device": 0},
        {"batch": 2, "device": None},
        {"batch": -1},  # AutoBatch finds its number later
        {"batch": 0.7},
    ],
)
def test_batches_that_serve(theirs: dict[str, Any]) -> None:
    assert not refused(refuse_settings, config("cls,sp"), theirs)


def test_a_compiled_student_cannot_be_balanced() -> None:
    error = refusal(refuse_settings, config(balance=0.1), {"compile": True})
    assert "balance=" in error.problem
    assert "Leave out compile=" in error.remedy
    refuse_settings(config(balance=0.1), {"compile": False})
    refuse_settings(config(), {"compile": True})


def class_map(shared: int, total: int = 3) -> ClassMap:
    names = {i: f"s{i}" for i in range(total)}
    return ClassMap.by_name({i: names[i] if i < shared else f"t{i}" for i in range(total)}, names)


def test_another_number_of_levels_is_refused() -> None:
    student = replace(head(), strides=(4, *STRIDES), widths=(2, 4, 6))
    error = refusal(refuse_pair, config(), Pair(student, head()), class_map(3))
    assert error.problem == "The teacher has 2 levels (strides 8, 16), the student 3 (strides 4, 8, 16)."
    assert "same levels" in error.remedy


@pytest.mark.parametrize(
    ("losses", "said", "rest"),
    [
        ("cls,box,cwd", "so cls has nothing to compare", "losses=box,cwd"),
        ("kd,cls", "so kd, cls have nothing to compare", "losses=box,cwd"),
        ("box,sl2,crosskd,at", "so sl2, crosskd have nothing to compare", "losses=box,at"),
    ],
)
def test_without_a_shared_class_the_losses_on_classes_are_refused(losses: str, said: str, rest: str) -> None:
    error = refusal(refuse_pair, config(losses), make_pair(), class_map(0))
    assert error.problem.startswith("No class of the teacher (c0, c1) is a class of the data (c0, c1)")
    assert said in error.problem
    assert rest in error.remedy
    refuse_pair(config("box,cwd"), make_pair(), class_map(0))


def test_one_shared_class_leaves_a_softmax_nothing_to_say() -> None:
    error = refusal(refuse_pair, config("box,kd"), make_pair(), class_map(1))
    assert error.problem.startswith("The loss kd compares classes with one another and needs 2; teacher and data share")
    assert "share 1, so it would always be 0" in error.problem
    assert error.remedy.startswith("Take cls instead of kd")
    refuse_pair(config("box,kd"), make_pair(), class_map(2))
    refuse_pair(config("box,cls"), make_pair(), class_map(1))


def test_images_of_other_channels_are_refused() -> None:
    refuse_channels(config(), 3, 3)
    error = refusal(refuse_channels, config(), 3, 1)
    assert error.problem == "teacher=big.pt takes images of 3 channels, the data has 1."


@pytest.mark.parametrize(
    ("losses", "missing", "said"),
    [
        ("box,cls", "scores", "The loss cls needs scores, which teacher=big.pt does not give."),
        ("cls,iou", "boxes", "The loss iou needs boxes,"),
        ("cls,rkd", "feats", "The loss rkd needs feats,"),  # and truth, which is the data's
        ("crosskd", "boxes", "The loss crosskd needs boxes and reenter,"),
    ],
)
def test_what_the_teacher_does_not_give_is_named(losses: str, missing: str, said: str) -> None:
    error = refusal(refuse_what_is_missing, config(losses), replace(predictions(), **{missing: None}))
    assert error.problem.startswith(said)
    assert "out of losses=, or take another teacher" in error.remedy


def test_a_teacher_that_gives_all_serves() -> None:
    lending = replace(predictions(), reenter=lambda hidden: predictions())
    assert not refused(refuse_what_is_missing, config("cls,box,cwd,rkd,sl2"), predictions())
    assert not refused(refuse_what_is_missing, config("crosskd"), lending)
    assert refused(refuse_what_is_missing, config("crosskd"), predictions())


@pytest.mark.parametrize(
    ("losses", "option", "said"),
    [
        ("mgd", {"mgd.ratio": 1}, "mgd.ratio is 1.0; it must be at least 0 and below 1."),
        ("cls,crd", {"crd.temperature": 0}, "crd.temperature is 0.0; it must be above 0."),
        ("cwd", {"cwd.temperature": -1}, "cwd.temperature is -1.0; it must be above 0."),
        ("crosskd", {"crosskd.depth": 5}, "crosskd.depth is 5; it must be from 1 to 2 with this student."),
    ],
)
def test_options_out_of_range_are_refused(losses: str, option: dict[str, Any], said: str) -> None:
    entered = replace(head(), hidden=HIDDEN)
    error = refusal(trial_losses, config(losses, **option), Pair(entered, entered), 0, None)
    assert error.problem == said
    assert "`yolokd losses`" in error.remedy


def test_a_head_that_cannot_be_entered_is_refused() -> None:
    error = refusal(trial_losses, config("crosskd"), make_pair(), 0, None)
    assert "the student gives no way in" in error.problem


def test_trial_losses_are_those_of_the_training() -> None:
    losses = trial_losses(config("cls,cwd"), make_pair(), 0, None)
    assert list(losses) == ["cls", "cwd"]
