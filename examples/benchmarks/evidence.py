"""The project's own evidence, from scratch: a teacher fine-tuned on the data, then plain / native / yolokd / replay.

python examples/benchmarks/evidence.py DATA.yaml TEACHER.pt STUDENT FOLDER seeds=5 epochs=20 imgsz=256 teacher_epochs=30

Killed at any moment, the same command goes on. FOLDER then holds the comparison with its report; runs.csv (a row a run,
judged on the test split), compare.yaml (date, hardware, versions, hashes) and report.md, files named without their
places, are small enough to be kept in results/. arms= leaves some out. A teacher.pt in FOLDER is taken as it is.
Ultralytics writes a label cache beside the labels: copy a data set first. STUDENT may be a YAML: random weights.
"""

import csv
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from ultralytics import YOLO

import yolokd

ARMS = "plain,native,yolokd,replay"
KEPT = ("compare.yaml", "report.md")
PLACES = re.compile(r"(?<![\w.<])/(?:[\w.+ -]+/)+(?=[\w.+-])")  # up to the last part of a path
TEACHER = {"batch": 16, "seed": 0, "plots": False, "exist_ok": True}


def fine_tuned(teacher: str, data: str, folder: Path, epochs: int, imgsz: int) -> Path:
    """The teacher after training on the data; where that was cut off it begins again."""
    file = folder / "teacher.pt"
    if not file.is_file():
        place = {"project": str(folder), "name": "fine-tuning"}
        YOLO(teacher).train(data=data, epochs=epochs, imgsz=imgsz, **TEACHER, **place)
        shutil.copy(folder / "fine-tuning/weights/best.pt", folder / "teacher.partial")
        (folder / "teacher.partial").replace(file)
    return file


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a run: AP on the test split of best.pt, by size, and of last.pt; seconds of training."""
    columns = {"ap": "ap", "ap50": "ap50", "small": "small", "medium": "medium", "large": "large", "last_ap": "last_ap"}
    columns |= {"seconds": "train_seconds"}
    found = []
    for arm in report["arms"]:
        for i, seed in enumerate(arm["seeds_done"]):
            values = {column: arm[key]["values"][i] for column, key in columns.items()}
            found.append(
                {"arm": arm["name"], "seed": seed, **{c: v if v is None else f"{v:.4f}" for c, v in values.items()}}
            )
    return found


def main(data: str, teacher: str, student: str, place: str, *options: str) -> None:
    folder = Path(place).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    asked: dict[str, Any] = {"seeds": 5, "epochs": 20, "imgsz": 256, "batch": 16, "teacher_epochs": 30}
    asked |= {key: yaml.safe_load(value) for key, value in (option.split("=", 1) for option in options)}
    tuned = fine_tuned(teacher, data, folder, asked.pop("teacher_epochs"), asked["imgsz"])
    replay = folder / "replay.yaml"
    replay.write_text(yaml.safe_dump({"losses": "cls,box", "teacher_cache": str(folder / "answers")}))
    arms = ",".join(str(replay) if arm == "replay" else arm for arm in str(asked.pop("arms", ARMS)).split(","))
    done = yolokd.compare(student, tuned, data, arms=arms, project=str(folder), name="comparison", **asked)
    print(done)
    table = rows(dict(done.report))
    with (folder / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    for name in KEPT:
        text = (done.folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(PLACES.sub("", text), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
