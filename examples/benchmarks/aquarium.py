"""Plain, native and yolokd on one data set, same data, seeds and epochs; a CSV row a run, continued where it stopped.

python examples/benchmarks/aquarium.py DATA.yaml TEACHER.pt STUDENT.pt out.csv arms=plain,native,yolokd seeds=0,1
"""

import csv
import sys
import time
from pathlib import Path

import yaml
from ultralytics import YOLO

from yolokd.trainer import DistillationTrainer

# name of an arm -> keys for DistillationTrainer; None is Ultralytics' own trainer
ARMS = {
    "plain": None,
    "native": None,
    "yolokd": {},  # the default recipe; it is what strong-cwd3 says since that was chosen
    "response-strong": {"losses": {"cls": 3, "box": 5}},
    "strong": {"losses": {"cls": 3, "box": 5, "cwd": 1}},
    "strong-cosine": {"losses": {"cls": 3, "box": 5, "cwd": 1}, "schedule": "cosine"},
    "strong-cwd3": {"losses": {"cls": 3, "box": 5, "cwd": 3}},
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


def main(data: str, teacher: str, student: str, out: str, *options: str) -> None:
    asked = {"arms": "plain,native,yolokd", "seeds": "0,1", "epochs": "20", "imgsz": "256"}
    asked |= dict(option.split("=", 1) for option in options)
    table, epochs, imgsz = Path(out), int(asked["epochs"]), int(asked["imgsz"])
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    done = {(row["arm"], row["seed"]) for row in rows}
    for seed in asked["seeds"].split(","):
        for arm in (arm for arm in asked["arms"].split(",") if (arm, seed) not in done):
            keys = {"epochs": epochs, "imgsz": imgsz, "batch": 16, "seed": int(seed), "val": False, "plots": False}
            keys |= {"project": str(table.parent.resolve() / "runs"), "name": f"{arm}-{seed}", "exist_ok": True}
            keys |= {"native": {"distill_model": teacher}}.get(arm, {})
            keys |= {} if ARMS[arm] is None else {"trainer": DistillationTrainer, "teacher": teacher, **ARMS[arm]}
            start = time.time()
            YOLO(student).train(data=data, **keys)
            row = {"arm": arm, "seed": seed, "seconds": round(time.time() - start), "epochs": epochs, "imgsz": imgsz}
            row |= judge(Path(keys["project"]) / keys["name"] / "weights" / "last.pt", data, imgsz)
            new = not table.exists()
            with table.open("a", newline="") as file:
                writer = csv.DictWriter(file, row)
                writer.writerows([{k: k for k in row}] if new else [])
                writer.writerow(row)


if __name__ == "__main__":
    main(*sys.argv[1:])
