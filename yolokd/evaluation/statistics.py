"""Is one way to train better than another, or is it noise?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # the quantile of Student's t

from yolokd.errors import UserError
from yolokd.evaluation.precision import Matched

HELPS, NO_DIFFERENCE, HURTS, NO_VERDICT = "helps", "no measurable difference", "hurts", ""
FEWEST_SEEDS = 3
FEWEST_IMAGES = 10  # with an object of a class: resampling one or two of them says nothing about others
UPPER = 0.975  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Difference:
    """How much better one arm is than another, in AP (a fraction, not percent).

    Attributes:
        mean: ours minus theirs, the mean over seeds.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        seeds_sd: standard deviation of the differences of the seeds; None of one seed.
        images_sd: standard deviation of ``mean`` that comes from the choice of images, as far as it is not in
            ``seeds_sd`` (below three seeds: all of it).
        per_seed: the difference of each seed.
        verdict: ``helps``, ``hurts`` where the interval lies on one side of 0, else ``no measurable difference``;
            empty below three seeds or two images (of one class: ten that hold it).
        seeds: how many.
    """

    mean: float
    low: float
    high: float
    seeds_sd: float | None
    images_sd: float
    per_seed: tuple[float, ...]
    verdict: str
    seeds: int


def paired(
    ours: Sequence[Matched],
    theirs: Sequence[Matched],
    *,
    category: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Return the difference of two arms with an interval for other seeds and other images than these.

    Two sources of noise: the seed of a training, and which images happen to be in the split. The spread of the
    differences across the seeds tells the first (a paired t interval; a bootstrap over three seeds would cover 75 %).
    It also holds what an image does to one seed alone, but not what it does to all seeds alike: that is the covariance,
    between different seeds, of their differences over resamples of the images (the same for all seeds and both arms).
    The bootstrap variance of the mean would count the seeds' own part twice.

    The squares of the two half-widths are added, each variance times the square of its own t quantile (seeds - 1 and
    images - 1 degrees of freedom; of one class, those images that hold it). In simulations of three seeds this covered
    at least 94 %, wherever the noise came from. Under one t quantile the summed variances covered as little as 92 %
    with Welch and Satterthwaite's degrees of freedom, and were twice as wide as need be with seeds - 1 where the images
    made the noise.

    Below three seeds the interval is that of the images alone: it does not cover another training.

    Source: G. W. Howe's squared half-widths (W. G. Howe, "Approximate Confidence Limits on the Mean of X + Y Where X
    and Y Are Two Tabled Independent Random Variables", JASA 69, 1974), which G. Zou and A. Donner generalise
    ("Construction of confidence limits about effect measures: a general approach", Statistics in Medicine 27, 2008).

    Args:
        ours: an arm, a seed each.
        theirs: the other arm, the same seeds in the same order, judged on the same images.
        category: name of a class; None: the mean over all. Resamples without an object of it are left out.
        resamples: how often the images are drawn.
        seed: of these draws.

    Raises:
        ValueError: there is no seed, or one arm has more.
        UserError: the arms were judged on different images or labels, or there is no object to find.
    """
    _comparable([*ours, *theirs])
    images = len(ours[0].files)
    once = np.ones((1, images))
    per_seed = _differences(ours, theirs, once, category)[:, 0]
    if np.isnan(per_seed).any():
        what = "object" if category is None else f"object of class {category}"
        raise UserError(
            f"The evaluated images hold no {what}: there is no AP to compare.", "Choose another eval_split."
        )
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    noise = _covariance(_differences(ours, theirs, draws, category))
    seeds, mean = len(per_seed), float(per_seed.mean())
    seeds_sd = float(per_seed.std(ddof=1)) if seeds > 1 else None
    holding = images if category is None else int((ours[0].categories[category].objects > 0).sum())
    by_images = float(stdtrit(max(holding - 1, 1), UPPER))
    if seeds_sd is None or seeds < FEWEST_SEEDS:
        images_sd = sqrt(noise.mean())
        half = by_images * images_sd
    else:
        images_sd = sqrt(max((noise.sum() - noise.trace()) / (seeds * (seeds - 1)), 0.0))
        half = sqrt(stdtrit(seeds - 1, UPPER) ** 2 * seeds_sd**2 / seeds + by_images**2 * images_sd**2)
    low, high = mean - half, mean + half
    enough = seeds >= FEWEST_SEEDS and holding >= (2 if category is None else FEWEST_IMAGES)
    word = verdict(low, high) if enough else NO_VERDICT
    return Difference(mean, low, high, seeds_sd, images_sd, tuple(per_seed.tolist()), word, seeds)


def verdict(low: float, high: float) -> str:
    """Say in words where an interval lies.

    >>> verdict(-0.01, 0.03)
    'no measurable difference'
    """
    return HELPS if low > 0 else HURTS if high < 0 else NO_DIFFERENCE


def _comparable(runs: Sequence[Matched]) -> None:
    """Refuse runs that did not see the same images and the same objects."""
    if not runs:
        raise ValueError("there is no seed to compare")
    first = runs[0]
    for run in runs[1:]:
        same = run.files == first.files and list(run.categories) == list(first.categories)
        if not same or any(
            not np.array_equal(run.categories[name].objects, category.objects)
            for name, category in first.categories.items()
        ):
            raise UserError(
                "The runs were judged on different images or labels: their scores cannot be compared.",
                "Leave the data alone while a comparison runs; judge all of its runs again.",
            )


def _differences(
    ours: Sequence[Matched],
    theirs: Sequence[Matched],
    weights: NDArray[np.float64] | NDArray[np.int64],
    category: str | None,
) -> NDArray[np.float64]:
    """Return ``(S, B)``: ours minus theirs of each seed in each resample."""
    pairs = zip(ours, theirs, strict=True)
    return np.stack([mine.resampled(weights, category) - other.resampled(weights, category) for mine, other in pairs])


def _covariance(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``(S, S)`` of ``(S, B)``; a resample without an object is NaN in every seed, and left out."""
    there = differences[:, ~np.isnan(differences[0])]
    centred = there - there.mean(1, keepdims=True)
    return np.asarray(centred @ centred.T / max(there.shape[1] - 1, 1))
