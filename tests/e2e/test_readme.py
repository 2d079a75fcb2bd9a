"""Every command and every Python block of the README runs, shortened by arguments that are appended."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import cv2
import pytest
import yaml

from tests.conftest import NAMES, save_detector
from tests.photos import film, photos
from yolokd.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.S)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.strip().splitlines()]
# What makes a command short; nothing that it says itself is changed but the number of epochs and the image size.
SHORT = {
    "train": ["epochs=2", "imgsz=64", "batch=4", "device=cpu", "plots=False", "exist_ok=True", "kd_close=1"],
    "val": ["imgsz=64", "device=cpu"],
    "export": ["imgsz=64"],
    "checks": ["imgsz=64", "device=cpu"],
    "cache": ["imgsz=64", "device=cpu"],
    "compare": ["seeds=1", "epochs=1", "imgsz=64", "batch=4", "device=cpu", "robustness=off"],
}
IN_CI = {"pip install -e . && yolokd demo", 'pip install -e ".[dev]" && pytest -n auto --dist worksteal'}


@pytest.fixture(scope="module")
def place(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of the names that the README uses; runs/ comes into being there."""
    folder = tmp_path_factory.mktemp("readme")
    save_detector("yolo11s.yaml", folder / "yolo11x.pt", NAMES, seed=1)
    save_detector("yolo11n.yaml", folder / "yolo11n.pt", NAMES, seed=2)
    save_detector("yolo11n.yaml", folder / "yolo11m.pt", NAMES, seed=3)
    shutil.copy(toy_data, folder / "coco8.yaml")
    _other_images(folder, toy_data)
    return folder


def _other_images(folder: Path, toy_data: Path) -> None:
    """Images without labels, a video of them, and the toy images once as a grey camera sees them, once as they are."""
    film(folder / "clip.avi", photos(folder / "clip", 4, seed=8))
    photos(folder / "photos", 4, seed=7)
    shutil.copytree(toy_data.parent / "images", folder / "rgb")
    shutil.copytree(toy_data.parent / "labels", folder / "infrared/labels")
    for file in (folder / "rgb").rglob("*.png"):
        grey = folder / "infrared/images" / file.relative_to(folder / "rgb")
        grey.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(grey), cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))
    parts = {"train": "images/train", "val": "images/val", "names": NAMES, "channels": 1}
    (folder / "infrared.yaml").write_text(yaml.safe_dump({"path": str(folder / "infrared"), **parts}))


@pytest.fixture
def here(place: Path, runs_here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from ultralytics import settings

    monkeypatch.chdir(place)
    settings.update({"runs_dir": str(place / "runs")})
    return place


def test_every_command_is_covered() -> None:
    unknown = [c for c in COMMANDS if c not in IN_CI and not c.startswith("yolokd ")]
    assert not unknown, unknown
    assert set(COMMANDS) >= IN_CI  # tests/test_demo.py runs the demo, .ci/run the rest


@pytest.mark.e2e
def test_commands(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (c for c in COMMANDS if c not in IN_CI):
        words = command.split()[1:]
        extra = list(SHORT.get(words[0], [])) if "resume=" not in command else []
        if "refine_epochs" in command:  # it stands for kd_close
            extra = [word if not word.startswith("kd_close") else "refine_epochs=1" for word in extra]
            extra.append("warmup_epochs=0")  # two epochs leave balance= none between the ramp and the refinement
        if "kd_start" in command:  # an epoch each without distillation would leave none
            extra.remove("kd_close=1")
        if "teacher_imgsz" in command:
            extra.append("teacher_imgsz=96")
        code = main([*words, *extra])
        said = capsys.readouterr()
        assert code == 0, (command, said.err)
        assert said.out or said.err or words[0] == "train", command
    assert (here / "runs/detect/train/weights/best.pt").is_file()
    assert (here / "runs/detect/again/results.csv").is_file()


@pytest.mark.e2e
@pytest.mark.parametrize("block", [text for kind, text in BLOCKS if kind == "python"])
def test_python(here: Path, block: str) -> None:
    short = block.replace("epochs=100", "epochs=1, device='cpu', plots=False, batch=4")
    short = short.replace("imgsz=640", "imgsz=64").replace('teacher="yolo11x.pt")', 'teacher="yolo11x.pt", imgsz=64)')
    assert short != block
    runs = len(list((here / "runs/detect").glob("*/weights/best.pt")))
    exec(compile(short, "README.md", "exec"), {"__name__": "readme"})
    assert len(list((here / "runs/detect").glob("*/weights/best.pt"))) > runs or sys.platform == "win32"
