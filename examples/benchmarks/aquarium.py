"""Plain, native and yolokd on one data set, same data, seeds and epochs; a CSV row a run, continued where it stopped.

python examples/benchmarks/aquarium.py DATA.yaml TEACHER.pt STUDENT.pt out.csv arms=plain,native,yolokd seeds=0,1
"""

import sys
import time
from pathlib import Path

import yaml
from table import append, has
from ultralytics import YOLO

from yolokd.trainer import DistillationTrainer

# name of an arm -> keys for DistillationTrainer; None is Ultralytics' own trainer
ARMS = {
    "plain": None,
    "native": None,
    "yolokd": {},  # the default recipe: what even says
    "even": {"losses": {"cls": 0.25, "box": 5, "cwd": 3}},  # each at about .3 of the detection loss's gradient
    "response-strong": {"losses": {"cls": 3, "box": 5}},
    "strong": {"losses": {"cls": 3, "box": 5, "cwd": 1}},
    "strong-cosine": {"losses": {"cls": 3, "box": 5, "cwd": 1}, "schedule": "cosine"},
    "strong-cwd3": {"losses": {"cls": 3, "box": 5, "cwd": 3}},  # the default before
    "strong-cwd10": {"losses": {"cls": 3, "box": 5, "cwd": 10}},
    "mild-cwd10": {"losses": {"cls": 1, "box": 1.5, "cwd": 10}},
}


def judge(weights: Path, data: str, imgsz: int) -> dict[str, float]:
    """mAP on val, on test and on both together; best.pt is last.pt here, so no image has chosen the checkpoint."""
    split = yaml.safe_load(Path(data).read_text())
    both = Path(weights).parent / "both.yaml"
    both.write_text(yaml.safe_dump({**split, "path": str(Path(data).parent), "val": [split["val"], split["test"]]}))
    found = {}
    for name, (file, part) in {"val": (data, "val"), "test": (data, "test"), "both": (both, "val")}.items():
        box = YOLO(weights).val(data=str(file), split=part, imgsz=imgsz, plots=False, verbose=False).box
        found |= {f"{name}_map": round(box.map, 4), f"{name}_map50": round(box.map50, 4)}
    return found


def run(arm: str, keys: dict, seed: str, files: tuple[str, str], out: Path, epochs: int, imgsz: int) -> None:
    """Train one arm with one seed, judge it, and append its row; nothing where the row is there already.

    Args:
        arm: its name in the table.
        keys: for the trainer, beside those that all arms share.
        seed: a number.
        files: data YAML and student.
        out: the CSV.
        epochs: length of the training.
        imgsz: side of the images, pixels.
    """
    data, student = files
    if has(out, {"arm": arm, "seed": seed}):
        return
    shared = {"epochs": epochs, "imgsz": imgsz, "batch": 16, "seed": int(seed), "val": False, "plots": False}
    shared |= {"project": str(out.parent.resolve() / "runs"), "name": f"{arm}-{seed}", "exist_ok": True}
    start = time.time()
    YOLO(student).train(data=data, **shared, **keys)
    row = {"arm": arm, "seed": seed, "seconds": round(time.time() - start), "epochs": epochs, "imgsz": imgsz}
    row |= judge(Path(shared["project"]) / shared["name"] / "weights" / "last.pt", data, imgsz)
    append(out, row)


def keys_of(arm: str, teacher: str) -> dict:
    """What makes a run this arm."""
    if arm == "native":
        return {"distill_model": teacher}
    return {} if ARMS[arm] is None else {"trainer": DistillationTrainer, "teacher": teacher, **ARMS[arm]}


def main(data: str, teacher: str, student: str, out: str, *options: str) -> None:
    asked = {"arms": "plain,native,yolokd", "seeds": "0,1", "epochs": "20", "imgsz": "256"}
    asked |= dict(option.split("=", 1) for option in options)
    for seed in asked["seeds"].split(","):
        for arm in asked["arms"].split(","):
            keys = keys_of(arm, teacher)
            run(arm, keys, seed, (data, student), Path(out), int(asked["epochs"]), int(asked["imgsz"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
