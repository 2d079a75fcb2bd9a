"""Time whole training steps, plain / Ultralytics' distill_model / yolokd, interleaved in one process.

python examples/benchmarks/step_time.py teacher=yolo11x.yaml student=yolo11n.yaml imgsz=320 batch=8 rounds=15
A YAML gets random weights: speed and memory do not depend on them. Threads: OMP_NUM_THREADS, or threads=2.
every=4 adds an arm, `seldom`, in which the teacher is asked in every fourth step (teacher_every=).
losses=cls,box,pkd times other losses than the default ones; what each costs by itself tells loss_cost.py.
data=DATA.yaml adds two arms that also read and augment their images: `loaded`, a plain step, and `replay`, one under
the answers that the teacher has stored (teacher_cache=). Give a teacher with weights then (a random one sees nothing,
and nothing is replayed) and a student that knows the same class names, a .pt file. Ultralytics writes a label cache
beside the labels. workers=8 reads images as it does on a GPU.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace

from yolokd.balance import Balance
from yolokd.classes import ClassMap
from yolokd.compat.checkpoint import head_info
from yolokd.criterion import DistillationCriterion
from yolokd.levels import match_levels
from yolokd.losses.base import DEFAULT_LOSSES, LOSSES, build_losses
from yolokd.predictions import Pair
from yolokd.schedule import Schedule
from yolokd.taps import StudentTaps, entry_depth
from yolokd.teachers.live import LiveTeacher
from yolokd.teachers.panel import Panel
from yolokd.teachers.view import View
from yolokd.trainer import DistillationTrainer

Step = Callable[[], object]
EVERY = "seldom"  # the arm of which one call is as many steps as every= says


def made_up_batch(imgsz: int, batch: int, device: torch.device, objects: int = 8) -> dict[str, torch.Tensor]:
    """As many boxes an image as COCO has on average, with a fixed seed."""
    g = torch.Generator().manual_seed(0)
    n = batch * objects
    size = torch.rand(n, 2, generator=g) * 0.4 + 0.05
    centre = size / 2 + torch.rand(n, 2, generator=g) * (1 - size)
    made = {"img": torch.rand(batch, 3, imgsz, imgsz, generator=g), "bboxes": torch.cat([centre, size], 1)}
    made |= {"cls": torch.randint(80, (n, 1), generator=g).float()}
    made |= {"batch_idx": torch.arange(n, dtype=torch.float32) // objects}
    return {k: v.to(device) for k, v in made.items()}


def step_of(model: nn.Module, extra: list[nn.Parameter], batch: dict[str, torch.Tensor], amp: bool) -> Step:
    """Forward, losses, backward, clipping and optimizer, as Ultralytics' loop takes them."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained + extra, lr=1e-5)

    def step() -> None:
        with torch.autocast(batch["img"].device.type, enabled=amp):
            loss = model(batch)[0].sum()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 10.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def student_of(path: str, imgsz: int, device: torch.device) -> nn.Module:
    """A student in training mode with its own criterion."""
    model = load_checkpoint(path)[0].to(device).requires_grad_(True).train()
    model.args = IterableSimpleNamespace(**{**DEFAULT_CFG_DICT, "imgsz": imgsz})
    model.criterion = model.init_criterion()
    return model


def teacher_of(path: str, device: torch.device, precision: str) -> LiveTeacher:
    """The teacher in the precision that a training run would give it."""
    live = LiveTeacher(load_checkpoint(path)[0], device, precision, path)
    if precision == "auto" and device.type == "cuda":
        live.to_precision(torch.float16)
    return live


def losses_of(names: Mapping[str, float], student: nn.Module, live: LiveTeacher, device: torch.device) -> nn.ModuleDict:
    """The losses of a pair; the teacher lends its head where one of them needs it."""
    losses = build_losses(names, {}, Pair(head_info(student), live.info), 0).to(device)
    live.open((), entry_depth(losses))
    return losses


def criterion_of(
    student: nn.Module, live: LiveTeacher, losses: nn.ModuleDict, depth: int | None, every: int = 1
) -> DistillationCriterion:
    """The criterion as the trainer builds it, without the steps in which gradients are measured."""
    gains, info = {name: LOSSES[name].gain for name in losses}, head_info(student)
    classes = ClassMap.by_name(live.info.names, student.names)
    return DistillationCriterion(
        student.criterion,
        Panel([View(live, info, classes, match_levels(info, live.info))]),
        losses,
        info.strides,
        Schedule("constant", 1e9, 0),
        Balance(None, gains),
        taps=StudentTaps(student, (), depth),
        watch=False,
        every=every,
    )


def arms(
    teacher: str, student: str, batch: dict[str, torch.Tensor], precision: str, names: Mapping[str, float], every: int
) -> dict[str, Step]:
    """One step function an arm, and the bare forward pass of the fused teacher."""
    device, amp, imgsz = batch["img"].device, batch["img"].is_cuda, batch["img"].shape[-1]
    native = DistillationModel(teacher_model=teacher, student_model=student_of(student, imgsz, device)).train()
    ours = student_of(student, imgsz, device)
    live = teacher_of(teacher, device, precision)
    losses = losses_of(names, ours, live, device)
    ours.criterion = criterion_of(ours, live, losses, entry_depth(losses))
    print(f"teacher in {live.dtype}, losses {dict(names)}", flush=True)
    step = step_of(ours, list(losses.parameters()), batch, amp)

    def watched() -> None:
        """A step in which the gradients are measured, as in the first two (balance=: four) of an epoch."""
        ours.criterion.balance.begin_epoch()
        ours.criterion.watch = True
        step()
        ours.criterion.watch = False

    seldom = student_of(student, imgsz, device)
    seldom.criterion = criterion_of(seldom, live, losses, entry_depth(losses), every)
    rare = step_of(seldom, list(losses.parameters()), batch, amp)
    return {
        "plain": step_of(student_of(student, imgsz, device), [], batch, amp),
        "native": step_of(native, [], batch, amp),
        "yolokd": step,
        "watched": watched,
        "teacher": lambda: live.forward(batch["img"]),
    } | ({EVERY: lambda: [rare() for _ in range(every)]} if every > 1 else {})


def replayed_losses(names: Mapping[str, float]) -> dict[str, float]:
    """Those that are content with boxes and scores, which is what a cache holds."""
    return {name: gain for name, gain in names.items() if LOSSES[name].needs <= {"scores", "boxes", "truth"}}


def loading_step(trainer: DetectionTrainer) -> Step:
    """A step of Ultralytics' own loop, from the loader to the optimizer, without an end."""
    trainer._setup_train()
    trainer.model.train()
    if isinstance(trainer, DistillationTrainer):
        trainer.criterion.begin_epoch(0, len(trainer.train_loader), trainer._schedule())
        trainer.criterion.watch = False

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield from trainer.train_loader

    endless = batches()

    def step() -> None:
        with torch.autocast(trainer.device.type, enabled=bool(trainer.amp)):
            loss = trainer.model(trainer.preprocess_batch(next(endless)))[0].sum()
        trainer.scaler.scale(loss).backward()
        trainer.optimizer_step()

    return step


def loading_arms(
    teacher: str, student: str, asked: Mapping[str, str], names: Mapping[str, float], folder: str
) -> dict[str, Step]:
    """Steps that read and augment images of ``data=``: a plain one, and one under stored answers."""
    shared = {key: int(asked[key]) for key in ("imgsz", "batch", "workers")}
    shared |= {"model": student, "data": asked["data"], "device": asked["device"], "project": folder, "mode": "train"}
    shared |= {"plots": False, "val": False, "optimizer": "AdamW", "lr0": 1e-5, "warmup_epochs": 0, "epochs": 1000}
    under = {"teacher": teacher, "teacher_cache": str(Path(folder) / "cache"), "losses": replayed_losses(names)}
    plain, ours = DetectionTrainer(overrides=dict(shared)), DistillationTrainer(overrides={**shared, **under})
    plain.args.workers = ours.args.workers = shared["workers"]  # Ultralytics sets it to 0 on a CPU
    steps = {"loaded": loading_step(plain), "replay": loading_step(ours)}
    cache = ours.panel.views[0].teacher.cache
    each, disk = len(cache) / 2 / len(cache.index), cache.file.stat().st_size / len(cache.index)
    print(f"replay: {each:.1f} detections and {disk:.0f} bytes an image, losses {under['losses']}", flush=True)
    return steps


def measure(
    steps: Mapping[str, Step], rounds: int, device: torch.device, every: int = 1
) -> dict[str, dict[str, float]]:
    """Seconds a step; the arms take turns, so that what else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    peak: dict[str, float] = {}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
                peak[name] = torch.cuda.max_memory_allocated() / 2**30
            if turn >= 2:  # two rounds to warm up
                times[name].append((time.perf_counter() - start) / (every if name == EVERY else 1))
    return {
        name: {"median": statistics.median(t), "min": min(t), "max": max(t)}
        | ({"peak_gib": peak[name]} if name in peak else {})
        for name, t in times.items()
    }


def report(found: dict[str, dict[str, float]], device: torch.device) -> None:
    for name, row in found.items():
        peak = f"  peak {row['peak_gib']:.2f} GiB" if "peak_gib" in row else ""
        print(f"{name:8} {row['median']:.3f} s  ({row['min']:.3f} to {row['max']:.3f}){peak}")
    plain, native, ours, teacher = (found[n]["median"] for n in ("plain", "native", "yolokd", "teacher"))
    print(f"native/yolokd {native / ours:.2f}   yolokd/(plain + teacher) {ours / (plain + teacher):.2f}")
    print(f"native/plain {native / plain:.2f}   yolokd/plain {ours / plain:.2f}")
    print(f"watched/yolokd {found['watched']['median'] / ours:.2f}")
    if EVERY in found:
        print(f"{EVERY}/plain {found[EVERY]['median'] / plain:.2f}")
    if "replay" in found:
        print(f"native/(yolokd by replay) {native / found['replay']['median']:.2f}   (loading included here only)")
        print(f"replay/loaded {found['replay']['median'] / found['loaded']['median']:.2f}   (at most 1.05)")
    if device.type == "cpu":  # one process, so one number for all arms
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak resident memory of the process {resident:.2f} GiB")


def settings(*options: str) -> dict[str, str]:
    """What was asked for, with the defaults."""
    asked = {"teacher": "yolo11x.yaml", "student": "yolo11n.yaml", "imgsz": "320", "batch": "8", "rounds": "15"}
    asked |= {"device": "cuda" if torch.cuda.is_available() else "cpu", "precision": "auto", "threads": "", "out": ""}
    asked |= {"data": "", "workers": "0", "every": "1"}
    asked |= dict(option.split("=", 1) for option in options)
    if asked["threads"]:
        torch.set_num_threads(int(asked["threads"]))
    return asked | {"threads": str(torch.get_num_threads()), "torch": str(torch.__version__)}


@contextmanager
def checkpoints(asked: Mapping[str, str]) -> Iterator[list[str]]:
    """Checkpoints of teacher and student; those of a YAML last as long as the context."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for role in ("teacher", "student"):
            files.append(asked[role])
            if asked[role].endswith(".yaml"):
                files[-1] = str(Path(folder) / f"{role}.pt")
                YOLO(asked[role]).save(files[-1])
        yield files


def write(asked: Mapping[str, str], found: Mapping[str, Mapping[str, float]]) -> None:
    """The JSON of ``out=``."""
    if asked["out"]:
        kept = {key: value for key, value in asked.items() if key != "out"}
        Path(asked["out"]).write_text(json.dumps({"settings": kept, "seconds": found}, indent=1) + "\n")


def main(*options: str) -> None:
    asked = settings("losses=" + ",".join(DEFAULT_LOSSES), *options)
    names = {name: LOSSES[name].gain for name in asked["losses"].split(",")}
    device = torch.device(asked["device"])
    with checkpoints(asked) as (teacher, student), tempfile.TemporaryDirectory() as folder:
        batch = made_up_batch(int(asked["imgsz"]), int(asked["batch"]), device)
        steps = arms(teacher, student, batch, asked["precision"], names, int(asked["every"]))
        if asked["data"]:
            steps |= loading_arms(teacher, student, asked, names, folder)
        found = measure(steps, int(asked["rounds"]), device, int(asked["every"]))
    print(yaml.safe_dump(asked, sort_keys=False))
    report(found, device)
    write(asked, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
