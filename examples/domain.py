"""Bring a nano from a labelled domain to another one of which there are only images, and back.

python examples/domain.py TEACHER.pt STUDENT.pt SOURCE.yaml TARGET.yaml [epochs] [imgsz]

For example COCO weights, coco.yaml and aquarium.yaml. The training images of the target lose their labels; its
validation images only judge. A class counts where source and target share its name (class_map= for the teacher's).
"""

import sys
from pathlib import Path

import yaml

import yolokd
from yolokd.compat.dataset import check_data


def adapt(teacher: str, student: str, source: str, target: str, how: dict) -> None:
    there, here = check_data(source, "train", "val"), check_data(target, "train", "val")
    listed = Path(f"{Path(target).stem}-images.txt").resolve()
    images = [str(f) for part in [here["train"]] for f in sorted(Path(part).rglob("*.*"))]
    listed.write_text("\n".join(images))
    data = Path(f"{Path(source).stem}.yaml").resolve()
    data.write_text(yaml.safe_dump({k: there[k] for k in ("names", "train", "val")}))
    arms = {"before": {"losses": "none"}, "adapted": {"teacher": teacher, "unlabelled": str(listed), "domain": "adapt"}}
    for name, keys in arms.items():
        run = yolokd.distill(student, data=data, **keys, **how)
        print(f"{Path(source).stem} to {Path(target).stem}, {name}:")
        print(yolokd.evaluate(run.best, target, imgsz=how["imgsz"]))


def main(teacher: str, student: str, source: str, target: str, epochs: str = "50", imgsz: str = "640") -> None:
    how = {"epochs": int(epochs), "imgsz": int(imgsz)}
    adapt(teacher, student, source, target, how)
    adapt(teacher, student, target, source, how)


if __name__ == "__main__":
    main(*sys.argv[1:])
