"""The trainer on a toy set: what the checkpoints hold, what is logged, what resume brings back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import torch_safe_load

from yolokd.chain import chain_of
from yolokd.errors import UserError
from yolokd.keys import MANIFEST
from yolokd.settings import _ENVIRONMENT
from yolokd.sidecar import load_sidecar
from yolokd.teachers.live import LiveTeacher
from yolokd.trainer import RECIPE, DistillationTrainer

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
    # Watched, although the gains are fixed: measured after the ramp, which is two of the three epochs here.
    assert [float(table[i]["balance/cwd_gain"]) for i in range(3)] == [3.0] * 3
    assert float(table[0]["balance/cwd_share"]) == 0
    assert float(table[2]["balance/cwd_share"]) > 0
    assert -1 <= float(table[2]["balance/cls_cosine"]) <= 1
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


def test_balance_and_guard_are_saved_with_the_adapters(trained: DistillationTrainer) -> None:
    assert trained.criterion is not None
    course = load_sidecar(trained.wdir).records[2]["course"]
    assert course == trained.criterion.state()
    assert set(course["balance"]["measured"]) == {"cls", "box", "cwd"}


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
    assert trained.panel is not None
    teacher = trained.panel.views[0].teacher
    assert isinstance(teacher, LiveTeacher)
    optimised = {id(p) for group in trained.optimizer.param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in teacher.model.parameters()}
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


def test_auto_batch_counts_the_teacher(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher)))
    trainer.setup_model()
    assert trainer.panel is not None
    trainer.amp = False
    asked = []
    monkeypatch.setattr(
        trainer.panel.views[0].teacher, "forward", lambda images: asked.append(("teacher", images.shape))
    )

    def measure(self: DetectionTrainer) -> int:
        from copy import deepcopy

        model = deepcopy(self.model)
        model.model[-1].register_forward_hook(lambda module, args, output: asked.append(("student", None)))
        model(torch.zeros(2, 3, 64, 64))
        return 7

    monkeypatch.setattr(DetectionTrainer, "auto_batch", measure)
    assert trainer.auto_batch() == 7
    # The teacher comes while the student's activations are alive, as in training.
    assert asked == [("student", None), ("teacher", (2, 3, 64, 64))]
    assert not trainer.model._forward_hooks


@pytest.mark.parametrize(("losses", "found", "taken"), [("cls,sp", 1, 2), ("cls,sp", 5, 5), ("cls,cwd", 1, 1)])
def test_auto_batch_leaves_the_images_that_a_loss_compares(
    toy_data: Path,
    toy_student: Path,
    toy_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    losses: str,
    found: int,
    taken: int,
) -> None:
    args = overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher), losses=losses, batch=-1)
    trainer = DistillationTrainer(overrides=args)
    trainer.setup_model()
    trainer.amp = False
    monkeypatch.setattr(DetectionTrainer, "auto_batch", lambda self: found)
    assert trainer.auto_batch() == taken
    assert not trainer.model._forward_hooks


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


def test_refusals_leave_no_folder(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    for bad in ({"teacher": "nowhere.pt"}, {"teacher": "x", "losses": "nonsense"}, {"kd_close": 9, "teacher": "x.pt"}):
        with pytest.raises(UserError):
            DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path / "runs", **bad))
    assert not (tmp_path / "runs").exists()


def test_adapters_are_averaged_clipped_and_then_unscaled(
    trained: DistillationTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    norms: list[float] = []
    adapters = list(trained.losses.parameters())

    class Scaler:
        def get_scale(self) -> float:
            return 1024.0

    def step(self: DetectionTrainer) -> None:
        norms.append(float(torch.cat([p.grad.flatten() for p in adapters]).norm()))  # type: ignore[union-attr]
        done.append("step")

    monkeypatch.setattr(trained, "scaler", Scaler())
    monkeypatch.setattr(DetectionTrainer, "optimizer_step", step)
    monkeypatch.setattr("yolokd.trainer.average_gradients", lambda parameters: done.append("average"))
    for size in (1e6, 1.0):
        for p in adapters:
            p.grad = torch.full_like(p, size)
        trained.optimizer_step()
    assert done == ["average", "step"] * 2
    assert norms[0] == pytest.approx(10 * 1024, rel=1e-3)  # the limit, scaled as the gradients still are
    assert norms[1] < 10 * 1024
    for p in adapters:
        p.grad = None


def test_paths_and_devices_as_objects(toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path) -> None:
    args = overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher)) | {"data": toy_data}
    trainer = DistillationTrainer(overrides={**args, "project": tmp_path, "device": torch.device("cpu")})
    recipe = yaml.safe_load((trainer.save_dir / "distill.yaml").read_text())
    assert recipe["data"] == str(toy_data.resolve())
    assert recipe["project"] == str(tmp_path)


def test_classes_reach_the_class_map(toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path) -> None:
    trainer = DistillationTrainer(
        overrides=overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher), classes=[0, 2])
    )
    trainer._setup_train()
    assert trainer.criterion is not None
    assert sorted(trainer.criterion.teachers.views[0].class_map.pairs) == [0, 2]


@pytest.mark.parametrize("imgsz", ["64", [64, 64], (64, 32)])
def test_sizes_as_ultralytics_takes_them(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path, imgsz: Any
) -> None:
    args = overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher), imgsz=imgsz)
    trainer = DistillationTrainer(overrides=args)
    trainer._setup_train()
    assert trainer.args.imgsz == 64
    assert trainer.panel is not None
    assert trainer.panel.whole


@pytest.mark.parametrize(("size", "more"), [(128, {}), (96, {}), (128, {"multi_scale": 0.5})])
def test_images_are_loaded_at_the_teachers_size_and_reduced_for_the_student(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path, size: int, more: dict[str, Any]
) -> None:
    from torch.nn import functional as F

    args = overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher), teacher_imgsz=size, **more)
    trainer = DistillationTrainer(overrides=args)
    trainer._setup_train()
    assert trainer.args.imgsz == 64  # as before, for validation and for the checkpoint
    assert (trainer.train_loader.dataset.imgsz, trainer.test_loader.dataset.imgsz) == (size, 64)
    sides = set()
    for loaded in trainer.train_loader:
        assert loaded["img"].shape[-2:] == (size, size)
        whole = loaded["img"].clone()
        batch = trainer.preprocess_batch(dict(loaded))
        larger, image = batch["teacher_img"], batch["img"]
        assert larger.dtype == image.dtype == torch.float32
        assert larger.shape[-1] * 64 == image.shape[-1] * size
        sides.add(image.shape[-1])
        if not more:
            # What the student sees is the reduction of what the teacher sees, to the rounding of uint8.
            assert torch.equal(larger, whole.float() / 255)
            assert (image - F.adaptive_avg_pool2d(larger, 64)).abs().max() <= 0.51 / 255
    assert sides == {64} or more
    for loaded in trainer.test_loader:
        assert loaded["img"].shape[-1] <= 64 + 32  # letterboxed with Ultralytics' own half stride of padding


def test_a_plain_run_loads_the_students_images(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    args = overrides(toy_data, toy_student, tmp_path, losses="none", teacher_imgsz=128)
    trainer = DistillationTrainer(overrides=args)
    trainer._setup_train()
    assert trainer.train_loader.dataset.imgsz == 64
    assert "teacher_img" not in trainer.preprocess_batch(next(iter(trainer.train_loader)))


def test_a_last_pt_that_is_one_of_the_teachers_stays(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path
) -> None:
    args = overrides(toy_data, toy_student, tmp_path, name="again", exist_ok=True)
    last = tmp_path / "again" / "weights" / "last.pt"
    last.parent.mkdir(parents=True)
    last.write_bytes(toy_teacher.read_bytes())
    trainer = DistillationTrainer(overrides={**args, "teacher": f"{toy_teacher}:red,{last}:blue"})
    assert trainer.last.resolve() == last.resolve()
    trainer.setup_model()
    assert last.is_file()
    other = DistillationTrainer(overrides={**args, "teacher": str(toy_teacher)})
    other.setup_model()
    assert not last.is_file()


def test_a_student_asks_its_own_average(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    trainer = DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path, teacher="self"))
    trainer._setup_train()
    assert trainer.panel is not None
    teacher: Any = trainer.panel.views[0].teacher
    assert teacher.model is trainer.ema.ema
    assert teacher.model is not trainer.model
    before = trainer.ema.ema
    checkpoint = {"ema": before, "updates": 7, "epoch": 0, "optimizer": None}
    DetectionTrainer._load_checkpoint_state(trainer, checkpoint)  # as resume and NaN recovery do
    assert trainer.ema.ema is not before
    assert teacher.model is trainer.ema.ema


@pytest.mark.parametrize("wanted", [True, False])
def test_the_teacher_is_compiled_where_that_is_asked_for(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    args = overrides(toy_data, toy_student, tmp_path, teacher=str(toy_teacher), teacher_compile=wanted)
    trainer = DistillationTrainer(overrides=args)
    trainer._setup_train()
    assert trainer.panel is not None
    teacher = trainer.panel.views[0].teacher
    assert isinstance(teacher, LiveTeacher)
    assert compiled == ([teacher.model] if wanted else [])


def test_a_folder_that_was_that_of_a_chain_is_no_chain_any_more(
    toy_data: Path, toy_student: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / MANIFEST).write_text("of an earlier training in steps")
    keys = overrides(toy_data, toy_student, tmp_path, losses="none", name="x", exist_ok=True)
    assert DistillationTrainer(overrides=keys).save_dir == folder
    assert sorted(file.name for file in folder.iterdir() if file.is_file()) == ["args.yaml", RECIPE]
    assert chain_of(str(folder)) is None
