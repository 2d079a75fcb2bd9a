"""The table of losses: what there is, what it needs of a teacher, how strong it is by default."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from yolokd.losses.adversarial import AdversarialKD
from yolokd.losses.boxes import BoxIoUKD, LocalizationKD
from yolokd.losses.contrastive import ContrastiveKD
from yolokd.losses.crosskd import CrossHeadKD
from yolokd.losses.features import AttentionTransfer, ChannelWiseKD, FitNets
from yolokd.losses.focal import FocalGlobalKD
from yolokd.losses.graph import GraphKD
from yolokd.losses.logits import ClassificationKD, SoftmaxKD
from yolokd.losses.masked import MaskedGenerativeKD
from yolokd.losses.pearson import PearsonKD
from yolokd.losses.relations import RelationalKD, SimilarityPreserving
from yolokd.losses.score_weighted import ScoreWeightedL2
from yolokd.predictions import Assigned, Pair, Predictions


class Loss(Protocol):
    """The one signature of every distillation loss.

    Also read, where it is there: ``logged``, scalars shown as ``kd_NAME_KEY``; ``depth``, where it needs ``reenter``.
    """

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """A scalar in float32 that does not know its gain, nor (but for sp, rkd, crd, adv) the batch size."""
        ...


@dataclass(frozen=True)
class LossInfo:
    """One row of the table.

    Attributes:
        name: what ``losses=`` calls it; its item is ``kd_NAME_loss``.
        cls: the module; ``cls.for_pair(pair, **options)`` builds it.
        family: ``response`` (what the head says), ``feature`` (what goes into it), ``relation`` (how objects or images
            stand to one another), ``contrastive`` or ``adversarial``.
        paper: authors, title, venue.
        link: where to read it.
        needs: what it takes: of student and teacher ``scores``, ``boxes``, ``feats``; of the data ``truth``; of the
            teacher ``reenter`` (its head as a door).
        gain: the gain where ``losses=NAME`` gives none.
        summary: one line.
        one2one: it also speaks to the one-to-one branch of an end2end student, on positives only.
        taps: it can compare the layers that ``taps=`` names instead of the pyramid.
        batch, classes: images a batch (of one rank), and shared classes, without which it says nothing.
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
    taps: bool = False
    batch: int = 1
    classes: int = 0

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of ``NAME.option=value`` with their defaults."""
        parameters = inspect.signature(self.cls.for_pair).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


# The gains, where no paper's carries over: those at which a loss had .1 to .3 of the detection loss's gradient on the
# neck of YOLO11-n under YOLOv8-s on Aquarium (256 px, batch 16), after one epoch. `balance=` makes it so elsewhere.
LOSSES: dict[str, LossInfo] = {
    info.name: info
    for info in (
        LossInfo(
            name="kd",
            cls=SoftmaxKD,
            family="response",
            paper="Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean, 2015)",
            link="https://arxiv.org/abs/1503.02531",
            needs=frozenset({"scores"}),
            gain=0.5,
            summary="which class the teacher takes for which, softmax at a temperature, on foreground",
            one2one=True,
            classes=SoftmaxKD.min_classes,
        ),
        LossInfo(
            name="cls",
            cls=ClassificationKD,
            family="response",
            paper="CrossKD (Wang et al., CVPR 2024), BCKD (Yang et al., ICCV 2023)",
            link="https://arxiv.org/abs/2306.11369",
            needs=frozenset({"scores"}),
            gain=0.25,
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
            name="iou",
            cls=BoxIoUKD,
            family="response",
            paper="GIoU (Rezatofighi et al., CVPR 2019), as in BCKD (Yang et al., ICCV 2023)",
            link="https://arxiv.org/abs/1902.09630",
            needs=frozenset({"boxes"}),
            gain=3.75,
            summary="GIoU of the two decoded boxes, where the teacher's box is the better one",
            one2one=True,
        ),
        LossInfo(
            name="crosskd",
            cls=CrossHeadKD,
            family="response",
            paper="CrossKD (Wang et al., CVPR 2024)",
            link="https://arxiv.org/abs/2306.11369",
            needs=frozenset({"scores", "boxes", "reenter"}),
            gain=1.0,
            summary="the student's features in the teacher's head, beside the teacher's own answer",
        ),
        LossInfo(
            name="fitnets",
            cls=FitNets,
            family="feature",
            paper="FitNets (Romero et al., ICLR 2015)",
            link="https://arxiv.org/abs/1412.6550",
            needs=frozenset({"feats"}),
            gain=15.0,
            summary="every activation of the teacher's layers",
            taps=True,
        ),
        LossInfo(
            name="at",
            cls=AttentionTransfer,
            family="feature",
            paper="Attention Transfer (Zagoruyko, Komodakis, ICLR 2017)",
            link="https://arxiv.org/abs/1612.03928",
            needs=frozenset({"feats"}),
            gain=2.5,
            summary="where the layers are active, over all channels",
            taps=True,
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
            taps=True,
        ),
        LossInfo(
            name="pkd",
            cls=PearsonKD,
            family="feature",
            paper="PKD (Cao et al., NeurIPS 2022)",
            link="https://arxiv.org/abs/2207.02039",
            needs=frozenset({"feats"}),
            gain=25.0,
            summary="each channel up to scale and shift: Pearson correlation",
            taps=True,
        ),
        LossInfo(
            name="mgd",
            cls=MaskedGenerativeKD,
            family="feature",
            paper="Masked Generative Distillation (Yang et al., ECCV 2022)",
            link="https://arxiv.org/abs/2205.01529",
            needs=frozenset({"feats"}),
            gain=30.0,
            summary="the teacher's features, rebuilt from the student's with holes in them",
            taps=True,
        ),
        LossInfo(
            name="fgd",
            cls=FocalGlobalKD,
            family="feature",
            paper="Focal and Global Knowledge Distillation (Yang et al., CVPR 2022)",
            link="https://arxiv.org/abs/2111.11837",
            needs=frozenset({"feats", "truth"}),
            gain=1.5,
            summary="features inside and outside the objects apart, attention, context",
            taps=True,
        ),
        LossInfo(
            name="sl2",
            cls=ScoreWeightedL2,
            family="feature",
            paper="Ultralytics' own distill_model= (8.4)",
            link="https://github.com/ultralytics/ultralytics",
            needs=frozenset({"feats", "scores"}),
            gain=6.0,
            summary="features where the teacher sees something, as Ultralytics distils itself",
        ),
        LossInfo(
            name="sp",
            cls=SimilarityPreserving,
            family="relation",
            paper="Similarity-Preserving Knowledge Distillation (Tung, Mori, ICCV 2019)",
            link="https://arxiv.org/abs/1907.09682",
            needs=frozenset({"feats"}),
            gain=375.0,
            summary="which images of a batch resemble one another",
            taps=True,
            batch=2,
        ),
        LossInfo(
            name="rkd",
            cls=RelationalKD,
            family="relation",
            paper="Relational Knowledge Distillation (Park et al., CVPR 2019)",
            link="https://arxiv.org/abs/1904.05068",
            needs=frozenset({"feats", "truth"}),
            gain=4.0,
            summary="distances and angles between the objects of a batch",
            taps=True,
        ),
        LossInfo(
            name="graph",
            cls=GraphKD,
            family="relation",
            paper="Structured Instance Graph (Chen et al., ICCV 2021), GID (Dai et al., CVPR 2021)",
            link="https://arxiv.org/abs/2109.12862",
            needs=frozenset({"feats", "truth"}),
            gain=4.0,
            summary="the objects of an image, some background, and how alike they are",
            taps=True,
        ),
        LossInfo(
            name="crd",
            cls=ContrastiveKD,
            family="contrastive",
            paper="Contrastive Representation Distillation (Tian, Krishnan, Isola, ICLR 2020)",
            link="https://arxiv.org/abs/1910.10699",
            needs=frozenset({"feats", "truth"}),
            gain=0.5,
            taps=True,
            summary="which object is which, among those of the batch and a memory",
        ),
        LossInfo(
            name="adv",
            cls=AdversarialKD,
            family="adversarial",
            paper="Gradient reversal (Ganin, Lempitsky, ICML 2015), MEAL (Shen et al., AAAI 2019)",
            link="https://arxiv.org/abs/1409.7495",
            needs=frozenset({"feats"}),
            gain=3.0,
            summary="features that a discriminator takes for the teacher's",
            taps=True,
        ),
    )
}

# What `losses=` means where it is not given.
DEFAULT_LOSSES: dict[str, float] = {name: LOSSES[name].gain for name in ("cls", "box", "cwd")}


def build_losses(
    names: Mapping[str, float],
    options: Mapping[str, Mapping[str, Any]],
    pair: Pair,
    seed: int,
    tapped: Pair | None = None,
) -> nn.ModuleDict:
    """Build the chosen losses with their adapters.

    The random numbers come from a stream of their own: a run with adapters and one without see the same images in the
    same order, and every rank of a multi-GPU run begins with the same adapters.

    Args:
        names: chosen losses; the gains are not looked at.
        options: options of each loss.
        pair: the two heads.
        seed: of the adapters' initial weights.
        tapped: the pair with the strides and widths of the layers of ``taps=``, for the losses that look there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        seen = {name: tapped if tapped is not None and LOSSES[name].taps else pair for name in names}
        return nn.ModuleDict({name: LOSSES[name].cls.for_pair(seen[name], **options.get(name, {})) for name in names})
