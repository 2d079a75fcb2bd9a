import pytest
import torch

from yolokd.predictions import Predictions


@pytest.mark.parametrize(("channels", "reg_max"), [(4, 1), (64, 16)])
def test_reg_max_is_read_off_the_channels(channels: int, reg_max: int) -> None:
    assert Predictions(None, torch.zeros(1, channels, 3), None).reg_max == reg_max


def test_without_boxes_there_is_no_reg_max() -> None:
    with pytest.raises(ValueError, match="without boxes"):
        _ = Predictions(None, None, None).reg_max
