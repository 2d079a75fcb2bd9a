"""What every test shares: offline settings, tiny models, a tiny data set, the real data where it lies beside us."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Before ultralytics is imported anywhere: nothing is fetched, nothing installed, no user's settings are touched.
os.environ["YOLO_OFFLINE"] = "True"
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="yolokd-test-settings-"))
os.environ.setdefault("MPLBACKEND", "Agg")
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # `pytest -n auto`: each process has its own settings, and one core
    os.environ["YOLO_CONFIG_DIR"] = str(Path(os.environ["YOLO_CONFIG_DIR"], worker))
    Path(os.environ["YOLO_CONFIG_DIR"]).mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import pytest
import torch
import yaml

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew-golden", action="store_true", help="write tests/losses/golden.json anew, then compare")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and weights; the tests that need them are skipped where the folder is missing."""
    if not (SHARED / "data").is_dir() or not (SHARED / "weights").is_dir():
        pytest.skip("the shared folder with real data and weights is not beside the project")
    return SHARED.resolve()


def train_words(toy_teacher: Path, toy_student: Path, toy_data: Path, **changes: str) -> list[str]:
    """The words of a training that works, but for the changes."""
    pairs = {"teacher": toy_teacher, "student": toy_student, "data": toy_data, "epochs": 1, "imgsz": 64} | changes
    return ["train", *(f"{key}={value}" for key, value in pairs.items())]


def save_detector(cfg: str, path: Path, names: dict[int, str] | None = None, seed: int = 0) -> Path:
    """Save a randomly initialised detector as Ultralytics would."""
    from ultralytics import YOLO

    torch.manual_seed(seed)
    model = YOLO(cfg)
    if names:
        from ultralytics.nn.tasks import DetectionModel

        model.model = DetectionModel(cfg, nc=len(names), verbose=False)
        model.model.names = names
        model.model.args = model.model.args if hasattr(model.model, "args") else {}
    model.save(path)
    return path


NAMES = {0: "red", 1: "green", 2: "blue"}


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data YAML of 8 + 4 images, 96 px, with coloured rectangles of three classes; one training image is empty."""
    root = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    for split, count in {"train": 8, "val": 4}.items():
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 60, (96, 96, 3), dtype=np.uint8)
            lines = []
            for _ in range(0 if (split, i) == ("train", 7) else 3):
                label = int(rng.integers(3))
                w, h = rng.integers(20, 45, 2)
                x, y = rng.integers(0, 96 - w), rng.integers(0, 96 - h)
                image[y : y + h, x : x + w, 2 - label] = 230
                lines.append(f"{label} {(x + w / 2) / 96} {(y + h / 2) / 96} {w / 96} {h / 96}")
            cv2.imwrite(str(root / "images" / split / f"{i}.png"), image)
            (root / "labels" / split / f"{i}.txt").write_text("\n".join(lines))
    file = root / "toy.yaml"
    file.write_text(yaml.safe_dump({"path": str(root), "train": "images/train", "val": "images/val", "names": NAMES}))
    return file


@pytest.fixture(scope="session")
def toy_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YOLOv8-n with random weights and the toy classes: another family than the student, other head widths."""
    return save_detector("yolov8n.yaml", tmp_path_factory.mktemp("teacher") / "teacher.pt", NAMES, seed=1)


@pytest.fixture(scope="session")
def toy_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YOLO11-n with random weights and the toy classes."""
    return save_detector("yolo11n.yaml", tmp_path_factory.mktemp("student") / "student.pt", NAMES, seed=2)


@pytest.fixture(scope="session")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images without labels, and one that is none."""
    from tests.photos import photos

    folder = photos(tmp_path_factory.mktemp("more") / "images", 6, seed=3)
    (folder / "broken.png").write_text("no image")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run a command that must be refused: exit code 2, two lines on stderr, nothing written."""

    def call(*words: str) -> tuple[str, str]:
        run = here / "run"
        known = sorted(here.rglob("*"))
        capsys.readouterr()
        needs_run = words and words[0] == "train"
        from yolokd.cli import main

        assert main([*words, *([f"project={run}"] if needs_run else [])]) == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        lines = err.splitlines()
        assert len(lines) == 2, err
        assert all(line.strip() for line in lines)
        assert sorted(here.rglob("*")) == known
        return lines[0], lines[1]

    return call


@pytest.fixture
def runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Runs without ``project=`` go to runs/ of an empty folder that we stand in, as they do for a person."""
    from ultralytics import settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ultralytics.cfg.TESTS_RUNNING", False)  # else they go beside the installed package
    before = settings["runs_dir"]
    settings.update({"runs_dir": str(tmp_path / "runs")})
    yield tmp_path / "runs"
    settings.update({"runs_dir": before})
