"""The gradients of linear losses are their coefficients, so every number here can be checked on paper."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from yolokd.balance import CAP, STEPS, WATCHED, Balance, gradients


def leaf(*values: float) -> Tensor:
    return torch.tensor([float(v) for v in values], requires_grad=True)


def linear(x: Tensor, *coefficients: float) -> Tensor:
    return (x * torch.tensor(coefficients)).sum()


def step(balance: Balance, detection: Sequence[float], **terms: Sequence[float]) -> None:
    """One measured step with the given gradients."""
    x = leaf(*([1.0] * len(detection)))
    balance.measure(linear(x, *detection), {name: linear(x, *c) for name, c in terms.items()}, [x])


def epoch(balance: Balance, *ratios: float, name: str = "a") -> None:
    """One window in which the term's gradient is that many times the detection loss's, step by step."""
    balance.begin_epoch()
    for ratio in ratios:
        step(balance, [1.0], **{name: [ratio]})


# Gradients ------------------------------------------------------------------------------------------------------------


def test_gradients_of_reached_unreached_and_frozen_tensors() -> None:
    x, y, frozen = leaf(1, 2), leaf(1), torch.ones(3)
    found = gradients(linear(x, 3, -4), [x, y, frozen])
    assert [g.tolist() for g in found] == [[3, -4], [0], [0, 0, 0]]
    assert all(g.dtype == torch.float32 for g in found)
    assert [g.tolist() for g in gradients(torch.zeros(()), [x])] == [[0, 0]]  # a loss without a graph


def test_parameters_get_no_grad() -> None:
    x = leaf(1, 2)
    hidden = x * 2
    assert gradients(linear(hidden, 3, -4), [hidden])[0].tolist() == [3, -4]
    assert x.grad is None


def test_what_float16_would_lose_is_kept() -> None:
    x = torch.ones(2, dtype=torch.float16, requires_grad=True)
    loss = (x * 1).float().sum() * 2.0**-30  # 9e-10; the smallest float16 is 6e-8
    assert torch.autograd.grad(loss, x, retain_graph=True)[0].tolist() == [0, 0]
    assert gradients(loss, [x])[0].tolist() == [2.0**-30, 2.0**-30]


def test_what_float16_would_overflow_is_scaled_less() -> None:
    x = torch.ones(1, dtype=torch.float16, requires_grad=True)
    assert gradients((x * 1).float().sum() * 100, [x])[0].tolist() == [100]  # 100 * 2^16 is infinite in float16
    assert gradients((x * 1).float().sum() * 60000, [x])[0].tolist() == [60000]  # and so is 60000 * 2^8
    assert not gradients((x * 1).float().sum() * 70000, [x])[0].isfinite().all()


def test_the_scale_changes_no_bit_in_float32() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, requires_grad=True)
    loss = (x.sigmoid() * x.exp()).mean()
    assert torch.equal(gradients(loss, [x])[0], torch.autograd.grad(loss, x)[0])


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU())
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_backward_that_follows_is_the_same_to_the_last_bit(dtype: torch.dtype | None) -> None:
    def trained(measured: bool) -> list[Tensor]:
        torch.manual_seed(0)
        student, adapter = Student(), nn.Conv2d(4, 5, 1)
        images, wanted = torch.randn(2, 3, 9, 9), torch.randn(2, 5, 7, 7)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            feats = student.neck(images)
            out = student.head(feats)
        terms = {"feature": (adapter(feats.float()) - wanted).square().mean(), "response": out.float().softmax(1).std()}
        detection = out.float().square().mean()
        if measured:
            Balance(0.1, {"feature": 1.0, "response": 1.0}).measure(detection, terms, [feats])
            assert all(p.grad is None for p in (*student.parameters(), *adapter.parameters()))
        (detection + sum(terms.values())).backward()
        return [p.grad for p in (*student.parameters(), *adapter.parameters())]  # type: ignore[misc]

    for plain, watched in zip(trained(False), trained(True), strict=True):
        assert torch.equal(plain, watched)


# Gains ----------------------------------------------------------------------------------------------------------------


def test_two_terms_of_known_gradient() -> None:
    balance = Balance(0.1, {"a": 1.0, "b": 1.0})
    # |det| = |(3, 4)| = 5. a: |(10, 0)| = 10, cosine 30 / 50. b: |(0, -2)| = 2, cosine -8 / 10.
    step(balance, [3, 4], a=[10, 0], b=[0, -2])
    assert balance.gains == pytest.approx({"a": 0.1 * 5 / 10, "b": 0.1 * 5 / 2})
    assert balance.columns() == pytest.approx(
        {
            "balance/a_gain": 0.05,
            "balance/a_share": 0.1,
            "balance/a_cosine": 0.6,
            "balance/b_gain": 0.25,
            "balance/b_share": 0.1,
            "balance/b_cosine": -0.8,
        }
    )


def test_levels_count_as_one_long_vector() -> None:
    x, y = leaf(1), leaf(1, 1)
    balance = Balance(1.0, {"a": 1.0})
    detection = linear(x, 3) + linear(y, 0, 4)  # 5
    balance.measure(detection, {"a": linear(x, 1) + linear(y, 2, 2)}, [x, y])  # 3, dot 3 + 8
    assert balance.gains["a"] == pytest.approx(5 / 3)
    assert balance.columns()["balance/a_cosine"] == pytest.approx(11 / 15)


def test_a_tapped_term_is_measured_at_its_taps() -> None:
    tap = leaf(1, 1)
    feats = tap * 2
    terms = {"response": linear(feats, 1, 0), "tapped": linear(tap, 0, 5)}
    balance = Balance(0.1, {"response": 1.0, "tapped": 1.0})
    # At feats: 5 against 1. At the tap: |2 * (3, 4)| = 10 against 5, cosine 8 * 5 / 50.
    balance.measure(linear(feats, 3, 4), terms, [feats], {"tapped": [tap]})
    assert balance.gains == pytest.approx({"response": 0.5, "tapped": 0.2})
    assert balance.columns()["balance/tapped_cosine"] == pytest.approx(0.8)


def test_without_a_share_it_only_watches() -> None:
    balance = Balance(None, {"a": 3.0})
    step(balance, [3, 4], a=[0, 10])
    assert balance.gains == {"a": 3.0}
    assert balance.columns() == pytest.approx({"balance/a_gain": 3, "balance/a_share": 6, "balance/a_cosine": 0.8})


@pytest.mark.parametrize(
    ("ratios", "gain"),
    [
        ([4.0], 0.25),
        ([4.0, 1.0], 0.5),  # sqrt(4 * 1) = 2: the middle of two, by their logarithms
        ([4.0, 1.0, 1e5], 0.25),
        ([4.0, 1.0, 1e5, 1e-5], 0.5),  # neither odd step counts
        ([4.0, 0.0, 0.0, 0.0], 0.25),  # no objects: left out
        ([4.0, math.inf, math.nan], 0.25),
    ],
)
def test_the_median_of_the_window(ratios: list[float], gain: float) -> None:
    balance = Balance(1.0, {"a": 1.0})
    epoch(balance, *ratios)
    assert balance.gains["a"] == pytest.approx(gain)


def test_cap() -> None:
    balance = Balance(1.0, {"a": 3.0, "b": 3.0})
    step(balance, [1], a=[1e-9], b=[1e9])
    assert balance.gains == pytest.approx({"a": 3 * CAP, "b": 1e-9})  # what is far too strong is tamed without limit
    assert balance.columns()["balance/a_share"] == pytest.approx(3 * CAP * 1e-9)


def test_the_first_window_is_free_and_a_later_one_doubles_or_halves() -> None:
    balance = Balance(1.0, {"a": 1.0})
    epoch(balance, 0.1, 0.1)
    assert balance.gains["a"] == pytest.approx(10)
    epoch(balance, 0.01, 0.01, 0.01)  # wants 100; the limit counts from the epoch's begin, not from each step
    assert balance.gains["a"] == pytest.approx(20)
    epoch(balance, 10)  # wants 0.1
    assert balance.gains["a"] == pytest.approx(10)
    epoch(balance, 0.08)  # 12.5 is near
    assert balance.gains["a"] == pytest.approx(12.5)


def test_a_term_first_seen_late_has_its_free_window_then() -> None:
    balance = Balance(1.0, {"a": 1.0})
    epoch(balance, 0, 0, 0, 0)
    assert balance.gains["a"] == 1
    epoch(balance, 0.1)
    assert balance.gains["a"] == pytest.approx(10)


def test_nothing_is_learnt_from_a_detection_loss_without_gradient() -> None:
    balance = Balance(0.1, {"a": 1.0})
    step(balance, [0], a=[2])
    assert balance.gains == {"a": 1.0}
    balance.measure(leaf(1).sum(), {}, [])
    assert balance.columns() == {"balance/a_gain": 1.0, "balance/a_share": 0.0, "balance/a_cosine": 0.0}


@pytest.mark.parametrize("share", [0, -0.1, math.inf, math.nan])
def test_share_is_checked(share: float) -> None:
    with pytest.raises(ValueError, match="balance is"):
        Balance(share, {"a": 1.0})


# When -----------------------------------------------------------------------------------------------------------------


def asked(balance: Balance, factors: Sequence[float]) -> list[bool]:
    answers = []
    for factor in factors:
        answers.append(balance.due(factor))
        if answers[-1]:
            step(balance, [1], a=[1])
    return answers


@pytest.mark.parametrize(
    ("factors", "first", "count"),
    [
        ([0, 0.4, 0.8, 1, 1, 1, 1, 1, 1], 3, STEPS),  # constant
        ([0, 0.4, 0.8, 0.99, 0.97, 0.9, 0.8, 0.7, 0.6], 4, STEPS),  # a cosine whose top falls between two steps
        ([0, 0.2, 0.4, 0.6], None, 0),  # still on the ramp
        ([1, 1], 0, 2),  # no ramp
        ([1, 0, 0, 1], 0, 2),  # nothing to measure where distillation rests
        ([0, 0, 0], None, 0),
    ],
)
def test_measured_in_the_first_steps_after_the_ramp(factors: list[float], first: int | None, count: int) -> None:
    answers = asked(Balance(0.1, {"a": 1.0}), factors)
    assert sum(answers) == count
    assert (answers.index(True) if count else None) == first


def test_measured_again_each_epoch_at_any_factor_above_0() -> None:
    balance = Balance(0.1, {"a": 1.0})
    asked(balance, [1, 1, 1, 1, 1])
    assert not balance.due(1)
    balance.begin_epoch()
    assert asked(balance, [0.5, 0.5, 0, 0.4, 0.4, 0.4]) == [True, True, False, True, True, False]


def test_an_epoch_begun_again_on_the_ramp_is_not_past_it() -> None:
    balance = Balance(0.1, {"a": 1.0})
    asked(balance, [0.3, 0.6])
    balance.begin_epoch()
    assert not any(asked(balance, [0.3, 0.6]))


# Warnings, state, ranks -----------------------------------------------------------------------------------------------


def test_warnings_name_the_term_once_a_kind() -> None:
    balance = Balance(None, {"strong": 3.0, "weak": 1.0, "fine": 1.0, "silent": 1.0})
    assert balance.warnings() == []  # nothing measured yet
    step(balance, [1], strong=[0.2], weak=[9e-4], fine=[0.1], silent=[0])
    assert balance.warnings() == [
        "The distillation loss strong dominates: its gradient on the student is 0.6 of the detection loss's at gain 3; "
        "a smaller gain, or balance=0.1, lets both be heard.",
        "The distillation loss weak vanishes: its gradient on the student is 0.0009 of the detection loss's at gain 1; "
        "it costs time and teaches nothing.",
        "The distillation loss silent vanishes: its gradient on the student is 0 of the detection loss's at gain 1; "
        "it costs time and teaches nothing.",
    ]
    balance.begin_epoch()
    step(balance, [1], strong=[0.2], weak=[9e-4], fine=[0.1], silent=[0])
    assert balance.warnings() == []
    balance.begin_epoch()
    step(balance, [1], strong=[1e-6], weak=[1e-6], fine=[0.1], silent=[0])
    assert [text.split(":")[0] for text in balance.warnings()] == ["The distillation loss strong vanishes"]


@pytest.mark.parametrize("detection", [0, math.nan])
def test_what_cannot_be_measured_is_said(detection: float) -> None:
    balance = Balance(0.1, {"a": 1.0})
    step(balance, [detection], a=[1])
    (text,) = balance.warnings()
    assert text.startswith("The distillation loss a cannot be measured")


def test_state_round_trip() -> None:
    balance = Balance(0.1, {"a": 1.0, "b": 2.0})
    balance.due(1)
    step(balance, [3, 4], a=[10, 0], b=[0, 1e-9])
    balance.warnings()
    state = json.loads(json.dumps(balance.state()))
    other = Balance(0.1, {"a": 1.0, "b": 2.0})
    other.load(state)
    assert other.gains == balance.gains
    assert other.state() == balance.state()
    assert other.due(0.3)  # the ramp is behind it
    step(other, [1], a=[0.1], b=[1e-12])  # a wants 1; from 0.05 it doubles
    assert other.gains["a"] == pytest.approx(0.1)
    assert other.warnings() == []  # that b vanishes was said before the kill


def test_fixed_gains_survive_a_load() -> None:
    balance = Balance(0.1, {"a": 1.0})
    step(balance, [1], a=[1])
    watching = Balance(None, {"a": 1.0})
    watching.load(balance.state())
    assert watching.gains == {"a": 1.0}


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    balance = Balance(1.0, {"a": 1.0, "b": 1.0})
    if rank:
        step(balance, [4], a=[0], b=[math.nan])
    else:
        step(balance, [3], a=[2], b=[1])
    Path(folder, f"{rank}.json").write_text(json.dumps(balance.columns()))
    torch.distributed.destroy_process_group()


def test_ranks_agree_on_the_gains_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (json.loads(Path(tmp_path, f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    # The batch's gradients are (3, 4) and (2, 0): 5 against 2, cosine 6 / 10. b is not finite somewhere: left out.
    assert first["balance/a_gain"] == pytest.approx(2.5)
    assert first["balance/a_cosine"] == pytest.approx(0.6)
    assert first["balance/b_gain"] == 1


def test_a_line_for_the_log_of_a_balanced_run() -> None:
    balance, fixed = Balance(0.1, {"a": 1.0, "b": 2.0}), Balance(None, {"a": 1.0})
    assert balance.line() == ""  # nothing measured yet
    for each in (balance, fixed):
        each.begin_epoch()
    step(balance, [3.0, 4.0], a=[1.0, 0.0], b=[0.0, -5.0])
    step(fixed, [3.0, 4.0], a=[1.0, 0.0])
    # |detection| is 5: a has 1 and a cosine of 3/5, b has 5 and -4/5.
    assert balance.line() == "balance=0.1: gains a 0.5 (cosine +0.60), b 0.1 (cosine -0.80)"
    assert fixed.line() == ""


def test_what_was_asked_for_is_not_warned_of() -> None:
    balance = Balance(0.8, {"a": 1.0, "dead": 1.0})
    step(balance, [1], a=[1], dead=[1e-9])
    assert [text.split(":")[0] for text in balance.warnings()] == ["The distillation loss dead vanishes"]


def test_an_epoch_without_a_measurement_has_no_share_and_no_line() -> None:
    balance = Balance(0.1, {"a": 1.0})
    epoch(balance, 1.0)
    assert balance.columns()["balance/a_share"] == pytest.approx(0.1)
    balance.begin_epoch()
    assert balance.columns() == {"balance/a_gain": pytest.approx(0.1), "balance/a_share": 0, "balance/a_cosine": 0}
    assert balance.line() == ""


def test_fixed_gains_are_watched_in_fewer_steps() -> None:
    assert sum(asked(Balance(None, {"a": 1.0}), [1] * 9)) == WATCHED < STEPS
