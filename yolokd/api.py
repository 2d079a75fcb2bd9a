"""What the command line and Python both call."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolokd.chain import begin_chain, chain_of, in_steps, resume_chain
from yolokd.compat.larger import asked_side, training_side
from yolokd.compat.open_data import complete_yaml, names_nothing
from yolokd.config import build_config
from yolokd.demo import run_demo
from yolokd.errors import UserError
from yolokd.evaluation.analysis import bring_up_to_date
from yolokd.evaluation.coco import evaluate as evaluate_model
from yolokd.evaluation.coco import evaluation_table
from yolokd.evaluation.compare import Compared
from yolokd.evaluation.compare import compare as compare_arms
from yolokd.evaluation.report import write_report
from yolokd.export import Exported, export_model, export_table
from yolokd.keys import CACHE_KEYS, PEERS, split_keys, with_recipe
from yolokd.learning import data_of
from yolokd.peers import begin_peers, resume_peers
from yolokd.preflight import preflight
from yolokd.preflight_text import checks_text
from yolokd.replaying import BATCH, fill_from
from yolokd.runs import Run, train
from yolokd.steps import Chain

__all__ = ["Compared", "Run", "check", "compare", "demo", "distill", "evaluate", "export", "report"]


def distill(student: str | Path | None = None, teacher: str | Path | None = None, **args: Any) -> Run:
    """Train a student under a teacher: ``yolokd train``.

    Args:
        student: a ``.pt`` file or a model YAML.
        teacher: a ``.pt`` file, or a name that Ultralytics publishes; ``born-again`` for the student itself, finished,
            over ``generations`` rounds (`yolokd.chain`).
        **args: yolokd's other keys (``losses``, ``schedule``, ``recipe``, ...; losses also as a dict, ``via`` and
            ``peers`` also as a list) and every train argument of Ultralytics (``data``, ``epochs``, ``imgsz``, ...).
            ``resume=PATH/last.pt``, or the run folder, needs no other.

    Returns:
        where the run is, and what it scored; of a training in steps the whole; of peers the whole, with ``peers``.

    Raises:
        UserError: something in the settings, the files or the data; nothing has been written then.
    """
    given = {"student": student, "teacher": teacher, **args}
    given = {key: str(v) if isinstance(v, Path) else v for key, v in given.items() if v is not None}
    if not given.get("via"):
        given.pop("via", None)  # an empty list of a program
    if resume := given.get("resume"):
        folder = chain_of(resume)
        if folder is None:
            return train(given)
        return resume_peers(folder, given) if Chain.load(folder).together else resume_chain(folder, given)
    given.pop("resume", None)
    merged = with_recipe(given)
    if PEERS in merged:
        return begin_peers(merged)
    return begin_chain(merged) if in_steps(merged) else train(given)


def compare(
    student: str | Path | None = None, teacher: str | Path | None = None, data: str | Path | None = None, **args: Any
) -> Compared:
    """Train several arms with several seeds and say whether distilling was worth it: ``yolokd compare``.

    Args:
        student: a ``.pt`` file or a model YAML.
        teacher: as in `distill`.
        data: a data YAML.
        **args: ``arms``, ``seeds``, ``eval_split``, ``jobs``, ``robustness``, ``backend``, ``resume`` (see
            `evaluation.compare`), yolokd's other keys and every train argument of Ultralytics.

    Returns:
        the folder, with ``report.html`` in it, and what the report says.

    Raises:
        UserError: something in the settings, the files or the data; nothing has been written then.
    """
    done = compare_arms(student, teacher, data, **args)
    if done.report:
        write_report(done.folder)
    return done


def report(folder: str | Path) -> Path:
    """Write ``report.html`` and ``report.md`` of a comparison or of a training: ``yolokd report``.

    Args:
        folder: of a comparison, finished or not, or of a run.

    Returns:
        the HTML file; it needs no other file and no network.

    Raises:
        UserError: the folder is neither, what it holds is damaged, or no run of the comparison is finished.
    """
    bring_up_to_date(Path(folder))
    return write_report(Path(folder))


def evaluate(
    model: str | Path,
    data: str | Path,
    teacher: str | Path | None = None,
    annotations: str | Path | None = None,
    backend: str = "pycocotools",
    student_view: str = "",
    **args: Any,
) -> str:
    """Measure a model with Ultralytics and with pycocotools: ``yolokd val``.

    Args:
        model: a ``.pt`` file.
        data: a data YAML.
        teacher: another model, to say which share of its mAP the first one keeps.
        annotations: COCO's own JSON of the images; else the boxes come from the labels.
        backend: the second tool; ``faster-coco-eval`` gives the same numbers.
        student_view: as in the model's training (``gray``, ``dark``, ``half``); the teacher sees them whole.
        **args: ``split``, ``imgsz``, ``batch``, ``device``, ``trust`` and Ultralytics' other val arguments.

    Returns:
        a table.
    """
    how: dict[str, Any] = {"annotations": annotations, "backend": backend, **args}
    mine = evaluate_model(model, data, **how, student_view=student_view)
    theirs = evaluate_model(teacher, data, **how) if teacher else None
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


def check(teacher: str | Path, student: str | Path, data: str | Path | None = None, **args: Any) -> str:
    """Say before training whether a pair works and whether its teacher is worth it: ``yolokd checks``.

    Args:
        teacher: as in `distill`.
        student: a ``.pt`` file or a model YAML.
        data: a data YAML; may be left out where a training may do without.
        **args: yolokd's and Ultralytics' other keys.

    Returns:
        what was found, a line a fact.
    """
    named = list(map(str, teacher)) if isinstance(teacher, (list, tuple)) else str(teacher)
    named_data = {} if data is None else {"data": str(data)}
    ours, theirs = split_keys({"teacher": named, "student": str(student), **named_data, **args})
    config = build_config(ours)
    if not config.losses:
        raise UserError("losses=none leaves nothing to check.", "Leave losses= out, or name some.")
    report = preflight(config, theirs)
    shared: dict[str, Any] = {k: theirs[k] for k in ("imgsz", "batch", "device", "split") if k in theirs}

    def mark(model: str | Path, knows: bool, **how: Any) -> float:
        """The mAP50-95, which is 0 without a run where no class is known."""
        return evaluate_model(model, whole, trust=config.trust, **{**shared, **how}).map if knows else 0.0

    how: dict[str, Any] = {"class_map": config.class_map}
    how |= {"imgsz": config.teacher_imgsz} if config.teacher_imgsz else {}
    split = str(theirs.get("split") or "val")
    with tempfile.TemporaryDirectory() as place:  # Ultralytics reads no data YAML without train:
        whole = complete_yaml(data_of(config, theirs), split, Path(place) / "data.yaml")
        if names_nothing(whole, split):
            return "\n".join(report.lines)
        marks = {file: mark(file, any(m.mapped for m in report.class_maps), **how) for file in report.judged}
        return checks_text(report, marks, mark(student, report.student_knows_data))


def cache(
    teacher: str | Path,
    data: str | Path,
    teacher_cache: str | Path = "teacher_cache",
    teacher_imgsz: int | None = None,
    batch: int = BATCH,
    **args: Any,
) -> str:
    """Run a teacher once over the training images and their mirror images: ``yolokd cache``.

    ``distill(..., teacher_cache=...)`` does the same by itself, where it is not done yet.

    Args:
        teacher: as in `distill`, one file.
        data: a data YAML.
        teacher_cache: the folder to store the answers in; what is there already is kept.
        teacher_imgsz: side of the images that the teacher sees; as in the training.
        batch: images that the teacher sees at once; the last bits of its answers depend on it.
        **args: ``imgsz``, ``device``, ``workers``, ``fraction``, ``teacher_names``, ``teacher_boxes`` and ``trust`` of
            the training.

    Returns:
        what was stored, in a line.

    Raises:
        UserError: a key that says nothing here, the teacher's answers cannot be stored, or a file or the data cannot
            serve.
    """
    if unread := [key for key in args if key not in CACHE_KEYS]:
        raise UserError(
            f"{', '.join(unread)}: `yolokd cache` reads no such key{'s' if len(unread) > 1 else ''}.",
            f"It reads {', '.join(CACHE_KEYS)}.",
        )
    keys = {"teacher": teacher, "teacher_cache": teacher_cache, "data": data, "teacher_imgsz": teacher_imgsz, **args}
    given = {key: str(v) if isinstance(v, Path) else v for key, v in keys.items() if v is not None}
    ours, theirs = split_keys({**given, "batch": batch})
    config = build_config(ours)
    if not config.teacher_cache or isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        said = f"batch={batch} is not a number of images" if config.teacher_cache else "teacher_cache= names no folder"
        raise UserError(f"{said}.", "Write e.g. teacher_cache=answers batch=16.")
    stored = fill_from(config, theirs, training_side(asked_side(theirs.get("imgsz")), ()), batch)
    return (
        f"{stored.file}: {len(stored)} detections of {len(stored.index)} images and their mirror images, "
        f"{stored.file.stat().st_size / 1e6:.1f} MB."
    )


def demo(**args: Any) -> str:
    """Run the main job on generated images: ``yolokd demo``."""
    return str(run_demo(**args))
