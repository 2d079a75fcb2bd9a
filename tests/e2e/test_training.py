"""Whole trainings on a toy set: resume, recovery, Ultralytics' arguments, end2end students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

from tests.test_trainer import overrides, rows
from yolokd.balance import CAP
from yolokd.errors import UserError
from yolokd.losses.base import LOSSES
from yolokd.sidecar import load_sidecar
from yolokd.trainer import DistillationTrainer

pytestmark = pytest.mark.e2e


class Killed(Exception):
    """Stands for a SIGKILL at a chosen moment; examples/benchmarks/kill_test.py sends real ones."""


def run_until(trainer: DistillationTrainer, event: str, epoch: int) -> None:
    inner = trainer.run_callbacks

    def callbacks(name: str) -> None:
        inner(name)
        if name == event and trainer.epoch == epoch:
            raise Killed

    trainer.run_callbacks = callbacks  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.train()


def test_losses_none_is_a_plain_run(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    ours = DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path, losses="none", epochs=2))
    ours.train()
    plain = DetectionTrainer(overrides=overrides(toy_data, toy_student, tmp_path, epochs=2))
    plain.train()
    assert ours.criterion is None
    drop = ("time",)
    a, b = ([{k: v for k, v in r.items() if k not in drop} for r in rows(t.save_dir)] for t in (ours, plain))
    assert a == b


def test_every_loss_at_once_balanced_tapped_and_refined(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path
) -> None:
    keys = {"losses": ",".join(LOSSES), "balance": 0.1, "taps": "4:4,6:6", "refine_epochs": 1, "guard_patience": 1}
    args = overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher), epochs=4, warmup_epochs=1, **keys)
    first = DistillationTrainer(overrides=args)
    run_until(first, "on_model_save", 1)
    weights = first.wdir / "last.pt"
    assert b"yolokd" not in weights.read_bytes().replace(str(first.save_dir).encode(), b"")
    second = DistillationTrainer(overrides={"resume": str(weights), "mode": "train"})
    second.train()
    assert second.criterion is not None
    assert second.criterion.balance.share == 0.1
    table = rows(second.save_dir)
    for name, info in LOSSES.items():
        values = [float(row[f"train/kd_{name}_loss"]) for row in table]
        assert values[3] == 0, name  # refined on ground truth alone
        if name in ("box", "iou"):  # the teacher's box may be the worse one everywhere, between random weights
            continue
        assert values[1] > 0, name
        gain, share = (float(table[1][f"balance/{name}_{key}"]) for key in ("gain", "share"))
        # Random networks are far from what the table's gains are made for: then a gain stops at its cap.
        capped = gain == pytest.approx(info.gain * CAP) or gain == pytest.approx(info.gain / CAP)
        assert capped or share == pytest.approx(0.1, rel=0.01), name
    assert float(table[3]["lr/pg0"]) == pytest.approx(
        second.args.lrf * float(second.optimizer.param_groups[0]["initial_lr"]), rel=1e-3
    )
    assert YOLO(second.best).predict(torch.zeros(1, 3, 64, 64), verbose=False)[0].boxes is not None


@pytest.mark.parametrize("event", ["on_train_epoch_end", "on_model_save"])
def test_resume_restores_the_adapters_and_ends_with_the_full_table(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path, event: str
) -> None:
    args = overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher), epochs=4)
    first = DistillationTrainer(overrides=args)
    run_until(first, event, 2)
    done = 1 if event == "on_train_epoch_end" else 2
    last = first.wdir / "last.pt"
    assert torch.load(last, weights_only=False)["epoch"] == done
    with (first.save_dir / "results.csv").open("a") as file:
        file.write("3,1.0,torn")
    second = DistillationTrainer(overrides={"resume": str(last), "model": str(last), "mode": "train"})
    seen = []
    inner = second._load_checkpoint_state

    def spy(ckpt: dict[str, Any]) -> None:
        inner(ckpt)
        seen.append({k: v.clone() for k, v in second.losses.state_dict().items()})

    second._load_checkpoint_state = spy  # type: ignore[method-assign]
    saved = load_sidecar(first.wdir).records[done]["losses"]
    second.train()
    assert second.config == first.config
    assert all(torch.equal(v, saved[k]) for k, v in seen[0].items())
    assert second.optimizer.param_groups[-1]["param_group"] == "adapter"
    table = rows(first.save_dir)
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4"]
    assert float(table[-1]["train/kd_cwd_loss"]) > 0


def test_plain_ultralytics_resumes_our_last_pt(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path
) -> None:
    trainer = DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher)))
    run_until(trainer, "on_model_save", 1)
    plain = YOLO(trainer.last)
    plain.train(resume=True)
    assert [row["epoch"] for row in rows(trainer.save_dir)] == ["1", "2", "3"]


def test_resume_refuses_another_teacher(toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path) -> None:
    from tests.conftest import NAMES, save_detector

    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes(toy_teacher.read_bytes())
    trainer = DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path, teacher=str(teacher)))
    run_until(trainer, "on_model_save", 0)
    save_detector("yolov8n.yaml", teacher, NAMES, seed=9)
    with pytest.raises(UserError, match="not the file that this run began with"):
        DistillationTrainer(overrides={"resume": str(trainer.last), "mode": "train"})
    moved = DistillationTrainer(overrides={"resume": str(trainer.last), "teacher": str(toy_teacher), "mode": "train"})
    assert moved.config.teacher == str(toy_teacher)


def test_nan_recovery_brings_student_and_adapters_back(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path
) -> None:
    trainer = DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher)))
    inner, hit = trainer.run_callbacks, []

    def poison(event: str) -> None:
        inner(event)
        if event == "on_train_epoch_end" and trainer.epoch == 1 and not hit:
            hit.append(1)
            trainer.loss = torch.tensor(float("nan"))
            for p in trainer.losses.parameters():
                p.data.fill_(float("nan"))

    trainer.run_callbacks = poison  # type: ignore[method-assign]
    trainer.train()
    assert hit
    assert all(torch.isfinite(p).all() for p in trainer.losses.parameters())
    assert [row["epoch"] for row in rows(trainer.save_dir)] == ["1", "2", "3"]


def test_out_of_memory_halves_the_batch_and_keeps_the_adapters(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path
) -> None:
    trainer = DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher)))
    inner, hit = trainer.preprocess_batch, []

    def lack(batch: dict[str, Any]) -> dict[str, Any]:
        if not hit:
            hit.append(1)
            raise RuntimeError("CUDA out of memory (made up)")
        return inner(batch)

    trainer.preprocess_batch = lack
    trainer.train()
    assert trainer.batch_size == 2
    adapter = trainer.optimizer.param_groups[-1]
    assert (adapter["param_group"], adapter["weight_decay"]) == ("adapter", 0.0)
    assert [row["epoch"] for row in rows(trainer.save_dir)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "more",
    [
        {"multi_scale": 0.5},
        {"rect": True},
        {"freeze": 10, "losses": "cls"},
        {"fraction": 0.5, "optimizer": "SGD"},
        {"optimizer": "MuSGD", "cos_lr": True},
        {"single_cls": True, "losses": "box:1,cwd:1"},
        {"kd_close": 1, "schedule": "cosine"},
        {"teacher_precision": "bf16"},
    ],
)
def test_ultralytics_arguments_work_beside_a_teacher(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    args = overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher), epochs=2, warmup_epochs=0, val=False)
    trainer = DistillationTrainer(overrides={**args, **more})
    trainer.train()
    table = rows(trainer.save_dir)
    assert len(table) == 2
    # With random weights the gate of `box` may close every anchor of a batch; the two others never are 0.
    for name in set(trainer.config.losses) - {"box"}:
        assert float(table[0][f"train/kd_{name}_loss"]) > 0
        assert (float(table[1][f"train/kd_{name}_loss"]) > 0) is ("kd_close" not in more)


@pytest.mark.parametrize("student", ["yolo26n.yaml", "yolov10n.yaml"])
def test_end2end_students(toy_data: Path, toy_teacher: Path, tmp_path: Path, student: str) -> None:
    args = overrides(toy_data, Path(student), tmp_path, teacher=str(toy_teacher), epochs=3, val=False)
    first = DistillationTrainer(overrides=args)
    first.train()
    table = rows(first.save_dir)
    assert float(table[-1]["train/kd_cls_loss"]) > 0
    assert first.criterion is not None
    assert first.criterion.base.updates == 3
    assert yaml.safe_load((first.save_dir / "distill.yaml").read_text())["student"] == student


def test_an_end2end_student_resumes_with_its_fading_weights(toy_data: Path, toy_teacher: Path, tmp_path: Path) -> None:
    args = overrides(toy_data, Path("yolo26n.yaml"), tmp_path, teacher=str(toy_teacher), epochs=4, val=False)
    first = DistillationTrainer(overrides=args)
    run_until(first, "on_model_save", 1)
    second = DistillationTrainer(overrides={"resume": str(first.last), "model": str(first.last), "mode": "train"})
    second._setup_train()
    assert second.criterion is not None
    assert second.criterion.base.updates == 2
    assert second.criterion.base.o2m == pytest.approx(0.1 + 0.7 / 3)
    assert second.criterion._branches.one2one is second.criterion.base.one2one


def test_a_moved_teacher_is_remembered(toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes(toy_teacher.read_bytes())
    first = DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path, teacher=str(teacher)))
    run_until(first, "on_model_save", 0)
    teacher.unlink()
    args = {"resume": str(first.last), "model": str(first.last), "mode": "train"}
    second = DistillationTrainer(overrides={**args, "teacher": str(toy_teacher)})
    run_until(second, "on_model_save", 1)
    third = DistillationTrainer(overrides=args)  # no other key
    assert third.config.teacher == str(toy_teacher.resolve())


def test_an_old_epoch_is_refused_before_anything_is_trimmed(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path
) -> None:
    args = overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher), epochs=5, save_period=1)
    first = DistillationTrainer(overrides=args)
    run_until(first, "on_model_save", 3)
    old = first.wdir / "epoch0.pt"
    second = DistillationTrainer(overrides={"resume": str(old), "model": str(old), "mode": "train"})
    with pytest.raises(UserError, match=r"distill\.pt holds the adapters of epoch 3, 4, but last\.pt is of epoch 1"):
        second.train()
    assert [row["epoch"] for row in rows(first.save_dir)] == ["1", "2", "3", "4"]
