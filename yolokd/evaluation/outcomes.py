"""What the finished runs of a comparison came to, arm by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from yolokd.compat.checkpoint import sha256
from yolokd.compat.validation import ImageResult
from yolokd.errors import UserError
from yolokd.evaluation.arms import NATIVE, PLAIN, YOLOKD, Arm
from yolokd.evaluation.coco import retention
from yolokd.evaluation.comparison import TEACHER, Comparison
from yolokd.evaluation.detections import load
from yolokd.evaluation.precision import Matched, matched
from yolokd.evaluation.progress import counted

_SCORES = ("ap", "ap50", "ap75", "small", "medium", "large")
_FACTS = ("parameters", "gflops", "size")


class Outcomes:
    """The finished runs of a comparison, finished or not itself; detections are read when they are asked for.

    Attributes:
        comparison: as it was written down.
        results: what each finished run came to, by arm and seed; seeds in the order of the comparison.
        teacher: what the teacher came to; None where it was not judged.

    Args:
        comparison: loaded.

    Raises:
        UserError: no run is finished, or a result is damaged.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.results: dict[str, dict[int, dict[str, Any]]] = {arm.name: {} for arm in comparison.arms}
        for name, seed in comparison.runs():
            if (result := comparison.result(name, seed)) is not None:
                self.results[name][seed] = result
        if not any(self.results.values()):
            folder = comparison.folder
            raise UserError(f"{folder} has no finished run to analyse.", f"Go on with: yolokd compare resume={folder}")
        self.teacher = comparison.result(TEACHER, 0)
        self._matched: dict[tuple[str, int], Matched] = {}

    @cached_property
    def first(self) -> tuple[str, int]:
        """Some finished run, always the same."""
        return next((arm, seed) for arm, seeds in self.results.items() for seed in seeds)

    @cached_property
    def names(self) -> dict[int, str]:
        """The class names of the data."""
        return load(self.detections(*self.first))[1]

    def seeds(self, *arms: str) -> list[int]:
        """The seeds that all of these arms have finished; none where one of the arms is not there."""
        return [seed for seed in self.comparison.seeds if all(seed in self.results.get(arm, {}) for arm in arms)]

    def detections(self, arm: str, seed: int = 0) -> Path:
        """The file with what ``best.pt`` of a run, or the teacher, found in the judging images."""
        return self.comparison.run_folder(arm, seed) / "best.npz"

    def digests(self, arm: str, seeds: Sequence[int] = (0,)) -> dict[str, str]:
        """The SHA-256 of these files, by the name of the run."""
        files = [self.detections(arm, seed) for seed in seeds]
        return {file.parent.relative_to(self.comparison.folder).as_posix(): sha256(file) for file in files}

    def images(self, arm: str, seed: int = 0) -> list[ImageResult]:
        """What ``best.pt`` of a run, or the teacher, found in the judging images."""
        return load(self.detections(arm, seed))[0]

    def matched(self, arm: str, seeds: Sequence[int]) -> list[Matched]:
        """The same, matched with the labels."""
        for seed in seeds:
            if (arm, seed) not in self._matched:
                self._matched[arm, seed] = matched(self.images(arm, seed), self.names)
        return [self._matched[arm, seed] for seed in seeds]

    def arm(self, arm: Arm) -> dict[str, Any]:
        """What stands in ``report.json`` of an arm, but for its differences."""
        results = self.results[arm.name]
        best, last = ([run["scores"][name] for run in results.values()] for name in ("best", "last"))
        classes = dict.fromkeys(name for scores in best for name in scores["per_class"])
        any_run: Mapping[str, Any] = next(iter(results.values()), {})
        scores = {key: spread([one[key] for one in best]) for key in _SCORES}
        return {
            "name": arm.name,
            "kind": arm.kind,
            "keys": dict(arm.keys),
            "seeds_done": list(results),
            **scores,
            "last_ap": spread([one["ap"] for one in last]),
            "per_class": {name: spread([one["per_class"].get(name) for one in best]) for name in classes},
            "kept": retention(scores["ap"]["mean"], self._teacher_ap),
            "gap_closed": self._gap_closed(arm.name),
            **{key: any_run.get(key) for key in _FACTS},
            "train_seconds": spread([run["train_seconds"] for run in results.values()]),
            "peak_memory": max((run.get("peak_memory") or 0 for run in results.values()), default=0) or None,
            "same_start": self._same_start(arm.name),
            "unlike": [line for seed in results for line in self._unlike(arm.name, seed)],
            "runs": [f"{arm.name}/seed{seed}" for seed in results],
        }

    def judged_teacher(self) -> dict[str, Any] | None:
        """What stands in ``report.json`` of the teacher; None where it was not judged."""
        if self.teacher is None:
            return None
        best = self.teacher["scores"]["best"]
        scores = {key: best[key] for key in (*_SCORES, "per_class")}
        facts = {key: self.teacher.get(key) for key in (*_FACTS, "imgsz")}
        return {"name": Path(self.comparison.judged).name, **scores, **facts}

    def mean_ap(self, arm: str, seeds: Sequence[int] | None = None) -> float | None:
        """Mean AP of ``best.pt`` over some seeds, or all that are finished; None where there is none."""
        chosen = self.seeds(arm) if seeds is None else seeds
        aps = [self.results[arm][seed]["scores"]["best"]["ap"] for seed in chosen]
        return spread(aps)["mean"]  # type: ignore[no-any-return]

    def headline(self) -> str:
        """The arm that the verdict is about, chosen before anyone has seen a score.

        ``yolokd``; without it the first recipe; without that ``native``.
        """
        names = [arm.name for arm in self.comparison.arms]
        others = [name for name in names if name not in (PLAIN, NATIVE)]
        return YOLOKD if YOLOKD in names else next(iter(others), NATIVE)

    @property
    def _teacher_ap(self) -> float | None:
        return None if self.teacher is None else self.teacher["scores"]["best"]["ap"]

    def _gap_closed(self, arm: str) -> float | None:
        """Share of the way from plain to the teacher, over the seeds that both have; None where that leads nowhere."""
        seeds = self.seeds(arm, PLAIN)
        own, plain = (self.mean_ap(name, seeds) for name in (arm, PLAIN))
        teacher = self._teacher_ap
        if arm == PLAIN or own is None or plain is None or teacher is None or teacher <= plain:
            return None
        return float((own - plain) / (teacher - plain))

    def _unlike(self, arm: str, seed: int) -> list[str]:
        """In what a run was not like the others, in words."""
        result, comparison = self.results[arm][seed], self.comparison
        asked = comparison.keys(comparison.arm(arm), seed)["batch"]
        lines = []
        if (batch := result.get("batch", asked)) != asked:
            lines.append(f"{arm}, seed {seed}: memory was short, so it trained with batch={batch} in place of {asked}")
        if (processes := result.get("processes", 1)) > 1:
            lines.append(
                f"{arm}, seed {seed}: cut off and resumed {counted(processes - 1, 'time')}: from there on it saw the "
                "images in another order than the runs beside it"
            )
        differs = {key: (result.get("machine") or {}).get(key) for key in ("cpu", "gpu")}
        if other := [str(v) for k, v in differs.items() if v is not None and v != comparison.machine.get(k, v)]:
            lines.append(f"{arm}, seed {seed}: trained on another machine ({', '.join(other)})")
        return lines

    def _same_start(self, arm: str) -> bool | None:
        """Did every seed begin with plain's weights? None where that is not known."""
        pairs = [
            [self.results[name][seed].get("start_sha256") for name in (arm, PLAIN)] for seed in self.seeds(arm, PLAIN)
        ]
        if not pairs or any(None in pair for pair in pairs):
            return None
        return all(own == plain for own, plain in pairs)


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, and each seed's value; what is None does not count.

    >>> spread([0.25, None, 0.75])
    {'mean': 0.5, 'sd': 0.3535533905932738, 'values': [0.25, None, 0.75]}
    """
    there = [value for value in values if value is not None]
    return {
        "mean": mean(there) if there else None,
        "sd": stdev(there) if len(there) > 1 else None,
        "values": list(values),
    }
