"""How fast the arms are as ONNX files, on this machine."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeVar
from unittest import mock

import numpy as np
from ultralytics.utils import LOGGER

from yolokd.compat.exporting import export_file
from yolokd.compat.refusals import first_line
from yolokd.evaluation.children import available_cores
from yolokd.evaluation.energy import Meter, find_meter
from yolokd.export import missing_packages

ROUNDS = 10  # in each of them every model has a block of its own
BLOCK = 0.5  # seconds, and
FEWEST, LONGEST = 5, 1.0  # so many images, unless they take so many seconds
_GPU, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
Name = TypeVar("Name", bound=Hashable)


def speed(
    models: Mapping[tuple[str, ...], Path], folder: Path, *, imgsz: int, machine: str, trust: bool = False
) -> dict[str, Any]:
    """Export models to ONNX and time them by turns, one image at a time.

    The network alone is timed, with what the file holds of decoding: not reading and resizing, and not non-maximum
    suppression, whose time is that of the image and not of the model. Blocks of half a second change between the
    models, so that whatever else the machine does hits them all: 10 blocks each, 5 to 10 seconds, at least 50 images
    unless one takes above .2 seconds.

    Args:
        models: a checkpoint for the names of all models that have its architecture, and so its speed.
        folder: where the files go, each called by its first name.
        imgsz: pixels of the square image.
        machine: what it is, for the note.
        trust: load checkpoints that reference unknown globals.

    Returns:
        for each name ``onnx_ms_median``, ``onnx_ms_p95`` (milliseconds), ``images_per_second``,
        ``energy_j_per_image`` (None where nobody counts) and ``energy_note``; ``note``: on what this was measured, and
        what could not be. Without ONNX's packages the note alone.
    """
    if missing := missing_packages("onnx"):
        return {"note": f"not measured: ONNX needs `{missing}`"}
    threads = len(available_cores())
    sessions, notes = {}, []
    for names, model in models.items():
        try:
            file = _exported(model, folder / f"{names[0]}.onnx", imgsz, trust)
            sessions[names] = _session(file, threads)
        except Exception as error:  # exporter and runtime raise anything; the other models go on
            notes.append(f"{names[0]} could not be measured: {first_line(error)}")
        if len(names) > 1 and names in sessions:
            notes.append(f"{', '.join(names)} have the same architecture: the file of {names[0]} was timed for all")
    gpu = any(session.get_providers()[0] == _GPU for session in sessions.values())
    meter, energy_note = find_meter(gpu)
    timed = by_turns({names: _runner(session) for names, session in sessions.items()}, meter)
    rows = {names: {**_row(*measured), "energy_note": energy_note} for names, measured in timed.items()}
    where = "on the GPU" if gpu else f"on {threads} threads of {machine}"
    how = f"onnxruntime {version_of_runtime()} {where}; batch 1, {imgsz} px, the network without suppression"
    return {name: row for names, row in rows.items() for name in names} | {"note": "; ".join([how, *notes])}


def version_of_runtime() -> str:
    """The version of onnxruntime, of whichever of its packages; empty where nothing can be measured."""
    try:
        return "" if missing_packages("onnx") else str(import_module("onnxruntime").__version__)
    except ImportError:  # it is there, and does not fit this machine
        return ""


def by_turns(
    runs: Mapping[Name, Callable[[], object]], meter: Meter | None
) -> dict[Name, tuple[list[float], float | None]]:
    """Run everything in blocks that follow one another, again and again.

    The first run of a block is not timed: threads of the one before may still be spinning.

    Args:
        runs: what is timed, by name.
        meter: counts energy, where there is one.

    Returns:
        the seconds of each run, and the joules of one; None where nobody counts, or the counter stands still.
    """
    times: dict[Name, list[float]] = {name: [] for name in runs}
    joules = dict.fromkeys(runs, 0.0)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            run()
            before = meter.read() if meter else []
            block = _block(run)
            joules[name] += meter.joules(before, meter.read()) if meter else 0.0
            times[name] += block
    return {name: (taken, joules[name] / len(taken) if joules[name] else None) for name, taken in times.items()}


def _block(run: Callable[[], object]) -> list[float]:
    times: list[float] = []
    while (total := sum(times)) < BLOCK or (len(times) < FEWEST and total < LONGEST):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _row(seconds: Sequence[float], joules: float | None) -> dict[str, Any]:
    return {
        "onnx_ms_median": 1000 * median(seconds),
        "onnx_ms_p95": 1000 * float(np.percentile(seconds, 95)),
        "images_per_second": 1 / mean(seconds),
        "energy_j_per_image": joules,
    }


def _exported(model: Path, file: Path, imgsz: int, trust: bool) -> Path:
    """The exporter writes beside the checkpoint, in whose folder nothing of ours should lie: it gets a copy."""
    with tempfile.TemporaryDirectory(prefix="export-", dir=file.parent) as place:
        copy = shutil.copy(model, Path(place, f"{file.stem}.pt"))
        with mock.patch.object(LOGGER, "info"):  # it says how to use a file that is about to be moved
            return export_file(Path(copy), "onnx", trust=trust, imgsz=imgsz, device="cpu").replace(file)


def _session(file: Path, threads: int) -> Any:
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    wanted = [provider for provider in (_GPU, _CPU) if provider in runtime.get_available_providers()]
    return runtime.InferenceSession(str(file), options, providers=wanted)


def _runner(session: Any) -> Callable[[], object]:
    """Runs the network on one random image: its time does not depend on what there is to see."""
    entry = session.get_inputs()[0]
    image = np.random.default_rng(0).random(entry.shape, dtype=np.float32)

    def run() -> object:
        return session.run(None, {entry.name: image})

    return run
