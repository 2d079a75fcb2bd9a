"""What the command line and Python both call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolokd.compat.checkpoint import read_checkpoint
from yolokd.config import build_config
from yolokd.demo import run_demo
from yolokd.errors import UserError
from yolokd.evaluation.coco import evaluate as evaluate_model
from yolokd.evaluation.coco import evaluation_table
from yolokd.export import Exported, export_model, export_table
from yolokd.keys import split_keys
from yolokd.preflight import checks_text, preflight
from yolokd.resume import locate, resume_arguments
from yolokd.trainer import DistillationTrainer


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        save_dir: the run folder.
        metrics: of ``best.pt`` on the validation split, as Ultralytics names them (``metrics/mAP50-95(B)``, ...).
    """

    save_dir: Path
    metrics: Mapping[str, float]

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch; a plain Ultralytics checkpoint."""
        return self.save_dir / "weights" / "best.pt"

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.save_dir / "weights" / "last.pt"


def distill(student: str | Path | None = None, teacher: str | Path | None = None, **args: Any) -> Run:
    """Train a student under a teacher: ``yolokd train``.

    Args:
        student: a ``.pt`` file or a model YAML.
        teacher: a ``.pt`` file, or a name that Ultralytics publishes.
        **args: yolokd's other keys (``losses``, ``schedule``, ``recipe``, ...; losses also as a dict) and every train
            argument of Ultralytics (``data``, ``epochs``, ``imgsz``, ...). ``resume=PATH/last.pt`` needs no other.

    Returns:
        where the run is, and what it scored.

    Raises:
        UserError: something in the settings, the files or the data; nothing has been written then.
    """
    given = {"student": student, "teacher": teacher, **args}
    given = {key: str(v) if isinstance(v, Path) else v for key, v in given.items() if v is not None}
    trust = bool(given.get("trust"))
    if resume := given.pop("resume", None):
        last = locate(resume)
        goes_on = resume_arguments(last, trust)
        if goes_on is None:
            return _run(last.parent.parent, trust)
        if "resume" not in goes_on:  # it begins again, with its own settings
            given.pop("exist_ok", None)
        given = {**goes_on, **given} if "resume" not in goes_on else {**given, **goes_on}
    trainer = DistillationTrainer(overrides={**given, "mode": "train"})
    trainer.train()
    return _run(trainer.save_dir, trust)


def _run(folder: Path, trust: bool) -> Run:
    run = Run(Path(folder), {})
    for file in (run.best, run.last):
        if file.is_file():
            metrics = read_checkpoint(file, trust=trust).get("train_metrics") or {}
            return Run(run.save_dir, {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))})
    return run


def evaluate(
    model: str | Path,
    data: str | Path,
    teacher: str | Path | None = None,
    annotations: str | Path | None = None,
    **args: Any,
) -> str:
    """Measure a model with Ultralytics and with pycocotools: ``yolokd val``.

    Args:
        model: a ``.pt`` file.
        data: a data YAML.
        teacher: another model, to say which share of its mAP the first one keeps.
        annotations: COCO's own JSON of the images; else the boxes come from the labels.
        **args: ``split``, ``imgsz``, ``batch``, ``device``, ``trust`` and Ultralytics' other val arguments.

    Returns:
        a table.
    """
    mine = evaluate_model(model, data, annotations=annotations, **args)
    theirs = evaluate_model(teacher, data, annotations=annotations, **args) if teacher else None
    return evaluation_table(mine, theirs)


def export(
    model: str | Path, format: str | Sequence[str] = "onnx", data: str | Path | None = None, **args: Any
) -> tuple[str, list[Exported]]:
    """Export a model and measure every exported file: ``yolokd export``.

    Args:
        model: a ``.pt`` file.
        format: one or several of Ultralytics' export formats, ``onnx,openvino``.
        data: a data YAML whose validation images the files are compared on; else two pictures of Ultralytics'.
        **args: Ultralytics' export arguments.

    Returns:
        a table, and its rows.
    """
    formats = format.split(",") if isinstance(format, str) else list(format)
    rows = export_model(model, [f.strip() for f in formats], data=data, **args)
    return export_table(rows), rows


def check(teacher: str | Path, student: str | Path, data: str | Path, **args: Any) -> str:
    """Say before training whether a pair works and whether its teacher is worth it: ``yolokd checks``.

    Args:
        teacher: a ``.pt`` file.
        student: a ``.pt`` file or a model YAML.
        data: a data YAML.
        **args: yolokd's and Ultralytics' other keys.

    Returns:
        what was found, a line a fact.
    """
    ours, theirs = split_keys({"teacher": str(teacher), "student": str(student), "data": str(data), **args})
    config = build_config(ours)
    if not config.losses:
        raise UserError("losses=none leaves nothing to check.", "Leave losses= out, or name some.")
    report = preflight(config, theirs)
    shared = {k: theirs[k] for k in ("imgsz", "batch", "device", "split") if k in theirs}

    def mark(model: str | Path, knows: bool) -> float:
        """The mAP50-95, which is 0 without a run where no class is known."""
        return evaluate_model(model, data, trust=config.trust, **shared).map if knows else 0.0

    teacher_map = mark(report.teacher_file, report.class_map.mapped > 0)
    return checks_text(report, teacher_map, mark(student, report.student_knows_data))


def demo(**args: Any) -> str:
    """Run the main job on generated images: ``yolokd demo``."""
    return str(run_demo(**args))
