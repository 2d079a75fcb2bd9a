"""From finished runs to ``report.json``: what `yolokd compare` computes at its end, and `yolokd report` shows.

Each part that takes time lies in ``analysis/`` as soon as it is there, with what it was made from: an analysis that was
killed goes on, and one of a comparison that has more runs by now does again what they change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yolokd.compat.files import atomic_replace
from yolokd.evaluation import curves, sections
from yolokd.evaluation.arms import NATIVE, PLAIN
from yolokd.evaluation.comparison import MANIFEST, REPORT, Comparison
from yolokd.evaluation.outcomes import Outcomes
from yolokd.evaluation.verdicts import verdict

VERSION = 1


def bring_up_to_date(folder: Path) -> None:
    """Analyse a comparison again where runs have finished since ``report.json`` was written, or there is none.

    Robustness takes long and is left out then; `yolokd compare resume=` measures it.

    Args:
        folder: of anything; what is no comparison stays as it is.

    Raises:
        UserError: as `analyse`.
    """
    if not (folder / MANIFEST).is_file():
        return
    outcomes = Outcomes(Comparison.load(folder))
    done = {arm: sorted(seeds) for arm, seeds in outcomes.results.items()}
    try:
        told = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        if {arm["name"]: sorted(arm["seeds_done"]) for arm in told["arms"]} == done:
            return
    except FileNotFoundError:
        pass
    except (ValueError, TypeError, KeyError):
        return  # damaged: whoever reads it says so
    analyse(folder, robustness=None)


def analyse(folder: str | Path, *, robustness: bool | None = True) -> dict[str, Any]:
    """Compute everything about a comparison and write ``report.json``.

    It need not be finished: what is there is analysed, and two arms are compared on the seeds that both have.

    Args:
        folder: of the comparison.
        robustness: measure it too; that takes twenty validations of each arm and seed (of three seeds at most). None:
            not now.

    Returns:
        the content of ``report.json``.

    Raises:
        UserError: it is no comparison, no run is finished, a file of it is damaged, or the data, where it is needed
            again (robustness), cannot be read.
    """
    comparison = Comparison.load(Path(folder))
    outcomes = Outcomes(comparison)
    sections.folder_of(outcomes).mkdir(exist_ok=True)
    arms = [{**outcomes.arm(arm), **_differences(outcomes, arm.name)} for arm in comparison.arms]
    headline = outcomes.headline()
    to_plain = {arm["name"]: arm["to_plain"] for arm in arms}.get(headline)
    left_out = {"off": True} if robustness is False else None
    report = {
        "version": VERSION,
        **_about(outcomes),
        "verdict": verdict(headline, to_plain),
        "teacher": outcomes.judged_teacher(),
        "arms": arms,
        **_courses(outcomes),
        "speed": sections.speed(outcomes),
        "calibration": sections.calibration(outcomes),
        "fairness": sections.fairness(outcomes),
        "audit": sections.audit(outcomes),
        "examples": sections.examples(outcomes),
        "robustness": sections.robustness(outcomes) if robustness else left_out,
    }
    text = json.dumps(report, indent=1)
    atomic_replace(comparison.folder / REPORT, lambda partial: partial.write_text(text, encoding="utf-8"))
    return report


def _about(outcomes: Outcomes) -> dict[str, Any]:
    """What was compared, on which images, by which machine."""
    comparison, split = outcomes.comparison, outcomes.comparison.split
    arm, seed = outcomes.first
    judged = outcomes.results[arm][seed]
    return {
        "date": comparison.date,
        "command": comparison.command,
        "folder": comparison.folder.name,
        "data": {
            "yaml": Path(split.source).name,
            "names": {str(index): name for index, name in outcomes.names.items()},
            "eval_split": split.split,
            "held_out": split.held_out,
            "note": "; ".join(filter(None, [split.note, _unfinished(outcomes), _looked(comparison)])),
            "images": judged["images"],
            "objects": judged["objects"],
        },
        "settings": comparison.settings,
        "seeds": comparison.seeds,
        "machine": comparison.machine,
        "files": comparison.files,
    }


def _unfinished(outcomes: Outcomes) -> str:
    """Say that runs are missing, and what that does to the differences; empty where all is there."""
    whole = len(outcomes.comparison.seeds)
    done = {arm: len(seeds) for arm, seeds in outcomes.results.items()}
    if all(count == whole for count in done.values()):
        return ""
    counts = ", ".join(f"{arm} {count}" for arm, count in done.items())
    return f"not all of the {whole} seeds are finished ({counts}): arms are compared on the seeds that both have"


def _looked(comparison: Comparison) -> str:
    """Say that seeds were added by someone who had seen a verdict, and could have stopped there."""
    if not comparison.looked:
        return ""
    first = ", then at ".join(map(str, comparison.looked))
    return (
        f"seeds were added after a look at {first}: an interval that is looked at more than once lies clear of zero by "
        "chance more often than one in twenty times"
    )


def _differences(outcomes: Outcomes, arm: str) -> dict[str, Any]:
    """The paired differences of an arm to plain and to native."""
    to_native = None if arm == PLAIN else sections.difference(outcomes, arm, NATIVE)
    return {"to_plain": sections.difference(outcomes, arm, PLAIN), "to_native": to_native}


def _courses(outcomes: Outcomes) -> dict[str, Any]:
    """Curves and distillation terms of every arm that has them."""
    found: dict[str, dict[str, Any]] = {"curves": {}, "terms": {}}
    for arm in outcomes.results:
        folders = [outcomes.comparison.run_folder(arm, seed) for seed in outcomes.seeds(arm)]
        runs = curves.read_courses(folders)
        for key, course in (("curves", curves.curve(runs)), ("terms", curves.terms(runs))):
            if course is not None:
                found[key][arm] = course
    return found
