"""Was it worth it? Every arm with every seed, trained, judged and compared: ``yolokd compare``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ultralytics.utils import LOGGER

from yolokd.compat.files import begin_folder
from yolokd.errors import UserError
from yolokd.evaluation.backends import coco_tool
from yolokd.evaluation.children import Child, Slot, available_cores, last_words, run_all, slots
from yolokd.evaluation.coco import aligned
from yolokd.evaluation.comparison import CHANGEABLE, MANIFEST, REPORT, Comparison
from yolokd.evaluation.planning import look_again, look_before, plan, read_jobs, read_seeds, read_switch
from yolokd.evaluation.progress import counted, progress, title
from yolokd.evaluation.splits import write_held_out

VERDICT_SEEDS = 3  # fewer give no verdict
_LOCK = ".lock"


@dataclass(frozen=True)
class Compared:
    """What a comparison came to.

    Attributes:
        folder: of the comparison.
        report: what stands in its ``report.json``; empty where no run has finished.
        failed: the runs that have failed, as ``ARM/seedN``.
    """

    folder: Path
    report: Mapping[str, Any] = field(default_factory=dict)
    failed: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The table of the arms with the verdict, and what is to be done where runs have failed."""
        lines = [table(self.report), self.report["verdict"]["text"]] if self.report else []
        lines += [f"All of it: {self.folder}"]
        if self.failed:
            lines += [f"{counted(len(self.failed), 'run')} failed: {', '.join(self.failed)}.", _go_on(self.folder)]
        return "\n".join(lines)


def compare(
    student: str | Path | None = None,
    teacher: str | Path | None = None,
    data: str | Path | None = None,
    *,
    arms: Any = None,
    seeds: Any = None,
    eval_split: str | None = None,
    jobs: int | None = None,
    robustness: Any = None,
    backend: str | None = None,
    resume: str | Path | None = None,
    **args: Any,
) -> Compared:
    """Train every arm with every seed, judge each run on images that training never saw, and compare.

    Args:
        student: a ``.pt`` file or a model YAML.
        teacher: as in `yolokd.distill`.
        data: a data YAML.
        arms: ``plain``, ``native``, ``yolokd`` (these three where nothing is said) and recipe files, with commas or
            as a list.
        seeds: how many (5 where nothing is said: 0 to 4), or which.
        eval_split: the split that judges, ``test``. Where there is none, a fifth of the training images is held out.
        jobs: runs at once; one on each device that ``device=`` names.
        robustness: ``off`` leaves that part of the analysis out.
        backend: ``faster-coco-eval`` in place of pycocotools for the AP of each run.
        resume: the folder of a comparison that was cut off; then nothing else is needed. More ``seeds`` may be asked
            of one that is finished, too; the report says so.
        **args: yolokd's other keys, which are for the arm ``yolokd``, and every train argument of Ultralytics.
            ``name=`` names the folder: the same command with the same name continues there.

    Returns:
        the folder and what it holds; the runs that failed, if any.

    Raises:
        UserError: something in the settings, the files or the data; nothing has been written then.
        KeyboardInterrupt: with one line that says how to go on; the runs are stopped.
    """
    given = {"teacher": teacher, "student": student, "data": data, "arms": arms, "seeds": seeds, **args}
    given |= {"eval_split": eval_split, "jobs": jobs, "robustness": robustness, "backend": backend}
    given = {key: str(v) if isinstance(v, Path) else v for key, v in given.items() if v is not None}
    if resume is not None:
        comparison, begun = _resumed(Path(str(resume)), given), True
    else:
        comparison, named = plan(given)
        begun = named and _is_there(comparison)
        if not begun:
            comparison.judged = look_before(comparison)
            _refuse_overtaken(comparison)
            begin_folder(comparison.folder, MANIFEST, comparison.text())
    with _alone(comparison.folder):
        if begun:
            comparison = _continued(comparison, asked_anew=resume is None)
        return _go(comparison)


def _resumed(folder: Path, given: Mapping[str, Any]) -> Comparison:
    """A comparison by its folder; where and how it runs may be said anew."""
    if fixed := sorted(set(given) - {*CHANGEABLE, "seeds"}):
        listed = " and ".join(f"{key}=" for key in fixed)
        raise UserError(
            f"{listed} beside resume=: a comparison goes on with the settings it began with.",
            f"Leave out {listed}; {', '.join(CHANGEABLE)} may be said anew, and seeds= may become more.",
        )
    comparison = Comparison.load(folder)
    comparison.seeds = read_seeds(given["seeds"]) if "seeds" in given else comparison.seeds
    comparison.settings |= {key: given[key] for key in ("device", "workers") if key in given}
    comparison.jobs = read_jobs(given.get("jobs", None if "device" in given else comparison.jobs), _device(comparison))
    if "robustness" in given:
        comparison.robustness = read_switch("robustness", given["robustness"])
    comparison.backend = str(given.get("backend", comparison.backend))
    coco_tool(comparison.backend)
    return comparison


def _is_there(asked: Comparison) -> bool:
    """Does the named folder hold a comparison? Refuse to write into one that holds something else."""
    if (asked.folder / MANIFEST).is_file():
        return True
    if asked.folder.exists() and any(asked.folder.iterdir()):
        raise UserError(f"{asked.folder} is there already, and it is no comparison.", "Take another name=.")
    return False


def _continued(asked: Comparison, asked_anew: bool) -> Comparison:
    """The comparison that was begun, as it goes on now.

    Args:
        asked: as it was planned now, or loaded.
        asked_anew: it was planned now, so it may be another one.
    """
    comparison = Comparison.load(asked.folder)
    if asked_anew:
        comparison.refuse_other(asked)
    if asked.seeds != comparison.seeds:
        comparison.extend(asked.seeds, looked=(comparison.folder / REPORT).is_file())
        words = [word for word in shlex.split(comparison.command) if not word.startswith("seeds=")]
        comparison.command = shlex.join([*words, f"seeds={','.join(map(str, comparison.seeds))}"])
    if not asked_anew:
        look_again(comparison)
    if comparison.left():
        comparison.refuse_versions()
    comparison.jobs, comparison.robustness, comparison.backend = asked.jobs, asked.robustness, asked.backend
    comparison.settings |= {key: asked.settings[key] for key in ("device", "workers") if key in asked.settings}
    comparison.save()
    done, whole = len(comparison.runs()) - len(comparison.runs_left()), len(comparison.runs())
    LOGGER.info(f"{comparison.folder}: {done} of {whole} runs are finished; they stay as they are.")
    return comparison


def _refuse_overtaken(comparison: Comparison) -> None:
    """Refuse to write over what another process has begun while this one looked at the arms."""
    if (comparison.folder / MANIFEST).is_file():
        raise UserError(f"{comparison.folder} has just been begun by another process.", "Start this command again.")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second process from the same folder."""
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        remedy = "Wait for it, or stop it and start this again."
        raise UserError(f"Another process is working on {folder}.", remedy) from None
    try:
        yield
    finally:
        lock.release()


def _go(comparison: Comparison) -> Compared:
    """Run what is left to run, then analyse what there is."""
    write_held_out(comparison.split, comparison.folder)
    if comparison.left():
        _announce(comparison)
    try:
        failed = _run_what_is_left(comparison)
        if len(comparison.runs_left()) == len(comparison.runs()):
            return Compared(comparison.folder, failed=failed)
        from yolokd.evaluation.analysis import analyse

        return Compared(comparison.folder, analyse(comparison.folder, robustness=comparison.robustness), failed)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped. {_go_on(comparison.folder)}") from None


def _announce(comparison: Comparison) -> None:
    names, seeds = [arm.name for arm in comparison.arms], comparison.seeds
    LOGGER.info(
        f"{len(names)} arms ({', '.join(names)}), {counted(len(seeds), 'seed')}, {len(comparison.runs())} runs of "
        f"{counted(comparison.settings['epochs'], 'epoch')}, in {comparison.folder}"
    )
    for arm in comparison.arms:
        if arm.keys:
            LOGGER.info(f"  {arm.name}: {' '.join(f'{key}={value}' for key, value in arm.keys.items())}")
    if comparison.split.note:
        LOGGER.info(f"NOTE: {comparison.split.note}.")
    if len(seeds) < VERDICT_SEEDS:
        LOGGER.info(f"NOTE: a verdict takes at least {VERDICT_SEEDS} seeds, better 5; here: {len(seeds)}.")


def _run_what_is_left(comparison: Comparison) -> tuple[str, ...]:
    """Run them, each in a process of its own; the names of those that failed."""
    failed: list[str] = []

    def start(run: tuple[str, int], slot: Slot) -> Child:
        words = [str(comparison.folder), run[0], str(run[1])]
        return Child(words, slot, comparison.log(*run))

    def ended(run: tuple[str, int], code: int) -> None:
        if code == 0 and comparison.result(*run) is not None:
            LOGGER.info(progress(comparison, *run))
            return
        failed.append(comparison.run_folder(*run).relative_to(comparison.folder).as_posix())
        LOGGER.info(f"{title(comparison, *run)}: FAILED (exit code {code}), see {comparison.log(*run)}:")
        LOGGER.info(f"  {' | '.join(last_words(comparison.log(*run))) or 'it said nothing'}")

    run_all(comparison.left(), slots(comparison.jobs, _device(comparison), available_cores()), start, ended)
    return tuple(failed)


def table(report: Mapping[str, Any]) -> str:
    """The arms as text: seeds, mean AP on the judging images, difference to plain with its interval, verdict.

    Args:
        report: what stands in ``report.json``.
    """
    rows = [["", "seeds", "AP", "to plain", "95 % interval", "verdict"]]
    if report.get("teacher"):
        rows.append([f"teacher {report['teacher']['name']}", "", _ap(report["teacher"]["ap"]), "", "", ""])
    for arm in report["arms"]:
        gain = arm["to_plain"]
        told = ["", "", ""]
        if gain:
            there = gain["low"] is not None
            interval = f"{gain['low']:+.3f} to {gain['high']:+.3f}" if there else "-"
            told = [f"{gain['mean']:+.3f}", interval, gain["verdict"] or "too few seeds"]
        rows.append([arm["name"], str(len(arm["seeds_done"])), _ap(arm["ap"]["mean"]), *told])
    return aligned(rows)


def _ap(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _device(comparison: Comparison) -> Any:
    return comparison.settings.get("device")


def _go_on(folder: Path) -> str:
    return f"Go on with: yolokd compare resume={folder}"
