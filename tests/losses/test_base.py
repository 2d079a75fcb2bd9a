import torch

from tests.helpers import pair
from yolokd.losses.base import DEFAULT_LOSSES, LOSSES, build_losses


def test_the_table_is_consistent() -> None:
    assert set(DEFAULT_LOSSES) <= set(LOSSES)
    for name, info in LOSSES.items():
        assert info.name == name
        assert info.gain > 0
        assert info.link.startswith("https://")
        assert info.needs <= {"scores", "boxes", "feats", "truth", "reenter"}
        assert info.family in {"response", "feature", "relation", "contrastive", "adversarial"}
        assert info.paper
        assert info.summary
        assert not info.taps or "feats" in info.needs


def test_options_are_those_of_the_class() -> None:
    assert LOSSES["cwd"].options == {"temperature": 1.0}
    assert LOSSES["cls"].options == {}


def test_adapters_come_from_a_random_stream_of_their_own() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = build_losses({"cwd": 1.0}, {}, pair(), seed=5)
    assert torch.equal(torch.rand(4), expected)  # the run's own stream has not moved
    second = build_losses({"cwd": 1.0}, {}, pair(), seed=5)
    other = build_losses({"cwd": 1.0}, {}, pair(), seed=6)
    a, b, c = (next(losses.parameters()) for losses in (first, second, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_options_reach_the_loss() -> None:
    losses = build_losses({"box": 1.0}, {"box": {"temperature": 3.0}}, pair(), seed=0)
    assert losses["box"].temperature == 3.0
