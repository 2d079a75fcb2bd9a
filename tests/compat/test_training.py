import os
from pathlib import Path

import pytest
import torch
import ultralytics.engine.trainer as engine
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from tests.conftest import NAMES
from yolokd.adapters import add_to_optimizer
from yolokd.compat.training import (
    PARTIAL,
    AssignmentTap,
    atomic_replace,
    atomic_strip,
    begin_folder,
    branch_losses,
    branches,
    commit,
    freeze,
    plain_optimizer,
    recover,
)


def detector(cfg: str) -> DetectionModel:
    torch.manual_seed(0)
    model = DetectionModel(cfg, nc=3, verbose=False)
    model.names, model.args = NAMES, DEFAULT_CFG
    return model


IMAGES = torch.rand(2, 3, 64, 64)


@pytest.mark.parametrize("cfg", ["yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml", "yolov10n.yaml"])
def test_a_frozen_teacher_says_what_the_model_said(cfg: str) -> None:
    model = detector(cfg).eval()
    for m in model.modules():  # values that a fusion must carry over
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            m.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    with torch.no_grad():
        expected, _ = branches(model(IMAGES))
        frozen = freeze(model)
        said, _ = branches(frozen(IMAGES))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not isinstance(frozen(IMAGES), tuple)  # nothing is decoded
    for a, b in ((said.scores, expected.scores), (said.boxes, expected.boxes)):
        assert torch.allclose(a, b, atol=1e-3)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(said.feats, expected.feats, strict=True))


def test_branches_of_an_end2end_head() -> None:
    dense, one2one = branches(detector("yolo26n.yaml").train()(IMAGES))
    assert one2one is not None
    assert dense.scores.shape == one2one.scores.shape == (2, 3, 84)
    assert [f.shape[-1] for f in dense.feats] == [8, 4, 2]
    assert branches(detector("yolo11n.yaml").train()(IMAGES))[1] is None


def batch() -> dict[str, torch.Tensor]:
    return {
        "img": IMAGES,
        "batch_idx": torch.tensor([0.0, 1, 1]),
        "cls": torch.tensor([[2.0], [0], [1]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.25, 0.25]]),
    }


def test_the_tap_hears_the_assignment() -> None:
    model = detector("yolo11n.yaml").train()
    loss = model.init_criterion()
    tap = AssignmentTap(loss)
    preds = model(IMAGES)
    fg, gt_index, boxes, anchors, strides = loss.get_assigned_targets_and_loss(preds, batch())[0]
    assigned = tap.take(strides.squeeze(-1))
    assert torch.equal(assigned.foreground, fg)
    assert torch.equal(assigned.gt_index, gt_index)
    assert torch.equal(assigned.boxes[fg], boxes[fg])
    assert torch.equal(assigned.anchors, anchors * strides)
    assert assigned.gt_labels.tolist() == [2, 0, 1]
    assert assigned.gt_image.tolist() == [0, 1, 1]
    assert assigned.gt_boxes[0].tolist() == [16.0, 24.0, 48.0, 40.0]
    assert torch.equal(assigned.labels[fg], assigned.scores[fg].argmax(1))
    assert assigned.normalizer == assigned.scores.sum().clamp(min=1)
    with pytest.raises(RuntimeError, match="did not call its assigner"):
        tap.take(strides.squeeze(-1))


def test_branch_losses() -> None:
    plain = branch_losses(detector("yolo11n.yaml").init_criterion())
    assert plain.one2one is None
    assert plain.gains() == (1.0, 0.0)
    criterion = detector("yolo26n.yaml").init_criterion()
    both = branch_losses(criterion)
    assert both.one2one is criterion.one2one
    assert both.gains() == pytest.approx((0.8, 0.2))


def test_plain_optimizer_hides_the_adapters_and_brings_them_back() -> None:
    weight, adapter = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([{"params": [weight], "param_group": "bias"}], lr=0.1)
    before = optimizer.state_dict()
    add_to_optimizer(optimizer, [adapter])
    (weight.sum() + adapter.sum()).backward()
    optimizer.step()
    with plain_optimizer(optimizer):
        saved = optimizer.state_dict()
        assert len(saved["param_groups"]) == len(before["param_groups"]) == 1
        assert list(saved["state"]) == [0]
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[-1]["param_group"] == "adapter"
    assert optimizer.state[adapter]["exp_avg"].shape == (3,)
    with plain_optimizer(None):
        pass


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def torn(partial: Path) -> None:
        partial.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_replace(path, torn)
    assert path.read_text() == "old"
    atomic_replace(path, lambda partial: partial.write_text("new"))
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_strip_is_by_rename_and_only_inside(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"model": None, "ema": detector("yolo11n.yaml"), "optimizer": {"x": 1}, "epoch": 3}, path)
    outside, inode = engine.strip_optimizer, path.stat().st_ino
    with atomic_strip():
        assert engine.strip_optimizer(path)["epoch"] == -1
    assert engine.strip_optimizer is outside
    assert path.stat().st_ino != inode
    assert torch.load(path, weights_only=False)["optimizer"] is None


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_set_of_checkpoints_arrives_whole_whenever_the_kill_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    weights = tmp_path / "weights"
    stage = weights / PARTIAL
    stage.mkdir(parents=True)
    (weights / "last.pt").write_text("old")
    for name in ("last.pt", "best.pt", "epoch1.pt"):
        (stage / name).write_text("new")
    replace, done = Path.replace, []

    def until(self: Path, target: Path) -> Path:
        done.append(self.name)
        if len(done) > 1 + moved:  # the stage's own rename, then the files
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", until)
    with pytest.raises(KeyboardInterrupt):
        commit(stage, weights)
    monkeypatch.undo()
    assert (weights / "last.pt").read_text() == "old"
    recover(weights)
    assert files(weights) == {"last.pt": "new", "best.pt": "new", "epoch1.pt": "new"}


def test_recover_discards_what_is_torn_older_or_not_wanted(tmp_path: Path) -> None:
    weights = tmp_path / "weights"

    def leave(stage: str) -> Path:
        (weights / stage).mkdir(parents=True)
        (weights / stage / "last.pt").write_text("staged")
        return weights / stage / "last.pt"

    recover(weights)  # no folder yet
    leave(PARTIAL)
    (weights / f".last.pt.1{PARTIAL}").write_text("torn")
    (tmp_path / f".results.csv.2{PARTIAL}").write_text("torn")
    recover(weights)
    assert files(tmp_path) == {}
    leave(".complete")
    recover(weights, forward=False)
    assert files(tmp_path) == {}
    overtaken = leave(".complete")
    os.utime(overtaken, (1, 1))
    (weights / "last.pt").write_text("newer")
    recover(weights)
    assert files(tmp_path) == {"weights/last.pt": "newer"}


def test_a_run_folder_appears_with_its_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project" / "train"
    left = tmp_path / "project" / f".train{PARTIAL}"
    left.mkdir(parents=True)
    (left / "torn").write_text("of a killed run")
    rename = Path.replace

    def watch(self: Path, target: Path) -> Path:
        assert not folder.exists()
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", watch)
    begin_folder(folder, "a.yaml", "one")
    monkeypatch.undo()
    (folder / "other").write_text("stays")
    begin_folder(folder, "a.yaml", "two")
    assert files(tmp_path) == {"project/train/a.yaml": "two", "project/train/other": "stays"}
