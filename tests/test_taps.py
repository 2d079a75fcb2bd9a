from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolokd.compat.checkpoint import build_student, head_info
from yolokd.compat.training import branches
from yolokd.errors import UserError
from yolokd.losses.base import build_losses
from yolokd.predictions import Pair
from yolokd.taps import StudentTaps, entry_depth, tapped_pair

NAMES = {0: "a", 1: "b"}
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """A YOLO11-n as student, a YOLOv8-n as teacher."""
    torch.manual_seed(0)
    return build_student("yolo11n.yaml", names=NAMES), build_student("yolov8n.yaml", names=NAMES)


@pytest.fixture(scope="module")
def pair(models: tuple[Any, Any]) -> Pair:
    student, teacher = models
    return Pair(head_info(student), head_info(teacher))


def test_the_pair_takes_strides_and_widths_of_the_layers(models: tuple[Any, Any], pair: Pair) -> None:
    tapped = tapped_pair(pair, *models, ((4, 4), (6, 6)))
    assert tapped is not None
    assert (tapped.student.strides, tapped.student.widths) == ((8, 16), (128, 128))
    assert (tapped.teacher.strides, tapped.teacher.widths) == ((8, 16), (64, 128))
    assert tapped.student.hidden == tapped.teacher.hidden == ()  # these layers are in no head
    assert (tapped.student.names, tapped.teacher.reg_max) == (NAMES, pair.teacher.reg_max)
    other = tapped_pair(pair, *models, ((10, 9),))
    assert other is not None
    assert (other.student.widths, other.teacher.widths) == ((256,), (256,))


def test_without_layers_there_is_no_such_pair(models: tuple[Any, Any], pair: Pair) -> None:
    assert tapped_pair(pair, *models, ()) is None


def test_layers_of_different_strides_are_refused(models: tuple[Any, Any], pair: Pair) -> None:
    with pytest.raises(UserError) as caught:
        tapped_pair(pair, *models, ((4, 4), (4, 6)))
    assert caught.value.problem == "taps=4:6: layer 4 of the student has stride 8, layer 6 of the teacher 16."
    assert "taps=STUDENT:TEACHER" in caught.value.remedy


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (((4, 4), (99, 6)), "taps: student: there is no layer 99; the model's layers before its head are 0 to 22."),
        (((4, 30),), "taps: teacher: there is no layer 30; the model's layers before its head are 0 to 21."),
        (((23, 4),), "taps: student: layer 23 is the head of the model"),
        (((4, 22),), "taps: teacher: layer 22 is the head of the model"),
    ],
)
def test_layers_that_cannot_be_tapped_are_refused(
    models: tuple[Any, Any], pair: Pair, layers: tuple[tuple[int, int], ...], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        tapped_pair(pair, *models, layers)
    assert caught.value.problem.startswith(said)
    assert "one feature map" in caught.value.remedy


def test_grey_models_are_shown_a_grey_image(pair: Pair) -> None:
    grey = build_student("yolo11n.yaml", names=NAMES, channels=1)
    tapped = tapped_pair(pair, grey, grey, ((4, 4),))
    assert tapped is not None
    assert tapped.student.widths == tapped.teacher.widths == (128,)


def adapter_widths(loss: nn.Module) -> list[tuple[int, int]]:
    """(student, teacher) channels of the 1x1 convolutions of a loss."""
    convolutions = [m for m in loss.modules() if isinstance(m, nn.Conv2d)]
    return [(m.in_channels, m.out_channels) for m in convolutions]


def test_only_the_losses_that_look_at_layers_get_adapters_of_their_widths(models: tuple[Any, Any], pair: Pair) -> None:
    tapped = tapped_pair(pair, *models, ((4, 4), (6, 6)))
    names = {"cwd": 1.0, "fitnets": 1.0, "crd": 1.0, "sl2": 1.0}
    at_layers, at_pyramid = build_losses(names, {}, pair, 0, tapped), build_losses(names, {}, pair, 0)
    for name in ("cwd", "fitnets"):
        assert adapter_widths(at_layers[name]) == [(128, 64), (128, 128)]
        assert adapter_widths(at_pyramid[name]) == [(64, 64), (128, 128), (256, 256)]
    # crd joins the levels: 128 + 128 channels of the student, 64 + 128 of the teacher.
    assert (at_layers["crd"].student.in_features, at_layers["crd"].teacher.in_features) == (256, 192)
    assert (at_pyramid["crd"].student.in_features, at_pyramid["crd"].teacher.in_features) == (448, 448)
    assert [p.shape for p in at_layers["sl2"].parameters()] == [p.shape for p in at_pyramid["sl2"].parameters()]


def test_the_depth_is_that_of_the_loss_that_enters_the_head(pair: Pair) -> None:
    assert entry_depth(build_losses({"cls": 1.0, "cwd": 1.0}, {}, pair, 0)) is None
    assert entry_depth(nn.ModuleDict()) is None
    assert entry_depth(build_losses({"cls": 1.0, "crosskd": 1.0}, {}, pair, 0)) == 1
    assert entry_depth(build_losses({"crosskd": 1.0}, {"crosskd": {"depth": 2}}, pair, 0)) == 2


def shapes(features: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in features]


def test_the_student_gives_layers_and_the_inside_of_its_head() -> None:
    student = build_student("yolo11n.yaml", names=NAMES).train()
    taps = StudentTaps(student, [4, 6], 1)
    assert taps.layers == (4, 6)
    dense = branches(student(IMAGES))[0]
    full = taps(dense)
    assert full.taps is not None
    assert full.hidden is not None
    assert shapes(full.taps) == [(2, 128, 8, 8), (2, 128, 4, 4)]
    assert [len(branch) for branch in full.hidden] == [3, 3]
    assert full.scores is dense.scores
    assert full.feats is dense.feats
    with pytest.raises(RuntimeError, match="has not run"):
        taps(dense)  # what was heard is given once


def test_the_student_gives_only_what_is_asked_for() -> None:
    student = build_student("yolo11n.yaml", names=NAMES).train()
    neither = StudentTaps(student, [], None)
    assert not any(m._forward_hooks for m in student.modules())
    dense = branches(student(IMAGES))[0]
    assert neither.layers == ()
    assert neither(dense) is dense
    layers = StudentTaps(student, [4], None)
    full = layers(branches(student(IMAGES))[0])
    assert full.taps is not None
    assert full.hidden is None
    head = StudentTaps(student, [], 2)
    inside = head(branches(student(IMAGES))[0])
    assert inside.taps is None
    assert inside.hidden is not None
