"""``compare.yaml``: what a comparison is, so that it can be continued; and where its runs lie."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import yolokd
from yolokd.compat.files import atomic_replace
from yolokd.errors import UserError
from yolokd.evaluation.arms import YOLOKD, Arm
from yolokd.evaluation.splits import EvalSplit
from yolokd.manifest import manifest_text, read_manifest
from yolokd.values import Problems, class_names

MANIFEST = "compare.yaml"
VERSION = 1
TEACHER = "teacher"  # its folder, and its name where a run's arm stands
RESULT = "result.json"  # in the folder of a run, written last
REPORT = "report.json"  # what the analysis writes
# What may be said anew when a comparison is continued: where and how it runs, not what it compares.
CHANGEABLE = ("jobs", "robustness", "backend", "device", "workers")
_NOT_COMPARED = ("folder", "seeds", "looked", "jobs", "robustness", "backend", "machine", "command", "date", "judged")
# Of the shared settings, those that say how a finished model is judged.
_JUDGING = ("imgsz", "batch", "device", "workers", "classes", "rect", "conf", "iou", "max_det", "agnostic_nms")
_VERSIONS = ("python", "torch", "ultralytics", "yolokd")


@dataclass
class Comparison:
    """Arms times seeds, and what is the same for all of them.

    Attributes:
        folder: around the folders of the arms.
        student: a file by its whole path, or a model YAML of Ultralytics.
        teacher: the one of the command line, with the whole paths of its files; empty: each arm names its own.
        judged: the teacher's file, if there is one that is judged beside the students; else empty.
        split: the images that judge.
        settings: Ultralytics' train keys that all arms share.
        arms: in their order.
        seeds: in their order.
        trust: load checkpoints that reference unknown globals.
        jobs: how many runs at once.
        robustness: measure it in the analysis.
        backend: what computes COCO's AP of the runs (`backends`).
        looked: how many seeds there were each time that more were added to an analysed comparison.
        files: what the comparison began with: path, or what was looked at, to SHA-256.
        machine: where it began, and with which versions.
        command: as it was written.
        date: when it began, YYYY-MM-DD.
    """

    folder: Path
    student: str
    teacher: str
    judged: str
    split: EvalSplit
    settings: dict[str, Any]
    arms: list[Arm]
    seeds: list[int]
    trust: bool
    jobs: int
    robustness: bool
    files: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    date: str = ""
    backend: str = "pycocotools"
    looked: list[int] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Comparison:
        """Read ``compare.yaml``.

        Raises:
            UserError: missing, damaged, or written by another version.
        """
        file = folder / MANIFEST
        if not file.is_file():
            raise UserError(f"{folder} holds no comparison (no {MANIFEST}).", "Give the folder of a comparison.")

        def make(content: dict[str, Any]) -> Comparison:
            arms = [Arm(**arm) for arm in content.pop("arms")]
            split, seeds = EvalSplit(**content.pop("split")), [int(seed) for seed in content.pop("seeds")]
            return cls(folder=folder.resolve(), arms=arms, seeds=seeds, split=split, **content)

        return read_manifest(file, VERSION, make, again="start a new comparison under another name=")

    def text(self) -> str:
        """What stands in ``compare.yaml``.

        Raises:
            UserError: a setting that YAML cannot hold.
        """
        return manifest_text(asdict(self), VERSION)

    def save(self) -> None:
        """Write ``compare.yaml``, whole or not at all."""
        atomic_replace(self.folder / MANIFEST, lambda partial: partial.write_text(self.text(), encoding="utf-8"))

    @property
    def judging(self) -> dict[str, Any]:
        """Of the settings, those that say how a finished model is judged: Ultralytics' validation arguments."""
        return {key: self.settings[key] for key in _JUDGING if key in self.settings}

    @property
    def class_map(self) -> dict[str, str]:
        """``class_map=`` of the command line: teacher class name to class name of the data."""
        return class_names(self._said("class_map"), Problems())

    @property
    def teacher_imgsz(self) -> Any:
        """The pixels at which the arm ``yolokd`` asks its teacher; None: those of the student."""
        return self._said("teacher_imgsz")

    def _said(self, key: str) -> Any:
        """What the command line said of one of yolokd's keys; the arm ``yolokd`` keeps it."""
        return next((arm.keys.get(key) for arm in self.arms if arm.kind == YOLOKD), None)

    @property
    def data(self) -> str:
        """The data YAML that trains and judges."""
        return self.split.yaml(self.folder)

    def arm(self, name: str) -> Arm:
        """The arm of that name.

        Raises:
            UserError: there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise UserError(f"{self.folder} has no arm {name}.", f"Its arms: {', '.join(arm.name for arm in self.arms)}.")

    def runs(self) -> list[tuple[str, int]]:
        """Every run as (arm, seed), in the order in which they are trained: one seed of every arm, then the next.

        So a comparison that was cut off has as many seeds of one arm as of the other, or one more.
        """
        return [(arm.name, seed) for seed in self.seeds for arm in self.arms]

    def run_folder(self, arm: str, seed: int) -> Path:
        """Where a run lies; that of the teacher, whichever seed, is ``teacher``."""
        return self.folder / TEACHER if arm == TEACHER else self.folder / arm / f"seed{seed}"

    def log(self, arm: str, seed: int) -> Path:
        """What the processes of a run have printed."""
        folder = self.run_folder(arm, seed)
        return folder.with_name(f"{folder.name}.log")

    def result(self, arm: str, seed: int) -> dict[str, Any] | None:
        """What a run came to; None where it is not finished, or its detections are gone.

        Raises:
            UserError: the file is damaged.
        """
        file = self.run_folder(arm, seed) / RESULT
        if not file.is_file() or not all((file.parent / name).is_file() for name in detections(arm)):
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if "ap" not in content["scores"]["best"] or "train_seconds" not in content:
                raise KeyError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file} cannot be read.", "Delete it: the run is judged again.") from None
        return dict(content)

    def left(self) -> list[tuple[str, int]]:
        """The runs that are still to be finished; the teacher, if it is judged, before the others."""
        return ([(TEACHER, 0)] if self.judged and self.result(TEACHER, 0) is None else []) + self.runs_left()

    def runs_left(self) -> list[tuple[str, int]]:
        """The runs that are still to be finished, in their order."""
        return [run for run in self.runs() if self.result(*run) is None]

    def keys(self, arm: Arm, seed: int) -> dict[str, Any]:
        """What a run is trained with, but for its device; ours and Ultralytics' keys."""
        place = {"model": self.student, "data": self.data, "seed": seed}
        return {**self.settings, **arm.keys, **place, "save_dir": str(self.run_folder(arm.name, seed)), "mode": "train"}

    def refuse_other(self, asked: Comparison) -> None:
        """Refuse to go on under the same name with another comparison.

        Args:
            asked: as it is planned now.

        Raises:
            UserError: settings or files differ from those that this one began with.
        """
        mine, theirs = (_compared(one) for one in (self, asked))
        if other := [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]:
            key = other[0]
            was, now = (f"{key}={one[key]}" if key in one else f"no {key}" for one in (mine, theirs))
            more = f", and {len(other) - 1} more" if len(other) > 1 else ""
            remedy = "Write it as it was, or give the new comparison another name=."
            raise UserError(f"{self.folder} began with {was}, and now it is {now}{more}.", remedy)
        refuse_other_files(self.files, asked.files)

    def extend(self, seeds: Sequence[int], *, looked: bool) -> None:
        """Take seeds beside those that it has.

        Args:
            seeds: all of them.
            looked: somebody may have seen what the seeds so far came to.

        Raises:
            UserError: one of its own is missing, or they stand in another order.
        """
        if list(seeds[: len(self.seeds)]) != self.seeds:
            was, now = (",".join(map(str, some)) for some in (self.seeds, seeds))
            raise UserError(f"{self.folder} has seeds={was}, and now it is {now}.", "Further seeds stand after those.")
        if len(seeds) > len(self.seeds) and looked:
            self.looked = [*self.looked, len(self.seeds)]
        self.seeds = list(seeds)

    def refuse_versions(self) -> None:
        """Refuse to add runs of other versions to those that are there.

        Raises:
            UserError: Ultralytics, torch or yolokd is another one.
        """
        here = machine_facts()
        if other := [word for word in _VERSIONS[1:] if self.machine.get(word) != here[word]]:
            was = ", ".join(f"{word} {self.machine.get(word)} (here {here[word]})" for word in other)
            raise UserError(
                f"{self.folder} began with {was}: its runs would not be comparable.",
                "Install what it began with, or start a new comparison under another name=.",
            )


def detections(arm: str) -> tuple[str, ...]:
    """The files in the folder of a run that hold what was found in the judging images.

    Args:
        arm: of the run; the teacher has no last epoch.
    """
    return ("best.npz",) if arm == TEACHER else ("best.npz", "last.npz")


def _compared(one: Comparison) -> dict[str, Any]:
    """What makes a comparison this one, flat, so that a difference can be named."""
    whole = {k: v for k, v in asdict(one).items() if k not in (*_NOT_COMPARED, "files", "settings", "split", "arms")}
    settings = {key: value for key, value in one.settings.items() if key not in CHANGEABLE}
    arms = {"arms": ",".join(arm.name for arm in one.arms)}
    arms |= {f"{arm.name}.{key}": value for arm in one.arms for key, value in arm.keys.items()}
    arms |= {f"recipe of {arm.name}": arm.recipe for arm in one.arms}
    return {**whole, "data": one.split.source, "eval_split": one.split.split, **settings, **arms}


def refuse_other_files(began: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse files that are not those that a comparison began with.

    Args:
        began: what was looked at to SHA-256.
        now: the same, of those that are looked at now.

    Raises:
        UserError: one differs, is missing or is new.
    """
    if other := sorted(name for name in {**began, **now} if began.get(name) != now.get(name)):
        what = "is not what this comparison began with (its SHA-256 differs)"
        what = what if other[0] in now else "is not there any more"
        remedy = "Put it back as it was, or start a new comparison under another name=."
        raise UserError(f"{other[0]} {what}.", remedy)


def machine_facts() -> dict[str, Any]:
    """Processor, memory, GPU and versions, as the report prints them."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": _memory(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": version("torch"),
        "ultralytics": version("ultralytics"),
        "yolokd": yolokd.__version__,
    }


def _memory() -> float | None:
    if not hasattr(os, "sysconf"):  # Windows
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines: Sequence[str] = file.read_text(errors="replace").splitlines() if file.is_file() else ()
    names = (line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
