"""The parts of an analysis that take time, each stored in ``analysis/`` when it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from yolokd.evaluation import audit as auditing
from yolokd.evaluation import examples as drawing
from yolokd.evaluation import robustness as robust
from yolokd.evaluation import speed as timing
from yolokd.evaluation.arms import PLAIN
from yolokd.evaluation.calibration import calibration as calibrated
from yolokd.evaluation.children import devices_of
from yolokd.evaluation.comparison import TEACHER, machine_facts
from yolokd.evaluation.fairness import inherited, lost_classes
from yolokd.evaluation.outcomes import Outcomes
from yolokd.evaluation.parts import stored
from yolokd.evaluation.statistics import paired

FOLDER = "analysis"
ROBUST_SEEDS = 3  # twenty validations each: of more seeds the first are taken


def folder_of(outcomes: Outcomes) -> Path:
    """Where the parts are stored."""
    return outcomes.comparison.folder / FOLDER


def difference(outcomes: Outcomes, arm: str, other: str) -> dict[str, Any] | None:
    """The paired difference of two arms on the seeds that both have, as `statistics.paired` finds it.

    Without an interval where the seeds are too few for a verdict: the images alone would make it, and it would look
    like one that covers other trainings.

    Args:
        outcomes: the finished runs.
        arm: one arm.
        other: the other arm; it need not be there.

    Returns:
        None where no seed has both.
    """
    seeds = outcomes.seeds(arm, other)
    if arm == other or not seeds:
        return None

    def make() -> dict[str, Any]:
        LOGGER.info(f"comparing {arm} with {other}")
        found = asdict(paired(outcomes.matched(arm, seeds), outcomes.matched(other, seeds)))
        return found if found["verdict"] else {**found, "low": None, "high": None}

    made_from = [outcomes.digests(arm, seeds), outcomes.digests(other, seeds)]
    return stored(folder_of(outcomes) / f"{arm}-against-{other}.json", made_from, make)  # type: ignore[no-any-return]


def speed(outcomes: Outcomes) -> dict[str, Any]:
    """Milliseconds of an image, of each arm and the teacher; one file stands for all of one architecture.

    Arms have the same architecture where parameters and GFLOPs are equal.
    """
    comparison = outcomes.comparison
    files = {
        arm: comparison.run_folder(arm, seeds[0]) / "weights" / "best.pt" for arm, seeds in _done(outcomes).items()
    }
    facts = {arm: outcomes.results[arm][seeds[0]] for arm, seeds in _done(outcomes).items()}
    if outcomes.teacher is not None:
        files[TEACHER], facts[TEACHER] = Path(comparison.judged), outcomes.teacher
    alike: dict[tuple[Any, Any], list[str]] = {}
    for name, result in facts.items():
        alike.setdefault((result["parameters"], result["gflops"]), []).append(name)
    models = {tuple(names): files[names[0]] for names in alike.values()}
    imgsz = int(comparison.settings["imgsz"])

    def make() -> dict[str, Any]:
        LOGGER.info(f"speed of {len(models)} models as ONNX files")
        machine = str(machine_facts()["cpu"])
        return timing.speed(models, folder_of(outcomes), imgsz=imgsz, machine=machine, trust=comparison.trust)

    made_from = [list(models), list(alike), imgsz, timing.version_of_runtime()]
    return stored(folder_of(outcomes) / "speed.json", made_from, make)  # type: ignore[no-any-return]


def calibration(outcomes: Outcomes) -> dict[str, Any]:
    """Calibration of each arm, all its seeds together, and of the teacher."""
    return {name: _calibration(outcomes, name, seeds) for name, seeds in _judged(outcomes).items()}


def _calibration(outcomes: Outcomes, name: str, seeds: Sequence[int]) -> Any:
    def make() -> dict[str, Any]:
        LOGGER.info(f"calibration of {name}")
        return calibrated([image for seed in seeds for image in outcomes.images(name, seed)], outcomes.names)

    return stored(folder_of(outcomes) / f"calibration-{name}.json", outcomes.digests(name, seeds), make)


def fairness(outcomes: Outcomes) -> dict[str, Any]:
    """Of each arm but plain: the classes that lost, and the teacher's mistakes that are repeated, beside plain.

    On the seeds that both have; without a judged teacher ``inherited`` is None.
    """
    pairs = {arm: outcomes.seeds(arm, PLAIN) for arm in outcomes.results if arm != PLAIN}
    return {arm: _fairness(outcomes, arm, seeds) for arm, seeds in pairs.items() if seeds}


def _fairness(outcomes: Outcomes, arm: str, seeds: Sequence[int]) -> Any:
    taught = outcomes.teacher is not None

    def make() -> dict[str, Any]:
        LOGGER.info(f"fairness of {arm}")
        lost = lost_classes(outcomes.matched(arm, seeds), outcomes.matched(PLAIN, seeds))
        of_arm, of_plain = ([outcomes.images(name, seed) for seed in seeds] for name in (arm, PLAIN))
        learnt = inherited(of_arm, of_plain, outcomes.images(TEACHER), outcomes.names) if taught else None
        return {"lost_classes": lost, "inherited": learnt}

    made_from = [outcomes.digests(name, seeds) for name in (arm, PLAIN)] + [outcomes.digests(TEACHER) if taught else {}]
    return stored(folder_of(outcomes) / f"fairness-{arm}.json", made_from, make)


def audit(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Images whose labels the teacher contradicts; none without a judged teacher."""
    if outcomes.teacher is None:
        return []
    folder = outcomes.comparison.folder

    def make() -> list[dict[str, Any]]:
        LOGGER.info("audit of the labels")
        return auditing.audit(outcomes.images(TEACHER), outcomes.names, folder)

    return stored(  # type: ignore[no-any-return]
        folder_of(outcomes) / "audit.json",
        outcomes.digests(TEACHER),
        make,
        pictures=lambda found: [folder / entry["image"] for entry in found],
    )


def examples(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Some images under plain, the arm of the verdict and the teacher; of the arms the first seed that both have."""
    folder, place = outcomes.comparison.folder, f"{FOLDER}/examples"
    done = _done(outcomes)
    shown = [arm for arm in (PLAIN, outcomes.headline()) if arm in done]
    seed = next(iter(outcomes.seeds(*shown)), None)
    runs = {arm: done[arm][0] if seed is None else seed for arm in shown}
    runs |= {} if outcomes.teacher is None else {TEACHER: 0}

    def make() -> list[dict[str, Any]]:
        (folder / place).mkdir(parents=True, exist_ok=True)
        judged = {name: outcomes.images(name, seed) for name, seed in runs.items()}
        return drawing.examples(judged, outcomes.names, folder, place)

    return stored(  # type: ignore[no-any-return]
        folder_of(outcomes) / "examples.json",
        [outcomes.digests(name, [seed]) for name, seed in runs.items()],
        make,
        pictures=lambda found: [folder / path for entry in found for path in entry["images"].values()],
    )


def robustness(outcomes: Outcomes) -> dict[str, Any] | None:
    """AP of every arm on corrupted and attacked images, over the first seeds that all arms have; None without any."""
    comparison = outcomes.comparison
    arms = list(_done(outcomes))
    seeds = outcomes.seeds(*arms)[:ROBUST_SEEDS]
    if not seeds:
        return None
    runs = {f"{arm}/seed{seed}": comparison.run_folder(arm, seed) for seed in seeds for arm in arms}
    models = {name: folder / "weights" / "best.pt" for name, folder in runs.items()}
    machine = {"device": next(iter(devices_of(comparison.settings.get("device"))), None)}
    machine |= {"workers": comparison.settings["workers"]} if "workers" in comparison.settings else {}
    how = {key: value for key, value in comparison.judging.items() if key not in ("device", "workers")}
    how |= {"split": comparison.split.split, "trust": comparison.trust}

    def make() -> dict[str, Any]:
        return robust.robustness(models, comparison.data, store=folder_of(outcomes), machine=machine, **how)

    made_from = [how, *(outcomes.digests(arm, seeds) for arm in arms)]
    return stored(folder_of(outcomes) / "robustness.json", made_from, make)  # type: ignore[no-any-return]


def _done(outcomes: Outcomes) -> dict[str, list[int]]:
    """The arms that have finished seeds, with these."""
    return {arm: seeds for arm in outcomes.results if (seeds := outcomes.seeds(arm))}


def _judged(outcomes: Outcomes) -> dict[str, list[int]]:
    """The same, with the teacher."""
    return _done(outcomes) | ({} if outcomes.teacher is None else {TEACHER: [0]})
