import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assignment, pair, predictions
from yolokd.adapters import PyramidAdapter
from yolokd.losses.features import ChannelWiseKD, normalise
from yolokd.predictions import Predictions


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


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"cwd\.temperature is -1"):
        ChannelWiseKD(identity(1), -1)
    with pytest.raises(ValueError, match="needs the pyramid"):
        ChannelWiseKD.for_pair(pair())(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="adapted student level"):
        ChannelWiseKD(identity(1))(level(1.0, 2.0), level(1.0, 2.0, 3.0), assignment())
