import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assignment, pair, predictions
from yolokd.adapters import PyramidAdapter
from yolokd.losses.features import normalise
from yolokd.losses.pearson import PearsonKD, moments
from yolokd.predictions import Predictions


def adapter(*matrix: list[float]) -> PyramidAdapter:
    """A one-level adapter with these rows."""
    weight = torch.tensor(matrix)
    built = PyramidAdapter((weight.shape[1],), (weight.shape[0],))
    with torch.no_grad():
        next(built.parameters()).copy_(weight[..., None, None])
    return built


def of(*levels: torch.Tensor) -> Predictions:
    return Predictions(None, None, levels)


def row(*channels: list[float]) -> torch.Tensor:
    """One image, one row of positions, a list a channel: ``(1, C, 1, W)``."""
    return torch.tensor(channels)[None, :, None]


def value(loss: PearsonKD, student: torch.Tensor, teacher: torch.Tensor) -> float:
    return float(loss(of(student), of(teacher), assignment()).detach())


def test_value_by_hand() -> None:
    # Student (1, 2, 3), teacher (1, 3, 2): deviations (-1, 0, 1), (-1, 1, 0), correlation 1 / sqrt(2 * 2). 1 - r = 1/2.
    # The second channel of the teacher is 4 - 2 x the student's: correlation -1, 1 - r = 2. Mean 5/4.
    student, teacher = row([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), row([1.0, 3.0, 2.0], [2.0, 0.0, -2.0])
    assert value(PearsonKD(None), student, teacher) == pytest.approx(5 / 4, rel=1e-4)
    assert value(PearsonKD(adapter([1.0, 0.0], [0.0, 1.0])), student, teacher) == pytest.approx(5 / 4, rel=1e-4)


def slow(student: np.ndarray, weight: np.ndarray, teacher: np.ndarray) -> float:
    """Adapt, normalise each channel of both over batch and positions, half the mean squared error."""
    adapted = np.einsum("dc,bchw->bdhw", weight, student)
    total = 0.0
    for d in range(teacher.shape[1]):
        s, t = ((x[:, d] - x[:, d].mean()) / np.sqrt(x[:, d].var() + 1e-5) for x in (adapted, teacher))
        total += float(((s - t) ** 2).mean()) / 2
    return total / teacher.shape[1]


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
)
@settings(max_examples=25, deadline=None)
def test_against_loops(seed: int, shape: tuple[int, int, int, int, int]) -> None:
    batch, narrow, wide, height, width = shape
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, narrow, height, width, generator=g) + 1
    teacher = torch.randn(batch, wide, height, width, generator=g) * 3 - 2
    weight = torch.randn(wide, narrow, generator=g)
    expected = slow(*(x.double().numpy() for x in (student, weight, teacher)))
    assert value(PearsonKD(adapter(*weight.tolist())), student, teacher) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_gradients_are_those_of_the_normalised_maps() -> None:
    """The moments are a shortcut: student and adapter learn what the plain computation would teach them."""
    loss = PearsonKD.for_pair(pair(widths=(5, 3)))
    assert loss.adapter is not None
    student = [f.clone().requires_grad_() for f in predictions().feats or ()]
    teacher = predictions(widths=(5, 3), seed=1).feats or ()
    wanted = [*student, *loss.parameters()]
    fast = torch.autograd.grad(loss(of(*student), of(*teacher), assignment()), wanted)
    plain = torch.zeros(())
    for a, t in zip(loss.adapter(student), teacher, strict=True):
        plain = plain + torch.nn.functional.mse_loss(normalise(a), normalise(t)) / 2 / len(teacher)
    for got, expected in zip(fast, torch.autograd.grad(plain, wanted), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


def test_equal_features_are_the_minimum() -> None:
    x = (torch.randn(2, 2, 3, 3) * 4 + 1).requires_grad_()
    result = PearsonKD(None)(of(x), of(x.detach()), assignment())
    result.backward()
    assert 0 <= result.item() < 1e-5
    assert x.grad is not None
    assert x.grad.abs().max() < 1e-5


def test_scale_and_shift_of_either_side_do_not_matter() -> None:
    student, teacher = torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3)
    scale, shift = torch.tensor([3.0, 0.5])[:, None, None], torch.tensor([7.0, -40.0])[:, None, None]
    before = value(PearsonKD(None), student, teacher)
    assert value(PearsonKD(None), student * scale + shift, teacher) == pytest.approx(before, rel=1e-3)
    assert value(PearsonKD(None), student, teacher * scale + shift) == pytest.approx(before, rel=1e-3)


def test_doubled_batch_changes_nothing_and_levels_are_averaged() -> None:
    student, teacher = torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3)
    once = value(PearsonKD(None), student, teacher)
    assert value(PearsonKD(None), student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)) == pytest.approx(once)
    x, y = row([1.0, 2.0, 3.0]), row([3.0, 2.0, 1.0])
    assert float(PearsonKD(None)(of(x, x), of(x, y), assignment())) == pytest.approx(1, rel=1e-4)  # (0 + 2) / 2


@pytest.mark.parametrize("fresh", [lambda: PearsonKD(adapter([1.0])), lambda: PearsonKD(None)])
@pytest.mark.parametrize(
    ("s", "t", "expected"),
    [
        ([0.0], [0.0], 0.0),  # one value a channel: nothing to correlate
        ([2.0], [5.0], 0.0),
        ([3.0, 3.0], [4.0, 4.0], 0.0),
        ([0.0, 0.0], [1.0, 2.0], 0.5),
        ([1.0, 2.0], [0.0, 0.0], 0.5),
    ],
)
def test_constant_channels(fresh: object, s: list[float], t: list[float], expected: float) -> None:
    loss, x = fresh(), row(s).requires_grad_()  # type: ignore[operator]
    result = loss(of(x), of(row(t)), assignment())
    result.backward()
    assert result.item() == pytest.approx(expected, abs=1e-4)
    for grad in (x.grad, *(p.grad for p in loss.parameters())):
        assert grad is not None
        assert grad.isfinite().all()
        assert expected or grad.abs().max() == 0


def test_an_adapter_only_where_the_widths_differ() -> None:
    assert PearsonKD.for_pair(pair()).adapter is None
    assert PearsonKD.for_pair(pair(widths=(4, 8))).adapter is not None


def test_half_precision_comes_out_as_float32() -> None:
    student, teacher = (of(*(f.bfloat16() for f in predictions(seed=s).feats or ())) for s in (0, 1))
    for loss in (PearsonKD.for_pair(pair()), PearsonKD(PyramidAdapter((4, 6), (4, 6)))):
        assert loss(student, teacher, assignment()).dtype is torch.float32


def test_bad_arguments_are_named() -> None:
    loss = PearsonKD.for_pair(pair())
    with pytest.raises(ValueError, match="pkd needs the pyramid features"):
        loss(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="adapted student level"):
        loss(predictions(), predictions(widths=(5, 6)), assignment())
    with pytest.raises(ValueError, match="2 student levels against 1"):
        loss(predictions(), of(torch.zeros(2, 4, 4, 4)), assignment())


def test_moments_of_a_far_away_channel_keep_their_digits() -> None:
    found = moments(row([1001.0, 1002.0, 1003.0]), None, row([-5001.0, -5003.0, -5005.0]))
    assert [m.item() for m in found] == pytest.approx([2 / 3, 8 / 3, -4 / 3], rel=1e-4)
