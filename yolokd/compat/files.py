"""Files of a run: written whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import ultralytics.engine.trainer as engine
from filelock import FileLock
from ultralytics.utils.torch_utils import strip_optimizer

from yolokd.errors import UserError

PARTIAL = ".partial"  # ends the name of what is being written; as a whole name, a stage for `commit`
_COMPLETE = ".complete"


def atomic_replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, never a torn one.

    Args:
        path: where it belongs.
        write: writes it to the path that it is given (in the same folder, so that the rename is atomic).
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def written_in(folder: Path, remedy: str) -> Iterator[None]:
    """Say in words that a folder cannot be written to, or that its disk is full.

    Args:
        folder: where something is written meanwhile.
        remedy: what to do about it.

    Raises:
        UserError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}.", remedy) from error


@contextmanager
def locked(file: Path) -> Iterator[OSError | None]:
    """Hold a lock that one process has at a time; None, or what stands in the way where it cannot be written.

    Args:
        file: of the lock; its folder is made.
    """
    lock, refusal = FileLock(file), None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        refusal = error
    try:
        yield refusal
    finally:
        lock.release()  # nothing where it is not held


def begin_folder(folder: Path, name: str, text: str) -> None:
    """Write a run folder's first file.

    A new folder appears with the file in it: at no moment is there a run that cannot be resumed.

    Args:
        folder: the run folder, there already or not.
        name: the file's.
        text: its content.

    Raises:
        UserError: the folder cannot be written.
    """
    with written_in(folder, "Name another place with project=, or make room there."):
        if folder.exists():
            atomic_replace(folder / name, lambda partial: partial.write_text(text, encoding="utf-8"))
            return
        stage = folder.with_name(f".{folder.name}{PARTIAL}")
        shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed right here
        stage.mkdir(parents=True)
        (stage / name).write_text(text, encoding="utf-8")
        stage.replace(folder)


def commit(stage: Path, folder: Path) -> None:
    """Move files that belong together into a folder, all of them or none, whenever the process is killed.

    The stage is first renamed to ``.complete``: from then on `recover` finishes what a kill leaves undone.

    Args:
        stage: a folder inside ``folder`` with the new files.
        folder: where they belong.
    """
    for file in stage.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    _move_in(stage.replace(folder / _COMPLETE), folder)


@contextmanager
def staged(trainer: Any) -> Iterator[None]:
    """Let Ultralytics write its checkpoints into a folder beside them, then move them all into place.

    Args:
        trainer: its ``wdir``, ``last`` and ``best`` point into the stage meanwhile.
    """
    weights, last, best = trainer.wdir, trainer.last, trainer.best
    stage = weights / PARTIAL
    shutil.rmtree(stage, ignore_errors=True)
    trainer.wdir, trainer.last, trainer.best = stage, stage / last.name, stage / best.name
    try:
        yield
    finally:
        trainer.wdir, trainer.last, trainer.best = weights, last, best
    commit(stage, weights)


def recover(folder: Path, forward: bool = True) -> None:
    """Finish or discard what a killed run was writing into its folder of weights and the run folder around it.

    Args:
        folder: the folder of weights; it need not exist.
        forward: finish a complete set of checkpoints; else it is discarded, for a run that begins anew there.
    """
    complete, last = folder / _COMPLETE, folder / "last.pt"
    # Older than last.pt is a set that another trainer has overtaken since.
    staged = complete / "last.pt"
    if forward and staged.is_file() and not (last.is_file() and last.stat().st_mtime > staged.stat().st_mtime):
        _move_in(complete, folder)
    for rest in (complete, folder / PARTIAL):
        shutil.rmtree(rest, ignore_errors=True)
    for place in (folder, folder.parent):
        for rest in place.glob(f".*{PARTIAL}"):
            if rest.is_dir():  # of `begin_folder`, where the run folder has others in it
                shutil.rmtree(rest)
            else:
                rest.unlink(missing_ok=True)


def _move_in(stage: Path, folder: Path) -> None:
    """last.pt goes last: while it is in the stage, `recover` knows that something is left to do."""
    for file in sorted(stage.iterdir(), key=lambda file: file.name == "last.pt"):
        file.replace(folder / file.name)
    stage.rmdir()


def strip_checkpoint(path: str | Path, updates: dict[str, Any] | None = None) -> dict[str, Any]:
    """Turn a training checkpoint into a finished one, by rename; Ultralytics writes over the file in place.

    Args:
        path: the checkpoint.
        updates: entries to overlay.

    Returns:
        the content of the finished checkpoint.
    """
    result: dict[str, Any] = {}
    atomic_replace(Path(path), lambda partial: result.update(strip_optimizer(path, str(partial), updates)))
    return result


@contextmanager
def atomic_strip() -> Iterator[None]:
    """Let Ultralytics' final evaluation strip checkpoints by rename."""

    def strip(f: str | Path, s: str = "", updates: dict[str, Any] | None = None) -> dict[str, Any]:
        return strip_checkpoint(f, updates)

    with mock.patch.object(engine, "strip_optimizer", strip):
        yield
