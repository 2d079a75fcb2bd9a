from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers import pair, predictions
from yolokd.adapters import (
    PyramidAdapter,
    adapted_rows,
    add_to_optimizer,
    average_gradients,
    product_dtype,
    rows,
)


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


def test_a_bias_begins_at_zero_and_changes_no_weight() -> None:
    torch.manual_seed(0)
    plain = PyramidAdapter((4, 6), (8, 10))
    torch.manual_seed(0)
    biased = PyramidAdapter((4, 6), (8, 10), bias=True)
    assert plain.biases == [None, None]
    assert [b.tolist() for b in biased.biases if b is not None] == [[0.0] * 8, [0.0] * 10]
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, biased.weights, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adapted_rows_are_the_convolution(layout: torch.memory_format) -> None:
    adapter = PyramidAdapter((4,), (8,), bias=True)
    torch.nn.init.normal_(next(b for b in adapter.biases if b is not None))
    x = torch.randn(2, 4, 3, 5).to(memory_format=layout)
    found = adapted_rows(rows(x), adapter.weights[0], adapter.biases[0], torch.float32)
    torch.testing.assert_close(found, rows(adapter([x])[0]))
    assert rows(x)[5 * 3 + 2].tolist() == x[1, :, 0, 2].tolist()  # image 1 begins at 15


def test_the_rows_of_channels_last_are_no_copy() -> None:
    x = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    assert rows(x).data_ptr() == x.data_ptr()


def test_products_are_as_precise_as_the_teacher() -> None:
    formats = [torch.float32, torch.float16, torch.bfloat16]
    assert [product_dtype(torch.zeros(1, dtype=d)) for d in formats] == [torch.float32, torch.float32, torch.bfloat16]
    x, weight = torch.randn(50, 16), torch.randn(8, 16)
    exact, low = (adapted_rows(x, weight, None, d) for d in (torch.float32, torch.bfloat16))
    assert low.dtype is torch.float32
    assert (low - exact).norm() / exact.norm() < 2**-7


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


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([1.0, float("inf")]) if rank else torch.tensor([3.0, 1.0])
    average_gradients([p])
    torch.save(p.grad, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_agree_about_adapter_gradients_infinities_too(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    assert first.tolist() == [2.0, float("inf")]


def test_a_single_process_averages_nothing() -> None:
    p = nn.Parameter(torch.zeros(1))
    p.grad = torch.ones(1)
    average_gradients([p])
    assert p.grad.item() == 1
