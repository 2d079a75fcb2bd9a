"""The report of one training, from what its run folder holds."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

import yolokd
from yolokd.compat.checkpoint import read_checkpoint, sha256
from yolokd.errors import UserError
from yolokd.evaluation.report import figures
from yolokd.evaluation.report.drawing import Drawing, series
from yolokd.evaluation.report.markdown import MARKDOWN, code, plain, table
from yolokd.evaluation.report.rendering import HTML, render, write
from yolokd.evaluation.report.words import duration, percent, points, setting
from yolokd.evaluation.results import RESULTS, Columns, read_results
from yolokd.keys import arguments_yaml

_RECIPE, _ARGUMENTS = "distill.yaml", "args.yaml"
_AP = "metrics/mAP50-95(B)"
_SCORES = {"mAP50-95": _AP, "mAP50": "metrics/mAP50(B)"}
_NATIVE = "dis"  # the loss of Ultralytics' own distillation
_RATES = {"precision": "metrics/precision(B)", "recall": "metrics/recall(B)"}


def write_run_report(folder: str | Path) -> Path:
    """Write ``report.html`` and ``report.md`` into the folder of one training, by yolokd or by Ultralytics alone.

    Args:
        folder: with ``results.csv``, and ``args.yaml``, ``distill.yaml`` and ``weights/`` where they are there.

    Returns:
        the HTML file.

    Raises:
        UserError: there is no results.csv, or no finished epoch in it.
    """
    folder = Path(folder)
    columns = read_results(folder / RESULTS)
    recipe, arguments = _yaml(folder / _RECIPE), _yaml(folder / _ARGUMENTS)
    settings = recipe or (yaml.safe_load(arguments_yaml(arguments)) if isinstance(arguments.get("model"), str) else {})
    best = _best(columns)
    content: dict[str, Any] = {
        "name": folder.resolve().name,
        "headline": _headline(folder.resolve().name, columns, best),
        "taught": _taught(recipe, arguments, columns),
        "scores": _scores(columns, best),
        "epochs": len(columns["epoch"]),
        "best_epoch": None if best is None else int(columns["epoch"][best] or 0),
        "time": duration({"mean": _seconds(columns), "sd": None}),
        "settings": settings,
        "command": _command(folder, recipe, arguments, columns),
        "made_with": _made_with(folder),
        "files": _hashes(folder),
    }
    write(folder / MARKDOWN, _markdown(content))
    return write(folder / HTML, render("run.html", folder, **content, figures=_figures(columns)))


def _yaml(file: Path) -> dict[str, Any]:
    """A YAML file of the run; empty where it is missing or damaged."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _best(columns: Columns) -> int | None:
    """The row of ``best.pt``: Ultralytics writes it anew as long as mAP50-95 is not lower than the highest so far."""
    judged = [(value, i) for i, value in enumerate(columns.get(_AP, [])) if value is not None]
    return max(judged)[1] if judged else None


def _headline(name: str, columns: Columns, best: int | None) -> str:
    epochs = int(columns["epoch"][-1] or 0)
    if best is None:
        return f"{name} trained for {epochs} epochs and was never validated."
    reached = points(columns[_AP][best])
    return f"{name} reaches {reached} points of mAP50-95 on its validation split, after {epochs} epochs."


def _distilled(columns: Columns) -> bool:
    return any(name.startswith("train/kd_") for name in columns)


def _taught(recipe: Mapping[str, Any], arguments: Mapping[str, Any], columns: Columns) -> str:
    if teacher := recipe.get("teacher"):
        return f"Taught by {setting(teacher)} through the losses {setting(recipe.get('losses'))}."
    if teacher := arguments.get("distill_model"):
        return f"Taught by {teacher} through Ultralytics' own distillation (dis={arguments.get('dis')})."
    if _distilled(columns) or not (arguments or recipe):
        return "Its settings are missing or damaged, so who taught it is unknown."
    return "Trained without a teacher."


def _scores(columns: Columns, best: int | None) -> dict[str, tuple[str, str]]:
    """Each metric at the best epoch and at the last one."""
    if best is None:
        return {}
    said: dict[str, tuple[Callable[[float | None], str], str]] = {
        **{f"{name}, points": (points, column) for name, column in _SCORES.items()},
        **{name: (percent, column) for name, column in _RATES.items()},
    }
    there = {name: (tell, columns[column]) for name, (tell, column) in said.items() if column in columns}
    return {name: (tell(values[best]), tell(values[-1])) for name, (tell, values) in there.items()}


def _seconds(columns: Columns) -> float | None:
    """Time of the training: the clock of results.csv begins again at each resume."""
    times = [time or 0.0 for time in columns.get("time", [])]
    ends = [a for a, b in zip(times, [*times[1:], 0.0], strict=True) if b < a]
    return sum(ends) if ends else None


def _figures(columns: Columns) -> dict[str, Any]:
    epochs = columns["epoch"]
    scores = {name: columns[column] for name, column in _SCORES.items() if column in columns}
    curves = {name: {"epoch": epochs, "mean": v, "low": v, "high": v} for name, v in scores.items()}
    judged = sum(value is not None for value in scores.get("mAP50-95", []))
    losses = _columns(columns, "train/", "_loss")
    taught = {name.removeprefix("kd_"): v for name, v in losses.items() if name.startswith("kd_") or name == _NATIVE}
    terms = {"epoch": epochs, "loss": taught, "share": _columns(columns, "balance/", "_share")}
    loss, share = figures.terms(terms, "terms")
    drawn = {name: _loss(columns, name) for name in losses if not name.startswith("kd_") and name != _NATIVE}
    return {
        "curves": figures.curves(curves, series(list(curves)), "Validation", "curves") if judged > 1 else None,
        "losses": {name: drawing for name, drawing in drawn.items() if drawing},
        "terms": loss,
        "shares": share,
    }


def _columns(columns: Columns, start: str, end: str) -> dict[str, list[float | None]]:
    """The columns of a kind by the name between."""
    found = {name: values for name, values in columns.items() if name.startswith(start) and name.endswith(end)}
    return {name[len(start) : -len(end)]: values for name, values in found.items()}


def _loss(columns: Columns, name: str) -> Drawing | None:
    """A part of the detection loss, in training and in validation."""
    both = {kind: columns.get(f"{kind}/{name}_loss", []) for kind in ("train", "val")}
    values = {kind: [float("nan") if v is None else v for v in column] for kind, column in both.items()}
    epochs = [epoch or 0.0 for epoch in columns["epoch"]]
    return figures.lines(epochs, values, series(["train", "val"]), f"loss-{name}", f"{name} loss")


def _command(folder: Path, recipe: Mapping[str, Any], arguments: Mapping[str, Any], columns: Columns) -> str:
    """What trains it again, in another folder; empty where nothing says how it was trained."""
    name = folder.resolve().name
    if not recipe and (_distilled(columns) or not arguments):
        return ""
    if recipe:
        return shlex.join(["yolokd", "train", f"recipe={folder / _RECIPE}", f"name={name}-again"])
    return shlex.join(["yolo", "train", f"cfg={folder / _ARGUMENTS}", f"save_dir={name}-again"])


def _made_with(folder: Path) -> dict[str, str]:
    """What the checkpoint says of its making, and what is installed now."""
    try:
        checkpoint = read_checkpoint(folder / "weights" / "last.pt")
    except UserError:
        checkpoint = {}
    now = {name: version(name) for name in ("ultralytics", "torch")}
    now |= {"yolokd": yolokd.__version__, "python": platform.python_version()}
    return {
        "trained with Ultralytics": str(checkpoint.get("version", "unknown")),
        "checkpoint of": str(checkpoint.get("date", "unknown"))[:19],
        "this page made with": ", ".join(f"{name} {number}" for name, number in now.items()),
    }


def _hashes(folder: Path) -> dict[str, str]:
    names = (_RECIPE, _ARGUMENTS, RESULTS, "weights/best.pt", "weights/last.pt")
    return {name: sha256(folder / name) for name in names if (folder / name).is_file()}


def _markdown(content: Mapping[str, Any]) -> str:
    rows = [[name, *values] for name, values in content["scores"].items()]
    scores = table(["metric", f"best epoch ({content['best_epoch']})", "last epoch"], rows) if rows else ""
    parts = [f"# {plain(content['headline'])}", plain(content["taught"]), scores, code(content["command"])]
    return "\n\n".join(part for part in parts if part) + "\n"
