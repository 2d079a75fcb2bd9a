r"""Time one teacher's forward pass in every way that yolokd can run it, interleaved in one process.

python examples/benchmarks/teacher_time.py teacher=yolo11x.yaml imgsz=320 batch=8 \
    ways=unfused,fp32,bf16,openvino [rounds=7]

`unfused` is the network as it lies in its file, in float32, as distill_model= runs it; `fp32` and `bf16` are fused, in
channels_last and decode nothing; `compiled` is `bf16` under torch.compile; `onnx` and `openvino` are exported first.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from step_time import checkpoints, measure, settings, write
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint

from yolokd.teachers.exported import ExportedTeacher
from yolokd.teachers.live import LiveTeacher

PRECISIONS = {"fp32": "fp32", "bf16": "bf16", "compiled": "bf16"}


def way(name: str, file: str, images: torch.Tensor) -> Callable[[], object]:
    """The forward pass of the teacher, run so."""
    if name == "unfused":
        model = load_checkpoint(file)[0].to(images.device).eval()
        return lambda: torch.no_grad()(model)(images)
    if name in PRECISIONS:
        live = LiveTeacher(load_checkpoint(file)[0], images.device, PRECISIONS[name], name)
        if name == "compiled":
            live.compile()
        return partial(live.forward, images)
    side = images.shape[-1]
    made = YOLO(file).export(format=name, imgsz=side, batch=len(images), verbose=False)
    return partial(ExportedTeacher(made, (side, side), images.device, "auto").forward, images)


def main(*options: str) -> None:
    asked = settings("ways=unfused,fp32,bf16,openvino", *options)
    size, batch, device = int(asked["imgsz"]), int(asked["batch"]), torch.device(asked["device"])
    images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    with checkpoints(asked) as (teacher, _), tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "teacher.pt"  # an export lies beside it
        copy.write_bytes(Path(teacher).read_bytes())
        found = measure(
            {name: way(name, str(copy), images) for name in asked["ways"].split(",")}, int(asked["rounds"]), device
        )
    first = next(iter(found.values()))["median"]
    for name, row in found.items():
        times = first / row["median"]
        print(f"{name:9} {row['median']:.3f} s  ({row['min']:.3f} to {row['max']:.3f})  {times:.2f} times as fast")
    write(asked, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
