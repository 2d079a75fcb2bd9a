"""A student that teaches itself: it must be left exactly as it was, and its deepest level read by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.test_criterion import batch, detector
from yolokd.compat.boxes import anchor_points, bins_of, decode, expected_distances
from yolokd.compat.checkpoint import head_info
from yolokd.compat.training import branches
from yolokd.predictions import HeadInfo, Predictions
from yolokd.teachers.itself import DeepestLevel, RunningTeacher
from yolokd.teachers.live import LARGER
from yolokd.teachers.panel import STUDENT


@pytest.mark.parametrize("cfg", ["yolo11n.yaml", "yolo26n.yaml"])
@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(cfg: str, training: bool) -> None:
    model = detector(cfg, 0).train(training)
    model.model[3].train(not training)  # modes may differ within it
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    learning = [p.requires_grad for p in model.parameters()]
    teacher = RunningTeacher(lambda: model, head_info(model), "self")
    said = teacher(batch())
    assert said.scores is not None
    assert said.feats is not None
    assert not said.scores.requires_grad
    assert not any(f.requires_grad for f in said.feats)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == learning
    assert all(p.grad is None for p in model.parameters())


def test_it_answers_as_in_validation_not_by_the_batchs_statistics() -> None:
    model = detector("yolo11n.yaml", 0).train()
    teacher = RunningTeacher(lambda: model, head_info(model), "self")
    data = batch(images=2)
    both, alone = teacher(data), teacher({"img": data["img"][:1]})
    assert both.feats is not None
    assert alone.feats is not None
    # A fresh network in eval mode says next to nothing in its scores; its features tell.
    assert torch.allclose(both.feats[0][:1], alone.feats[0], atol=1e-6)
    model.eval()
    model.model[-1].training = True
    with torch.no_grad():
        expected = branches(model(data["img"]))[0]
    assert expected.feats is not None
    assert torch.equal(both.feats[0], expected.feats[0])
    assert both.feats[0].any()


def test_modes_come_back_after_a_failure() -> None:
    model = detector("yolo11n.yaml", 0).train()
    teacher = RunningTeacher(lambda: model, head_info(model), "self")
    with pytest.raises(RuntimeError):
        teacher({"img": torch.zeros(1, 5, 64, 64)})
    assert all(module.training for module in model.modules())


def test_the_network_may_be_exchanged() -> None:
    models = [detector("yolo11n.yaml", seed).eval() for seed in (0, 1)]
    now = [models[0]]
    teacher = RunningTeacher(lambda: now[0], head_info(models[0]), "self")
    first = teacher(batch()).feats
    now[0] = models[1]
    second = teacher(batch()).feats
    assert first is not None
    assert second is not None
    assert not torch.equal(first[0], second[0])
    assert teacher.model is models[1]


def test_it_sees_the_larger_image_in_its_own_number_format() -> None:
    seen: list[Any] = []
    model = detector("yolo11n.yaml", 0).eval().bfloat16()
    model.model[0].register_forward_pre_hook(lambda module, args: seen.append((args[0].shape[-1], args[0].dtype)))
    RunningTeacher(lambda: model, head_info(model), "self")({**batch(), LARGER: torch.rand(2, 3, 96, 96)})
    assert seen == [(96, torch.bfloat16)]


INFO = HeadInfo({0: "a"}, (8, 16), (2, 3), 8, False)
SIZES = [(4, 4), (2, 2)]


def student(distance: float = 1.0, reg_max: int = 8) -> Predictions:
    """Two levels of a 32 px image; on the deeper one each cell has a score, a feature and a box of its own."""
    scores = torch.cat([torch.full((16,), -9.0), torch.arange(4.0)]).view(1, 1, 20).requires_grad_()
    raw = bins_of(torch.full((1, 20, 4), distance), reg_max).transpose(1, 2).clone().requires_grad_()
    feats = torch.zeros(1, 2, 4, 4, requires_grad=True), torch.arange(12.0).view(1, 3, 2, 2).requires_grad_()
    return Predictions(scores, raw, feats)


def test_the_deepest_level_by_hand() -> None:
    said = DeepestLevel(INFO)({STUDENT: student()})
    assert said.scores is not None
    assert said.feats is not None
    above = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    assert said.scores.flatten().tolist() == [*map(float, above), 0.0, 1.0, 2.0, 3.0]
    assert [tuple(f.shape) for f in said.feats] == [(1, 3, 4, 4), (1, 3, 2, 2)]
    assert said.feats[0][0, 1].flatten().tolist() == [4.0 + i for i in above]
    assert not said.scores.requires_grad
    assert not any(f.requires_grad for f in said.feats)


def test_its_box_is_the_same_box_from_every_anchor() -> None:
    ours = student(distance=1.0)
    said = DeepestLevel(INFO)({STUDENT: ours})
    assert said.boxes is not None
    assert said.edges is not None
    points, strides = anchor_points(ours.feats, INFO.strides)  # type: ignore[arg-type]
    boxes = decode(expected_distances(said.boxes[0].T), points, strides)
    # The cell at (8, 8) says 16 px to each side: (-8, -8, 24, 24), and so do the four that it covers.
    for anchor in (0, 1, 4, 5, 16):
        assert boxes[anchor].tolist() == pytest.approx([-8, -8, 24, 24], abs=1e-3)
    assert boxes[3].tolist() == pytest.approx([8, -8, 40, 24], abs=1e-3)
    assert said.edges.all()
    assert torch.equal(said.boxes[..., 16:], ours.boxes[..., 16:])  # type: ignore[index]


def test_an_edge_that_a_finer_level_cannot_say_does_not_count() -> None:
    said = DeepestLevel(INFO)({STUDENT: student(distance=4.0)})  # 64 px: 8 strides of the finer level and more
    assert said.edges is not None
    # From the anchor at (4, 4) the box (-56, -56, 72, 72) is 7.5 strides to the left, 8.5 to the right; 7 is the most.
    assert not said.edges[0, :, 0].any()
    assert said.edges[..., 16:].all()
    beside = DeepestLevel(INFO)({STUDENT: student(distance=0.1)})  # a box of 3 px that no finer anchor lies in
    assert beside.edges is not None
    assert beside.edges[0, :, 0].tolist() == [False, False, True, True]  # it lies to the right of and below (4, 4)
    plain = HeadInfo({0: "a"}, (8, 16), (2, 3), 1, False)
    said = DeepestLevel(plain)({STUDENT: student(distance=4.0, reg_max=1)})
    assert said.edges is not None
    assert said.edges.all()


def test_every_level_has_the_deepest_ones_width() -> None:
    info = DeepestLevel(INFO).info
    assert (info.widths, info.strides, info.hidden) == ((3, 3), (8, 16), ())
