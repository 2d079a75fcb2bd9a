from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers import head, panel, predictions
from yolokd.config import DistillConfig, build_config
from yolokd.errors import UserError
from yolokd.needs import (
    refuse_channels,
    refuse_classes,
    refuse_device,
    refuse_grids,
    refuse_pair,
    refuse_settings,
    servable,
    trial_losses,
    what_is_missing,
    without_features,
)
from yolokd.predictions import HeadInfo
from yolokd.teachers.opening import seat
from yolokd.teachers.panel import Panel
from yolokd.teachers.spec import TeacherSpec

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


def seated(shared: int, total: int = 3) -> Panel:
    """A panel of one teacher that shares so many classes with its student."""
    names = {i: f"s{i}" for i in range(total)}
    known = {i: names[i] if i < shared else f"t{i}" for i in range(total)}
    student = replace(head(), names=names)
    teacher = SimpleNamespace(info=replace(head(), names=known), name="big.pt")
    return panel(teacher, student)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("losses", "said", "rest"),
    [
        ("cls,box,cwd", "so cls has nothing to compare", "losses=box,cwd"),
        ("kd,cls", "so kd, cls have nothing to compare", "losses=box,cwd"),
        ("box,sl2,crosskd,at", "so sl2, crosskd have nothing to compare", "losses=box,at"),
    ],
)
def test_without_a_shared_class_the_losses_on_classes_are_refused(losses: str, said: str, rest: str) -> None:
    error = refusal(refuse_classes, config(losses), seated(0))
    assert error.problem.startswith("No class of the teacher (t0, t1, t2) is a class of the data (s0, s1, s2)")
    assert said in error.problem
    assert rest in error.remedy
    refuse_classes(config("box,cwd"), seated(0))


def test_one_shared_class_leaves_a_softmax_nothing_to_say() -> None:
    error = refusal(refuse_classes, config("box,kd"), seated(1))
    assert error.problem.startswith("The loss kd compares classes with one another and needs 2; teacher and data share")
    assert "share 1, so it would always be 0" in error.problem
    assert error.remedy.startswith("Take cls instead of kd")
    refuse_classes(config("box,kd"), seated(2))
    refuse_classes(config("box,cls"), seated(1))


def test_images_of_other_channels_are_refused() -> None:
    coloured = SimpleNamespace(name="big.pt", model=SimpleNamespace(yaml={"nc": 3}))
    grey = SimpleNamespace(name="grey.pt", model=SimpleNamespace(yaml={"channels": 1}))
    assert not refused(refuse_channels, coloured, 3)
    assert not refused(refuse_channels, grey, 1)
    assert refused(refuse_channels, grey, 3)
    error = refusal(refuse_channels, coloured, 1)
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
    error = refusal(servable, config(losses), replace(predictions(), **{missing: None}))
    assert error.problem.startswith(said)
    assert "out of losses=, or take another teacher" in error.remedy


def test_a_teacher_that_gives_all_serves() -> None:
    lending = replace(predictions(), reenter=lambda hidden: predictions())
    assert not refused(servable, config("cls,box,cwd,rkd,sl2"), predictions())
    assert not refused(servable, config("crosskd"), lending)
    assert refused(servable, config("crosskd"), predictions())


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
    teacher = SimpleNamespace(info=entered, name="big.pt", open=lambda layers, depth: None)
    error = refusal(trial_losses, config(losses, **option), panel(teacher, entered), None, 0)  # type: ignore[arg-type]
    assert error.problem == said
    assert "`yolokd losses`" in error.remedy


def test_a_head_that_cannot_be_entered_is_refused() -> None:
    error = refusal(trial_losses, config("crosskd"), seated(3), None, 0)
    assert "the student gives no way in" in error.problem


def test_trial_losses_are_those_of_the_training() -> None:
    losses = trial_losses(config("cls,cwd"), seated(3), None, 0)  # type: ignore[arg-type]
    assert list(losses) == ["cls", "cwd"]


def of(*strides: int, names: dict[int, str] | None = None) -> HeadInfo:
    return replace(head(), strides=strides, widths=(4,) * len(strides), names=names or {0: "a", 1: "b"})


def together(student: HeadInfo, *teachers: HeadInfo, ratio: float = 1.0) -> Panel:
    told: Any = [SimpleNamespace(info=info, name=f"{i}.pt") for i, info in enumerate(teachers)]
    specs = [TeacherSpec(f"{i}.pt") for i in range(len(teachers))]
    return seat(specs, told, student, overrides={}, only=None, weights=(), ratio=ratio)


def test_of_several_teachers_one_that_knows_no_class_is_named() -> None:
    student = of(8, 16)
    both = together(student, student, of(8, 16, names={0: "dog"}))
    error = refusal(refuse_classes, config("cls,box"), both)
    assert error.problem.startswith("teacher=1.pt knows no class of the data that it could speak for")
    neither = of(8, 16, names={0: "dog"})
    assert not refused(refuse_classes, config("box,cwd"), together(student, neither, neither))
    assert refused(refuse_classes, config("cls,box"), together(student, neither, neither))


def test_the_classes_of_specialists_count_together() -> None:
    student = of(8, 16)
    one, other = of(8, 16, names={0: "a"}), of(8, 16, names={5: "b"})
    assert not refused(refuse_classes, config("kd"), together(student, one, other))
    assert refused(refuse_classes, config("kd"), together(student, one, one))


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ({"teacher_imgsz": 640}, {}, "teacher_imgsz=640 with imgsz=640"),
        ({"teacher_imgsz": 320}, {"imgsz": 640}, "the teacher's images are the larger ones"),
        ({"teacher_imgsz": 650}, {"imgsz": 320}, "in multiples of 32"),
        ({"teacher_imgsz": 1280}, {"rect": True}, "rect=True and teacher_imgsz="),
        ({"teacher_imgsz": 960}, {"multi_scale": 0.5}, "multi_scale needs a teacher_imgsz that is a multiple"),
        ({"teacher_imgsz": 1280, "teacher": "self:levels"}, {}, "teacher=self:levels speaks of what the student"),
    ],
)
def test_sizes_that_do_not_go_together(ours: dict[str, Any], theirs: dict[str, Any], said: str) -> None:
    assert said in refusal(refuse_settings, config(**ours), theirs).problem


def test_sizes_that_serve() -> None:
    for theirs in ({}, {"imgsz": 640}, {"imgsz": 320, "multi_scale": 0.5}, {"imgsz": 640, "rect": False}):
        assert not refused(refuse_settings, config(teacher_imgsz=1280), theirs)
    assert not refused(refuse_settings, config(teacher_imgsz=960), {"imgsz": 640})
    assert not refused(refuse_settings, config(), {"imgsz": 640, "rect": True, "multi_scale": 0.5})


P3, P6 = (8, 16, 32), (8, 16, 32, 64)


@pytest.mark.parametrize(
    ("student", "teacher", "ours", "theirs", "said"),
    [
        (P3, P6, {}, {"imgsz": 96}, "multiples of 64 px; these are of 96 px."),
        (P3, P6, {}, {"imgsz": 128, "multi_scale": 0.5}, "these are of multiples of 32 px with multi_scale=."),
        (P3, P6, {}, {"imgsz": 128, "rect": True}, "these are of multiples of 32 px with rect=."),
        (P3, P6, {"teacher_imgsz": 160}, {"imgsz": 128}, "these are of 160 px."),
        (P6, P3, {"teacher_imgsz": 128}, {"imgsz": 96}, "is not above the 128 px that this student is trained with"),
        (P3, P6, {}, {"imgsz": 128}, ""),
        (P3, P6, {"teacher_imgsz": 256}, {"imgsz": 128, "multi_scale": 0.5}, ""),
        (P6, P3, {}, {"imgsz": 96, "multi_scale": 0.5}, ""),
        (P3, P3, {}, {"imgsz": 96, "rect": True}, ""),
    ],
)
def test_a_coarser_teacher_needs_images_of_whole_cells(
    student: tuple[int, ...], teacher: tuple[int, ...], ours: dict[str, Any], theirs: dict[str, Any], said: str
) -> None:
    asked = config(**ours), theirs
    seats = together(of(*student), of(*teacher))
    if said:
        assert said in refusal(refuse_grids, seats, of(*student), *asked).problem
    else:
        assert not refused(refuse_grids, seats, of(*student), *asked)


def default(**ours: Any) -> DistillConfig:
    return build_config({"teacher": "big.pt", **ours})


def test_default_losses_that_the_teacher_cannot_serve_are_left_out() -> None:
    blind = replace(predictions(), feats=None)
    left = servable(default(), blind)
    assert list(left.losses) == ["cls", "box"]
    assert left.chosen  # from here on they are those of this run, also when it is resumed
    assert refused(servable, config("cls,box,cwd"), blind)
    assert refused(servable, default(**{"cwd.temperature": 2}), blind)  # an option asks for its loss
    assert refused(servable, default(), replace(predictions(), feats=None, scores=None, boxes=None))


def test_a_head_without_features_is_known_before_adapters_are_built() -> None:
    student = of(8, 16)
    blind = together(student, replace(student, widths=()))
    left = without_features(default(), blind)
    assert list(left.losses) == ["cls", "box"]
    assert not left.chosen  # boxes may be missing as well
    assert list(trial_losses(left, blind, None, 0)) == ["cls", "box"]  # type: ignore[arg-type]
    error = refusal(without_features, config("cls,cwd"), blind)
    assert error.problem == "The loss cwd needs feats, which teacher=big.pt does not give."
    seeing = together(student, student)
    assert without_features(default(), seeing) == default()
    assert refused(without_features, config("cls,cwd"), together(student, student, replace(student, widths=())))


def test_a_loss_on_features_needs_all_of_each_teacher() -> None:
    whole, blind = predictions(), replace(predictions(), feats=None)
    dumb = replace(predictions(), scores=None)
    average = replace(predictions(), feats=None, members=(whole, whole))
    assert what_is_missing(("cls", "box", "cwd", "sl2"), average) == {}
    assert what_is_missing(("cls", "cwd"), replace(average, members=(whole, blind))) == {"cwd": ["feats"]}
    # The average has scores, but sl2 looks where each teacher sees something.
    assert what_is_missing(("cls", "sl2"), replace(average, members=(whole, dumb))) == {"sl2": ["scores"]}


@pytest.mark.parametrize(
    ("ours", "theirs", "problem", "remedy"),
    [
        (
            {"teacher_device": 1},
            {},
            "teacher_device=cuda:1 is not there: PyTorch sees cuda:0 here.",
            "teacher_device=cpu",
        ),
        ({"teacher_device": "mps"}, {}, "teacher_device=mps is not there: PyTorch sees", "Name one that is"),
        ({"teacher": "self"}, {}, "teacher=self is trained here and runs where", "Leave out teacher_device="),
        ({"teacher": "self:levels"}, {}, "teacher=self:levels is trained here", "take another teacher"),
        ({"teacher": "peer:a,peer:b"}, {}, "teacher=peer:a,peer:b is trained here", "take another teacher"),
        ({}, {"device": "0,1"}, "teacher_device=cpu with device=0,1: each process has", "name one device"),
        ({}, {"device": [0, 1]}, "teacher_device=cpu with device=0, 1: each process has", "name one device"),
        ({}, {"device": (0, 1)}, "teacher_device=cpu with device=0, 1: each process has", "name one device"),
        ({"teacher_cache": "answers"}, {}, "teacher_device= and teacher_cache= do not go together", "leave out"),
    ],
)
def test_devices_that_cannot_serve(
    ours: dict[str, Any], theirs: dict[str, Any], problem: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    asked = config("cls", **{"teacher_device": "cpu", **ours})
    for check in (refuse_device, refuse_settings):
        error = refusal(check, asked, theirs)
        assert error.problem.startswith(problem)
        assert remedy in error.remedy


@pytest.mark.parametrize("theirs", [{}, {"device": 0}, {"device": None}, {"device": "cpu"}, {"device": (0,)}])
def test_devices_that_serve(theirs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("", "cpu", 0, 1):
        assert not refused(refuse_settings, config(teacher_device=device), theirs)
    assert not refused(refuse_settings, config(), {"device": "0,1"})


def test_a_file_that_computes_on_the_cpu_is_not_sent_to_a_gpu() -> None:
    teacher = SimpleNamespace(info=head(), name="big.onnx", on_cpu=True)
    seats = panel(teacher, head())  # type: ignore[arg-type]
    error = refusal(refuse_pair, config(teacher_device=1), seats, head(), {"imgsz": 64}, 3)
    assert error.problem == "teacher=big.onnx computes on the CPU here, and teacher_device=cuda:1 asks for a GPU."
    assert "onnxruntime-gpu" in error.remedy
    for device in ("", "cpu"):
        assert not refused(refuse_pair, config(teacher_device=device), seats, head(), {"imgsz": 64}, 3)
    teacher.on_cpu = False
    assert not refused(refuse_pair, config(teacher_device=1), seats, head(), {"imgsz": 64}, 3)
