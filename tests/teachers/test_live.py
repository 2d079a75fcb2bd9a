from dataclasses import replace

import pytest
import torch

from tests.test_criterion import detector
from yolokd.errors import UserError
from yolokd.predictions import Predictions, SoftDetections
from yolokd.teachers import live
from yolokd.teachers.live import LiveTeacher, refuse_not_finite, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("wanted", "device", "amp", "bf16", "dtype"),
    [
        ("fp32", CUDA, True, False, torch.float32),
        ("fp16", CUDA, False, False, torch.float16),
        ("bf16", CPU, False, False, torch.bfloat16),
        ("auto", CUDA, True, False, torch.float16),
        ("auto", CUDA, True, True, torch.bfloat16),
        ("auto", CUDA, False, False, torch.float32),
    ],
)
def test_precision(wanted: str, device: torch.device, amp: bool, bf16: bool, dtype: torch.dtype) -> None:
    assert resolve_precision(wanted, device, amp, bf16) == dtype


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_a_cpu_asks_the_cpu(monkeypatch: pytest.MonkeyPatch, able: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(live, "_cpu_multiplies_bf16", lambda: able)
    assert resolve_precision("auto", CPU) == dtype


def test_the_answer_has_the_shapes_that_predictions_promise() -> None:
    teacher = LiveTeacher(detector("yolov8s.yaml", 0), CPU, "fp32")
    said = teacher({"img": torch.rand(2, 3, 64, 96)})
    anchors = 8 * 12 + 4 * 6 + 2 * 3
    assert said.scores is not None
    assert said.boxes is not None
    assert said.feats is not None
    assert said.scores.shape == (2, 3, anchors)
    assert said.boxes.shape == (2, 64, anchors)
    assert [tuple(f.shape[1:]) for f in said.feats] == [(128, 8, 12), (256, 4, 6), (512, 2, 3)]
    assert teacher.info.widths == (128, 256, 512)
    assert teacher.info.reg_max == 16


def test_no_gradient_and_no_inference_tensor() -> None:
    teacher = LiveTeacher(detector("yolo11n.yaml", 0), CPU, "fp32")
    said = teacher.forward(torch.rand(1, 3, 64, 64, requires_grad=True))
    assert said.scores is not None
    assert not said.scores.requires_grad
    (torch.ones_like(said.scores, requires_grad=True) * said.scores).sum().backward()  # saved for backward


def test_the_teacher_is_in_eval_mode_and_repeats_itself() -> None:
    teacher = LiveTeacher(detector("yolo11n.yaml", 0), CPU, "fp32")
    images = torch.rand(2, 3, 64, 64)
    first, second = teacher.forward(images), teacher.forward(images)
    assert torch.equal(first.scores, second.scores)  # type: ignore[arg-type]
    alone = teacher.forward(images[:1])
    assert torch.allclose(alone.scores, first.scores[:1], atol=1e-4)  # type: ignore[arg-type, index]
    assert not any(m.training for m in teacher.model.modules() if m is not teacher.model.model[-1])  # type: ignore[index]


def test_bf16_is_near_fp32() -> None:
    images = torch.rand(1, 3, 64, 64)
    exact = LiveTeacher(detector("yolo11n.yaml", 0), CPU, "fp32").forward(images)
    rough = LiveTeacher(detector("yolo11n.yaml", 0), CPU, "bf16").forward(images)
    assert rough.scores is not None
    assert rough.scores.dtype == torch.bfloat16
    assert (rough.scores.sigmoid() - exact.scores.sigmoid()).abs().max() < 0.02  # type: ignore[union-attr]


def test_compiled_it_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as torch.compile traces it, without the minutes that a compiler takes."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiler(module, backend="eager"))
    teacher = LiveTeacher(detector("yolov8n.yaml", 0), CPU, "fp32")
    images = torch.rand(1, 3, 64, 64)
    plain = teacher.forward(images)
    teacher.compile()
    first = teacher._run
    teacher.compile()  # once is enough
    assert teacher._run is first is not teacher.model
    said = teacher.forward(images)
    assert torch.allclose(said.scores, plain.scores, atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(said.feats[0], plain.feats[0], atol=1e-5)  # type: ignore[index]


class Sane:
    name = "t.pt"


def detections(box: float = 1.0, score: float = 0.5) -> Predictions:
    found = SoftDetections(
        torch.full((2, 4), box), torch.full((2, 3), score), torch.zeros(2, dtype=torch.long), torch.ones(2, 4).bool()
    )
    return Predictions(None, None, (torch.zeros(1, 2, 3, 3),), detections=found)


@pytest.mark.parametrize(
    ("said", "broken"),
    [
        (detections(box=float("nan")), "its boxes hold"),
        (detections(score=float("inf")), "its class scores hold"),
        (detections(float("nan"), float("nan")), "its class scores and boxes hold"),
        (replace(detections(), feats=(torch.full((1, 2, 3, 3), float("nan")),)), "its features hold"),
    ],
)
def test_what_is_no_number_among_detections_is_named(said: Predictions, broken: str) -> None:
    with pytest.raises(UserError, match=rf"teacher=t\.pt: {broken} NaN or Inf on training images\.") as caught:
        refuse_not_finite(said, Sane())  # type: ignore[arg-type]
    assert "Take another checkpoint" in caught.value.remedy  # there are no weights that a lower precision spoilt


def test_no_detections_pass_and_hide_no_nan_beside_them() -> None:
    found = SoftDetections(torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(0, 4).bool())
    feats = torch.zeros(1, 2, 2, 2)
    said = Predictions(None, None, (feats,), detections=found)
    refuse_not_finite(said, Sane())  # type: ignore[arg-type]
    feats[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"its features hold NaN"):  # the features alone
        refuse_not_finite(said, Sane())  # type: ignore[arg-type]
