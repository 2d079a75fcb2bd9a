from __future__ import annotations

from pathlib import Path

import pytest
from ultralytics.utils import checks

from yolokd.compat.exporting import Runner, example_images, known_formats, nothing_installed


def test_formats_are_those_of_ultralytics() -> None:
    known = known_formats()
    assert {"onnx", "openvino", "torchscript", "ncnn", "engine", "coreml"} <= set(known)
    assert "-" not in known
    assert "data" in known["onnx"]
    assert "data" not in known["torchscript"]


def test_the_example_images_come_with_ultralytics() -> None:
    assert all(image.is_file() for image in example_images())


def test_nothing_is_installed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "AUTOINSTALL", True)
    ran: list[object] = []
    monkeypatch.setattr(checks.subprocess, "check_output", lambda *a, **k: ran.append(a))
    with nothing_installed():
        assert checks.check_requirements("no-such-package-of-yolokd") is False
    assert ran == []
    assert checks.AUTOINSTALL is True


def test_runner_sees_the_square_and_answers_in_pixels_of_the_image(toy_student: Path) -> None:
    run = Runner(toy_student, imgsz=96, device="cpu")
    boxes, milliseconds = run(example_images()[1], 1e-5)  # 1280 x 720
    assert boxes.shape[1] == 6
    assert 96 < boxes[:, 2].max() <= 1280
    assert boxes[:, 3].max() <= 720
    assert milliseconds > 0
    assert run.network.predictor.imgsz == [96, 96]
    assert Runner(toy_student, imgsz=96, device="cpu", batch=2)(example_images()[1], 1e-5)[0] == pytest.approx(boxes)
