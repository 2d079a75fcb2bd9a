"""A student with a poorer sensor under a teacher that sees the whole image, against the same student plain.

python examples/benchmarks/sensor.py DATA.yaml TEACHER.pt STUDENT FOLDER view=gray seeds=2 epochs=20 imgsz=256

Both arms train and are judged on the student's view of the images (`student_view=`); the teacher sees the files. Judged
on test by best.pt and by last.pt. FOLDER/sensor.csv goes on where it was cut off, a row a run, and several
processes may work on one FOLDER.
"""

import sys
import time
from pathlib import Path
from typing import Any

import yaml
from losses import claimed
from table import append, has

import yolokd
from yolokd.compat.validation import validate

ASKED: dict[str, Any] = {"view": "gray", "seeds": 2, "epochs": 20, "imgsz": 256, "batch": 16, "arms": "plain,yolokd"}


def run(arm: str, seed: int, files: tuple[str, str, str], home: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Train one arm with one seed and judge it."""
    data, teacher, student = files
    how = {"epochs": asked["epochs"], "imgsz": asked["imgsz"], "batch": asked["batch"], "seed": seed, "plots": False}
    how |= {"project": str(home / "runs"), "name": f"{asked['view']}-{arm}-{seed}", "exist_ok": True}
    start = time.time()
    taught = {"losses": "none"} if arm == "plain" else {"teacher": teacher}
    done = yolokd.distill(student, data=data, student_view=asked["view"], **taught, **how)
    row = {"view": asked["view"], "arm": arm, "seed": seed, "seconds": round(time.time() - start)}
    for name, weights in (("test", done.best), ("test_last", done.last)):
        found = validate(weights, data, split="test", imgsz=asked["imgsz"], student_view=asked["view"])
        row |= {f"{name}_map": round(found.map, 4), f"{name}_map50": round(found.map50, 4)}
    return row


def main(data: str, teacher: str, student: str, place: str, *options: str) -> None:
    asked = ASKED | {k: yaml.safe_load(v) for k, v in (option.split("=", 1) for option in options)}
    home = Path(place).resolve()
    (home / "claims").mkdir(parents=True, exist_ok=True)
    table = home / "sensor.csv"
    for seed in range(asked["seeds"]):
        for arm in asked["arms"].split(","):
            key = {"view": asked["view"], "arm": arm, "seed": str(seed)}
            if not has(table, key) and claimed(home / "claims" / "-".join(key.values())):
                append(table, run(arm, seed, (data, teacher, student), home, asked))


if __name__ == "__main__":
    main(*sys.argv[1:])
