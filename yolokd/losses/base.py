"""The table of losses: what there is, what it needs of a teacher, how strong it is by default."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from yolokd.losses.boxes import LocalizationKD
from yolokd.losses.features import ChannelWiseKD
from yolokd.losses.logits import ClassificationKD
from yolokd.predictions import Assigned, Pair, Predictions


class Loss(Protocol):
    """The one signature of every distillation loss."""

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """A scalar in float32 that does not depend on the batch size and does not know its gain."""
        ...


@dataclass(frozen=True)
class LossInfo:
    """One row of the table.

    Attributes:
        name: what ``losses=`` calls it; its item is ``kd_NAME_loss``.
        cls: the module; ``cls.for_pair(pair, **options)`` builds it.
        family: ``response`` (what the head says) or ``feature`` (what goes into it).
        paper: authors, title, venue.
        link: where to read it.
        needs: what it takes from student and teacher, of ``scores``, ``boxes``, ``feats``.
        gain: the gain where ``losses=NAME`` gives none.
        summary: one line.
        one2one: it also speaks to the one-to-one branch of an end2end student, on positives only.
    """

    name: str
    cls: type[Any]
    family: str
    paper: str
    link: str
    needs: frozenset[str]
    gain: float
    summary: str
    one2one: bool = False

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of ``NAME.option=value`` with their defaults."""
        parameters = inspect.signature(self.cls.for_pair).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


LOSSES: dict[str, LossInfo] = {
    info.name: info
    for info in (
        LossInfo(
            name="cls",
            cls=ClassificationKD,
            family="response",
            paper="CrossKD (Wang et al., CVPR 2024), BCKD (Yang et al., ICCV 2023)",
            link="https://arxiv.org/abs/2306.11369",
            needs=frozenset({"scores"}),
            gain=3.0,  # examples/benchmarks/aquarium.py chose this and the next two, see the README
            summary="class probabilities, quality focal loss over all anchors",
            one2one=True,
        ),
        LossInfo(
            name="box",
            cls=LocalizationKD,
            family="response",
            paper="Localization Distillation (Zheng et al., CVPR 2022)",
            link="https://arxiv.org/abs/2102.12252",
            needs=frozenset({"boxes"}),
            gain=5.0,
            summary="box-edge distributions, where the teacher's box is the better one",
            one2one=True,
        ),
        LossInfo(
            name="cwd",
            cls=ChannelWiseKD,
            family="feature",
            paper="Channel-wise Knowledge Distillation (Shu et al., ICCV 2021)",
            link="https://arxiv.org/abs/2011.13256",
            needs=frozenset({"feats"}),
            gain=3.0,
            summary="where each channel of the pyramid looks",
        ),
    )
}

# What `losses=` means where it is not given.
DEFAULT_LOSSES: dict[str, float] = {name: LOSSES[name].gain for name in ("cls", "box", "cwd")}


def build_losses(
    names: Mapping[str, float], options: Mapping[str, Mapping[str, Any]], pair: Pair, seed: int
) -> nn.ModuleDict:
    """Build the chosen losses with their adapters.

    The random numbers come from a stream of their own: a run with adapters and one without see the same images in the
    same order, and every rank of a multi-GPU run begins with the same adapters.

    Args:
        names: chosen losses; the gains are not looked at.
        options: options of each loss.
        pair: the two heads.
        seed: of the adapters' initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleDict({name: LOSSES[name].cls.for_pair(pair, **options.get(name, {})) for name in names})
