"""The main job on real images with real weights, through the command line."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from ultralytics import YOLO

from tests.conftest import save_detector
from yolokd.cli import main

pytestmark = [pytest.mark.e2e, pytest.mark.shared]


@pytest.fixture(scope="module")
def coco8(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since Ultralytics writes a label cache beside the images."""
    copy = tmp_path_factory.mktemp("data") / "coco8"
    shutil.copytree(shared / "data" / "coco8", copy)
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy / "data.yaml"


@pytest.fixture(scope="module")
def run(shared: Path, coco8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("runs")
    words = f"train teacher={shared / 'weights/yolov8m.pt'} student={shared / 'weights/yolo11n_from_int8.pt'}"
    words += f" data={coco8} epochs=2 imgsz=320 batch=4 device=cpu project={project} name=real save_period=1"
    assert main(words.split()) == 0
    return project / "real"


def test_the_run_folder(run: Path) -> None:
    with (run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(rows[1][f"train/kd_{name}_loss"]) > 0 for name in ("cls", "box", "cwd"))
    for name in ("results.png", "args.yaml", "distill.yaml", "train_batch0.jpg"):
        assert (run / name).stat().st_size > 0


def test_both_tools_judge_it(run: Path, shared: Path, coco8: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = shared / "weights/yolov8s.pt"
    assert main(f"val model={run / 'weights/best.pt'} data={coco8} teacher={teacher} imgsz=320 device=cpu".split()) == 0
    said = capsys.readouterr().out
    assert "pycocotools" in said
    assert "Ultralytics" in said
    assert "best.pt" in said
    assert "yolov8s.pt" in said


def test_it_exports(run: Path, coco8: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    assert main(f"export model={run / 'weights/best.pt'} format=onnx data={coco8} imgsz=320".split()) == 0
    assert "onnx" in capsys.readouterr().out
    assert (run / "weights/best.onnx").stat().st_size > 5_000_000


@pytest.mark.parametrize("name", ["best.pt", "epoch0.pt"])
def test_it_loads_and_exports_where_yolokd_is_not_installed(run: Path, name: str, tmp_path: Path) -> None:
    copy = shutil.copy(run / "weights" / name, tmp_path)
    script = (
        "import sys; sys.modules['yolokd'] = None\n"  # an import of it is an ImportError now
        "from ultralytics import YOLO\n"
        f"model = YOLO({str(copy)!r})\n"
        "assert type(model.model).__name__ == 'DetectionModel'\n"
        "print(model.export(format='torchscript', imgsz=64))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*.torchscript"))


def test_yolo11x_as_teacher(coco8: Path, shared: Path, tmp_path: Path) -> None:
    """Random weights: this shows that widths, strides and bins of the largest model fit, not that it teaches."""
    names = yaml.safe_load(coco8.read_text())["names"]
    teacher = save_detector("yolo11x.yaml", tmp_path / "yolo11x.pt", names)
    words = f"train teacher={teacher} student={shared / 'weights/yolo11n_from_int8.pt'} data={coco8} epochs=1 imgsz=96"
    assert main(f"{words} batch=4 device=cpu project={tmp_path} name=x plots=False val=False".split()) == 0
    with (tmp_path / "x" / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["train/kd_cwd_loss"]) > 0


def test_compile(coco8: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled student is the plain one: distillation stands in the criterion, outside the graph."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    # A cache of its own: the common one keeps a torn file where an earlier compilation was killed.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    words = f"train teacher={shared / 'weights/yolov8s.pt'} student={shared / 'weights/yolo11n_from_int8.pt'} "
    words += f"data={coco8} epochs=1 imgsz=64 batch=4 device=cpu compile=True project={tmp_path} name=c plots=False"
    assert main(words.split()) == 0
    saved = YOLO(tmp_path / "c/weights/last.pt")
    assert not any("_orig_mod" in key for key in saved.model.state_dict())
    assert torch.isfinite(next(saved.model.parameters())).all()
