import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from tests.conftest import NAMES
from yolokd.adapters import add_to_optimizer
from yolokd.compat.boxes import decode, expected_distances
from yolokd.compat.training import AssignmentTap, branch_losses, branches, freeze, plain_optimizer, settle_rate


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
    assert assigned.seen is not None
    raw, points = branches(preds)[0], assigned.anchors
    assert raw.scores is not None
    assert raw.boxes is not None
    assert torch.allclose(assigned.seen[0], raw.scores.sigmoid().transpose(1, 2))
    decoded = decode(expected_distances(raw.boxes.transpose(1, 2)), points, assigned.strides)
    assert torch.allclose(assigned.seen[1], decoded, atol=1e-3)
    assert not assigned.seen[1].requires_grad
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


@pytest.mark.parametrize("cos_lr", [False, True])
def test_the_learning_rate_ends_where_the_refinement_begins(cos_lr: bool) -> None:
    from ultralytics.engine.trainer import BaseTrainer

    trainer = BaseTrainer.__new__(BaseTrainer)
    trainer.args = DEFAULT_CFG.__class__(**{**vars(DEFAULT_CFG), "cos_lr": cos_lr, "lrf": 0.1})
    trainer.epochs, trainer.optimizer = 10, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    trainer._setup_scheduler()
    whole = trainer.lf
    settle_rate(trainer, 4)
    # Ten epochs' fall happens in six; then the final rate stays.
    assert [trainer.lf(epoch) for epoch in (0, 3)] == pytest.approx([whole(0), whole(5)])
    assert [trainer.lf(epoch) for epoch in (6, 7, 9, 10)] == pytest.approx([0.1] * 4)
    for _ in range(8):
        trainer.optimizer.step()
        trainer.scheduler.step()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
