from __future__ import annotations

import math

import pytest
import torch

from yolokd.compat.checkpoint import build_student
from yolokd.compat.step import plain_step


@pytest.mark.parametrize("cfg", ["yolo11n.yaml", "yolo26n.yaml"])
def test_a_step_runs_backward_and_leaves_no_gradient(cfg: str) -> None:
    torch.manual_seed(0)
    student = build_student(cfg, names={0: "a"}).train()
    reached = []
    student.model[0].conv.weight.register_hook(lambda gradient: reached.append(float(gradient.abs().sum())))
    loss = plain_step(student, torch.rand(2, 3, 64, 64))
    assert math.isfinite(loss)
    assert loss > 0
    assert reached[0] > 0  # the loss went back through the whole network
    assert all(parameter.grad is None for parameter in student.parameters())
