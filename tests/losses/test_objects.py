import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from yolokd.losses.objects import align_objects, describe_objects, embed_objects, even_steps, line_up


def scene(
    seed: int, batch: int, count: int, height: int = 6, width: int = 8, stride: int = 8
) -> tuple[torch.Tensor, ...]:
    """A level, boxes inside its image and the images they belong to, in no order."""
    g = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height]) * stride
    low = torch.rand(count, 2, generator=g) * size
    high = low + torch.rand(count, 2, generator=g) * (size - low)
    image = torch.randint(0, batch, (count,), generator=g)
    return torch.randn(batch, 3, height, width, generator=g) * 2 + 1, torch.cat([low, high], 1), image


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    count=st.integers(1, 9),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    points=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None)
def test_against_torchvision(seed: int, batch: int, count: int, size: tuple[int, int], points: int) -> None:
    feat, boxes, image = scene(seed, batch, count, *size)
    expected = roi_align(feat, torch.cat([image[:, None].float(), boxes], 1), 1, 1 / 8, points, aligned=True)
    assert torch.allclose(align_objects([feat], boxes, image, [8], points)[0], expected.flatten(1), atol=1e-4)


def test_aligned_by_hand() -> None:
    # A ramp of 0, 1, 2, 3 over the cells' centres at 4, 12, 20, 28 px: the value at x is x / 8 - 1/2 between them.
    ramp = torch.arange(4.0).view(1, 1, 1, 4)
    boxes = torch.tensor([[8.0, 0, 24, 8], [0, 0, 4, 8]])
    found = align_objects([ramp], boxes, torch.tensor([0, 0]), [8])[0]
    # The second box ends where the first centre is: all of it takes the first cell.
    assert found.flatten().tolist() == pytest.approx([1.5, 0.0])


def test_described_by_hand() -> None:
    # Two images of one cell, two channels: (3, 1) and (1, 1). Means (2, 1), variances (1, 0), their mean 1/2.
    feat = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).view(2, 2, 1, 1)
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8]])
    found = describe_objects([feat], boxes, torch.tensor([0, 1]), [8])[0]
    assert found.tolist() == [pytest.approx([2**0.5, 0], rel=1e-4), pytest.approx([-(2**0.5), 0], rel=1e-4)]
    # Embedded: divided by the root of two channels.
    embedded = embed_objects([feat, feat], boxes, torch.tensor([1, 0]), [8, 8])
    assert embedded[0].tolist() == pytest.approx([-1, 0, -1, 0], rel=1e-4)


def test_levels_are_as_loud_as_one_another_whatever_their_activations() -> None:
    feat, boxes, image = scene(0, 2, 5)
    other = embed_objects([feat, 1000 * feat + 7], boxes, image, [8, 8])
    assert torch.allclose(other[:, :3], other[:, 3:], atol=1e-3)
    # Over all cells of a batch the mean square length of a level is 1.
    cells = torch.tensor([[x, y, x + 1e-3, y + 1e-3] for y in range(4, 48, 8) for x in range(4, 64, 8)])
    whole = embed_objects([feat], cells.repeat(2, 1), torch.arange(2).repeat_interleave(len(cells)), [8])
    assert whole.square().sum(1).mean().item() == pytest.approx(1, rel=1e-3)


def test_no_object_is_joined_to_the_graph() -> None:
    feats = [torch.randn(2, c, 4, 4, requires_grad=True) for c in (3, 5)]
    found = embed_objects(feats, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), [8, 16])
    assert found.shape == (0, 8)
    found.sum().backward()
    assert all(f.grad is not None and not f.grad.any() for f in feats)


@pytest.mark.parametrize("value", [0.0, 5.0])
@pytest.mark.parametrize("size", [1, 3])
def test_a_level_of_one_value_says_nothing(value: float, size: int) -> None:
    feat = torch.full((1, 3, size, size), value, requires_grad=True)
    found = embed_objects([feat], torch.tensor([[1.0, 1, 7, 7]]), torch.tensor([0]), [8])
    assert found.abs().max() < 1e-3
    found.square().sum().backward()
    assert feat.grad is not None
    assert feat.grad.abs().max() < 1e-2


def test_half_precision_comes_out_as_float32() -> None:
    feat, boxes, image = scene(0, 2, 5)
    found = embed_objects([feat.bfloat16()], boxes, image, [8])
    assert found.dtype == torch.float32
    assert torch.allclose(found, embed_objects([feat], boxes, image, [8]), atol=0.05)


def test_places_in_an_image() -> None:
    place, places = line_up(torch.tensor([1, 0, 1, 1, 0]))
    assert place.tolist() == [0, 0, 1, 2, 1]
    assert places == 3
    assert line_up(torch.zeros(0, dtype=torch.long))[1] == 0


@pytest.mark.parametrize(
    ("total", "limit", "kept"), [(10, 4, [0, 2, 5, 7]), (3, 4, [0, 1, 2]), (0, 4, []), (5, 1, [0])]
)
def test_a_crowd_is_thinned_out_at_even_steps(total: int, limit: int, kept: list[int]) -> None:
    boxes, image = even_steps(torch.arange(4.0 * total).view(-1, 4), torch.arange(total), limit)
    assert image.tolist() == kept
    assert (boxes[:, 0] / 4).tolist() == kept
