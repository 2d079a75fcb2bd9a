"""Kill runs with SIGKILL at many moments, resume each, and look whether it ends as if nothing had happened.

python examples/benchmarks/kill_test.py kills=20 seed=0 out=examples/benchmarks/results/kill_test.csv

Some kills come at a random time. The others come at a chosen one: either the run kills itself right before a chosen
file operation (Python's audit hooks see every open and every rename, so the moment is exact and the program under test
is unchanged), or it is watched from outside until its files or its output show the moment. Some resumed runs are
killed again. Works on a data set that it makes, with a teacher of random weights, in a temporary folder. Exits with 1
where a run did not end whole.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

EPOCHS = 4
# Pattern for "source target" of a rename or for the path of an open; how often it passes before it kills.
HOOK = """
import fnmatch, os, runpy, signal, sys
event, pattern, passes = sys.argv[1], sys.argv[2], int(sys.argv[3])
del sys.argv[1:4]
def hook(name, args):
    global passes
    if name == event and fnmatch.fnmatch(" ".join(map(str, args[: 2 if event == "os.rename" else 1])), pattern):
        passes -= 1
        if passes < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
sys.argv[0] = "yolokd"
runpy.run_module("yolokd", run_name="__main__")
"""


@dataclass(frozen=True)
class Moment:
    """When to kill: before a file operation, when ``seen`` says so, or at a share of the run's CPU time (``share``).

    CPU time, not time on the clock, so that a busy machine does not move every kill towards the beginning.
    """

    name: str
    hook: tuple[str, str, int] | None = None
    seen: Callable[[Path, str], bool] | None = None
    share: float | None = None


def _begun(pattern: str) -> Callable[[Path, str], bool]:
    """A file of this pattern is there and partly written."""
    return lambda run, log: any(file.stat().st_size for file in run.glob(pattern))


MOMENTS = [
    Moment("distill.pt written, last.pt not", ("os.rename", "*/.complete", 2)),
    Moment("between best.pt and last.pt", ("os.rename", "*/weights/last.pt", 2)),
    Moment("last.pt stripped, best.pt not", ("os.rename", "*/.best.pt.*", 0)),
    Moment("before args.yaml", ("open", "*/args.yaml", 0)),
    Moment("validating best.pt", seen=lambda run, log: "Validating " in log),
    Moment("first last.pt complete, not in place", ("os.rename", "*/weights/last.pt", 0)),
    Moment("last row written, last.pt not", ("os.rename", "*/.distill.pt.*", EPOCHS - 1)),
    Moment("run folder appears", seen=lambda run, log: run.exists()),
    Moment("trained, nothing stripped", ("os.rename", "*/.last.pt.*", 0)),
    Moment("first row written, no distill.pt", ("os.rename", "*/.distill.pt.*", 0)),
    Moment("distill.pt half written", seen=_begun("weights/.distill.pt.*")),
    Moment("checkpoints half written", seen=_begun("weights/.partial/*.pt")),
    Moment("run folder about to appear", ("os.rename", "*/.run.partial */run", 0)),
]


def make_inputs(folder: Path) -> None:
    """8 + 4 images of coloured rectangles, and a teacher with random weights whose classes have the same names."""
    import cv2
    import numpy as np
    from ultralytics import YOLO

    rng = np.random.default_rng(0)
    for split, count in {"train": 8, "val": 4}.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            image, lines = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8), []
            for label in rng.integers(0, 3, 3):
                (w, h), (x, y) = rng.integers(12, 30, 2), rng.integers(0, 34, 2)
                image[y : y + h, x : x + w, label] = 230
                lines.append(f"{label} {(x + w / 2) / 64} {(y + h / 2) / 64} {w / 64} {h / 64}")
            cv2.imwrite(str(folder / "images" / split / f"{i}.png"), image)
            (folder / "labels" / split / f"{i}.txt").write_text("\n".join(lines))
    # A model built from a YAML calls its classes "0", "1", ...
    names = "".join(f"  {i}: '{i}'\n" for i in range(3))
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    YOLO("yolov8n.yaml").save(folder / "teacher.pt")


class Killer:
    """Starts `yolokd train` as a process group of its own and kills it at a moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "True", "YOLO_AUTOINSTALL": "false"}
        self.env |= {"YOLO_CONFIG_DIR": str(folder / "settings"), "MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1"}
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        self.env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # also where yolokd is not installed
        self.before, self.whole = 0.0, 0.0  # CPU seconds until the run folder appears, and until the end

    def command(self, run: Path) -> list[str]:
        """The original command: a tiny run, four steps an epoch, every checkpoint that Ultralytics can write."""
        keys = {"teacher": self.folder / "teacher.pt", "student": "yolo11n.yaml", "data": self.folder / "data.yaml"}
        keys |= {"epochs": EPOCHS, "imgsz": 64, "batch": 2, "nbs": 2, "save_period": 1, "plots": False, "device": "cpu"}
        return ["train", *(f"{k}={v}" for k, v in keys.items()), f"project={run.parent}", f"name={run.name}"]

    def start(self, words: list[str], run: Path, moment: Moment | None = None) -> tuple[int, str, float]:
        """Run until the end or the moment; exit code (negative: the signal), what it printed, CPU seconds."""
        hook = moment.hook if moment else None
        start = ["-c", HOOK, *map(str, hook)] if hook else ["-m", "yolokd"]
        log, used = self.folder / "log.txt", 0.0
        with log.open("w") as out:
            streams = {"stdout": out, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
            process = subprocess.Popen(
                [sys.executable, *start, *words], env=self.env, cwd=self.folder, start_new_session=True, **streams
            )
            while process.poll() is None:
                used = cpu_seconds(process.pid) or used
                if not self.before and run.exists():
                    self.before = used
                if moment and self._is_now(moment, run, log, used):
                    os.killpg(process.pid, signal.SIGKILL)
                time.sleep(0.0005)
        return process.returncode, log.read_text(errors="replace"), used

    def _is_now(self, moment: Moment, run: Path, log: Path, used: float) -> bool:
        if moment.share is not None:
            return used >= moment.share * self.whole
        try:
            return moment.seen is not None and moment.seen(run, log.read_text(errors="replace"))
        except FileNotFoundError:  # renamed while we looked
            return False


def cpu_seconds(pid: int) -> float:
    """What a process has used so far; 0 where it has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def epoch_of(last: Path) -> str:
    """The epochs that a last.pt has seen; ``-`` where there is none, ``end`` where it is stripped."""
    import torch

    if not last.is_file():
        return "-"
    epoch = torch.load(last, map_location="cpu", weights_only=False)["epoch"]
    return "end" if epoch < 0 else str(epoch + 1)


def faults(run: Path) -> list[str]:
    """What is not as an undisturbed run would have left it."""
    import torch
    from ultralytics import YOLO

    found = []
    with (run / "results.csv").open() as file:
        epochs = [row["epoch"].strip() for row in csv.DictReader(file)]
    if epochs != [str(i + 1) for i in range(EPOCHS)]:
        found.append(f"results.csv has epochs {epochs}")
    for file in ("best.pt", "last.pt"):
        checkpoint = YOLO(run / "weights" / file).ckpt
        if checkpoint["optimizer"] is not None or checkpoint["ema"] is not None or checkpoint["epoch"] != -1:
            found.append(f"{file} is not stripped")
        if len(checkpoint["train_results"]["epoch"]) != EPOCHS:
            found.append(f"{file} has no full train_results")
    expected = {"best.pt", "last.pt", "distill.pt", *(f"epoch{i}.pt" for i in range(EPOCHS))}
    if (there := {file.name for file in (run / "weights").iterdir()}) != expected:
        found.append(f"weights: {sorted(there ^ expected)}")
    if hidden := [file.name for file in run.parent.rglob(".*")]:
        found.append(f"left over: {hidden}")
    records = torch.load(run / "weights" / "distill.pt", weights_only=True)["records"]
    if max(records) != EPOCHS - 1:
        found.append(f"distill.pt ends with epoch {max(records) + 1}")
    return found


def one_kill(killer: Killer, run: Path, moment: Moment, again: Moment | None) -> dict[str, object]:
    """Kill a run, resume it until it ends, and judge it."""
    words, problems, resumes = killer.command(run), [], 0
    code, log, seconds = killer.start(words, run, moment)
    while code == 0 and moment.share:  # it was faster than the undisturbed run
        shutil.rmtree(run)
        moment = replace(moment, share=0.9 * moment.share)
        code, log, seconds = killer.start(words, run, moment)
    if code != -signal.SIGKILL:
        problems.append(f"not killed, exit code {code}: {log[-300:]}")
    last = run / "weights" / "last.pt"
    files = sorted(file.name for file in [*run.glob("*"), *run.glob("weights/*")] if file.name != "weights")
    row = {"moment": moment.name, "cpu_seconds": round(seconds, 1), "epochs_in_last": epoch_of(last)}
    row |= {"files": " ".join(files) or "-", "killed_again": "-"}
    while code != 0 and resumes < 5:
        done, complete = epoch_of(last), (last.parent / ".complete" / "last.pt").exists()
        code, log, _ = killer.start(["train", f"resume={last}"] if run.exists() else words, run, again)
        if again and code == -signal.SIGKILL:  # what only the final evaluation was left of may end before
            row["killed_again"] = again.name
        resumes, again = resumes + 1, None
        expected = EPOCHS if done == "end" else int(done.replace("-", "0")) + complete
        if (
            code == 0
            and 0 < expected < EPOCHS
            and f"Distillation restored from distill.pt, epoch {expected}." not in log
        ):
            problems.append(f"no adapters of epoch {expected} restored")
        if code not in (0, -signal.SIGKILL):
            problems.append(f"resume ended with {code}: {log[-300:]}")
            break
    problems += faults(run) if code == 0 else []
    return {**row, "resumes": resumes, "ok": not problems, "problems": "; ".join(problems)}


def plan(kills: int, seed: int, before: float) -> list[tuple[Moment, Moment | None]]:
    """Two thirds chosen moments, one third random ones spread over the run; every third run is killed once more."""
    rng = random.Random(seed)
    timed = kills // 3
    # A quarter of the random ones comes before the run folder appears, which takes most of a tiny run's time.
    early = timed // 4
    shares = [before * (i + rng.random()) / early for i in range(early)]
    late = timed - early
    shares += [before + (0.97 - before) * (i + rng.random()) / late for i in range(late)]
    moments = [MOMENTS[i % len(MOMENTS)] for i in range(kills - timed)]
    moments += [Moment(f"at {share:.0%} of the time", share=share) for share in shares]
    second = [rng.uniform(0.15, 0.5) for _ in moments]
    return [
        (moment, Moment(f"at {share:.0%}", share=share) if i % 3 == 1 else None)
        for i, (moment, share) in enumerate(zip(moments, second, strict=True))
    ]


def main(*options: str) -> int:
    asked = {"kills": "20", "seed": "0", "out": str(Path(__file__).parent / "results" / "kill_test.csv")}
    asked |= dict(option.split("=", 1) for option in options)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="kill-test-") as name:
        killer = Killer(Path(name).resolve())
        make_inputs(killer.folder)
        calm = killer.folder / "runs-calm" / "run"
        killer.start(killer.command(calm), calm)  # once for the label caches and the settings, once to measure
        killer.before = 0.0
        calm = calm.with_name("run2")
        code, log, killer.whole = killer.start(killer.command(calm), calm)
        if code != 0 or faults(calm):
            print(f"the undisturbed run failed: {faults(calm) if code == 0 else log}")
            return 1
        share = killer.before / killer.whole
        print(
            f"undisturbed: {killer.whole:.1f} s of CPU time, its folder appears after {killer.before:.1f} s", flush=True
        )
        for i, (moment, again) in enumerate(plan(int(asked["kills"]), int(asked["seed"]), share)):
            rows.append({"kill": i + 1, **one_kill(killer, killer.folder / f"runs{i}" / "run", moment, again)})
            print(*(f"{key}={value}" for key, value in rows[-1].items()), sep="  ", flush=True)
    with Path(asked["out"]).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    whole = sum(bool(row["ok"]) for row in rows)
    print(f"{whole} of {len(rows)} ended with the full results.csv, no row twice, whole checkpoints")
    return 0 if whole == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
