import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import SIZES, WIDTHS, assignment, pair, predictions
from yolokd.adapters import PyramidAdapter
from yolokd.losses.masked import MaskedGenerativeKD
from yolokd.predictions import Predictions


def levels(*feats: Tensor) -> Predictions:
    return Predictions(None, None, feats)


def plain(channels: int, ratio: float = 0.0) -> MaskedGenerativeKD:
    """Adapter and generation block are the identity for what is not negative."""
    loss = MaskedGenerativeKD(PyramidAdapter((channels,), (channels,)), (channels,), ratio)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.zero_()
            if parameter.ndim == 4:
                parameter[..., parameter.shape[2] // 2, parameter.shape[3] // 2] = torch.eye(channels)
    return loss


def test_value_by_hand() -> None:
    # The first convolution adds half of the left neighbour, (2, 4) -> (2, 5); the second takes 1 away, -> (1, 4).
    # Teacher (1, 1): squares 0 and 9, mean 4.5.
    loss = plain(1)
    with torch.no_grad():
        loss.generation[0].first.weight[0, 0, 1, 0] = 0.5  # type: ignore[union-attr, index]
        loss.generation[0].second.bias.fill_(-1)  # type: ignore[union-attr, operator]
    student, teacher = torch.tensor([2.0, 4.0]).view(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    assert loss(levels(student), levels(teacher), assignment()).item() == pytest.approx(4.5)


def test_zero_where_the_generated_map_is_the_teachers() -> None:
    feature = torch.rand(2, 3, 4, 5)
    assert plain(3)(levels(feature), levels(feature), assignment()).item() == pytest.approx(0, abs=1e-12)


def test_the_published_weight_belongs_to_the_sum() -> None:
    # All differences are 1: the paper's sum is 4 * 16 + 6 * 4 = 88 an image, so 2e-5 * 88 = 1.76e-3. The known wrong
    # implementation takes the mean, 1, with the weight of the sum: 2e-5, here 88 times too weak, at 640 px 4e6 times.
    loss = MaskedGenerativeKD.for_pair(pair(), ratio=0)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.zero_()
    ones = levels(*(torch.ones(3, w, *s) for w, s in zip(WIDTHS, SIZES, strict=True)))
    gain = 2e-5 * sum(w * h * v for w, (h, v) in zip(WIDTHS, SIZES, strict=True))
    assert gain * loss(ones, ones, assignment()).item() == pytest.approx(1.76e-3)


def test_the_gains_of_the_docstring() -> None:
    x, s = (sum(w * n**2 for w, n in zip(ws, (80, 40, 20), strict=True)) for ws in ((384, 768, 768), (128, 256, 512)))
    assert (round(2e-5 * x), round(2e-5 * x / 4), round(2e-5 * s)) == (80, 20, 29)
    for number in (f"{x:,}", f"{s:,}"):
        assert number in (MaskedGenerativeKD.__doc__ or "")


def test_masked_positions_are_gone_in_all_channels() -> None:
    # Everything is 1 and the block is the identity: an error of 1 wherever a position is masked, 0 elsewhere.
    torch.manual_seed(0)
    loss, ones = plain(2, ratio=0.65), torch.ones(4, 2, 50, 50)
    # 10,000 draws: the standard deviation of the share is 0.005.
    assert loss(levels(ones), levels(ones), assignment()).item() == pytest.approx(0.65, abs=0.025)
    keep = loss._keep(ones, torch.Generator().manual_seed(1))
    assert keep.shape == (4, 1, 50, 50)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(keep[0], keep[1])


def test_a_masked_position_gives_the_student_no_gradient() -> None:
    torch.manual_seed(0)
    loss, student = plain(2, ratio=0.5), torch.ones(2, 2, 3, 3, requires_grad=True)
    loss(levels(student), levels(torch.zeros(2, 2, 3, 3)), assignment()).backward()
    assert student.grad is not None
    expected = loss._keep(student, torch.Generator().manual_seed(loss._seed)).expand_as(student)
    assert torch.equal((student.grad != 0).float(), expected)


def test_masks_have_their_own_random_numbers() -> None:
    torch.manual_seed(3)
    loss = plain(1, ratio=0.5)
    twin, before = copy.deepcopy(loss), torch.get_rng_state()
    ones = levels(torch.ones(2, 1, 8, 8))
    first, second = (loss(ones, ones, assignment()).item() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first != second
    assert twin(ones, ones, assignment()).item() == first
    torch.manual_seed(4)
    assert plain(1, ratio=0.5)._seed != loss._seed


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Cross-correlation with zeros around, one image: (C, H, W) to (D, H, W)."""
    radius = weight.shape[2] // 2
    out = np.zeros((weight.shape[0], *x.shape[1:]))
    for o, y, u in np.ndindex(*out.shape):
        value = bias[o]
        for i, dy, du in np.ndindex(*weight.shape[1:]):
            row, column = y + dy - radius, u + du - radius
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                value += weight[o, i, dy, du] * x[i, row, column]
        out[o, y, u] = value
    return out


def slow(loss: MaskedGenerativeKD, student: list[Tensor], teacher: list[Tensor], masks: list[Tensor]) -> float:
    """The paper, level by level and image by image: align, mask, generate, sum of squares, mean over images."""
    total = 0.0
    for level, (s, t, mask) in enumerate(zip(student, teacher, masks, strict=True)):
        w = {k: v.detach().double().numpy() for k, v in loss.named_parameters()}
        g = f"generation.{level}"
        for b in range(len(s)):
            aligned = convolve(s[b].double().numpy(), w[f"adapter.levels.{level}.weight"], np.zeros(t.shape[1]))
            inner = convolve(aligned * mask[b].numpy(), w[f"{g}.first.weight"], w[f"{g}.first.bias"])
            made = convolve(np.maximum(inner, 0), w[f"{g}.second.weight"], w[f"{g}.second.bias"])
            total += float(((made - t[b].numpy()) ** 2).sum()) / len(s)
    return total


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 2),
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=2),
    ratio=st.sampled_from([0.0, 0.4, 0.65]),
    hidden=st.sampled_from([0, 1, 3]),
)
@settings(max_examples=10, deadline=None)
def test_against_loops(seed: int, batch: int, sizes: list[tuple[int, int]], ratio: float, hidden: int) -> None:
    torch.manual_seed(seed)
    widths = [2, 3][: len(sizes)]
    loss = MaskedGenerativeKD(PyramidAdapter([3] * len(sizes), widths), widths, ratio, hidden)
    student = [torch.randn(batch, 3, *size) for size in sizes]
    teacher = [torch.randn(batch, w, *size) for w, size in zip(widths, sizes, strict=True)]
    masks: list[Tensor] = []
    draw = loss._keep
    loss._keep = lambda f, g: masks.append(draw(f, g)) or masks[-1]  # type: ignore[func-returns-value, method-assign]
    value = loss(levels(*student), levels(*teacher), assignment()).item()
    values = sum(t[0].numel() for t in teacher)
    assert value * values == pytest.approx(slow(loss, student, teacher, masks), rel=1e-4)


def test_the_batch_does_not_matter() -> None:
    loss, student, teacher = MaskedGenerativeKD.for_pair(pair(), ratio=0), predictions(), predictions(seed=1)
    assert student.feats is not None
    assert teacher.feats is not None
    twice = [levels(*(torch.cat((f, f)) for f in p)) for p in (student.feats, teacher.feats)]
    value = loss(student, teacher, assignment()).item()
    assert loss(*twice, assignment(4)).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_reaches_student_and_block_and_not_the_teacher(dtype: torch.dtype) -> None:
    torch.manual_seed(0)  # a small level can be masked as a whole: then it gives no gradient
    loss = MaskedGenerativeKD.for_pair(pair(), ratio=0.3)
    student, teacher = ([torch.randn(1, w, *s, dtype=dtype) for w, s in zip(WIDTHS, SIZES, strict=True)] for _ in "st")
    for f in student + teacher:
        f.requires_grad_()
    value = loss(levels(*student), levels(*teacher), assignment(1))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert all(f.grad is not None and f.grad.isfinite().all() and f.grad.any() for f in student)
    assert all(f.grad is None for f in teacher)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in loss.parameters())


def test_a_level_of_one_cell() -> None:
    student = torch.ones(1, 1, 1, 1, requires_grad=True)
    plain(1, ratio=0.9)(levels(student), levels(torch.ones(1, 1, 1, 1)), assignment()).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_hidden_is_the_width_between_the_convolutions() -> None:
    sizes = [(tuple(g.first.weight.shape), tuple(g.second.weight.shape)) for g in blocks(0) + blocks(2)]
    assert sizes[:2] == [((4, 4, 3, 3), (4, 4, 3, 3)), ((6, 6, 3, 3), (6, 6, 3, 3))]
    assert sizes[2:] == [((2, 4, 3, 3), (4, 2, 3, 3)), ((2, 6, 3, 3), (6, 2, 3, 3))]


def blocks(hidden: int) -> list[torch.nn.Module]:
    return list(MaskedGenerativeKD.for_pair(pair(), hidden=hidden).generation)


def test_bad_arguments_are_named() -> None:
    for ratio in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"mgd\.ratio is {ratio}"):
            MaskedGenerativeKD.for_pair(pair(), ratio=ratio)
    with pytest.raises(ValueError, match=r"mgd\.hidden is -1"):
        MaskedGenerativeKD.for_pair(pair(), hidden=-1)
    with pytest.raises(ValueError, match="needs the pyramid"):
        MaskedGenerativeKD.for_pair(pair())(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="student level"):
        plain(1)(levels(torch.ones(1, 1, 2, 2)), levels(torch.ones(1, 1, 2, 3)), assignment())
