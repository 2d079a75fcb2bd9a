from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.evaluation.results import Box, image
from yolokd.errors import UserError
from yolokd.evaluation.precision import Category, Matched, matched
from yolokd.evaluation.statistics import Difference, paired, verdict

NAMES = {0: "cat", 1: "dog", 2: "eel"}
LARGE: Box = (100, 100, 300, 300)
SMALL: Box = (500, 300, 520, 320)


class Linear:
    """A split whose "AP" is the mean of a value an image, so that every variance is known."""

    categories: dict[str, Category] = {}  # noqa: RUF012

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values, dtype=np.float64)
        self.files = tuple(str(i) for i in range(len(self.values)))

    def resampled(self, weights: Any, category: str | None = None) -> Any:
        weights = np.asarray(weights)
        return weights @ self.values / weights.sum(1)


def linear(differences: Any, **options: Any) -> Difference:
    """The difference of two arms by seed and image: ``(S, I)``, over a common ground that must cancel."""
    ground = np.random.default_rng(9).normal(size=np.shape(differences)[1])
    ours: Any = [Linear(ground + row) for row in differences]
    theirs: Any = [Linear(ground) for _ in differences]
    return paired(ours, theirs, **options)


def test_seeds_alone_are_the_paired_t_interval() -> None:
    by_seed = np.array([0.01, 0.04, 0.02, 0.05])
    found = linear(np.repeat(by_seed[:, None], 30, axis=1))
    expected = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(0.03)
    assert found.seeds_sd == pytest.approx(by_seed.std(ddof=1))
    assert found.images_sd == pytest.approx(0, abs=1e-9)
    assert found.per_seed == pytest.approx(tuple(by_seed))
    assert (found.seeds, found.verdict) == (4, "no measurable difference" if expected.low < 0 else "helps")


def test_images_alone_are_the_bootstrap() -> None:
    by_image = np.random.default_rng(0).normal(0.03, 0.1, 50)
    found = linear(np.tile(by_image, (3, 1)), resamples=20_000)
    assert found.seeds_sd == pytest.approx(0, abs=1e-9)
    assert found.images_sd == pytest.approx(by_image.std() / np.sqrt(50), rel=0.02)
    half = stats.t.ppf(0.975, 49) * found.images_sd
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))


def test_what_images_do_to_single_seeds_is_not_counted_twice() -> None:
    own = np.random.default_rng(1).normal(0, 0.1, (4, 4000))  # nothing that the seeds share
    found = linear(own, resamples=300)
    assert found.images_sd < 0.3 * 0.1 / np.sqrt(4000)


def test_both_sources_add_up() -> None:
    rng = np.random.default_rng(2)
    found = linear(rng.normal(0, 0.01, (5, 1)) + rng.normal(0, 0.1, 60))
    seeds = stats.t.ppf(0.975, 4) * found.seeds_sd / np.sqrt(5)
    images = stats.t.ppf(0.975, 59) * found.images_sd
    assert found.images_sd > 0.005
    assert found.high - found.mean == pytest.approx(np.hypot(seeds, images))
    assert found.mean - found.low == pytest.approx(np.hypot(seeds, images))


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_seeds_there_is_no_verdict(seeds: int) -> None:
    by_image = np.random.default_rng(3).normal(5, 0.1, 40)
    found = linear(by_image + np.arange(seeds)[:, None], resamples=5000)
    assert found.low > 0  # clear of zero, and yet:
    assert found.verdict == ""
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 39) * by_image.std() / np.sqrt(40), rel=0.05)
    assert found.seeds_sd == (None if seeds == 1 else pytest.approx(np.sqrt(0.5)))


def test_one_image_gives_no_verdict() -> None:
    assert linear([[0.1], [0.1], [0.1]]).verdict == ""


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.001, 0.2, "helps"),
        (-0.2, -0.001, "hurts"),
        (-0.1, 0.1, "no measurable difference"),
        (0.0, 0.1, "no measurable difference"),
        (-0.1, 0.0, "no measurable difference"),
        (0.0, 0.0, "no measurable difference"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(low: float, high: float, word: str) -> None:
    assert verdict(low, high) == word


def test_the_same_arm_twice_differs_by_nothing() -> None:
    arm = simulated(np.random.default_rng(0), images=20, seeds=3, effect=0)[0]
    found = paired(arm, arm)
    assert (found.mean, found.low, found.high, found.verdict) == (0, 0, 0, "no measurable difference")


def test_the_other_way_round_is_the_negative() -> None:
    ours, theirs = simulated(np.random.default_rng(1), images=30, seeds=3, effect=0.5)
    there, back = paired(ours, theirs), paired(theirs, ours)
    assert there == paired(ours, theirs)  # and the same again
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))
    assert back.images_sd == pytest.approx(there.images_sd)
    assert there.per_seed[0] == pytest.approx((ours[0].ap() or 0) - (theirs[0].ap() or 0))


def test_a_large_effect_is_seen_in_each_class() -> None:
    ours, theirs = simulated(np.random.default_rng(2), images=80, seeds=3, effect=3)
    assert paired(ours, theirs, resamples=200).verdict == "helps"
    assert paired(theirs, ours, resamples=200).verdict == "hurts"
    one = paired(ours, theirs, category="0", resamples=200)
    assert one.verdict == "helps"
    both = [paired(ours, theirs, category=name, resamples=200).mean for name in ("0", "1")]
    assert paired(ours, theirs, resamples=200).mean == pytest.approx(np.mean(both))


def test_resamples_without_an_object_of_the_class_are_left_out() -> None:
    eels = [image(f"{i}.jpg", truth=[(LARGE, 2)], found=[(LARGE, 0.9, 2)]) for i in range(2)]
    cats = [image(f"{i}.jpg", truth=[(LARGE, 0)], found=[(LARGE, 0.9, 0)]) for i in range(2, 8)]
    missed = replace(eels[0], boxes=np.zeros((0, 4)), scores=np.zeros(0), classes=np.zeros(0, np.int64))
    ours, theirs = [matched([*eels, *cats], NAMES)] * 3, [matched([missed, eels[1], *cats], NAMES)] * 3
    draws = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=1000)
    differences = (ours[0].resampled(draws, "eel") - theirs[0].resampled(draws, "eel")).tolist()
    assert 50 < np.isnan(differences).sum() < 150  # (6 / 8) ** 8 of them
    found = paired(ours, theirs, category="eel")
    assert found.mean == pytest.approx(50 / 101)
    assert found.images_sd == pytest.approx(np.nanstd(differences, ddof=1))


@pytest.mark.parametrize(("holding", "word"), [(1, ""), (9, ""), (10, "helps")])
def test_a_class_in_few_images_has_no_verdict(holding: int, word: str) -> None:
    """Resamples of one image are all alike: there the spread over images would be 0."""
    cats = [image(f"c{i}.jpg", truth=[(LARGE, 0)], found=[(LARGE, 0.9, 0)]) for i in range(30)]
    eels = [image(f"{i}.jpg", truth=[(LARGE, 2)], found=[(LARGE, 0.9, 2)]) for i in range(holding)]
    blind = [image(f"{i}.jpg", truth=[(LARGE, 2)]) for i in range(holding)]
    ours, theirs = [matched([*eels, *cats], NAMES)] * 3, [matched([*blind, *cats], NAMES)] * 3
    found = paired(ours, theirs, category="eel", resamples=100)
    assert (found.mean, found.verdict) == (pytest.approx(1), word)


def test_of_a_class_those_images_count_that_hold_it() -> None:
    cats = [image(f"c{i}.jpg", truth=[(LARGE, 0)], found=[(LARGE, 0.9, 0)]) for i in range(30)]
    eels = [image(f"{i}.jpg", truth=[(LARGE, 2)], found=[(LARGE, 0.9, 2)]) for i in range(12)]
    blind = [image(f"{i}.jpg", truth=[(LARGE, 2)]) for i in range(6)] + eels[6:]
    ours, theirs = [matched([*eels, *cats], NAMES)] * 3, [matched([*blind, *cats], NAMES)] * 3
    found = paired(ours, theirs, category="eel", resamples=500)
    assert found.images_sd > 0.05
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 11) * found.images_sd)


def test_what_cannot_be_compared_is_refused() -> None:
    split = [image("1.jpg", truth=[(LARGE, 0)], found=[(LARGE, 0.9, 0)]), image("2.jpg", truth=[(SMALL, 0)])]
    run = matched(split, NAMES)
    for other in (
        matched(split[::-1], NAMES),
        matched(split[:1], NAMES),
        matched([split[0], image("2.jpg", truth=[(SMALL, 1)])], NAMES),
        matched(split, {0: "cat", 1: "ewe"}),
    ):
        with pytest.raises(UserError, match="different images or labels"):
            paired([run], [other])
    with pytest.raises(UserError, match=r"no object of class dog"):
        paired([run], [run], category="dog")
    empty = matched([image("1.jpg")], NAMES)
    with pytest.raises(UserError, match=r"no object:"):
        paired([empty], [empty])
    with pytest.raises(ValueError, match="no seed"):
        paired([], [])
    with pytest.raises(ValueError, match="argument 2"):
        paired([run, run], [run])


# ---- How often is it right? ----


def coverage(found: list[Difference], truth: float) -> float:
    return float(np.mean([d.low <= truth <= d.high for d in found]))


def said(found: list[Difference], word: str) -> float:
    return float(np.mean([d.verdict == word for d in found]))


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("of_seeds", "of_images", "of_both"),
    [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (1, 0.3, 0.1), (0.3, 1, 0.3), (0.2, 0.2, 1)],
)
def test_the_interval_covers_wherever_the_noise_comes_from(
    seeds: int, of_seeds: float, of_images: float, of_both: float
) -> None:
    """Standard deviations of a seed, of 40 images, and of what these do to one seed alone."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(400):
        by_seed = rng.normal(0, of_seeds, (seeds, 1))
        by_image = rng.normal(0, of_images * np.sqrt(40), 40)
        found.append(linear(by_seed + by_image + rng.normal(0, of_both * np.sqrt(40), (seeds, 40)), resamples=200))
    assert coverage(found, 0) >= 0.92
    assert said(found, "helps") <= 0.05
    assert said(found, "hurts") <= 0.05


OVERLAPS = np.array([0.0, 0.4, 0.8, 1.2])


def simulated(
    rng: np.random.Generator, *, images: int, seeds: int, effect: float
) -> tuple[list[Matched], list[Matched]]:
    """Two arms whose detectors find objects by chance.

    How well an object is found depends on the object, on the arm (``effect``), on the seed, on what the image does to
    the arm, and on what it does to this one model. It is a hit at an overlap as far as that exceeds it; its score
    follows it with noise. False alarms come on top.
    """
    by_image = rng.normal(0, 0.3, images)
    objects = [np.repeat(np.arange(images), rng.poisson(2.5, images)) for _ in range(2)]
    difficulty = [rng.normal(0.6, 1, len(where)) for where in objects]
    arms: tuple[list[Matched], list[Matched]] = ([], [])
    for _ in range(seeds):
        for side, arm in zip((0.5, -0.5), arms, strict=True):
            level = side * effect + rng.normal(0, 0.1) + side * by_image + rng.normal(0, 0.3, images)
            pairs = enumerate(zip(objects, difficulty, strict=True))
            categories = {str(k): _category(rng, where, base + level[where], images) for k, (where, base) in pairs}
            arm.append(Matched(tuple(map(str, range(images))), categories))
    return arms


def _category(rng: np.random.Generator, where: Any, quality: Any, images: int) -> Category:
    quality = quality + rng.normal(0, 0.3, len(where))
    alarms = np.repeat(np.arange(images), rng.poisson(2, images))
    scores = np.concatenate([quality + rng.normal(0, 0.7, len(where)), rng.normal(-0.3, 1, len(alarms))])
    order = np.argsort(-scores)
    hits = np.concatenate([quality > OVERLAPS[:, None], np.zeros((len(OVERLAPS), len(alarms)), dtype=bool)], axis=1)
    return Category(
        images=np.concatenate([where, alarms])[order],
        hits=hits[:, order],
        ignored=np.zeros_like(hits),
        objects=np.bincount(where, minlength=images).astype(float),
    )


@cache
def true_difference(effect: float) -> float:
    """Of 300 seeds, each on 400 images of its own; known to a thousandth or two."""
    if not effect:
        return 0.0  # the arms are the same
    rng = np.random.default_rng(5)
    runs = [simulated(rng, images=400, seeds=1, effect=effect) for _ in range(300)]
    return float(np.mean([(ours[0].ap() or 0) - (theirs[0].ap() or 0) for ours, theirs in runs]))


@pytest.mark.e2e
@pytest.mark.parametrize("effect", [0, 0.25])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_the_true_difference_of_ap(seeds: int, effect: float) -> None:
    truth = true_difference(effect)
    rng = np.random.default_rng(6)
    found = []
    for i in range(400):
        ours, theirs = simulated(rng, images=40, seeds=seeds, effect=effect)
        found.append(paired(ours, theirs, resamples=100, seed=i))
    print(f"truth {truth:.4f}, covered {coverage(found, truth):.3f}, helps {said(found, 'helps'):.3f}, ", end="")
    print(f"hurts {said(found, 'hurts'):.3f}, half width {np.mean([d.high - d.low for d in found]) / 2:.4f}")
    assert abs(np.mean([d.mean for d in found]) - truth) < 0.01
    assert coverage(found, truth) >= 0.92
    assert said(found, "hurts") <= 0.05
    if effect:
        assert said(found, "helps") > 0.15
    else:
        assert said(found, "helps") <= 0.05
