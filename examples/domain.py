"""Bring a nano from a labelled domain to another one of which there are only images, and judge it there.

python examples/domain.py TEACHER.pt STUDENT.pt SOURCE.yaml TARGET.yaml [SOURCE_CLASS:TARGET_CLASS,...] [epochs] [imgsz]

COCO weights to the images of an aquarium, where a penguin is what COCO calls a bird, and back with weights of its own:

python examples/domain.py yolo11x.pt yolo11n.pt coco.yaml aquarium.yaml bird:penguin
python examples/domain.py aquarium_x.pt aquarium_n.pt aquarium.yaml coco.yaml penguin:bird

Beside it stands the same student without the target's images. The labels of the target's validation images only judge,
and its training images are not looked at for any. last.pt is judged: best.pt is the best on the source.
"""

import sys

import yolokd
from yolokd.compat.dataset import check_data


def main(
    teacher: str, student: str, source: str, target: str, same: str = "", epochs: str = "50", imgsz: str = "640"
) -> None:
    names = dict(pair.split(":") for pair in same.split(",") if pair)
    images = check_data(target, "train", "val")["train"]
    arms = {"before": {}, "adapted": {"unlabelled": images, "domain": "adapt"}}
    for arm, keys in arms.items():
        how = {"epochs": int(epochs), "imgsz": int(imgsz), "name": arm}
        run = yolokd.distill(student, teacher, data=source, **keys, **how)
        print(f"{arm}, on the target:")
        print(yolokd.evaluate(run.last, target, class_map=names, imgsz=int(imgsz)))


if __name__ == "__main__":
    main(*sys.argv[1:])
