"""Train the teacher that `yolokd demo` ships: YOLO11s, random weights, 2,000 generated images, an hour on one core.

    python examples/train_demo_teacher.py [FOLDER]     default: runs/demo_teacher; the result is FOLDER/demo_teacher.pt

Its images come from another seed than the demo's, so it has seen none of those that it is judged on.
"""

import sys
from pathlib import Path

import torch
from ultralytics import YOLO
from ultralytics.utils.patches import torch_load

from yolokd.data.shapes import IMAGE_SIZE, generate, write_yaml

SEED, IMAGES = 1, (2000, 200, 200)
PORTABLE = {"imgsz", "epochs", "batch", "optimizer", "lr0", "cos_lr", "flipud", "scale", "close_mosaic", "seed", "task"}


def scrub(source: Path, target: Path) -> None:
    """Keep the weights and what is true on every machine: no folders, no names of files, no history."""
    checkpoint = torch_load(source, map_location="cpu", weights_only=False)  # our own file, written a moment ago
    arguments = {k: v for k, v in checkpoint["train_args"].items() if k in PORTABLE}
    checkpoint["model"].args = arguments
    kept = {k: checkpoint[k] for k in ("date", "version", "license", "docs") if k in checkpoint}
    torch.save({"epoch": -1, "model": checkpoint["model"], "ema": None, "train_args": arguments, **kept}, target)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo_teacher").resolve()
    data = write_yaml(generate(folder / "shapes", images=IMAGES, seed=SEED).with_suffix(".yaml"), folder / "shapes")
    model = YOLO("yolo11s.yaml")
    learning = {"epochs": 30, "batch": 16, "optimizer": "AdamW", "lr0": 0.002, "cos_lr": True}
    learning |= {"flipud": 0.5, "scale": 0.25, "close_mosaic": 6, "cache": True, "workers": 0, "plots": False}
    model.train(data=data, imgsz=IMAGE_SIZE, project=folder, name="run", exist_ok=True, **learning)
    scrub(folder / "run" / "weights" / "best.pt", folder / "demo_teacher.pt")
    result = YOLO(folder / "demo_teacher.pt").val(data=data, split="test", imgsz=IMAGE_SIZE, plots=False, workers=0)
    print(f"mAP50-95 {result.box.map:.4f}, mAP50 {result.box.map50:.4f}: {folder / 'demo_teacher.pt'}")
