import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import SIZES, WIDTHS, assignment, pair, predictions
from yolokd.adapters import PyramidAdapter
from yolokd.losses.focal import Context, FocalGlobalKD, attention, scale_mask
from yolokd.predictions import Assigned, Predictions


def levels(*feats: Tensor) -> Predictions:
    return Predictions(None, None, feats)


def truth(boxes: list[tuple[float, float, float, float]], image: list[int]) -> Assigned:
    return replace(
        assignment(), gt_boxes=torch.tensor(boxes).view(-1, 4), gt_image=torch.tensor(image, dtype=torch.long)
    )


def plain(channels: int, **options: float) -> FocalGlobalKD:
    """One level of stride 8, the adapter is the identity."""
    loss = FocalGlobalKD(PyramidAdapter((channels,), (channels,)), (channels,), (8,), **options)
    with torch.no_grad():
        loss.adapter.levels[0].weight.copy_(torch.eye(channels)[..., None, None])  # type: ignore[operator, union-attr]
    return loss


def mask(*boxes: tuple[float, float, float, float], size: tuple[int, int] = (3, 4)) -> list[list[float]]:
    """The scale mask of one image, stride 8."""
    image = torch.zeros(len(boxes), dtype=torch.long)
    values: list[list[float]] = scale_mask(torch.tensor(boxes).view(-1, 4), image, 1, size, 8).view(size).tolist()
    return values


def test_focus_by_hand() -> None:
    # Two cells, the box on the first. Equal magnitudes: all attention is 1 and equal on both sides.
    # Differences -1 and 1: foreground 1, background 0.5 * 1, attention 0, relation 0.005 * (1 + 1): 1.51.
    student, teacher = (torch.tensor(v).view(1, 1, 1, 2) for v in ([1.0, -1.0], [2.0, -2.0]))
    boxes = truth([(0, 0, 8, 8)], [0])
    assert plain(1)(levels(student), levels(teacher), boxes).item() == pytest.approx(1.51)


def test_attention_by_hand() -> None:
    # Teacher (0.5 ln 3, 0) at temperature 0.5: softmax of (ln 3, 0) is (3/4, 1/4), times two positions (1.5, 0.5).
    # Student (0, 0): (1, 1), so the attentions differ by 0.5 + 0.5 = 1. With one channel theirs is 1.
    # The squared difference at the first cell is d = (0.5 ln 3)^2, 0 at the second:
    # 1.5 d + 0.5 * 0 + 0.5 * 1 + 0.005 d = 1.505 d + 0.5.
    teacher = torch.tensor([0.5 * math.log(3), 0.0]).view(1, 1, 1, 2)
    value = plain(1)(levels(torch.zeros(1, 1, 1, 2)), levels(teacher), truth([(0, 0, 8, 8)], [0])).item()
    assert value == pytest.approx(1.505 * (0.5 * math.log(3)) ** 2 + 0.5)


def test_channels_by_hand() -> None:
    # Two channels at one cell, teacher (0.5 ln 3, 0): channel attention (1.5, 0.5) as above, position attention 1.
    # No box: background weight 1. d = (0.5 ln 3)^2: 0.5 * 1.5 d + 0.5 * 1 + 0.005 d, over two channels.
    teacher = torch.tensor([0.5 * math.log(3), 0.0]).view(1, 2, 1, 1)
    value = plain(2)(levels(torch.zeros(1, 2, 1, 1)), levels(teacher), truth([], [])).item()
    assert value == pytest.approx((0.755 * (0.5 * math.log(3)) ** 2 + 0.5) / 2)


def test_relation_by_hand() -> None:
    # The student's context adds 3 everywhere. Differences (-1, 1) become (2, 4): 4 + 16 = 20.
    loss = plain(1, background=0, attention=0, relation=1)
    with torch.no_grad():
        loss.student_context[0].transform[-1].bias.fill_(3)  # type: ignore[union-attr, index, operator]
    student, teacher = (torch.tensor(v).view(1, 1, 1, 2) for v in ([1.0, -1.0], [2.0, -2.0]))
    assert loss(levels(student), levels(teacher), truth([], [])).item() == pytest.approx(20)


def test_a_box_spreads_one_over_its_cells() -> None:
    assert mask((8, 0, 24, 16)) == [[0, 0.25, 0.25, 0], [0, 0.25, 0.25, 0], [0] * 4]
    # One row of four, not one column of three: the first version of the authors' code took the transposed box.
    assert mask((0, 8, 32, 16)) == [[0] * 4, [0.25] * 4, [0] * 4]
    # Touched is enough: from the last pixel of the first cell to the first of the third.
    assert mask((7, 17, 17, 18)) == [[0] * 4, [0] * 4, [*[pytest.approx(1 / 3)] * 3, 0]]


def test_small_boxes_win() -> None:
    boxes = [(0.0, 0.0, 32.0, 8.0), (8.0, 0.0, 16.0, 8.0), (8.0, 0.0, 24.0, 8.0)]
    expected = [[0.25, 1, 0.5, 0.25], [0] * 4, [0] * 4]
    assert mask(*boxes) == expected
    assert mask(*boxes[::-1]) == expected


def test_boxes_at_and_over_the_edge() -> None:
    assert mask((-20, -20, 4, 12)) == [[0.5, 0, 0, 0], [0.5, 0, 0, 0], [0] * 4]
    assert mask((28, 20, 99, 99)) == [[0] * 4, [0] * 4, [0, 0, 0, 1]]
    assert mask((-9, -9, -1, -1)) == mask((32, 0, 40, 8)) == mask((0, 24, 8, 30)) == mask() == [[0] * 4] * 3
    # Smaller than a cell, even without any extent: one cell.
    assert mask((9, 9, 10, 10)) == mask((9, 9, 9, 9)) == mask((8, 8, 8, 8)) == [[0] * 4, [0, 1, 0, 0], [0] * 4]


def test_boxes_stay_in_their_image() -> None:
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0]])
    assert scale_mask(boxes, torch.tensor([2, 0]), 3, (1, 2), 8).tolist() == [[0, 1], [0, 0], [1, 0]]


def test_attention_is_one_on_average_and_ignores_the_sign() -> None:
    feature = torch.randn(2, 3, 5)
    positions, channels = attention(feature, 0.5)
    assert torch.allclose(positions.mean(1), torch.ones(2))
    assert torch.allclose(channels.mean(1), torch.ones(2))
    assert all(torch.equal(a, b) for a, b in zip(attention(-feature, 0.5), (positions, channels), strict=True))
    assert (attention(feature, 0.1)[0].amax(1) > positions.amax(1)).all()


def test_the_context_block_begins_as_the_identity() -> None:
    for width in (1, 2, 5):
        assert not Context(width)(torch.randn(2, width, 4)).any()


def test_zero_at_the_teacher() -> None:
    feature = torch.randn(2, 3, 4, 5)
    value = plain(3)(levels(feature), levels(feature), assignment())
    assert value.item() == pytest.approx(0, abs=1e-6)


def shuffled(loss: FocalGlobalKD) -> FocalGlobalKD:
    """Context blocks that do something, as after some training."""
    with torch.no_grad():
        for parameter in [*loss.student_context.parameters(), *loss.teacher_context.parameters()]:
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return loss


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def slow_context(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    """(C, H, W) to the same, with the context added."""
    score = np.array([w[f"{name}.look.weight"][0] @ x[:, i, j] for i, j in np.ndindex(*x.shape[1:])])
    share = softmax(score).reshape(x.shape[1:])
    pooled = np.zeros(x.shape[0])
    for i, j in np.ndindex(*share.shape):
        pooled += share[i, j] * x[:, i, j]
    inner = w[f"{name}.transform.0.weight"] @ pooled + w[f"{name}.transform.0.bias"]
    inner = (inner - inner.mean()) / np.sqrt(inner.var() + 1e-5)
    inner = inner * w[f"{name}.transform.1.weight"] + w[f"{name}.transform.1.bias"]
    added = w[f"{name}.transform.3.weight"] @ np.maximum(inner, 0) + w[f"{name}.transform.3.bias"]
    return x + added[:, None, None]


def slow_mask(boxes: list[list[float]], size: tuple[int, int], stride: int) -> np.ndarray:
    """Cell by cell: which boxes does it touch, and how many cells does each of those touch?"""

    def touches(box: list[float], i: int, j: int) -> bool:
        return box[0] < (j + 1) * stride and box[2] > j * stride and box[1] < (i + 1) * stride and box[3] > i * stride

    out = np.zeros(size)
    for box in boxes:
        cells = [(i, j) for i, j in np.ndindex(*size) if touches(box, i, j)]
        for cell in cells:
            out[cell] = max(out[cell], 1 / len(cells))
    return out


def slow(loss: FocalGlobalKD, student: list[Tensor], teacher: list[Tensor], boxes: list[list[list[float]]]) -> float:
    """The paper's sum, with alpha 0.001, beta 0.0005, gamma 0.0005, lambda 0.000005 and temperature 0.5."""
    w = {k: v.detach().double().numpy() for k, v in loss.named_parameters()}
    total = 0.0
    for level, stride in enumerate(loss.strides):
        for b, image in enumerate(boxes):
            t = teacher[level][b].double().numpy()
            s = np.einsum("oi,ihw->ohw", w[f"adapter.levels.{level}.weight"][:, :, 0, 0], student[level][b].numpy())
            channels, height, width = t.shape
            maps = [softmax(np.abs(x).mean(0).ravel() / 0.5).reshape(height, width) * height * width for x in (s, t)]
            rows = [softmax(np.abs(x).mean((1, 2)) / 0.5) * channels for x in (s, t)]
            scale = slow_mask(image, (height, width), stride)
            background = max(int((scale == 0).sum()), 1)
            related = [slow_context(x, w, f"{n}_context.{level}") for x, n in ((s, "student"), (t, "teacher"))]
            one = 0.0
            for c, i, j in np.ndindex(channels, height, width):
                focus = rows[1][c] * maps[1][i, j] * (s[c, i, j] - t[c, i, j]) ** 2
                one += 0.001 * scale[i, j] * focus if scale[i, j] > 0 else 0.0005 / background * focus
                one += 0.000005 * (related[0][c, i, j] - related[1][c, i, j]) ** 2
            one += 0.0005 * (np.abs(maps[0] - maps[1]).sum() + np.abs(rows[0] - rows[1]).sum())
            total += one / len(boxes)
    return total


coordinate = st.floats(-10, 40, width=32).filter(lambda v: v % 8 != 0)
box = st.tuples(*[coordinate] * 4).map(
    lambda v: [min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]) + 0.5, max(v[1], v[3]) + 0.5]
)


@given(
    seed=st.integers(0, 10_000),
    boxes=st.lists(st.lists(box, max_size=3), min_size=1, max_size=3),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=2),
)
@settings(max_examples=25, deadline=None)
def test_against_loops_and_the_published_weights(
    seed: int, boxes: list[list[list[float]]], sizes: list[tuple[int, int]]
) -> None:
    torch.manual_seed(seed)
    widths = [4, 6][: len(sizes)]
    adapter = PyramidAdapter([3] * len(sizes), widths)
    loss = shuffled(FocalGlobalKD(adapter, widths, [8, 16][: len(sizes)]))
    student = [torch.randn(len(boxes), 3, *size) for size in sizes]
    teacher = [torch.randn(len(boxes), w, *size) for w, size in zip(widths, sizes, strict=True)]
    every = [tuple(b) for image in boxes for b in image]
    assigned = truth(every, [i for i, image in enumerate(boxes) for _ in image])  # type: ignore[arg-type]
    value = loss(levels(*student), levels(*teacher), assigned).item()
    # The gain that equals the paper: alpha times the teacher's channels over all levels.
    assert 0.001 * sum(widths) * value == pytest.approx(slow(loss, student, teacher, boxes), rel=1e-4)


@pytest.mark.parametrize(
    ("alpha", "widths", "gain"),
    [(1e-3, [256] * 5, 1.28), (1.6e-3, [256] * 5, 2.05), (2e-3, [256] * 3, 1.54), (1e-3, [384, 768, 768], 1.92)],
)
def test_the_gains_of_the_docstring(alpha: float, widths: list[int], gain: float) -> None:
    assert round(alpha * sum(widths), 2) == gain
    assert str(gain) in (FocalGlobalKD.__doc__ or "")


def test_the_batch_does_not_matter() -> None:
    loss, student, teacher = shuffled(FocalGlobalKD.for_pair(pair())), predictions(), predictions(seed=1)
    assert student.feats is not None
    assert teacher.feats is not None
    twice = [levels(*(torch.cat((f, f)) for f in p)) for p in (student.feats, teacher.feats)]
    value = loss(student, teacher, assignment()).item()
    assert loss(*twice, assignment(4)).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("foreground", [(), (5,)])
def test_gradient_reaches_student_and_blocks_and_not_the_teacher(
    dtype: torch.dtype, foreground: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    loss = shuffled(FocalGlobalKD.for_pair(pair()))
    with torch.no_grad():
        for context in (*loss.student_context, *loss.teacher_context):
            context.transform[1].bias.fill_(5)  # type: ignore[union-attr, index, operator]  # no unit is dead
    student, teacher = ([torch.randn(1, w, *s, dtype=dtype) for w, s in zip(WIDTHS, SIZES, strict=True)] for _ in "st")
    for f in student + teacher:
        f.requires_grad_()
    value = loss(levels(*student), levels(*teacher), assignment(1, foreground=foreground))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert all(f.grad is not None and f.grad.isfinite().all() and f.grad.any() for f in student)
    assert all(f.grad is None for f in teacher)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in loss.parameters())


def test_an_image_without_boxes_is_all_background() -> None:
    # The second image has no box: background 1 over both cells, differences 1: 0.5 * 1 + 0.005 * 2 = 0.51; the first
    # has its box on both cells: 1 + 0.005 * 2 = 1.01, no background. Their mean is 0.76.
    teacher = torch.ones(2, 1, 1, 2)
    loss = plain(1, attention=0)
    value = loss(levels(teacher + 1), levels(teacher), truth([(0, 0, 16, 8)], [0])).item()
    assert value == pytest.approx(0.76)


def test_zero_maps_of_one_cell() -> None:
    student = torch.zeros(1, 1, 1, 1, requires_grad=True)
    value = plain(1)(levels(student), levels(torch.zeros(1, 1, 1, 1)), truth([(0, 0, 8, 8)], [0]))
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.item() == 0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"fgd\.temperature is 0"):
        FocalGlobalKD.for_pair(pair(), temperature=0)
    for name in ("background", "attention", "relation"):
        with pytest.raises(ValueError, match=rf"fgd\.{name} is -1"):
            FocalGlobalKD.for_pair(pair(), **{name: -1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs the pyramid"):
        FocalGlobalKD.for_pair(pair())(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="adapted student level"):
        plain(1)(levels(torch.ones(1, 1, 2, 2)), levels(torch.ones(1, 1, 2, 3)), assignment())
