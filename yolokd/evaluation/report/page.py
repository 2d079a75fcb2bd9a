"""The report of a comparison: ``report.json`` as one HTML file and as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from yolokd.errors import UserError
from yolokd.evaluation.report import figures
from yolokd.evaluation.report.contents import FILE, TEACHER, read_report
from yolokd.evaluation.report.drawing import styles
from yolokd.evaluation.report.markdown import MARKDOWN, comparison_markdown
from yolokd.evaluation.report.rendering import HTML, render, write
from yolokd.evaluation.report.single import write_run_report
from yolokd.evaluation.report.words import LEAST_SEEDS
from yolokd.evaluation.results import RESULTS

_Judged: TypeAlias = Sequence[Mapping[str, Any]]
MOST_AUDITED = 24  # pictures of the label audit; the rest is in report.json


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` and ``report.md`` into the folder of a comparison, or of a single training.

    Args:
        folder: of `yolokd compare`, with ``report.json``; or a run folder, with ``results.csv``.

    Returns:
        the HTML file: self-contained, under 3 MB.

    Raises:
        UserError: the folder is neither, its ``report.json`` is damaged or of another version, or the run has not
            finished an epoch.
    """
    folder = Path(folder)
    if (folder / FILE).is_file():
        report = read_report(folder)
        page = comparison_page(report, folder)
        write(folder / MARKDOWN, comparison_markdown(report))
        return write(folder / HTML, page)
    if (folder / RESULTS).is_file():
        return write_run_report(folder)
    raise _neither(folder)


def _neither(folder: Path) -> UserError:
    if not folder.is_dir():
        return UserError(f"{folder} is not a folder.", "Give the folder of a comparison, or a run folder.")
    if (folder / "compare.yaml").is_file():
        return UserError(
            f"{folder} is a comparison that has not come to its end: {FILE} is missing.",
            f"Go on with: yolokd compare resume={folder}",
        )
    runs = sorted(file.parent.name for file in folder.glob(f"*/{RESULTS}"))
    if runs:
        return UserError(f"{folder} holds several runs: {', '.join(runs)}.", f"Give one of them: {folder / runs[0]}")
    return UserError(
        f"{folder} is neither a comparison ({FILE}) nor a run ({RESULTS}).",
        "Give the folder that `yolokd compare` or `yolokd train` has written.",
    )


def comparison_page(report: Mapping[str, Any], folder: Path) -> str:
    """The HTML of a comparison.

    Args:
        report: as `read_report` returns it.
        folder: where the paths of its pictures begin.
    """
    arms = [{**a, "by_seed": dict(zip(a["seeds_done"], a["ap"]["values"], strict=False))} for a in report["arms"]]
    by_name = {arm["name"]: arm for arm in arms}
    teacher = [{**report[TEACHER], "file": report[TEACHER]["name"], "name": TEACHER}] if report[TEACHER] else []
    judged = [*arms, *teacher]
    speed = report["speed"] or {}
    robust = (report["robustness"] or {}).get("arms") or {}
    class_names = list(dict.fromkeys(name for one in judged for name in one["per_class"] or {}))
    shown = figures.shown_classes(arms, report["verdict"]["arm"])
    return render(
        "page.html",
        folder,
        report={**report, "arms": arms},
        ours=by_name.get(report["verdict"]["arm"]),
        judged=judged,
        time_ratio=_time_ratio(by_name, report["verdict"]["arm"]),
        few_seeds=any(d["seeds"] < LEAST_SEEDS for arm in arms for d in (arm["to_plain"], arm["to_native"]) if d),
        class_names=class_names,
        shown_classes=shown,
        speed=speed,
        energy_notes=sorted({found["energy_note"] for found in speed.values() if found["energy_note"]}),
        robust=robust,
        corruption_names=list(dict.fromkeys(kind for found in robust.values() for kind in found["corruptions"])),
        examples=_examples(report["examples"] or [], list(by_name)),
        audited=(report["audit"] or [])[:MOST_AUDITED],
        machine=_machine(report["machine"]),
        figures=_figures(report, arms, judged, shown),
    )


def _figures(report: Mapping[str, Any], arms: _Judged, judged: _Judged, shown: Sequence[str]) -> dict[str, Any]:
    curves, calibration = report["curves"] or {}, report["calibration"] or {}
    robust = (report["robustness"] or {}).get("arms") or {}
    known = [arm["name"] for arm in arms]
    style = styles(list(dict.fromkeys([*known, TEACHER, *curves, *calibration, *robust])))
    terms = [(name, *figures.terms(t, f"terms{i}")) for i, (name, t) in enumerate((report["terms"] or {}).items())]
    return {
        "differences": figures.differences(arms, style),
        "curves": figures.curves(curves, style, "mAP50-95"),
        "classes": figures.classes(shown, judged, style),
        "latency": figures.latency(judged, report["speed"] or {}, style),
        "terms": [row for row in terms if row[1] or row[2]],
        "corruptions": figures.corruptions(robust, style),
        "reliability": figures.reliability(calibration, style),
    }


def _time_ratio(arms: Mapping[str, Mapping[str, Any]], ours: str) -> float | None:
    """How many times longer than plain the arm of the verdict trains."""
    times = [((arms.get(name) or {}).get("train_seconds") or {}).get("mean") for name in (ours, "plain")]
    own, plain = (float(time or 0) for time in times)
    return own / plain if own and plain and ours != "plain" else None


def _examples(examples: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> list[dict[str, Any]]:
    """Ground truth first, then the arms in their order, the teacher last."""
    order = ["truth", *arms, TEACHER]
    found = []
    for example in examples:
        there = sorted(example["images"].items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else 99)
        pictures = [(name, "ground truth" if name == "truth" else name, path) for name, path in there]
        found.append({"file": example["file"], "pictures": pictures})
    return found


def _machine(machine: Mapping[str, Any]) -> dict[str, str]:
    memory = machine["memory_gb"]
    said = {
        "processor": machine["cpu"],
        "cores": machine["cores"],
        "memory": None if memory is None else f"{memory:.0f} GB",
        "GPU": machine["gpu"] or "none",
        **{name: machine[name] for name in ("python", "torch", "ultralytics", "yolokd")},
    }
    return {key: "unknown" if value in (None, "") else str(value) for key, value in said.items()}
