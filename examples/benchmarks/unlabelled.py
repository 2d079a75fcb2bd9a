"""Few labels, many images: what unlabelled= gives over training on the labels that there are. A CSV row a run.

python examples/benchmarks/unlabelled.py DATA.yaml TEACHER.pt STUDENT FOLDER tuned=TEACHER_OF_ALL.pt shares=10,25

Of the training images a share keeps its labels (drawn evenly over the classes, the same for every arm and seed), the
others lose theirs. TEACHER.pt is fine-tuned on that share (case `share`, the honest one), and once on all labels (case
`all`, the upper one; tuned= names one that is there already). teacher_imgsz=416 shows it larger images than the
student's; give such arms names of their own. Every arm takes the same number of optimiser steps:

    plain     the labelled share, repeated until it is as long as the whole training split
    frozen    the same with the backbone frozen, a usual schedule for few labels
    pseudo    plain training on the share and on the teacher's boxes of the other images, made once (precision=.9)
    native    Ultralytics' distill_model= on the share, repeated
    yolokd    the share and unlabelled=; keys=losses=cls,pseudo_precision=.8 and a name of its own try others

Judged on test by best.pt and by last.pt, and by last.pt on val and test together (more images; no image of them was
trained on, but val chose the thresholds of the pseudo-boxes). FOLDER/runs.csv goes on where it was cut off, and several
processes may work on one FOLDER.
"""

import math
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml
from losses import claimed
from table import append, has
from ultralytics import YOLO

import yolokd
from yolokd.calibrating import thresholds
from yolokd.compat.dataset import check_data, image_files
from yolokd.compat.labels import classes_in, label_texts
from yolokd.compat.validation import hits, validate

ASKED: dict[str, Any] = {"shares": "10,25", "cases": "all,share", "arms": "plain,pseudo,native,yolokd", "seeds": 3}
ASKED |= {"epochs": 20, "imgsz": 256, "batch": 16, "teacher_epochs": 15, "tuned": "", "precision": 0.9, "keys": ""}
ASKED |= {"teacher_imgsz": 0}
TEACHERLESS = ("plain", "frozen")


def kept(files: list[str], share: int) -> list[str]:
    """So many percent of the images, as evenly over the classes as a draw can be; the same ones each time."""
    classes = [classes_in(text) for text in label_texts(files)]
    images = Counter(label for found in classes for label in found)
    order = list(range(len(files)))
    random.Random(0).shuffle(order)
    order.sort(key=lambda i: min(((images[c], c) for c in classes[i]), default=(len(files) + 1, -1)))
    every = round(100 / share)
    return sorted(files[i] for i in order[every // 2 :: every])


def lay_out(data: str, share: int, folder: Path) -> None:
    """Copies of the images: those that keep their labels, and the others without."""
    if (folder / "repeated.yaml").is_file():
        return
    checked = check_data(data, "train", "val")
    files = image_files(checked, "train")
    mine = kept(files, share)
    for part, some in (("labelled", mine), ("unlabelled", sorted(set(files) - set(mine)))):
        (folder / part / "images").mkdir(parents=True, exist_ok=True)
        for file in some:
            shutil.copy(file, folder / part / "images")
    (folder / "labelled/labels").mkdir(exist_ok=True)
    for file, text in zip(mine, label_texts(mine), strict=True):
        (folder / "labelled/labels" / f"{Path(file).stem}.txt").write_text(text)
    here = [str((folder / "labelled/images" / Path(file).name).resolve()) for file in mine]
    repeated = (here * math.ceil(len(files) / len(here)))[: len(files)]
    write_yaml(checked, folder, "labelled", "labelled/images")
    (folder / "train.txt").write_text("\n".join(repeated) + "\n")
    write_yaml(checked, folder, "repeated", "train.txt")


def write_yaml(checked: dict[str, Any], folder: Path, name: str, train: str | list[str]) -> None:
    parts = {"val": checked["val"], "test": checked["test"], "names": checked["names"]}
    text = yaml.safe_dump({"path": str(folder.resolve()), "train": train, **parts})
    (folder / f"{name}.yaml").write_text(text)


def fine_tuned(teacher: str, data: str, folder: Path, asked: dict[str, Any]) -> Path:
    """The teacher after training on the data."""
    file = folder / f"teacher{asked['teacher_imgsz'] or ''}.pt"
    if not file.is_file():
        how = {"batch": asked["batch"], "seed": 0, "plots": False, "exist_ok": True, "imgsz": teacher_size(asked)}
        how |= {"project": str(folder.resolve()), "name": f"fine-tuning-{file.stem}"}
        YOLO(teacher).train(data=data, epochs=asked["teacher_epochs"], **how)
        shutil.copy(folder / how["name"] / "weights/best.pt", file.with_suffix(".partial"))
        file.with_suffix(".partial").replace(file)
    return file


def teacher_size(asked: dict[str, Any]) -> int:
    return int(asked["teacher_imgsz"] or asked["imgsz"])


def pseudo_boxes(teacher: Path, name: str, data: str, folder: Path, asked: dict[str, Any]) -> Path:
    """The share with its labels and the other images with the teacher's boxes, thresholds as yolokd chooses them."""
    place = folder / name
    if (place / "data.yaml").is_file():
        return place / "data.yaml"
    checked = check_data(data, "train", "val")
    found = validate(teacher, data, split="val", imgsz=teacher_size(asked), conf=0.1, batch=16).images
    columns: tuple[list[Any], ...] = ([], [], [])
    for image in found:
        boxes, labels, truth, objects = map(
            torch.as_tensor, (image.boxes, image.classes, image.true_boxes, image.true_classes)
        )
        order = torch.as_tensor(image.scores).argsort(descending=True)
        right = hits(boxes[order], labels[order], truth, objects)
        for column, part in zip(columns, (torch.as_tensor(image.scores)[order], labels[order], right), strict=True):
            column.append(part)
    sure = thresholds(tuple(map(torch.cat, columns)), len(checked["names"]), asked["precision"])
    print(f"{name}: boxes from {[round(float(t), 2) for t in sure]}", flush=True)
    shutil.copytree(folder / "unlabelled/images", place / "images", dirs_exist_ok=True)
    (place / "labels").mkdir(exist_ok=True)
    how = {"imgsz": teacher_size(asked), "conf": 0.1, "stream": True, "verbose": False}
    for result in YOLO(teacher).predict(place / "images", **how):
        rows = [
            f"{int(c)} " + " ".join(f"{v:.6f}" for v in box)
            for c, p, box in zip(result.boxes.cls, result.boxes.conf, result.boxes.xywhn.tolist(), strict=True)
            if p >= sure[int(c)]
        ]
        (place / "labels" / f"{Path(result.path).stem}.txt").write_text("\n".join(rows))
    write_yaml(checked, place, "data", ["../labelled/images", "images"])
    return place / "data.yaml"


def train(arm: str, case: str, seed: int, teacher: Path | None, folder: Path, files: dict, asked: dict) -> Path:
    """Train one arm with one seed, unless it is done already."""
    name = f"{arm}-{seed}" if teacher is None else f"{arm}-{case}-{seed}"
    weights = folder / "runs" / name / "weights/last.pt"
    if (folder / "runs" / name / "DONE").is_file():
        return weights
    how = {"epochs": asked["epochs"], "imgsz": asked["imgsz"], "batch": asked["batch"], "seed": seed, "plots": False}
    how |= {"project": str((folder / "runs").resolve()), "name": name, "exist_ok": True}
    repeated = str(folder / "repeated.yaml")
    if arm in TEACHERLESS:
        YOLO(files["student"]).train(data=repeated, **how, **({"freeze": 10} if arm == "frozen" else {}))
    elif arm == "native":
        YOLO(files["student"]).train(data=repeated, distill_model=str(teacher), **how)
    elif arm.startswith("pseudo"):  # pseudo7 with precision=.7 stands beside pseudo
        YOLO(files["student"]).train(
            data=str(pseudo_boxes(teacher, f"{arm}-{case}", files["data"], folder, asked)), **how
        )
    else:
        more = dict(word.split("=", 1) for word in asked["keys"].split(";") if word)
        keys = {"unlabelled": str(folder / "unlabelled/images"), "teacher_imgsz": asked["teacher_imgsz"] or None}
        keys |= {k: yaml.safe_load(v) for k, v in more.items()}
        yolokd.distill(files["student"], teacher, data=str(folder / "labelled.yaml"), **keys, **how)
    (folder / "runs" / name / "DONE").touch()
    return weights


def judge(last: Path, data: str, imgsz: int) -> dict[str, float]:
    split = check_data(data, "train", "val", "test")
    both = last.parent / "both.yaml"
    both.write_text(
        yaml.safe_dump({"train": split["train"], "val": [split["val"], split["test"]], "names": split["names"]})
    )
    found = {}
    for name, (weights, file, part) in {
        "test": (last.with_name("best.pt"), data, "test"),
        "test_last": (last, data, "test"),
        "both_last": (last, str(both), "val"),
    }.items():
        box = YOLO(weights).val(data=file, split=part, imgsz=imgsz, plots=False, verbose=False).box
        found |= {f"{name}_map": round(box.map, 4), f"{name}_map50": round(box.map50, 4)}
    return found


def main(data: str, teacher: str, student: str, place: str, *options: str) -> None:
    asked = ASKED | {k: yaml.safe_load(v) for k, v in (option.split("=", 1) for option in options)}
    home, words = Path(place).resolve(), lambda key: str(asked[key]).split(",")
    (home / "claims").mkdir(parents=True, exist_ok=True)
    table, files = home / "runs.csv", {"data": data, "student": student}
    seeds = range(asked["seeds"]) if isinstance(asked["seeds"], int) else [int(seed) for seed in words("seeds")]
    runs = [(int(share), arm, seed) for share in words("shares") for seed in seeds for arm in words("arms")]
    for share, arm, seed in runs:
        folder = home / str(share)
        lay_out(data, share, folder)
        for case in ("-",) if arm in TEACHERLESS else words("cases"):
            key = {"share": str(share), "case": case, "arm": arm, "seed": str(seed)}
            if has(table, key) or not claimed(home / "claims" / "-".join(key.values())):
                continue
            tuned = None
            if case == "all":
                tuned = Path(asked["tuned"]) if asked["tuned"] else fine_tuned(teacher, data, home, asked)
            elif case != "-":
                tuned = fine_tuned(teacher, str(folder / "repeated.yaml"), folder, asked)
            start = time.time()
            last = train(arm, case, seed, tuned, folder, files, asked)
            append(table, key | {"seconds": round(time.time() - start)} | judge(last, data, asked["imgsz"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
