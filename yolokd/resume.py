"""Go on with a run that was cut off, wherever that was."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ultralytics import YOLO
from ultralytics.utils import LOGGER
from ultralytics.utils.files import get_latest_run
from ultralytics.utils.plotting import plot_results

from yolokd.compat.checkpoint import read_checkpoint
from yolokd.compat.files import atomic_replace, recover, strip_checkpoint
from yolokd.compat.open_data import names_nothing
from yolokd.compat.student_validator import StudentValidator
from yolokd.config import DistillConfig
from yolokd.errors import UserError
from yolokd.image_config import ImageConfig
from yolokd.keys import load_recipe
from yolokd.sidecar import complete_rows, load_sidecar
from yolokd.trainer import RECIPE

# The train arguments that say how the final evaluation is done.
_VALIDATION = ("data", "split", "imgsz", "batch", "device", "workers", "plots", "single_cls", "classes", "rect")


def locate(resume: str | Path | bool) -> Path:
    """The ``last.pt`` of the run that is meant; it need not exist yet.

    Args:
        resume: ``PATH/last.pt``, a run folder, or True for the latest run.

    Raises:
        UserError: nothing there that can be resumed.
    """
    if isinstance(resume, bool) or str(resume).lower() == "true":
        latest = get_latest_run()
        if not latest:
            raise UserError("resume=True: no run with a checkpoint was found below here.", "Say resume=PATH/last.pt.")
        return Path(latest).resolve()
    path = Path(resume)
    last = (path / "weights" / "last.pt" if path.is_dir() else path).resolve()
    if not last.is_file() and not (last.parent.parent / RECIPE).is_file():
        raise UserError(
            f"resume={resume}: neither a checkpoint there nor a run that has just begun.",
            "Give the path of a last.pt, e.g. resume=runs/detect/train/weights/last.pt.",
        )
    return last


def resume_arguments(last: Path, trust: bool = False) -> dict[str, Any] | None:
    """What to train with so that the run goes on; None where its training is done already.

    Before the first checkpoint a run begins again from the settings that it wrote down first; after its last epoch
    only the final evaluation is made up for.

    Args:
        last: the run's ``last.pt``, from ``locate``.
        trust: load a checkpoint that references unknown globals.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    folder = last.parent.parent
    recover(last.parent)
    if not last.is_file():
        LOGGER.info(f"{folder} has no checkpoint yet: the run begins again.")
        return {**load_recipe(folder / RECIPE), "save_dir": str(folder), "exist_ok": True}
    checkpoint = read_checkpoint(last, role="resume", trust=trust)
    if checkpoint.get("optimizer") is not None and not _last_epoch(checkpoint):
        goes_on = {"model": str(last), "resume": str(last)}
        # Where the run lies now: its folder may have been moved since.
        return {**goes_on, "save_dir": str(folder)} if (folder / RECIPE).is_file() else goes_on
    finish(last, checkpoint, trust)
    return None


def _last_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Was this the epoch after which training stopped, by its number or for lack of progress?"""
    args, done = checkpoint.get("train_args") or {}, checkpoint["epoch"] + 1
    patience = args.get("patience") or float("inf")
    # 0 stands for no epoch yet: without validation nothing is ever the best.
    best = (checkpoint.get("stopper") or {}).get("best_epoch") or done
    return bool(done >= int(args.get("epochs") or 0) or done - best >= patience)


def _asked_of_the_images(weights: Path) -> ImageConfig:
    try:
        return DistillConfig.from_dict(load_sidecar(weights).config).images
    except UserError:  # a plain run of Ultralytics
        return ImageConfig()


def finish(last: Path, checkpoint: dict[str, Any], trust: bool = False) -> None:
    """Make up for what a kill in the final evaluation left undone; nothing where all is there.

    Args:
        last: the run's ``last.pt``.
        checkpoint: its content.
        trust: load a ``best.pt`` that references unknown globals.
    """
    folder, best = last.parent.parent, last.with_name("best.pt")
    args = checkpoint.get("train_args") or {}
    table, picture = folder / "results.csv", folder / "results.png"
    done = checkpoint.get("optimizer") is None
    if not done and table.is_file():  # a kill after the last row was written twice, or while it was written
        rows = complete_rows(table.read_text(encoding="utf-8"), checkpoint["epoch"] + 1)
        atomic_replace(table, lambda partial: partial.write_text(rows, encoding="utf-8"))
    results = strip_checkpoint(last).get("train_results") if not done else checkpoint.get("train_results")
    if best.is_file() and read_checkpoint(best, trust=trust).get("optimizer") is not None:
        strip_checkpoint(best, {"train_results": results})
        done = False
    if done and (picture.is_file() or not args.get("plots", True)):
        LOGGER.info(f"{folder} is finished, nothing to resume. Its student is {best}.")
        return
    LOGGER.info(f"The training in {folder} is done, its final evaluation was not: it follows.")
    settings = {key: args[key] for key in _VALIDATION if key in args}
    images = _asked_of_the_images(last.parent)
    if not names_nothing(settings.get("data"), str(settings.get("split") or "val")):
        validator = partial(StudentValidator, student_view=images.student_view)
        how = {"validator": validator} if images.student_view or images.student_classes else {}
        YOLO(best).val(**how, **settings, save_dir=str(folder))
    if args.get("plots", True):
        plot_results(file=table)
