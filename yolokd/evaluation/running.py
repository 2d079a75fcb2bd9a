"""One run of a comparison: trained, or taken up where it was cut off, then judged."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER

from yolokd.compat.checkpoint import read_checkpoint, restricted_loading
from yolokd.compat.files import atomic_replace
from yolokd.compat.native import bare_student
from yolokd.compat.offline import no_font_download
from yolokd.compat.validation import Validation, validate
from yolokd.errors import UserError
from yolokd.evaluation.annotations import from_labels
from yolokd.evaluation.arms import NATIVE, YOLOKD, Arm
from yolokd.evaluation.coco import coco_scores, file_bytes
from yolokd.evaluation.comparison import RESULT, TEACHER, Comparison, machine_facts
from yolokd.evaluation.detections import save
from yolokd.resume import resume_arguments
from yolokd.sidecar import complete_rows
from yolokd.trainer import DistillationTrainer

TRAINING = "training.json"  # in the folder of a run: what its processes have seen so far
RESULT_VERSION = 1


class Record:
    """What a training's processes note beside it, so that it is not lost when one of them is killed.

    Attributes:
        start_sha256: of the student's weights before the first step; None until then.
        seconds: of each process: until its end, or until the last checkpoint that it wrote.
        peak_memory: bytes; of the GPU where there is one, else of the process.
        device: where it trained.
        batch: of the training at its end; Ultralytics halves it where memory is short.

    Args:
        file: where it is written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.start_sha256: str | None = None
        self.seconds: list[float] = []
        self.peak_memory = 0
        self.device = ""
        self.batch = 0
        if file.is_file():
            self.__dict__.update(json.loads(file.read_text(encoding="utf-8")))

    def begin(self) -> None:
        """Count the seconds of this process from here."""
        self._began = time.perf_counter()
        self.seconds.append(0.0)

    def started(self, trainer: Any) -> None:
        """Ultralytics' ``on_train_start``."""
        self.start_sha256 = self.start_sha256 or weights_sha256(bare_student(trainer.model))
        self.update(trainer)

    def update(self, trainer: Any) -> None:
        """Ultralytics' ``on_model_save``; also called after the end."""
        self.seconds[-1] = time.perf_counter() - self._began
        self.peak_memory = max(self.peak_memory, peak_memory(trainer.device))
        self.device, self.batch = str(trainer.device), int(trainer.batch_size)
        _write_json(self.file, {key: value for key, value in vars(self).items() if key not in ("file", "_began")})


def weights_sha256(model: nn.Module) -> str:
    """The SHA-256 of all parameters and buffers with their names, wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has had at once: of the GPU, or of main memory.

    Of main memory Linux tells VmHWM. ``ru_maxrss`` begins with what the process was that started this one.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def run_once(comparison: Comparison, arm: Arm, seed: int) -> None:
    """Train and judge one run; nothing where it is finished.

    Args:
        comparison: where it lies and what it is trained with.
        arm: the arm.
        seed: the seed.

    Raises:
        UserError: something in the settings, the files or the data.
    """
    folder = comparison.run_folder(arm.name, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # a process that is just being killed may still write
        if comparison.result(arm.name, seed) is not None:
            return
        record = _train(comparison, arm, seed)
        scores: dict[str, Any] = {}
        passed: dict[str, Validation] = {}
        for name in ("best", "last"):
            passed[name] = judge(comparison, folder / "weights" / f"{name}.pt", folder / f"{name}.npz")
            scores[name] = _scores(passed[name], comparison.backend)
        trained = {key: value for key, value in vars(record).items() if key not in ("file", "_began", "seconds")}
        times = {"train_seconds": sum(record.seconds), "processes": len(record.seconds)}
        what = {"arm": arm.name, "kind": arm.kind, "seed": seed}
        best = folder / "weights" / "best.pt"
        _write_json(folder / RESULT, {**what, **_result(passed["best"], best), "scores": scores, **times, **trained})


def judge_teacher(comparison: Comparison) -> None:
    """Judge the teacher as the students are; nothing where that is done.

    Args:
        comparison: its ``judged`` is the teacher's file.

    Raises:
        UserError: the file or the data cannot serve.
    """
    folder = comparison.run_folder(TEACHER, 0)
    folder.mkdir(parents=True, exist_ok=True)
    if comparison.result(TEACHER, 0) is None:
        file = Path(comparison.judged)
        # As it teaches: at its own size, with its own class names.
        size = {"imgsz": comparison.teacher_imgsz} if comparison.teacher_imgsz else {}
        passed = judge(comparison, file, folder / "best.npz", class_map=comparison.class_map, **size)
        scores = {"best": _scores(passed, comparison.backend)}
        content = {"arm": TEACHER, "kind": TEACHER, **_result(passed, file), "scores": scores, **size}
        _write_json(folder / RESULT, {**content, "train_seconds": None})


def judge(comparison: Comparison, model: Path, file: Path, **other: Any) -> Validation:
    """Find the objects of the judging images and store what was found.

    Args:
        comparison: says which images, and how.
        model: a checkpoint.
        file: where the detections are stored.
        other: arguments of `validate` that are not the comparison's.

    Returns:
        the pass over the images, in the order of their files.
    """
    how = {**comparison.judging, "split": comparison.split.split, "trust": comparison.trust, **other}
    with _labels(comparison):
        passed = validate(model, comparison.data, **how)
    passed.images.sort(key=lambda image: str(image.file))
    save(file, passed.images, passed.names)
    return passed


def _train(comparison: Comparison, arm: Arm, seed: int) -> Record:
    keys = comparison.keys(arm, seed)
    folder = Path(keys["save_dir"])
    with _labels(comparison):  # finishing a training means validating it
        goes_on = left_of(arm, folder, comparison.trust)
    if goes_on is None:
        return Record(folder / TRAINING)
    if not goes_on:
        shutil.rmtree(folder, ignore_errors=True)
    record = Record(folder / TRAINING)
    record.begin()
    where: dict[str, Any] = {key: keys[key] for key in ("data", "save_dir", "device", "mode") if key in keys}
    maker = DistillationTrainer if arm.way == YOLOKD else DetectionTrainer
    labels = _labels(comparison)
    with no_font_download(), restricted_loading(comparison.trust):
        trainer = maker(overrides={**goes_on, **where} if goes_on else keys)
        trainer.add_callback("on_pretrain_routine_end", lambda trainer: labels.release())
        trainer.add_callback("on_train_start", record.started)
        trainer.add_callback("on_model_save", record.update)
        labels.acquire()
        try:
            trainer.train()
        finally:
            labels.release()
    record.update(trainer)
    return record


def _labels(comparison: Comparison) -> FileLock:
    """Held while a data set's labels are read: Ultralytics rewrites its cache of them, and not atomically."""
    return FileLock(comparison.folder / ".labels.lock")


def left_of(arm: Arm, folder: Path, trust: bool) -> dict[str, Any] | None:
    """What to train with so that a run goes on; empty: it begins; None: its training is done.

    A run of ours can be resumed from whatever a kill leaves. Ultralytics writes ``last.pt``, then ``best.pt``, neither
    atomically: a plain run goes on only where both are whole and of the same best epoch. A native one begins again:
    its checkpoint holds the wrapper around student and projectors, and no version promises to build that again as it
    was.

    Args:
        arm: of the run.
        folder: of the run.
        trust: load checkpoints that reference unknown globals.
    """
    last, best = folder / "weights" / "last.pt", folder / "weights" / "best.pt"
    if not last.is_file():
        return {}
    try:
        saved = read_checkpoint(last, role="resume", trust=trust)
        if arm.way != YOLOKD and saved.get("optimizer") is not None:
            if arm.way == NATIVE or read_checkpoint(best, trust=trust)["best_fitness"] != saved["best_fitness"]:
                return {}
            _trim(folder / "results.csv", int(saved["epoch"]) + 1)
        goes_on = resume_arguments(last, trust)
    except UserError as error:
        LOGGER.warning(f"{folder} begins again: {error.problem}")
        return {}
    return goes_on if goes_on is None or "resume" in goes_on else {}


def _trim(table: Path, epochs: int) -> None:
    if table.is_file():
        rows = complete_rows(table.read_text(encoding="utf-8"), epochs)
        atomic_replace(table, lambda partial: partial.write_text(rows, encoding="utf-8"))


def _scores(passed: Validation, backend: str) -> dict[str, Any]:
    """COCO's scores, and Ultralytics' of the same detections."""
    scores = asdict(coco_scores(from_labels(passed.images, passed.names), backend=backend))
    return {**scores, "ultralytics": {"map": passed.map, "map50": passed.map50}}


def _result(passed: Validation, file: Path) -> dict[str, Any]:
    facts = {"parameters": passed.parameters, "gflops": passed.gflops, "size": file_bytes(file)}
    facts |= {"images": len(passed.images), "objects": sum(len(image.true_classes) for image in passed.images)}
    return {"version": RESULT_VERSION, **facts, "unknown": list(passed.unknown), "machine": machine_facts()}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1)
    atomic_replace(file, lambda partial: partial.write_text(text, encoding="utf-8"))
