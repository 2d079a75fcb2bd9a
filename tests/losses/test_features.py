from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assignment, pair, predictions
from yolokd.adapters import PyramidAdapter
from yolokd.losses.features import AttentionTransfer, ChannelWiseKD, FitNets, normalise, variances
from yolokd.predictions import Pair, Predictions


def identity(channels: int) -> PyramidAdapter:
    adapter = PyramidAdapter((channels,), (channels,))
    with torch.no_grad():
        adapter.levels[0].weight.copy_(torch.eye(channels)[..., None, None])  # type: ignore[operator, union-attr]
    return adapter


def level(*values: float) -> Predictions:
    """One image, one channel, one row of positions."""
    return Predictions(None, None, (torch.tensor(values).view(1, 1, 1, -1),))


def test_value_by_hand() -> None:
    # Two positions normalise to -1 and +1 (or +1 and -1): softmax is (q, 1 - q) with q = 1 / (1 + e^2).
    # Student the other way round: KL = (1 - 2q) * 2, since the two log odds differ by 2.
    q = 1 / (1 + np.exp(2))
    loss = ChannelWiseKD(identity(1))
    assert loss(level(3.0, 5.0), level(7.0, 1.0), assignment()).item() == pytest.approx((1 - 2 * q) * 2, rel=1e-3)


def test_scale_and_shift_of_either_side_do_not_matter() -> None:
    loss = ChannelWiseKD(identity(1))
    student, teacher = (1.0, 5.0, 2.0), (4.0, 1.0, 0.0)
    value = loss(level(*student), level(*teacher), assignment()).item()
    other = loss(level(*(3 * v + 7 for v in student)), level(*(10 * v - 2 for v in teacher)), assignment()).item()
    assert other == pytest.approx(value, rel=1e-4)
    assert loss(level(*student), level(*student), assignment()).item() == pytest.approx(0, abs=1e-6)


def slow(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Normalise a channel over batch and positions, softmax over positions, KL, mean over images and channels."""
    total, (batch, channels) = 0.0, teacher.shape[:2]
    for c in range(channels):
        s, t = ((x[:, c] - x[:, c].mean()) / np.sqrt(x[:, c].var() + 1e-5) / temperature for x in (student, teacher))
        for b in range(batch):
            p, q = (np.exp(x[b]) / np.exp(x[b]).sum() for x in (t, s))
            total += float((p * np.log(p / q)).sum())
    return total * temperature**2 / (batch * channels)


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 5), st.integers(2, 5)),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
)
@settings(max_examples=25, deadline=None)
def test_against_loops(seed: int, batch: int, size: tuple[int, int], temperature: float) -> None:
    g = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, 3, *size, generator=g) * 4 for _ in range(2))
    loss = ChannelWiseKD(identity(3), temperature)
    value = loss(Predictions(None, None, (student,)), Predictions(None, None, (teacher,)), assignment()).item()
    assert value == pytest.approx(slow(student.numpy(), teacher.numpy(), temperature), rel=1e-3, abs=1e-5)


def test_levels_are_averaged() -> None:
    loss = ChannelWiseKD(PyramidAdapter((1, 1), (1, 1)))
    for conv in loss.adapter.levels:
        conv.weight.data.fill_(1)  # type: ignore[union-attr, operator]
    one = level(3.0, 5.0).feats
    other = level(7.0, 1.0).feats
    assert one is not None
    assert other is not None
    both = loss(Predictions(None, None, one * 2), Predictions(None, None, other * 2), assignment()).item()
    single = ChannelWiseKD(identity(1))(level(3.0, 5.0), level(7.0, 1.0), assignment()).item()
    assert both == pytest.approx(single)


def test_normalise_needs_no_state() -> None:
    x = torch.randn(2, 3, 4, 4) * 5 + 1
    assert normalise(x).mean((0, 2, 3)).abs().max() < 1e-5
    assert (normalise(x).var((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-3


def test_variances_and_their_gradient_are_those_of_the_adapted_level() -> None:
    x, weight = torch.randn(30, 4) * 3, torch.randn(5, 4)
    x = (x - x.mean(0)).requires_grad_()
    weight.requires_grad_()
    found, plain = variances(x, weight), (x @ weight.mT).square().mean(0)
    torch.testing.assert_close(found, plain)
    pull = torch.randn(5)
    for got, expected in zip(
        torch.autograd.grad(found @ pull, [x, weight]), torch.autograd.grad(plain @ pull, [x, weight]), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_the_plain_computation(layout: torch.memory_format) -> None:
    """Where the normalisation goes into the weights, student and adapter learn what they would learn anyway."""
    loss = ChannelWiseKD.for_pair(pair(widths=(5, 3)), temperature=2.0)
    student = [(f * 3 + 1).requires_grad_() for f in predictions().feats or ()]
    teacher = tuple(f.to(memory_format=layout) for f in predictions(widths=(5, 3), seed=1).feats or ())
    wanted = [*student, *loss.parameters()]
    value = loss(Predictions(None, None, tuple(student)), Predictions(None, None, teacher), assignment())
    plain = torch.zeros(())
    for s, t in zip(loss.adapter(student), teacher, strict=True):
        log_q, log_p = ((normalise(x).flatten(2) / 2).log_softmax(-1) for x in (s, t))
        plain = plain + (log_p.exp() * (log_p - log_q)).sum(-1).mean() * 4 / len(teacher)
    torch.testing.assert_close(value, plain)
    for got, expected in zip(torch.autograd.grad(value, wanted), torch.autograd.grad(plain, wanted), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("build", [ChannelWiseKD.for_pair, FitNets.for_pair])
def test_a_teacher_in_bfloat16_teaches_the_same_up_to_its_digits(build: Callable[[Pair], torch.nn.Module]) -> None:
    loss = build(pair(widths=(5, 3)))
    low = tuple(f.bfloat16() for f in predictions(widths=(5, 3), seed=1).feats or ())
    found = []
    for teacher in (low, tuple(f.float() for f in low)):
        student = [f.clone().requires_grad_() for f in predictions().feats or ()]
        value = loss(Predictions(None, None, tuple(student)), Predictions(None, None, teacher), assignment())
        assert value.dtype is torch.float32
        found.append([value, *torch.autograd.grad(value, [*student, *loss.parameters()])])
    for got, exact in zip(*found, strict=True):
        assert (got - exact).norm() <= 0.02 * exact.norm()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"cwd\.temperature is -1"):
        ChannelWiseKD(identity(1), -1)
    with pytest.raises(ValueError, match="needs the pyramid"):
        ChannelWiseKD.for_pair(pair())(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="adapted student level"):
        ChannelWiseKD(identity(1))(level(1.0, 2.0), level(1.0, 2.0, 3.0), assignment())


def test_normalise_of_a_lone_value_is_zero() -> None:
    x = torch.full((1, 3, 1, 1), 7.0, requires_grad=True)
    y = normalise(x)
    y.sum().backward()
    assert y.abs().max() == 0
    assert x.grad is not None
    assert x.grad.abs().max() == 0


def test_channels_of_a_lone_position_have_nothing_to_say() -> None:
    loss = ChannelWiseKD(identity(1))
    value = loss(level(3.0), level(7.0), assignment())
    value.backward()
    weight = loss.adapter.levels[0].weight
    assert value.item() == 0
    assert weight.grad is not None  # type: ignore[union-attr]
    assert weight.grad.abs().max() == 0  # type: ignore[union-attr, operator]


def at(student: torch.Tensor, teacher: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    return AttentionTransfer(power)(
        Predictions(None, None, (student,)), Predictions(None, None, (teacher,)), assignment()
    )


def test_attention_by_hand() -> None:
    # Squares added over two channels: student (0 + 0, 4 + 5) = (0, 9), teacher (1 + 2, 4 + 0) = (3, 4).
    # As unit vectors (0, 1) and (.6, .8): .36 + .04.
    student = torch.tensor([[0.0, 2.0], [0.0, 5**0.5]]).view(1, 2, 1, 2)
    teacher = torch.tensor([[1.0, -2.0], [2**0.5, 0.0]]).view(1, 2, 1, 2)
    assert at(student, teacher).item() == pytest.approx(0.4)


def test_attention_with_another_power_by_hand() -> None:
    # Power 1, magnitudes: student (3, 4), teacher (-5, 0) -> (5, 0). Unit vectors (.6, .8), (1, 0): .16 + .64.
    student, teacher = torch.tensor([3.0, -4.0]).view(1, 1, 1, 2), torch.tensor([-5.0, 0.0]).view(1, 1, 1, 2)
    assert at(student, teacher, 1).item() == pytest.approx(0.8)


@given(
    seed=st.integers(0, 10_000),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    power=st.sampled_from([1.0, 2.0, 3.0]),
)
@settings(max_examples=25, deadline=None)
def test_attention_is_bounded_and_blind_to_scale(
    seed: int, widths: tuple[int, int], size: tuple[int, int], power: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, c, *size, generator=g) for c in widths)
    value = at(student, teacher, power).item()
    assert 0 <= value <= 2
    assert at(student * 30, teacher * -0.2, power).item() == pytest.approx(value, rel=1e-3, abs=1e-5)
    assert at(teacher, teacher, power).item() == 0


def test_attention_of_zeros_is_finite() -> None:
    student, teacher = torch.zeros(2, 3, 2, 2, requires_grad=True), torch.ones(2, 5, 2, 2)
    value = at(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(1)  # nothing against a unit vector
    assert student.grad is not None
    assert student.grad.abs().max() == 0
    assert at(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item() == 0


def test_attention_averages_levels_and_images() -> None:
    # one level that agrees beside one at the greatest distance, 2
    a, b = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    two = AttentionTransfer()(Predictions(None, None, (a, a)), Predictions(None, None, (a, b)), assignment())
    assert two.item() == pytest.approx(1)
    assert at(torch.cat([a, a]), torch.cat([a, b])).item() == pytest.approx(1)


@pytest.mark.parametrize("power", [0.5, -1, float("nan"), float("inf")])
def test_bad_power_is_named(power: float) -> None:
    with pytest.raises(ValueError, match=r"at\.power is"):
        AttentionTransfer(power)


def test_attention_names_what_is_missing() -> None:
    loss = AttentionTransfer.for_pair(pair(), power=2)
    with pytest.raises(ValueError, match="at needs the pyramid"):
        loss(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="student level"):
        loss(level(1.0, 2.0), level(1.0, 2.0, 3.0), assignment())
    with pytest.raises(ValueError, match="2 student levels against 1"):
        loss(predictions(), level(1.0, 2.0), assignment())


def fitnets(*matrix: list[float], bias: list[float]) -> FitNets:
    """A one-level regressor with these rows."""
    weight = torch.tensor(matrix)
    loss = FitNets(PyramidAdapter((weight.shape[1],), (weight.shape[0],), bias=True))
    conv = loss.adapter.levels[0]
    with torch.no_grad():
        conv.weight.copy_(weight[..., None, None])  # type: ignore[operator, union-attr]
        conv.bias.copy_(torch.tensor(bias))  # type: ignore[operator, union-attr]
    return loss


def test_regression_by_hand() -> None:
    # Adapted: channel 1 = 2 x (1, 2) = (2, 4), channel 2 = 2 - (1, 2) = (1, 0). Teacher (2, 2), (1, 2).
    # Squared errors 0, 4, 0, 4: mean 2. The teacher's mean square is (4 + 4 + 1 + 4) / 4 = 13 / 4.
    loss = fitnets([2.0], [-1.0], bias=[0.0, 2.0])
    teacher = torch.tensor([[2.0, 2.0], [1.0, 2.0]]).view(1, 2, 1, 2)
    value = loss(level(1.0, 2.0), Predictions(None, None, (teacher,)), assignment())
    assert value.item() == pytest.approx(2 / (13 / 4))


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    scale=st.sampled_from([0.1, 1.0, 50.0]),
)
@settings(max_examples=25, deadline=None)
def test_regression_against_loops_at_any_scale(seed: int, shape: tuple[int, int, int, int], scale: float) -> None:
    g = torch.Generator().manual_seed(seed)
    batch, channels, height, width = shape
    s, t = (torch.randn(batch, c, height, width, generator=g) for c in (2, channels))
    weight, bias = torch.randn(channels, 2, generator=g), torch.randn(channels, generator=g)
    error = power = 0.0
    for b, d, y, x in np.ndindex(batch, channels, height, width):
        guess = bias[d] + sum(weight[d, c] * s[b, c, y, x] for c in range(2))
        error += float(guess - t[b, d, y, x]) ** 2
        power += float(t[b, d, y, x]) ** 2
    # teacher and regressor together at another scale: the same share of the teacher's mean square
    loss = fitnets(*(scale * weight).tolist(), bias=(scale * bias).tolist())
    value = loss(Predictions(None, None, (s,)), Predictions(None, None, (scale * t,)), assignment()).item()
    assert value == pytest.approx(error / power, rel=1e-3)


def test_regression_is_zero_at_the_teacher_and_averages_levels() -> None:
    loss = FitNets(PyramidAdapter((1, 1), (1, 1)))
    for conv in loss.adapter.levels:
        conv.weight.data.fill_(1)  # type: ignore[union-attr, operator]
    (x,) = level(1.0, 2.0).feats or ()
    same = loss(Predictions(None, None, (x, x)), Predictions(None, None, (x, x)), assignment())
    half = loss(Predictions(None, None, (x, 0 * x)), Predictions(None, None, (x, x)), assignment())
    assert same.item() == 0
    assert half.item() == pytest.approx(0.5)  # a guess of 0 costs 1 on its level


def test_regression_learns_its_bias_and_leaves_the_teacher_alone() -> None:
    loss = FitNets.for_pair(pair(widths=(5, 3)))
    teacher = predictions(widths=(5, 3), seed=1)
    feats = tuple(f.requires_grad_() for f in teacher.feats or ())
    loss(predictions(), Predictions(None, None, feats), assignment()).backward()
    assert len(list(loss.parameters())) == 4  # weight and bias of two levels
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in loss.parameters())
    assert all(f.grad is None for f in feats)


def test_regression_of_zeros_and_of_a_lone_position_is_finite() -> None:
    for student, teacher in [(level(0.0, 0.0), level(0.0, 0.0)), (level(2.0), level(5.0))]:
        loss = fitnets([1.0], bias=[0.0])
        value = loss(student, teacher, assignment())
        value.backward()
        assert value.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


def test_regression_names_what_is_missing() -> None:
    loss = FitNets.for_pair(pair())
    with pytest.raises(ValueError, match="fitnets needs the pyramid"):
        loss(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="adapted student level"):
        loss(predictions(), predictions(widths=(5, 6)), assignment())
    with pytest.raises(ValueError, match="2 student levels against 1"):
        loss(predictions(), level(1.0, 2.0), assignment())
