"""Teachers that are no network beside the student: stored answers, RT-DETR, exported files. Two epochs, resumed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

from tests.e2e.test_training import run_until
from tests.lively import save_lively, save_tiny_detr
from tests.test_trainer import overrides, rows
from yolokd.compat.boxes import expected_distances
from yolokd.compat.checkpoint import load_detector
from yolokd.compat.images import read_letterboxed
from yolokd.compat.replay import ReplayDataset
from yolokd.errors import UserError
from yolokd.teachers.detr import DetrTeacher
from yolokd.teachers.exported import ExportedTeacher
from yolokd.teachers.live import LiveTeacher
from yolokd.teachers.replay import ReplayTeacher
from yolokd.trainer import DistillationTrainer

pytestmark = pytest.mark.e2e

SHORT: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0, "val": False}
STUDENT = Path("yolo11n.yaml")


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lively(tmp_path_factory.mktemp("lively") / "teacher.pt")


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_detr(tmp_path_factory.mktemp("detr") / "detr.pt")


@pytest.fixture(scope="module")
def onnx_files(lively: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same teacher, dense for one size, dense for any, and with non-maximum suppression."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    files = {}
    for name, how in {"dense": {}, "dynamic": {"dynamic": True}, "nms": {"nms": True, "conf": 0.05}}.items():
        copy = shutil.copy(lively, tmp_path_factory.mktemp(name) / f"{name}.pt")
        files[name] = Path(YOLO(copy).export(format="onnx", imgsz=64, simplify=False, **how))
    return files


class WithWorkers(DistillationTrainer):
    """On a CPU Ultralytics reads images in the process that trains; here they are read by others all the same."""

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        self.args.workers = 2
        return super().get_dataloader(*args, **kwargs)


def begun(toy_data: Path, tmp_path: Path, kind: type[DistillationTrainer] = DistillationTrainer, **keys: Any) -> Any:
    return kind(overrides=overrides(toy_data, STUDENT, tmp_path, **SHORT, **keys))


def resumed(first: DistillationTrainer, **keys: Any) -> DistillationTrainer:
    return DistillationTrainer(overrides={"resume": str(first.last), "model": str(first.last), "mode": "train", **keys})


def assert_taught(trainer: DistillationTrainer, *names: str, epochs: int = 2) -> list[dict[str, str]]:
    table = rows(trainer.save_dir)
    assert [row["epoch"] for row in table] == [str(i + 1) for i in range(epochs)]
    assert list(trainer.losses) == list(names)
    for row in table:
        for name in names:
            value = float(row[f"train/kd_{name}_loss"])
            assert value > 0 or (name == "box" and value == 0), (name, value)
    return table


@pytest.mark.parametrize("kind", [DistillationTrainer, WithWorkers])
def test_replay(toy_data: Path, lively: Path, tmp_path: Path, kind: type[DistillationTrainer]) -> None:
    """Through mosaic, mixup and the plots; interrupted, the cache moved, resumed."""
    keys = {"teacher": str(lively), "teacher_cache": str(tmp_path / "cache"), "plots": True, "mixup": 0.5}
    first = begun(toy_data, tmp_path, kind, **keys, multi_scale=0.5)
    run_until(first, "on_model_save", 0)
    assert first.panel is not None
    assert isinstance(first.panel.views[0].teacher, ReplayTeacher)
    assert isinstance(first.train_loader.dataset, ReplayDataset)
    assert first.train_loader.num_workers == (2 if kind is WithWorkers else 0)
    assert (first.save_dir / "train_batch0.jpg").is_file()
    assert b"yolokd" not in first.last.read_bytes().replace(str(first.save_dir).encode(), b"")
    moved = (tmp_path / "cache").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="There is no teacher's cache in"):
        resumed(first).train()
    second = resumed(first, teacher_cache=str(moved))
    assert second.config.teacher_cache == str(moved)
    second.train()
    assert_taught(second, "cls", "box")


def test_a_replayed_run_sees_what_a_plain_one_sees(
    toy_data: Path, lively: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same images, same labels, same detection losses while nothing is distilled yet."""
    keys = {"teacher": str(lively), "teacher_cache": str(tmp_path / "cache"), "kd_start": 1}
    ours = begun(toy_data, tmp_path, **keys)
    ours.train()
    plain = DetectionTrainer(overrides=overrides(toy_data, STUDENT, tmp_path, **SHORT))
    plain.train()
    for name in ("box", "cls", "dfl"):
        assert rows(ours.save_dir)[0][f"train/{name}_loss"] == rows(plain.save_dir)[0][f"train/{name}_loss"]
    assert float(rows(ours.save_dir)[1]["train/kd_cls_loss"]) > 0


@pytest.mark.parametrize("more", [{"rect": True}, {"single_cls": True, "losses": "box,iou"}, {"fraction": 0.5}])
def test_replay_beside_ultralytics_arguments(
    toy_data: Path, lively: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    trainer = begun(
        toy_data, tmp_path, teacher=str(lively), teacher_cache=str(tmp_path / "cache"), teacher_imgsz=96, **more
    )
    trainer.train()
    assert len(rows(trainer.save_dir)) == 2
    assert trainer.panel is not None
    assert len(trainer.panel.views[0].teacher.cache.index) == (4 if "fraction" in more else 8)  # type: ignore[attr-defined]


def test_a_p6_student_replays_at_the_size_it_is_trained_with(toy_data: Path, lively: Path, tmp_path: Path) -> None:
    """imgsz=96 becomes 128 for a stride of 64: that is the cache's size, too."""
    keys = {"teacher": str(lively), "teacher_cache": str(tmp_path / "cache"), "imgsz": 96, "losses": "cls"}
    trainer = DistillationTrainer(overrides=overrides(toy_data, Path("yolov8n-p6.yaml"), tmp_path, **SHORT | keys))
    trainer.train()
    assert [trainer.panel.views[0].teacher.cache.imgsz] == [128]  # type: ignore[union-attr,attr-defined]
    assert len(list((tmp_path / "cache").glob("*.soft"))) == 1


def test_a_damaged_cache_is_refused_before_training(toy_data: Path, lively: Path, tmp_path: Path, refused: Any) -> None:
    cache = tmp_path / "cache"
    words = ["train", f"teacher={lively}", f"student={STUDENT}", f"data={toy_data}", "imgsz=64", "device=cpu"]
    from yolokd import api

    api.cache(lively, toy_data, cache, imgsz=64, device="cpu")
    (file,) = cache.glob("*.soft")
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:-7] + b"\x55" + whole[-6:], b"?" + whole[1:], b""):
        file.write_bytes(damaged)
        problem, remedy = refused(*words, f"teacher_cache={cache}", "epochs=1")
        assert str(file) in problem
        assert remedy == "Delete it; it is built again."
        assert file.read_bytes() == damaged


def test_whether_answers_are_stored_is_settled_when_a_run_begins(toy_data: Path, lively: Path, tmp_path: Path) -> None:
    first = begun(toy_data, tmp_path, teacher=str(lively), losses="cls,cwd")
    run_until(first, "on_model_save", 0)
    with pytest.raises(UserError, match="began without teacher_cache="):
        resumed(first, teacher_cache=str(tmp_path / "cache"))
    other = begun(toy_data, tmp_path, teacher=str(lively), teacher_cache=str(tmp_path / "cache"))
    run_until(other, "on_model_save", 0)
    with pytest.raises(UserError, match="began with teacher_cache="):
        resumed(other, teacher_cache="")


def test_rtdetr(toy_data: Path, detr: Path, tmp_path: Path) -> None:
    """With features of its encoder; interrupted and resumed."""
    first = begun(toy_data, tmp_path, teacher=str(detr), losses="cls,box,cwd")
    assert not (tmp_path / "cache").exists()
    run_until(first, "on_model_save", 0)
    assert first.panel is not None
    assert isinstance(first.panel.views[0].teacher, DetrTeacher)
    assert b"RTDETR" not in first.last.read_bytes()
    second = resumed(first)
    second.train()
    assert_taught(second, "cls", "box", "cwd")


def test_rtdetr_by_default_stored_and_larger(toy_data: Path, detr: Path, tmp_path: Path) -> None:
    stored = begun(toy_data, tmp_path, teacher=str(detr), teacher_cache=str(tmp_path / "cache"))
    stored.train()
    assert_taught(stored, "cls", "box")  # cwd is left out
    larger = begun(toy_data, tmp_path, teacher=str(detr), teacher_imgsz=128)
    larger.train()
    assert_taught(larger, "cls", "box", "cwd")


@pytest.mark.parametrize("name", ["dense", "nms"])
def test_onnx(toy_data: Path, onnx_files: dict[str, Path], tmp_path: Path, name: str) -> None:
    first = begun(toy_data, tmp_path, teacher=str(onnx_files[name]))
    run_until(first, "on_model_save", 0)
    assert first.panel is not None
    assert isinstance(first.panel.views[0].teacher, ExportedTeacher)
    second = resumed(first)
    second.train()
    assert_taught(second, "cls", "box")  # it has no features, so cwd is left out
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(onnx_files[name].read_bytes() + b"\0")
    with pytest.raises(UserError, match="not the file that this run began with"):
        resumed(first, teacher=str(changed))


def test_onnx_stored_and_of_any_size(toy_data: Path, onnx_files: dict[str, Path], tmp_path: Path) -> None:
    stored = begun(toy_data, tmp_path, teacher=str(onnx_files["nms"]), teacher_cache=str(tmp_path / "cache"))
    stored.train()
    assert_taught(stored, "cls", "box")
    moving = begun(toy_data, tmp_path, teacher=str(onnx_files["dynamic"]), multi_scale=0.5)
    moving.train()
    assert_taught(moving, "cls", "box")


def test_live_and_replayed_detections_of_a_detr_agree(toy_data: Path, detr: Path, tmp_path: Path) -> None:
    """Nothing is augmented: what the file says of the first batch is what the network says of it."""
    still = {key: 0.0 for key in ("mosaic", "translate", "scale", "fliplr", "hsv_h", "hsv_s", "hsv_v")}
    keys = {"teacher": str(detr), "teacher_cache": str(tmp_path / "cache"), **still}
    trainer = begun(toy_data, tmp_path, **keys)
    trainer._setup_train()
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    stored = trainer.panel.views[0].teacher(batch).detections  # type: ignore[union-attr]
    live = DetrTeacher(load_detector(detr, role="teacher"), torch.device("cpu"), "fp32")(batch).detections
    assert live is not None
    assert len(stored.boxes)
    for box, scores, image in zip(stored.boxes, stored.scores, stored.image, strict=True):
        mine = live.image == image
        gap = (live.boxes[mine].clamp(0, 64) - box).abs().amax(1) + (live.scores[mine] - scores).abs().amax(1)
        assert gap.min() < 0.02


@pytest.fixture(scope="module")
def photographs(shared: Path) -> torch.Tensor:
    files = sorted((shared / "data" / "tinycoco100" / "images" / "train").glob("*.jpg"))[:2]
    read = [read_letterboxed(file, 160) for file in files]
    return torch.stack([one.image for one in read if one is not None]).float() / 255


@pytest.mark.shared
@pytest.mark.parametrize("how", [{}, {"nms": True, "conf": 0.25}])
def test_an_exported_teacher_on_photographs(
    shared: Path, photographs: torch.Tensor, tmp_path: Path, how: dict[str, Any]
) -> None:
    """What the file says is what the network says of these images, and what Ultralytics predicts with it."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weights = Path(shutil.copy(shared / "weights" / "yolov8n.pt", tmp_path / "n.pt"))
    weights.chmod(0o644)
    file = YOLO(weights).export(format="onnx", imgsz=160, simplify=False, **how)
    said = ExportedTeacher(file, (160, 160))({"img": photographs})
    live = LiveTeacher(load_detector(weights, role="teacher"), torch.device("cpu"), "fp32")({"img": photographs})
    assert live.scores is not None
    assert live.boxes is not None
    if not how:
        assert said.scores is not None
        assert said.boxes is not None
        assert (said.scores.sigmoid() - live.scores.sigmoid()).abs().max() < 1e-4
        distances = expected_distances(live.boxes.transpose(1, 2)).transpose(1, 2)
        assert (said.boxes - distances).abs().max() < 1e-2  # strides
        return
    found = said.detections
    assert found is not None
    assert len(found.boxes)
    theirs = YOLO(weights).predict(photographs, imgsz=160, conf=0.25, iou=0.7, verbose=False)
    for i, result in enumerate(theirs):
        mine = found.image == i
        order = found.scores[mine].amax(1).argsort(descending=True)
        assert torch.allclose(found.boxes[mine][order], result.boxes.xyxy, atol=0.5)
        assert torch.allclose(found.scores[mine].amax(1)[order], result.boxes.conf, atol=1e-3)
        assert found.scores[mine].argmax(1)[order].tolist() == result.boxes.cls.int().tolist()
