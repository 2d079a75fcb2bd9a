"""Mistakes that other implementations of distillation made, none of which raises an error: none of them is ours.

Elsewhere: MGD's mean with the weight of the sum, in test_masked.
"""

from __future__ import annotations

import copy
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ultralytics.models.yolo.detect import DetectionTrainer

from tests.helpers import ANCHORS, assignment, scene, tensors
from tests.losses.test_every_loss import build
from tests.test_criterion import detector
from tests.test_trainer import overrides
from yolokd.adapters import PyramidAdapter
from yolokd.losses.base import LOSSES
from yolokd.losses.boxes import LocalizationKD
from yolokd.losses.features import ChannelWiseKD
from yolokd.losses.logits import ClassificationKD, SoftmaxKD
from yolokd.predictions import Predictions
from yolokd.settings import _ENVIRONMENT
from yolokd.teachers.live import LiveTeacher
from yolokd.trainer import DistillationTrainer


@pytest.fixture(scope="module")
def worker(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> DistillationTrainer:
    """All losses at once, set up as a spawned worker of a multi-GPU run is: from Ultralytics' arguments alone."""
    args = overrides(toy_data, toy_student, tmp_path_factory.mktemp("worker"), warmup_epochs=0.0, optimizer="AdamW")
    parent = DistillationTrainer(
        overrides={**args, "teacher": str(toy_teacher), "losses": ",".join(LOSSES), "balance": "off"}
    )
    parent.ddp = True
    handed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DetectionTrainer, "train", lambda self: handed.append(os.environ[_ENVIRONMENT]))
        parent.train()
        patch.setenv(_ENVIRONMENT, handed[0])
        patch.setattr("yolokd.trainer.LOCAL_RANK", 0)
        trainer = DistillationTrainer(overrides=vars(parent.args))
        trainer._setup_train()
    trainer.model.train()
    return trainer


def step(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    """One step on the first batch; the items."""
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    loss, items = trainer.model(batch)
    loss.sum().backward()
    trainer.optimizer_step()
    return dict(items)


# Their gate closes where an untrained student's boxes happen to be better than those of an untrained teacher.
GATED = {"box", "iou"}


def test_distillation_silently_off_in_spawned_workers(worker: DistillationTrainer) -> None:
    assert set(worker.losses) == set(LOSSES)
    items = step(worker)
    for name in LOSSES:
        assert items[f"kd_{name}_loss"].item() > 0 or name in GATED, name


def test_an_adapter_made_after_the_optimizer_never_trains(worker: DistillationTrainer) -> None:
    (group,) = (g for g in worker.optimizer.param_groups if g["param_group"] == "adapter")
    assert {id(p) for p in group["params"]} == {id(p) for p in worker.losses.parameters()}
    assert len(group["params"]) == len(list(worker.losses.parameters()))
    before = {path: p.detach().clone() for path, p in worker.losses.named_parameters()}
    for _ in range(2):  # what stands before a last layer that begins at 0 moves at the second step
        step(worker)
    for path, p in worker.losses.named_parameters():
        assert worker.optimizer.state[p]["exp_avg"].any(), path
        # An untrained teacher sees the same everywhere: what looks for differences has a gradient below rounding.
        assert not torch.equal(p, before[path]) or path.startswith("fgd.teacher_context"), path


def test_a_gain_with_the_wrong_sign(worker: DistillationTrainer) -> None:
    criterion = worker.criterion
    assert criterion is not None
    values: dict[str, float] = {}
    handles = [
        loss.register_forward_hook(lambda module, args, out, name=name: values.update({name: out.item()}))
        for name, loss in worker.losses.items()
    ]
    batch = worker.preprocess_batch(next(iter(worker.train_loader)))
    given = dict(criterion.gains)
    for factor in (1.0, 3.0):
        criterion.gains.update({name: factor * gain for name, gain in given.items()})
        total, items = worker.model(batch)
        for place, (name, gain) in enumerate(given.items()):
            assert values[name] > 0 or name in GATED, name
            assert items[f"kd_{name}_loss"].item() == pytest.approx(factor * gain * values[name], rel=1e-5)
            entry = total[len(total) - len(given) + place].item()  # what is minimised
            assert entry == pytest.approx(len(batch["img"]) * factor * gain * values[name], rel=1e-5)
    criterion.gains.update(given)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].family != "adversarial"])
def test_a_loss_with_the_wrong_sign(name: str) -> None:
    # `adv` reverses the gradient: its student climbs where its discriminator descends, see test_adversarial.
    s = scene().leaves()
    loss = build(name, s)
    twin = copy.deepcopy(loss)  # it remembers what the first has not seen yet
    before = loss(s.student, s.teacher, s.assigned)
    before.backward()
    found = [x for field in tensors(s.student).values() for x in field if x.grad is not None]
    length = torch.stack([x.grad.norm() for x in found if x.grad is not None]).norm()
    with torch.no_grad():
        for x in found:
            x -= 0.01 * x.grad / length
    assert twin(s.student, s.teacher, s.assigned).item() < before.item()


def test_a_teacher_in_train_mode_or_in_the_optimizer(worker: DistillationTrainer) -> None:
    assert worker.panel is not None
    live = worker.panel.views[0].teacher
    assert isinstance(live, LiveTeacher)
    teacher = live.model
    before = copy.deepcopy(teacher.state_dict())
    worker.model.train()
    step(worker)
    # The head's own flag, which no layer in it shares, only says whether boxes are decoded.
    head = teacher.model[-1]  # type: ignore[index]
    assert [module for module in teacher.modules() if module.training] == [head]
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    optimised = {id(p) for group in worker.optimizer.param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in teacher.parameters()}
    assert not {id(m) for m in teacher.modules()} & {id(m) for m in worker.model.modules()}
    after = teacher.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_a_teacher_that_comes_in_train_mode() -> None:
    # As a student in training would; one read from a file is in eval mode already.
    teacher = LiveTeacher(detector("yolov8n.yaml", 0).train(), torch.device("cpu"), "fp32").model
    assert [module for module in teacher.modules() if module.training] == [teacher.model[-1]]  # type: ignore[index]
    assert not any(p.requires_grad for p in teacher.parameters())


def everywhere(*logits: float) -> Predictions:
    """One image with the same class logits at every anchor."""
    return Predictions(torch.tensor(logits).view(1, -1, 1).repeat(1, 1, ANCHORS), None, None)


def test_softmax_of_probabilities() -> None:
    # kd: logits (ln 3, 0) are (3/4, 1/4), against (1/2, 1/2): KL = 3/4 ln 3 - ln 2 = .131. A softmax of (3/4, 1/4)
    # would make (.62, .38) of it: .030.
    assigned = replace(assignment(1, foreground=(5, 17)), normalizer=torch.tensor(1.6))
    found = SoftmaxKD(1.0)(everywhere(0.0, 0.0), everywhere(math.log(3), 0.0), assigned).item()
    assert found == pytest.approx(0.75 * math.log(3) - math.log(2), rel=1e-5)
    # cls: 0 and ln 3 are 1/2 and 3/4: 1/4 * ln 2 an anchor. A sigmoid of them would make .62 and .68 of it.
    assigned = replace(assigned, normalizer=torch.tensor(float(ANCHORS)))
    found = ClassificationKD()(everywhere(0.0), everywhere(math.log(3)), assigned).item()
    assert found == pytest.approx(0.25 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("more", [0, 1, 6])
def test_kl_with_reduction_mean(more: int) -> None:
    # PyTorch's reduction="mean" divides a divergence by the number of its outcomes as well. Outcomes that both rule
    # out, or each one cut in equal parts, change no divergence: here 3/4 ln 3 - ln 2, as above.
    divergence = 0.75 * math.log(3) - math.log(2)
    out = [-50.0] * more
    kd = SoftmaxKD(1.0)(everywhere(0.0, 0.0, *out), everywhere(math.log(3), 0.0, *out), assignment(1, foreground=(5,)))
    assert kd.item() == pytest.approx(0.8 * divergence, rel=1e-5)  # one anchor of weight .8; the sum counts as 1
    # Anchor 5 at (12, 12): the student's box ends .5 strides away, the teacher's .75, and the truth is larger.
    student, teacher = (
        Predictions(None, torch.tensor([0.0, odds, *out] * 4).view(1, -1, 1).repeat(1, 1, ANCHORS), None)
        for odds in (0.0, math.log(3))
    )
    box = LocalizationKD()(student, teacher, assignment(1, foreground=(5,)))
    assert box.item() == pytest.approx(0.8 * divergence, rel=1e-5)
    # Two kinds of position, -1 and 1 once normalised, the other way round in student and teacher:
    # q = 1 / (1 + e^2) against 1 - q, and the log odds differ by 2 and -2.
    loss, q = ChannelWiseKD(PyramidAdapter((1,), (1,))), 1 / (1 + math.exp(2))
    maps = [torch.tensor(values).repeat(1 + more).view(1, 1, 1, -1) for values in ((3.0, 5.0), (7.0, 1.0))]
    student, teacher = (Predictions(None, None, (m,)) for m in maps)
    with torch.no_grad():
        next(loss.parameters()).fill_(1)
    assert loss(student, teacher, assignment(1)).item() == pytest.approx((1 - 2 * q) * 2, rel=1e-3)
