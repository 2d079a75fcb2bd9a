import pytest
import torch

from tests.helpers import assignment, pair, predictions
from yolokd.losses.base import DEFAULT_LOSSES, LOSSES, build_losses


def test_the_table_is_consistent() -> None:
    assert set(DEFAULT_LOSSES) <= set(LOSSES)
    for name, info in LOSSES.items():
        assert info.name == name
        assert info.gain > 0
        assert info.link.startswith("https://")
        assert info.needs <= {"scores", "boxes", "feats"}


def test_options_are_those_of_the_class() -> None:
    assert LOSSES["cwd"].options == {"temperature": 1.0}
    assert LOSSES["cls"].options == {}


def test_adapters_come_from_a_random_stream_of_their_own() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = build_losses({"cwd": 1.0}, {}, pair(), seed=5)
    assert torch.equal(torch.rand(4), expected)  # the run's own stream has not moved
    second = build_losses({"cwd": 1.0}, {}, pair(), seed=5)
    other = build_losses({"cwd": 1.0}, {}, pair(), seed=6)
    a, b, c = (next(losses.parameters()) for losses in (first, second, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_options_reach_the_loss() -> None:
    losses = build_losses({"box": 1.0}, {"box": {"temperature": 3.0}}, pair(), seed=0)
    assert losses["box"].temperature == 3.0


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_positive_float32_scalar_that_does_not_depend_on_the_batch_size(name: str) -> None:
    loss = build_losses({name: 1.0}, {}, pair(), seed=0)[name]
    student, teacher = predictions(seed=1), predictions(seed=2)

    def doubled(p):  # type: ignore[no-untyped-def]
        return type(p)(p.scores.repeat(2, 1, 1), p.boxes.repeat(2, 1, 1), tuple(f.repeat(2, 1, 1, 1) for f in p.feats))

    once = loss(student, teacher, assignment(2))
    twice = loss(doubled(student), doubled(teacher), assignment(4))
    assert once.dtype == torch.float32
    assert once.shape == ()
    assert once.item() > 0
    assert twice.item() == pytest.approx(once.item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_student_and_adapter_and_never_the_teacher(name: str) -> None:
    loss = build_losses({name: 1.0}, {}, pair(), seed=0)[name]
    student, teacher = predictions(seed=1), predictions(seed=2)
    tensors = {"scores": (student.scores, teacher.scores), "boxes": (student.boxes, teacher.boxes)}
    tensors["feats"] = (student.feats[0], teacher.feats[0])  # type: ignore[index]
    (need,) = LOSSES[name].needs
    ours, theirs = tensors[need]
    assert ours is not None
    ours.requires_grad_()
    loss(student, teacher, assignment()).backward()
    assert ours.grad is not None
    assert ours.grad.abs().sum() > 0
    assert theirs is not None
    assert theirs.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_without_any_object_it_is_finite(name: str) -> None:
    loss = build_losses({name: 1.0}, {}, pair(), seed=0)[name]
    student = predictions(batch=1, seed=1)
    for tensor in (student.scores, student.boxes):
        assert tensor is not None
        tensor.requires_grad_()
    value = loss(student, predictions(batch=1, seed=2), assignment(1, foreground=()))
    assert torch.isfinite(value)
    if name == "box":
        assert value.item() == 0
        value.backward()
        assert student.boxes is not None
        assert student.boxes.grad is not None
        assert student.boxes.grad.abs().sum() == 0
