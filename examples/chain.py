"""Distil through a model in between, then by the same teacher directly: was the detour worth its training?

python examples/chain.py TEACHER.pt BETWEEN.pt[,BETWEEN.pt] STUDENT.pt DATA.yaml [epochs] [imgsz]

Killed, it goes on where it was when it is called again.
"""

import sys
from pathlib import Path

import yolokd


def main(teacher: str, between: str, student: str, data: str, epochs: str = "100", imgsz: str = "640") -> None:
    keys = {"teacher": teacher, "student": student, "data": data, "plots": False}
    keys |= {"epochs": int(epochs), "imgsz": int(imgsz)}
    marks = {}
    for name, more in {"direct": {}, "chain": {"via": between}}.items():
        folder = Path("runs/comparison").resolve() / name
        again = {"resume": folder} if folder.exists() else {**keys, **more, "save_dir": str(folder)}
        marks[name] = yolokd.distill(**again).metrics["metrics/mAP50-95(B)"]
    for name, mark in marks.items():
        print(f"{name:<8} mAP50-95 {mark:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
