"""A loss on features under several teachers: one for each, with adapters of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolokd.losses.base import LOSSES, build_losses
from yolokd.predictions import Assigned, Pair, Predictions


class EachTeacher(nn.Module):
    """The weighted mean of one loss under each of several teachers.

    Features of two networks have no common channels, so they cannot be averaged as responses are.

    Args:
        losses: the loss, built for each teacher.
        weights: how much each teacher counts.
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.each = nn.ModuleList(losses)
        self.shares = tuple(w / sum(weights) for w in weights)

    @property
    def depth(self) -> int:
        """Where the student enters the teachers' heads (see ``crosskd``)."""
        first: Any = self.each[0]
        return int(first.depth)

    @property
    def logged(self) -> dict[str, Tensor]:
        """What the losses tell beside their value, as the same weighted mean."""
        told: list[dict[str, Tensor]] = [getattr(loss, "logged", {}) for loss in self.each]
        return {k: sum(s * t[k] for s, t in zip(self.shares, told, strict=True)) for k in told[0]}  # type: ignore[misc]

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """The mean over ``teacher.members``.

        Raises:
            ValueError: the teacher has no members, or another number of them.
        """
        if teacher.members is None or len(teacher.members) != len(self.each):
            raise ValueError(f"{len(self.each)} teachers expected, {len(teacher.members or ())} spoke")
        terms = [loss(student, member, assigned) for loss, member in zip(self.each, teacher.members, strict=True)]
        return torch.stack([share * term for share, term in zip(self.shares, terms, strict=True)]).sum()


def build_for_all(
    names: Mapping[str, float],
    options: Mapping[str, Mapping[str, Any]],
    pairs: Sequence[Pair],
    tapped: Sequence[Pair | None],
    seed: int,
    weights: Sequence[float],
) -> nn.ModuleDict:
    """Build the chosen losses for one teacher or several.

    A response loss hears the average of several teachers; a loss that looks at features, or enters a head, is there
    once for each of them.

    Args:
        names: chosen losses; the gains are not looked at.
        options: options of each loss.
        pairs: the student's head beside each teacher's.
        tapped: the same for the layers of ``taps=``; empty without them.
        seed: of the adapters' initial weights; every teacher's are drawn from another stream.
        weights: how much each teacher counts.
    """
    looks = list(tapped) or [None] * len(pairs)
    built = [
        build_losses(names, options, pair, seed + i, look)
        for i, (pair, look) in enumerate(zip(pairs, looks, strict=True))
    ]
    if len(built) == 1:
        return built[0]
    return nn.ModuleDict(
        {name: EachTeacher([b[name] for b in built], weights) if of_each(name) else built[0][name] for name in names}
    )


def of_each(name: str) -> bool:
    """Under several teachers this loss is there for each: it looks at features, or enters a head."""
    return bool(LOSSES[name].needs & {"feats", "reenter"})
