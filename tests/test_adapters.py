import pytest
import torch
from torch import nn

from tests.helpers import pair, predictions
from yolokd.adapters import PyramidAdapter, add_to_optimizer


def test_one_bias_free_convolution_a_level() -> None:
    adapter = PyramidAdapter((4, 6), (8, 10))
    assert [tuple(p.shape) for p in adapter.parameters()] == [(8, 4, 1, 1), (10, 6, 1, 1)]


def test_widths_come_out_as_the_teacher_has_them() -> None:
    feats = predictions().feats
    assert feats is not None
    adapted = PyramidAdapter.for_pair(pair(widths=(8, 10)))(feats)
    assert [tuple(f.shape) for f in adapted] == [(2, 8, 4, 4), (2, 10, 2, 2)]


def test_other_number_of_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="3 student levels against 2 teacher levels"):
        PyramidAdapter((1, 2, 3), (1, 2))


def plain_groups() -> list[dict[str, object]]:
    return [
        {"params": [nn.Parameter(torch.zeros(1))], "param_group": "weight", "weight_decay": 5e-4, "lr": 0.02},
        {"params": [nn.Parameter(torch.zeros(1))], "param_group": "bias", "weight_decay": 0.0, "lr": 0.02},
    ]


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [(torch.optim.AdamW, "betas", (0.8, 0.99)), (torch.optim.SGD, "momentum", 0.7)],
)
def test_the_group_takes_the_settings_of_the_plain_ones(kind: type, key: str, value: object) -> None:
    optimizer = kind([{**group, key: value} for group in plain_groups()], lr=1.0)
    add_to_optimizer(optimizer, list(PyramidAdapter((2,), (3,)).parameters()))
    group = optimizer.param_groups[-1]
    assert (group["param_group"], group["lr"], group["weight_decay"], group[key]) == ("adapter", 0.02, 0.0, value)
    assert len(group["params"]) == 1


def test_the_boosted_learning_rate_of_musgd_is_not_taken() -> None:
    groups = [*plain_groups(), {**plain_groups()[1], "lr": 0.06, "params": [nn.Parameter(torch.zeros(1))]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    add_to_optimizer(optimizer, [nn.Parameter(torch.zeros(2))])
    assert optimizer.param_groups[-1]["lr"] == 0.02


def test_without_parameters_there_is_no_group() -> None:
    optimizer = torch.optim.SGD(plain_groups(), lr=1.0)
    add_to_optimizer(optimizer, [])
    assert len(optimizer.param_groups) == 2
