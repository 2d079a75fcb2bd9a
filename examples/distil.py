"""Distil a nano under a larger detector, compare it with its teacher, export it.

python examples/distil.py TEACHER.pt STUDENT.pt DATA.yaml [epochs] [imgsz]
"""

import sys

import yolokd
from yolokd.api import export


def main(teacher: str, student: str, data: str, epochs: str = "100", imgsz: str = "640") -> None:
    run = yolokd.distill(student, teacher, data=data, epochs=int(epochs), imgsz=int(imgsz))
    print(yolokd.evaluate(run.best, data, teacher=teacher, imgsz=int(imgsz)))
    table, _ = export(run.best, "onnx", data=data, imgsz=int(imgsz))
    print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
