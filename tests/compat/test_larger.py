from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from yolokd.compat.larger import image_side, reduced, resized, training_side


def test_the_side_is_another_one_meanwhile() -> None:
    args = SimpleNamespace(imgsz=64)
    with image_side(args, 128):
        assert args.imgsz == 128
    assert args.imgsz == 64
    with image_side(args, None):
        assert args.imgsz == 64

    def fail() -> None:
        with image_side(args, 128):
            raise RuntimeError("no such folder")

    with pytest.raises(RuntimeError, match="no such folder"):
        fail()
    assert args.imgsz == 64


@pytest.mark.parametrize(
    ("imgsz", "strides", "side"),
    [(640, (8, 16, 32), 640), (100, (8, 16, 32), 128), (96, (8, 16, 32, 64), 128), (1, (8,), 32), (64, (4, 8), 64)],
)
def test_the_side_is_a_multiple_of_the_coarsest_stride_as_ultralytics_makes_it(
    imgsz: int, strides: tuple[int, ...], side: int
) -> None:
    from ultralytics.utils.checks import check_imgsz

    assert training_side(imgsz, strides) == side
    step = max(*strides, 32)
    assert check_imgsz(imgsz, stride=step, floor=step, max_dim=1) == side


def test_two_by_two_pixels_become_their_mean() -> None:
    image = torch.tensor([[10, 20, 1, 1], [30, 40, 1, 2]], dtype=torch.uint8).expand(2, 3, 2, 4)
    got = reduced(image, 2)
    assert got.dtype == torch.uint8
    assert got.shape == (2, 3, 1, 2)
    assert got[0, 0].tolist() == [[25, 1]]  # 1.25 rounds to 1


def test_a_constant_stays_and_nothing_moves() -> None:
    for ratio in (1.5, 2, 1.25):
        side = round(80 * ratio)
        assert (reduced(torch.full((1, 3, side, side), 77, dtype=torch.uint8), ratio) == 77).all()
        ramp = ((torch.arange(side) + 0.5) / side * 200).round().byte().expand(1, 1, side, side)
        small = reduced(ramp, ratio)[0, 0, 0].float()
        # A pixel shows what lies at its place; where three pixels become two, each is off by a sixth of one.
        assert (small - (torch.arange(80) + 0.5) / 80 * 200).abs().max() < 1.5


def test_resized_to_its_own_size_is_the_image() -> None:
    image = torch.randint(0, 256, (1, 3, 4, 6), dtype=torch.uint8)
    assert torch.equal(resized(image, (4, 6)), image.float() / 255)
    assert resized(image, [8, 12]).shape == (1, 3, 8, 12)
