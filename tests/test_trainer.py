"""The trainer on a toy set: what the checkpoints hold, what is logged, what resume brings back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import torch_safe_load

from yolokd.config import DistillConfig
from yolokd.errors import UserError
from yolokd.sidecar import Sidecar, load_sidecar
from yolokd.trainer import _ENVIRONMENT, DistillationTrainer, average_gradients

FAST: dict[str, Any] = {"epochs": 3, "imgsz": 64, "batch": 4, "device": "cpu", "plots": False, "workers": 0, "nbs": 4}


def overrides(toy_data: Path, student: Path, project: Path, **more: Any) -> dict[str, Any]:
    return {**FAST, "data": str(toy_data), "model": str(student), "project": str(project), "mode": "train", **more}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return [{k.strip(): v for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def trained(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> DistillationTrainer:
    """Three epochs, a checkpoint each, with the recipe's three losses."""
    project = tmp_path_factory.mktemp("trained")
    trainer = DistillationTrainer(
        overrides=overrides(toy_data, toy_student, project, teacher=str(toy_teacher), save_period=1)
    )
    trainer.train()
    return trainer


def test_the_items_are_logged_and_validation_has_none(trained: DistillationTrainer) -> None:
    table = rows(trained.save_dir)
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    for name in ("cls", "box", "cwd"):
        assert float(table[-1][f"train/kd_{name}_loss"]) > 0
    assert not [column for column in table[0] if column.startswith("val/kd_")]
    assert "kd_cls " in trained.progress_string()
    assert "kd_cls_loss" in trained.loss_names


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "epoch0.pt", "epoch2.pt"])
def test_checkpoints_hold_a_student_and_nothing_else(
    trained: DistillationTrainer, toy_teacher: Path, name: str
) -> None:
    path = trained.wdir / name
    checkpoint, _ = torch_safe_load(str(path), safe_only=True)
    model = checkpoint.get("ema") or checkpoint["model"]
    assert type(model).__name__ == "DetectionModel"
    assert getattr(model, "criterion", None) is None
    raw = path.read_bytes()
    assert b"yolokd" not in raw.replace(str(trained.save_dir).encode(), b"")
    assert str(toy_teacher).encode() not in raw
    assert set(checkpoint["train_args"]).isdisjoint({"teacher", "losses", "schedule"})
    if checkpoint["optimizer"] is not None:
        assert len(checkpoint["optimizer"]["param_groups"]) == 3


def test_a_checkpoint_predicts_and_exports_with_ultralytics_alone(trained: DistillationTrainer) -> None:
    exported = YOLO(trained.wdir / "epoch1.pt").export(format="torchscript", imgsz=64)
    assert YOLO(exported, task="detect").predict(torch.zeros(1, 3, 64, 64), verbose=False)[0].boxes is not None


def test_the_adapters_trained(trained: DistillationTrainer) -> None:
    records = load_sidecar(trained.wdir).records
    assert list(records) == [1, 2]
    for key, before in records[1]["losses"].items():
        assert not torch.equal(before, records[2]["losses"][key]), key
    assert all(state["exp_avg"].abs().sum() > 0 for state in records[2]["optimizer"])


def test_nothing_partial_is_left(trained: DistillationTrainer) -> None:
    names = {p.name for p in trained.wdir.glob("*") if p.suffix != ".torchscript"}
    assert names == {"best.pt", "last.pt", "distill.pt", "epoch0.pt", "epoch1.pt", "epoch2.pt"}


def test_the_settings_stand_in_the_run_folder_as_a_recipe(trained: DistillationTrainer, toy_teacher: Path) -> None:
    from yolokd.config import build_config, split_keys

    ours, theirs = split_keys({"recipe": str(trained.save_dir / "distill.yaml")})
    assert build_config(ours) == trained.config
    assert ours["teacher"] == str(toy_teacher.resolve())
    assert (theirs["epochs"], theirs["imgsz"], theirs["model"]) == (3, 64, trained.args.model)


def test_the_teacher_did_not_change_and_is_not_optimised(trained: DistillationTrainer) -> None:
    assert trained.teacher is not None
    optimised = {id(p) for group in trained.optimizer.param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in trained.teacher.model.parameters()}
    assert {id(p) for p in trained.losses.parameters()} <= optimised


def test_the_student_sees_the_same_images_and_starts_the_same_as_in_a_plain_run(
    trained: DistillationTrainer, toy_data: Path, toy_student: Path, tmp_path: Path
) -> None:
    plain = DetectionTrainer(overrides=overrides(toy_data, toy_student, tmp_path))
    plain.train()
    first, ours = rows(plain.save_dir)[0], rows(trained.save_dir)[0]
    # The first step of the ramp has gain 0, so the first batch is the same; the epoch's mean is near.
    for column in ("train/box_loss", "train/cls_loss", "train/dfl_loss"):
        assert float(first[column]) == pytest.approx(float(ours[column]), rel=0.02)


@pytest.mark.e2e
def test_losses_none_is_a_plain_run(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    ours = DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path, losses="none", epochs=2))
    ours.train()
    plain = DetectionTrainer(overrides=overrides(toy_data, toy_student, tmp_path, epochs=2))
    plain.train()
    assert ours.criterion is None
    drop = ("time",)
    a, b = ([{k: v for k, v in r.items() if k not in drop} for r in rows(t.save_dir)] for t in (ours, plain))
    assert a == b


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


@pytest.mark.e2e
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


@pytest.mark.e2e
def test_plain_ultralytics_resumes_our_last_pt(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path
) -> None:
    trainer = DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher)))
    run_until(trainer, "on_model_save", 1)
    plain = YOLO(trainer.last)
    plain.train(resume=True)
    assert [row["epoch"] for row in rows(trainer.save_dir)] == ["1", "2", "3"]


@pytest.mark.e2e
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


@pytest.mark.e2e
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


@pytest.mark.e2e
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


@pytest.mark.e2e
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
    for name in trainer.config.losses:
        assert float(table[0][f"train/kd_{name}_loss"]) > 0
        assert (float(table[1][f"train/kd_{name}_loss"]) > 0) is ("kd_close" not in more)


@pytest.mark.e2e
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


def test_auto_batch_counts_the_teacher(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher)))
    trainer.setup_model()
    assert trainer.teacher is not None
    asked = []
    monkeypatch.setattr(trainer.teacher, "forward", lambda images: asked.append(images.shape))

    def measure(self: DetectionTrainer) -> int:
        from copy import deepcopy

        deepcopy(self.model)(torch.zeros(2, 3, 64, 64))
        return 7

    monkeypatch.setattr(DetectionTrainer, "auto_batch", measure)
    assert trainer.auto_batch() == 7
    assert asked == [(2, 3, 64, 64)]
    assert not trainer.model._forward_pre_hooks


def test_workers_take_the_settings_from_the_environment(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    parent = DistillationTrainer(
        overrides=overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher), losses="cls:2")
    )
    seen: list[str] = []
    monkeypatch.setattr(DetectionTrainer, "train", lambda self: seen.append(__import__("os").environ[_ENVIRONMENT]))
    parent.ddp = True
    parent.train()
    assert _ENVIRONMENT not in __import__("os").environ
    monkeypatch.setenv(_ENVIRONMENT, seen[0])
    monkeypatch.setattr("yolokd.trainer.LOCAL_RANK", 0)
    worker = DistillationTrainer(overrides=vars(parent.args))  # all of Ultralytics' arguments, none of ours
    assert worker.config == parent.config
    assert worker.sidecar is not None
    assert parent.sidecar is not None
    assert worker.sidecar.teacher_sha256 == json.loads(seen[0])["sha256"] == parent.sidecar.teacher_sha256


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([1.0, float("inf")]) if rank else torch.tensor([3.0, 1.0])
    average_gradients([p])
    torch.save(p.grad, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_agree_about_adapter_gradients_infinities_too(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    assert first.tolist() == [2.0, float("inf")]


def test_a_single_process_averages_nothing() -> None:
    p = nn.Parameter(torch.zeros(1))
    p.grad = torch.ones(1)
    average_gradients([p])
    assert p.grad.item() == 1


def test_refusals_leave_no_folder(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    for bad in ({"teacher": "nowhere.pt"}, {"teacher": "x", "losses": "nonsense"}, {"kd_close": 9, "teacher": "x.pt"}):
        with pytest.raises(UserError):
            DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path / "runs", **bad))
    assert not (tmp_path / "runs").exists()


def test_config_travels_whole() -> None:
    config = DistillConfig("t.pt", {"cls": 1.0}, {"cwd": {"temperature": 2.0}}, class_map={"a": "b"})
    assert DistillConfig.from_dict(Sidecar(config.to_dict(), "").config) == config
