"""Compress an ensemble into one nano: without a teacher, under each of them, then under all together.

python examples/ensemble.py A.pt,B.pt[,C.pt] STUDENT.pt DATA.yaml [epochs] [imgsz]
"""

import sys

import yolokd


def main(teachers: str, student: str, data: str, epochs: str = "100", imgsz: str = "640") -> None:
    keys = {"data": data, "epochs": int(epochs), "imgsz": int(imgsz), "plots": False}
    arms = {"no teacher": {"losses": "none"}}
    arms |= {teacher: {"teacher": teacher} for teacher in [*teachers.split(","), teachers]}
    marks = {}
    for name, more in arms.items():
        marks[name] = yolokd.distill(student, name="ensemble", **keys, **more).metrics["metrics/mAP50-95(B)"]
    for name, mark in marks.items():
        print(f"mAP50-95 {mark:.3f}  {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
