"""What every distillation loss costs by itself, beside a plain training step; all take turns in one process.

python examples/benchmarks/loss_cost.py each=all rounds=15 out=cost.json [each=cls,box,cwd imgsz=320 batch=8]
Forward and backward of the loss on one fixed batch: outputs of a student and a teacher with random weights, and the
assignment to made-up boxes. The gradient goes to the student's outputs and to the loss's own parameters. Not counted:
the optimizer's step on those parameters, and the teacher, which all losses share. The other options are those of
step_time.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import yaml
from step_time import (
    Step,
    checkpoints,
    criterion_of,
    losses_of,
    made_up_batch,
    measure,
    settings,
    step_of,
    student_of,
    teacher_of,
    write,
)
from torch import Tensor, nn

from yolokd.losses.base import LOSSES
from yolokd.predictions import Assigned, Predictions
from yolokd.taps import entry_depth

# No loss but these may cost more than this share of a plain step.
LIMIT, DEAR = 0.08, frozenset({"fgd", "crosskd", "crd", "adv", "graph"})


class Witness(nn.Module):
    """Stands where a loss stands and keeps what the criterion hands to it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[Predictions, Predictions, Assigned] | None = None

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        self.seen = self.seen or (student, teacher, assigned)  # of two branches the dense one, which is the first
        return assigned.normalizer * 0


def leaves(said: Any, found: list[Tensor]) -> Any:
    """Cut the student's outputs from the student; each copy that may have a gradient is noted in ``found``."""
    if isinstance(said, Tensor) and said.is_floating_point():
        found.append(said.detach().requires_grad_())
        return found[-1]
    if isinstance(said, tuple):
        return tuple(leaves(part, found) for part in said)
    return said


def cost_of(loss: nn.Module, student: Predictions, teacher: Predictions, assigned: Assigned) -> Step:
    """Forward and backward of one loss, its gradients forgotten at the next turn."""
    with_gradient: list[Tensor] = []
    parts = {name: leaves(getattr(student, name), with_gradient) for name in ("scores", "boxes", "feats", "hidden")}
    cut = replace(student, **parts)
    with_gradient.extend(loss.parameters())

    def step() -> None:
        for tensor in with_gradient:
            tensor.grad = None
        loss(cut, teacher, assigned).backward()

    return step


def arms(teacher: str, student: str, batch: dict[str, Tensor], precision: str, names: list[str]) -> dict[str, Step]:
    """A plain step, and each loss on what the criterion would give it."""
    device, amp, imgsz = batch["img"].device, batch["img"].is_cuda, batch["img"].shape[-1]
    model = student_of(student, imgsz, device)
    live = teacher_of(teacher, device, precision)
    losses = losses_of(dict.fromkeys(names, 1.0), model, live, device)
    witness = Witness()
    stand_in = nn.ModuleDict({names[0]: witness})
    model.criterion = criterion_of(model, live, stand_in, entry_depth(losses))
    with torch.autocast(device.type, enabled=amp):
        model(batch)
    assert witness.seen is not None
    print(f"teacher in {live.dtype}", flush=True)
    steps = {"plain": step_of(student_of(student, imgsz, device), [], batch, amp)}
    return steps | {name: cost_of(loss, *witness.seen) for name, loss in losses.items()}


def table(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line a loss: seconds, and the share of the plain step that its median is."""
    plain = found["plain"]["median"]
    lines = [f"{'':8} {'median':>8}  {'min':>8} .. {'max':<8} of plain"]
    for name, row in found.items():
        share = row["median"] / plain
        over = "" if name == "plain" or name in DEAR or share <= LIMIT else f"  above {LIMIT:.0%}"
        seconds = f"{row['median']:8.4f}  {row['min']:8.4f} .. {row['max']:<8.4f}"
        lines.append(f"{name:8} {seconds} {share:7.1%}{over}")
    return lines


def main(*options: str) -> None:
    asked = settings("each=all", *options)
    names = list(LOSSES) if asked["each"] == "all" else asked["each"].split(",")
    device = torch.device(asked["device"])
    with checkpoints(asked) as (teacher, student):
        batch = made_up_batch(int(asked["imgsz"]), int(asked["batch"]), device)
        found = measure(arms(teacher, student, batch, asked["precision"], names), int(asked["rounds"]), device)
    found = {name: {**row, "share": row["median"] / found["plain"]["median"]} for name, row in found.items()}
    print(yaml.safe_dump(asked, sort_keys=False))
    print("\n".join(table(found)))
    write(asked, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
