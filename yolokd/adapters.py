"""The 1x1 convolutions that bring the student's pyramid levels to the teacher's widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from yolokd.predictions import Pair


class PyramidAdapter(nn.Module):
    """One bias-free 1x1 convolution a pyramid level.

    It exists only while training. One convolution, not two: a deep adapter learns to explain the teacher by itself
    and leaves the student little to learn (Ultralytics' own has 1.65 M parameters beside a student of 2.62 M). There
    is no bias, since every loss that uses it normalises away a constant a channel.

    Args:
        student_widths: channels of each student level.
        teacher_widths: channels of each teacher level.

    Raises:
        ValueError: the two have another number of levels.
    """

    def __init__(self, student_widths: Sequence[int], teacher_widths: Sequence[int]) -> None:
        super().__init__()
        if len(student_widths) != len(teacher_widths):
            raise ValueError(f"{len(student_widths)} student levels against {len(teacher_widths)} teacher levels")
        self.levels = nn.ModuleList(
            nn.Conv2d(s, t, 1, bias=False) for s, t in zip(student_widths, teacher_widths, strict=True)
        )

    @classmethod
    def for_pair(cls, pair: Pair) -> PyramidAdapter:
        """The adapter between the two pyramids of a pair."""
        return cls(pair.student.widths, pair.teacher.widths)

    def forward(self, feats: Sequence[Tensor]) -> list[Tensor]:
        """Bring ``(B, C_student, H, W)`` levels to ``(B, C_teacher, H, W)``."""
        return [conv(f) for conv, f in zip(self.levels, feats, strict=True)]


def add_to_optimizer(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Give the adapters a group of their own in the student's optimizer.

    The group is named ``adapter``: a group named ``weight`` would get weight decay back after an out-of-memory retry,
    and MuSGD would orthogonalise a convolution that it finds in its ``muon`` group. Learning rate, betas and momentum
    are those of the plain bias group, said explicitly, since defaults of the optimizer class are not Ultralytics'.

    Args:
        optimizer: the student's optimizer, as Ultralytics built it.
        parameters: the parameters of all losses; none is fine.
    """
    if not parameters:
        return
    reference = min((g for g in optimizer.param_groups if g.get("param_group") == "bias"), key=lambda g: g["lr"])
    # `use_muon` and the like are copied too: the bias group is never orthogonalised.
    group = {k: v for k, v in reference.items() if k not in {"params", "initial_lr"}}
    optimizer.add_param_group({**group, "params": list(parameters), "weight_decay": 0.0, "param_group": "adapter"})


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Make every rank hold the mean of all ranks' gradients; nothing to do for a single process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for parameter in parameters:
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()
