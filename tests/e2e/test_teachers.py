"""Every kind of live teacher through a whole training: interrupted, resumed, and a plain student at the end."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.nn.tasks import torch_safe_load

from tests.conftest import NAMES, save_detector
from tests.e2e.test_training import run_until
from tests.test_trainer import overrides, rows
from yolokd.errors import UserError
from yolokd.sidecar import load_sidecar
from yolokd.trainer import DistillationTrainer

pytestmark = pytest.mark.e2e

SHORT: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0, "val": False}


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second teacher: another family, the classes in another order and one more, four levels."""
    names = {0: "dog", 1: "blue", 2: "green", 3: "red"}
    return save_detector("yolov8n-p2.yaml", tmp_path_factory.mktemp("second") / "second.pt", names, seed=3)


def plain(path: Path, levels: int = 3) -> None:
    """The checkpoint holds a student with its classes, and no word of how it was taught."""
    checkpoint, _ = torch_safe_load(str(path), safe_only=True)
    model = checkpoint.get("ema") or checkpoint["model"]
    assert type(model).__name__ == "DetectionModel"
    assert getattr(model, "criterion", None) is None
    assert not any(module._forward_hooks for module in model.modules())
    assert len(model.stride) == levels
    assert set(checkpoint["train_args"]).isdisjoint({"teacher", "teacher_imgsz", "teacher_every", "losses", "kd_start"})
    assert checkpoint["train_args"]["imgsz"] in (64, 128)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "several": ("yolo11n.yaml", {"teacher": "{first},{second}", "teacher_weights": "3,1", "losses": "cls,box,cwd,sl2"}),
    "specialists": ("yolo11n.yaml", {"teacher": "{first}:red+green,{second}:blue", "losses": "cls,box,cwd,iou"}),
    "teacher_imgsz": ("yolo11n.yaml", {"teacher": "{first}", "teacher_imgsz": 128, "multi_scale": 0.5}),
    "one and a half": ("yolo11n.yaml", {"teacher": "{second}", "teacher_imgsz": 96}),
    "larger, tapped": ("yolo11n.yaml", {"teacher": "{first}", "teacher_imgsz": 128, "losses": "cwd", "taps": "4:6"}),
    "P2 student": ("yolov8n-p2.yaml", {"teacher": "{first}", "losses": "cls,box,cwd,fgd,crosskd"}),
    "P6 student": ("yolov8n-p6.yaml", {"teacher": "{first}", "imgsz": 128}),
    "self": ("yolo11n.yaml", {"teacher": "self", "losses": "cls,box,cwd"}),
    "self, larger": ("yolo11n.yaml", {"teacher": "self", "teacher_imgsz": 128, "kd_start": 1}),
    "self, end2end": ("yolo26n.yaml", {"teacher": "self", "losses": "cls,cwd"}),
    "self:levels": ("yolo11n.yaml", {"teacher": "self:levels", "losses": "cls,box,cwd"}),
    "self:levels, end2end": ("yolo26n.yaml", {"teacher": "self:levels", "losses": "cls,box"}),
    "now and then": ("yolo11n.yaml", {"teacher": "{first}", "teacher_every": 2}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_trained_interrupted_and_resumed(
    case: str, toy_data: Path, toy_teacher: Path, shuffled: Path, tmp_path: Path
) -> None:
    student, asked = CASES[case]
    keys = {**asked, "teacher": asked["teacher"].format(first=toy_teacher, second=shuffled)}
    first = DistillationTrainer(overrides=overrides(toy_data, Path(student), tmp_path, **SHORT, **keys))
    run_until(first, "on_model_save", 0)
    levels = 4 if "-p" in student else 3
    plain(first.last, levels)
    saved = load_sidecar(first.wdir).records[0]["losses"]
    second = DistillationTrainer(overrides={"resume": str(first.last), "model": str(first.last), "mode": "train"})
    assert second.config == first.config
    seen: list[dict[str, Any]] = []
    inner = second._load_checkpoint_state

    def spy(checkpoint: dict[str, Any]) -> None:
        inner(checkpoint)
        seen.append({k: v.clone() for k, v in second.losses.state_dict().items()})

    second._load_checkpoint_state = spy  # type: ignore[method-assign]
    second.train()
    assert all(torch.equal(v, saved[k]) for k, v in seen[0].items())
    table = rows(first.save_dir)
    assert [row["epoch"] for row in table] == ["1", "2"]
    for name in second.losses:
        values = [float(row[f"train/kd_{name}_loss"]) for row in table]
        assert all(value == value for value in values), name
        # With random weights the teacher's box may be the worse one everywhere. An average of one's own weights
        # begins as oneself: there is next to nothing between the two.
        if name not in ("box", "iou") and not (case.startswith("self") and name != "cwd"):
            assert values[-1] > 0, name
        if asked.get("kd_start"):
            assert values[0] == 0, name
    for name in ("last.pt", "best.pt"):
        if (first.wdir / name).is_file():
            plain(first.wdir / name, levels)


def test_adapters_of_every_teacher_train(toy_data: Path, toy_teacher: Path, shuffled: Path, tmp_path: Path) -> None:
    keys = {"teacher": f"{toy_teacher},{shuffled}", "losses": "cls,cwd", "save_period": 1}
    trainer = DistillationTrainer(overrides=overrides(toy_data, Path("yolo11n.yaml"), tmp_path, **SHORT, **keys))
    trainer.train()
    records = load_sidecar(trainer.wdir).records
    both = [key for key in records[1]["losses"] if key.startswith("cwd.each.")]
    assert len({key.split(".")[2] for key in both}) == 2
    for key in both:
        assert not torch.equal(records[0]["losses"][key], records[1]["losses"][key]), key
    assert trainer.panel is not None
    for view in trainer.panel.views:
        assert all(p.grad is None for p in view.teacher.model.parameters())  # type: ignore[attr-defined]


def test_of_several_teachers_the_changed_one_is_named_on_resume(
    toy_data: Path, toy_teacher: Path, shuffled: Path, tmp_path: Path
) -> None:
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    one.write_bytes(toy_teacher.read_bytes())
    other.write_bytes(shuffled.read_bytes())
    keys = {**SHORT, "teacher": f"{one}:red,{other}:blue", "losses": "cls"}
    first = DistillationTrainer(overrides=overrides(toy_data, Path("yolo11n.yaml"), tmp_path, **keys))
    run_until(first, "on_model_save", 0)
    moved = other.rename(tmp_path / "moved.pt")
    args = {"resume": str(first.last), "model": str(first.last), "mode": "train"}
    second = DistillationTrainer(overrides={**args, "teacher": f"{one},{moved}"})
    assert second.config.teacher == f"{one}:red,{moved}:blue"
    save_detector("yolov8n.yaml", moved, NAMES, seed=9)
    with pytest.raises(UserError, match=rf"The teacher {moved} is not the file"):
        DistillationTrainer(overrides={**args, "teacher": f"{one},{moved}"})


def test_a_student_that_teaches_itself_survives_nan(toy_data: Path, tmp_path: Path) -> None:
    keys = {"teacher": "self", "losses": "cls,cwd", "epochs": 3, "warmup_epochs": 0, "val": False}
    trainer = DistillationTrainer(overrides=overrides(toy_data, Path("yolo11n.yaml"), tmp_path, **keys))
    inner, hit = trainer.run_callbacks, []

    def poison(event: str) -> None:
        inner(event)
        if event == "on_train_epoch_end" and trainer.epoch == 1 and not hit:
            hit.append(trainer.ema.ema)
            trainer.loss = torch.tensor(float("nan"))
            for p in trainer.ema.ema.parameters():
                p.data.fill_(float("nan"))

    trainer.run_callbacks = poison  # type: ignore[method-assign]
    trainer.train()
    assert hit
    assert trainer.ema.ema is not hit[0]
    assert trainer.panel is not None
    assert trainer.panel.views[0].teacher.model is trainer.ema.ema  # type: ignore[attr-defined]
    with (trainer.save_dir / "results.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["train/kd_cwd_loss"]) > 0


def test_its_own_teacher_leaves_the_average_alone(toy_data: Path, tmp_path: Path) -> None:
    """Asking the average changes none of its modes or statistics, nor which images are seen."""
    trainer = DistillationTrainer(
        overrides=overrides(toy_data, Path("yolo11n.yaml"), tmp_path, **SHORT, teacher="self", losses="cwd")
    )
    trainer._setup_train()
    assert trainer.panel is not None
    before = {k: v.clone() for k, v in trainer.ema.ema.state_dict().items()}
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    trainer.model.train()
    loss, items = trainer.model(batch)
    loss.sum().backward()
    assert items["kd_cwd_loss"] > 0
    assert all(torch.equal(v, before[k]) for k, v in trainer.ema.ema.state_dict().items())
    assert not any(module.training for module in trainer.ema.ema.modules())
    assert all(p.grad is None for p in trainer.ema.ema.parameters())
