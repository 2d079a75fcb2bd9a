"""How hard each distillation loss pulls at the student beside the detection loss: measured, and held in proportion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, distributed

STEPS = 4  # measured steps an epoch: the median of four drops the largest and the smallest
WATCHED = 2  # ... where the gains are fixed: enough to warn, and half the time
CAP = 100.0  # a gain never rises above this many times the one it began with
RATE = 2.0  # after its first window a gain at most doubles or halves an epoch
DOMINATES, VANISHES = 0.5, 0.001

# A loss is multiplied by the first of these before it is differentiated, and its gradient divided by the same after;
# by the next one where that leaves the range of half precision. Powers of two: in float32 this changes no bit.
_SCALES = (2.0**16, 2.0**8, 1.0)


def gradients(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a loss with respect to tensors inside its graph, which stays alive and untouched.

    Half precision: where activations are float16, so are their gradients, and what is below 6e-8 becomes 0. The loss
    is therefore multiplied by 2^16 before (GradScaler's first scale); if an infinity comes out, by 2^8, then by 1.

    Args:
        loss: ``()``.
        tensors: any shapes; one that the loss does not reach, or that is frozen, gets zeros.

    Returns:
        a float32 tensor for each, of its shape; not finite where the gradient itself is not.
    """
    asked = [t for t in tensors if t.requires_grad]
    if not asked or not loss.requires_grad:
        return [torch.zeros_like(t, dtype=torch.float32) for t in tensors]
    found: Sequence[Tensor | None] = []
    for scale in _SCALES:
        raw = torch.autograd.grad(loss.float() * scale, asked, retain_graph=True, allow_unused=True)
        found = [None if g is None else g.float() / scale for g in raw]
        if all(bool(g.isfinite().all()) for g in found if g is not None):
            break
    by_tensor = {id(t): g for t, g in zip(asked, found, strict=True) if g is not None}
    return [by_tensor[id(t)] if id(t) in by_tensor else torch.zeros_like(t, dtype=torch.float32) for t in tensors]


@dataclass(frozen=True)
class Measured:
    """One distillation loss beside the detection loss.

    Attributes:
        share: gradient norm of one unit of gain over that of the detection loss.
        cosine: between the two gradients; negative where they pull apart.
    """

    share: float
    cosine: float


class Balance:
    """Set the gains so that every distillation loss has the same, chosen share of the detection loss's gradient.

    Losses differ by orders of magnitude in what one unit of gain does to a student, and that changes as it learns. In
    the first ``STEPS`` steps after the ramp, and in the first ``STEPS`` of every later epoch, the gradient norm of
    each loss is measured where it meets the student, on the features that enter the head; its gain becomes
    ``share * median(|detection| / |loss|)``, from the first measurement on. It never exceeds ``CAP`` times the gain
    it began with, so that a loss whose gradient has died is not blown up, and after its first window it
    changes at most by a factor ``RATE`` an epoch, so that one odd epoch throws nothing over. A step in which a loss
    has no gradient (no object in the batch) or one that is not finite is left out.

    Source: the ratio of gradient norms as a weight is that of Esser et al., "Taming Transformers for High-Resolution
    Image Synthesis", CVPR 2021, https://arxiv.org/abs/2012.09841; balancing losses by their gradient norms is Chen et
    al., "GradNorm", ICML 2018, https://arxiv.org/abs/1711.02257. Departures: the norm is that of the gradient with
    respect to features, not to a layer's weights, so that only the head is gone through; a median over some steps an
    epoch instead of every step; a chosen share instead of 1 (Esser), and set at once instead of learnt together
    with the rates at which the losses fall (Chen).

    Over ranks the squares and products are summed: features of different images are parts of one long vector, so
    these are the norms and the cosine of the whole batch, and every rank holds the same gains.

    Args:
        share: what each loss gets of the detection loss's gradient norm, e.g. 0.1; None leaves the gains as they are
            and only watches.
        gains: the gain of each loss to begin with.

    Attributes:
        gains: what to multiply each loss with now.

    Raises:
        ValueError: the share is not above 0.
    """

    def __init__(self, share: float | None, gains: Mapping[str, float]) -> None:
        if share is not None and not 0 < share < math.inf:
            raise ValueError(f"balance is {share}; it must be a number above 0")
        self.share = share
        self.gains = dict(gains)
        self._first = dict(gains)
        self._measured: dict[str, Measured] = {}
        self._warned: set[tuple[str, str]] = set()
        self._ramped = False
        self._steps = WATCHED if share is None else STEPS
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Open a window of ``STEPS`` measurements, or of ``WATCHED`` where the gains are fixed."""
        self._left = self._steps
        self._factor = 0.0  # an epoch that is begun again (after a lack of memory) goes back on the ramp
        # What was seen in this window; None: the detection loss had a gradient, this one had none.
        self._window: dict[str, list[Measured | None]] = {name: [] for name in self.gains}
        self._from = {name: self.gains[name] for name in self._measured}  # where this epoch's change is counted from

    def due(self, factor: float) -> bool:
        """Whether to measure in this step; to be asked in every step.

        Gradients are compared at unit gain, so the factor itself does not matter, but the adapters must have settled.
        The ramp is over once the factor is 1, or falls: along a cosine no step need hit 1 exactly.

        Args:
            factor: the schedule's factor in this step.
        """
        self._ramped = self._ramped or factor >= 1 or 0 < factor < self._factor
        self._factor = factor
        return self._ramped and factor > 0 and self._left > 0

    def measure(
        self,
        detection: Tensor,
        terms: Mapping[str, Tensor],
        tensors: Sequence[Tensor],
        elsewhere: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        """Measure, and set the gains.

        Args:
            detection: ``()``, the detection loss as the student is trained on it, on the scale of the terms: both for
                the mean image, or both multiplied by the batch size.
            terms: ``()`` each, at unit gain, before the schedule's factor.
            tensors: the student's features that enter the head, the very tensors of the graph.
            elsewhere: for the terms that act at other tensors, those tensors; the detection loss's gradient is
                measured there as well.
        """
        self._left -= 1
        for name, (dd, tt, dt) in _products(detection, terms, tensors, elsewhere or {}).items():
            if not (math.isfinite(dd) and math.isfinite(tt) and dd > 0):
                continue
            self._window[name].append(Measured(math.sqrt(tt / dd), dt / math.sqrt(dd * tt)) if tt > 0 else None)
            self._settle(name)

    def _settle(self, name: str) -> None:
        """Take the medians of the window, and the gain that follows."""
        seen = [m for m in self._window[name] if m is not None]
        if not seen:
            return
        share = math.exp(median(math.log(m.share) for m in seen))  # of logarithms: neither side of a ratio is special
        self._measured[name] = Measured(share, median(m.cosine for m in seen))
        if self.share is None:
            return
        gain = self.share / share
        if name in self._from:
            gain = _within(gain, self._from[name], RATE)
        self.gains[name] = min(gain, self._first[name] * CAP)

    def columns(self) -> dict[str, float]:
        """For results.csv, the same keys throughout a run: gain, share at that gain and cosine.

        The share is that of the full gain, before the schedule's factor. Share and cosine are 0 in an epoch in which
        nothing was measured: on the ramp, and where distillation rests.
        """
        row: dict[str, float] = {}
        for name, gain in self.gains.items():
            one = self._measured[name] if self._seen(name) else Measured(0.0, 0.0)
            row[f"balance/{name}_gain"] = gain
            row[f"balance/{name}_share"] = gain * one.share
            row[f"balance/{name}_cosine"] = one.cosine
        return row

    def line(self) -> str:
        """For the log of a balanced run: gain and cosine of each loss that was measured in this epoch; else empty."""
        measured = {name: m for name, m in self._measured.items() if self._seen(name)}
        if self.share is None or not measured:
            return ""
        each = (f"{name} {self.gains[name]:.3g} (cosine {m.cosine:+.2f})" for name, m in measured.items())
        return f"balance={self.share:g}: gains {', '.join(each)}"

    def _seen(self, name: str) -> bool:
        """Was a gradient of this loss measured in this epoch?"""
        return any(m is not None for m in self._window[name])

    def warnings(self) -> list[str]:
        """What is out of proportion after this epoch's window, each loss once a kind; to be asked at an epoch's end."""
        said = []
        for name, gain in self.gains.items():
            share = gain * self._measured[name].share if name in self._measured else 0.0
            measured = f"its gradient on the student is {share:.2g} of the detection loss's at gain {gain:.3g}"
            if not self._window[name]:
                kind = "blind"
                text = (
                    "cannot be measured: no finite gradient of it and the detection loss reaches the features that it "
                    "looks at (layers frozen by freeze= have none)"
                )
            elif self.share is not None and self.share / RATE <= share <= self.share * RATE:
                continue  # as asked for, however much that is
            elif share > DOMINATES:
                kind, text = "dominates", f"dominates: {measured}; a smaller gain, or balance=0.1, lets both be heard"
            elif share < VANISHES:
                kind, text = "vanishes", f"vanishes: {measured}; it costs time and teaches nothing"
            else:
                continue
            if self._left < self._steps and (name, kind) not in self._warned:
                self._warned.add((name, kind))
                said.append(f"The distillation loss {name} {text}.")
        return said

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, in plain types."""
        return {
            "gains": dict(self.gains),
            "measured": {name: [m.share, m.cosine] for name, m in self._measured.items()},
            "warned": [list(pair) for pair in sorted(self._warned)],
            "ramped": self._ramped,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``; fixed gains stay as they are."""
        if self.share is not None:
            self.gains |= {name: gain for name, gain in state["gains"].items() if name in self.gains}
        self._measured = {name: Measured(*pair) for name, pair in state["measured"].items() if name in self.gains}
        self._warned = {(name, kind) for name, kind in state["warned"]}
        self._ramped = state["ramped"]
        self.begin_epoch()


def _products(
    detection: Tensor,
    terms: Mapping[str, Tensor],
    tensors: Sequence[Tensor],
    elsewhere: Mapping[str, Sequence[Tensor]],
) -> dict[str, list[float]]:
    """For each term |detection|^2, |term|^2 and their dot product, over all ranks."""
    if not terms:
        return {}
    places: dict[tuple[int, ...], list[Tensor]] = {}  # the detection loss's gradient at each set of tensors, once
    rows = []
    for name, term in terms.items():
        at = elsewhere.get(name, tensors)
        place = tuple(id(t) for t in at)
        if place not in places:
            places[place] = gradients(detection, at)
        ours = torch.cat([g.flatten() for g in gradients(term, at)])
        theirs = torch.cat([g.flatten() for g in places[place]])
        rows.append(torch.stack([theirs @ theirs, ours @ ours, theirs @ ours]))
    table = torch.stack(rows)  # (terms, 3)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(table)
    return dict(zip(terms, table.tolist(), strict=True))


def _within(value: float, centre: float, factor: float) -> float:
    return min(max(value, centre / factor), centre * factor)
