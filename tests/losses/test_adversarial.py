import math

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import assignment, pair, predictions
from yolokd.losses.adversarial import AdversarialKD, Discriminator, reverse
from yolokd.losses.features import normalise
from yolokd.predictions import Predictions


def feats(*levels: torch.Tensor) -> Predictions:
    return Predictions(None, None, levels)


def parameters_to(loss: AdversarialKD, value: float) -> None:
    for name, parameter in loss.named_parameters():
        parameter.data.fill_(0 if name.endswith("bias") else value)


def grad(x: torch.Tensor) -> torch.Tensor:
    assert x.grad is not None
    return x.grad


def test_value_and_accuracy_by_hand() -> None:
    # One channel, one unit. Student (3, 5) is standardised to (-1, 1), teacher (7, 1) to (1, -1). The weights 7 are
    # brought to length 1, so leaky ReLU 0.2 gives logits (-0.2, 1) and (1, -0.2). A logit z costs ln(1 + e^z) at the
    # student and ln(1 + e^-z) at the teacher; one position of either side is judged right.
    loss = AdversarialKD((1,), (1,), hidden=1)
    parameters_to(loss, 7.0)
    student, teacher = torch.tensor([3.0, 5.0]).view(1, 1, 1, 2), torch.tensor([7.0, 1.0]).view(1, 1, 1, 2)
    value = loss(feats(student), feats(teacher), assignment()).item()
    cost = [math.log(1 + math.exp(z)) for z in (-0.2, 1, -1, 0.2)]
    assert value == pytest.approx(sum(cost) / 4, rel=1e-4)
    assert loss.logged["accuracy"].item() == 0.5


def test_a_discriminator_that_knows_nothing_costs_log_2() -> None:
    loss = AdversarialKD.for_pair(pair())
    for discriminator in loss.discriminators:
        discriminator.second.weight.data.zero_()  # type: ignore[operator, union-attr]
        discriminator.second.bias.data.zero_()  # type: ignore[operator, union-attr]
    assert loss(predictions(), predictions(seed=1), assignment()).item() == pytest.approx(math.log(2))


def test_equal_features_cost_at_least_log_2_whatever_the_discriminator() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        loss = AdversarialKD((3,), (3,))
        loss.adapter.levels[0].weight.data.copy_(torch.eye(3)[..., None, None])  # type: ignore[operator, union-attr]
        same = feats(torch.randn(2, 3, 4, 4))
        assert loss(same, same, assignment()).item() >= math.log(2) - 1e-6
        assert loss.logged["accuracy"].item() == pytest.approx(0.5, abs=1e-6)


def test_folding_changes_neither_value_nor_gradient() -> None:
    """The plain way: adapt, standardise, reverse, judge."""
    torch.manual_seed(3)
    loss = AdversarialKD((4,), (6,), strength=0.5)
    found = []
    for plain in (False, True):
        student = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(7)) * 3 + 2
        teacher = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(8)) * 2 - 1
        student.requires_grad_()
        loss.zero_grad()
        if plain:
            d = loss.discriminators[0]
            assert isinstance(d, Discriminator)
            logits = []
            for x in (reverse(normalise(loss.adapter([student])[0]), 0.5), normalise(teacher)):
                h = F.conv2d(x, F.normalize(d.first.weight, dim=1), d.first.bias)
                logits.append(F.conv2d(F.leaky_relu(h, 0.2), F.normalize(d.second.weight, dim=1), d.second.bias))
            target = [torch.zeros_like(logits[0]), torch.ones_like(logits[1])]
            value = F.binary_cross_entropy_with_logits(torch.cat(logits), torch.cat(target))
        else:
            value = loss(feats(student), feats(teacher), assignment())
        value.backward()
        found.append([value.detach(), grad(student), *(grad(p).clone() for p in loss.parameters())])
    for folded, expected in zip(*found, strict=True):
        assert torch.allclose(folded, expected, rtol=1e-3, atol=1e-6)


def test_scale_and_shift_of_either_side_do_not_matter_and_a_batch_may_repeat() -> None:
    loss = AdversarialKD((4,), (4,))
    s, t = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    value = loss(feats(s), feats(t), assignment()).item()
    assert loss(feats(9 * s + 4), feats(5 * t - 3), assignment()).item() == pytest.approx(value, rel=1e-3)
    assert loss(feats(s.repeat(2, 1, 1, 1)), feats(t.repeat(2, 1, 1, 1)), assignment()).item() == pytest.approx(value)


def test_the_student_climbs_where_the_discriminator_descends() -> None:
    loss = AdversarialKD((4,), (6,), strength=0.1)
    student, teacher = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(2, 6, 6, 6)
    value = loss(feats(student), feats(teacher), assignment())
    value.backward()
    with torch.no_grad():  # a step of each against its gradient
        moved = student - 100 * grad(student)
        assert loss(feats(moved), feats(teacher), assignment()) > value
        weight = loss.adapter.levels[0].weight
        assert isinstance(weight, torch.Tensor)
        weight -= grad(weight)
        assert loss(feats(student), feats(teacher), assignment()) > value
        weight += grad(weight)
        for parameter in loss.discriminators.parameters():
            parameter -= 0.01 * grad(parameter)
        assert loss(feats(student), feats(teacher), assignment()) < value


def test_strength_and_gain_scale_what_they_say() -> None:
    """A gain scales both players' gradients, the strength the student's and the adapter's alone."""
    found = {}
    for strength, gain in ((1.0, 1.0), (0.5, 1.0), (1.0, 4.0)):
        torch.manual_seed(0)
        loss = AdversarialKD((4,), (6,), strength)
        student = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
        teacher = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(2))
        (gain * loss(feats(student), feats(teacher), assignment())).backward()
        first = loss.discriminators[0].first.weight
        adapter = loss.adapter.levels[0].weight
        assert isinstance(first, torch.Tensor)
        assert isinstance(adapter, torch.Tensor)
        found[strength, gain] = (grad(student), grad(adapter), grad(first))
    for other, factors in (((0.5, 1.0), (0.5, 0.5, 1)), ((1.0, 4.0), (4, 4, 4))):
        for base, scaled, factor in zip(found[1.0, 1.0], found[other], factors, strict=True):
            assert torch.allclose(scaled, factor * base, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_the_reversed_gradient_is_bounded_however_large_the_discriminators_weights(size: float) -> None:
    """n positions, each at most strength * sqrt(hidden) / (2 n) long; to standardise only projects."""
    loss = AdversarialKD((2,), (2,), strength=0.5, hidden=8)
    for name, parameter in loss.discriminators.named_parameters():
        parameter.data.mul_(size if name.endswith("weight") else 1)
    identity_adapter(loss)
    student = normalise(torch.randn(4, 2, 7, 7)).requires_grad_()
    loss(feats(student), feats(torch.randn(4, 2, 7, 7)), assignment()).backward()
    assert 0 < grad(student).norm() <= 0.5 * math.sqrt(8) / 2 / math.sqrt(4 * 7 * 7) * (1 + 1e-4)


def correlated(generator: torch.Generator, correlation: float) -> torch.Tensor:
    """Two channels of unit variance: standardisation leaves nothing but their correlation to tell."""
    x = torch.randn(4, 2, 8, 8, generator=generator)
    return torch.stack([x[:, 0], correlation * x[:, 0] + math.sqrt(1 - correlation**2) * x[:, 1]], 1)


def identity_adapter(loss: AdversarialKD) -> None:
    loss.adapter.levels[0].weight.data.copy_(torch.eye(2)[..., None, None])  # type: ignore[operator, union-attr]


def test_a_discriminator_alone_learns_to_tell_two_distributions() -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    loss = AdversarialKD((2,), (2,))
    identity_adapter(loss)
    optimizer = torch.optim.Adam(loss.discriminators.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss(feats(correlated(g, -0.95)), feats(correlated(g, 0.95)), assignment()).backward()
        optimizer.step()
    assert loss(feats(correlated(g, -0.95)), feats(correlated(g, 0.95)), assignment()).item() < 0.5
    assert loss.logged["accuracy"].item() > 0.8


def test_a_student_that_can_imitate_becomes_indistinguishable() -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    loss = AdversarialKD((2,), (2,))
    identity_adapter(loss)
    judge = torch.optim.Adam(loss.discriminators.parameters(), lr=0.02)
    student = torch.nn.Parameter(torch.eye(2))
    player = torch.optim.Adam([student], lr=0.01)
    values = []
    for step in range(500):
        judge.zero_grad()
        player.zero_grad()
        imitated = torch.einsum("dc,bchw->bdhw", student, correlated(g, -0.9))
        value = loss(feats(imitated), feats(correlated(g, 0.9)), assignment())
        value.backward()
        judge.step()
        if step >= 100:  # the judge first learns its trade
            player.step()
        values.append(value.item())
    assert sum(values[90:100]) / 10 < 0.6
    assert sum(values[-50:]) / 50 == pytest.approx(math.log(2), abs=0.03)
    x = torch.einsum("dc,bchw->bdhw", student.detach(), correlated(g, -0.9)).transpose(0, 1).flatten(1)
    assert torch.corrcoef(x)[0, 1].item() == pytest.approx(0.9, abs=0.15)


def test_gradient_reaches_student_and_adapter_and_discriminator_but_not_the_teacher() -> None:
    student, teacher = predictions(), predictions(seed=1)
    assert student.feats is not None
    assert teacher.feats is not None
    for f in (*student.feats, *teacher.feats):
        f.requires_grad_()
    loss = AdversarialKD.for_pair(pair())
    value = loss(student, teacher, assignment())
    value.backward()
    assert all(grad(f).abs().sum() > 0 for f in (*student.feats, *loss.parameters()))
    assert all(f.grad is None for f in teacher.feats)
    assert not loss.logged["accuracy"].requires_grad


def test_one_position_of_one_image_teaches_the_student_nothing() -> None:
    loss = AdversarialKD((4,), (6,))
    student = torch.randn(1, 4, 1, 1, requires_grad=True)
    value = loss(feats(student), feats(torch.randn(1, 6, 1, 1)), assignment())
    value.backward()
    assert value.isfinite()
    assert grad(student).abs().max() == 0
    assert all(grad(p).isfinite().all() for p in loss.parameters())


def test_half_precision_gives_float32() -> None:
    loss = AdversarialKD((4,), (6,))
    value = loss(feats(torch.randn(2, 4, 3, 3).half()), feats(torch.randn(2, 6, 3, 3).bfloat16()), assignment())
    assert value.dtype == loss.logged["accuracy"].dtype == torch.float32


def test_bad_arguments_are_named() -> None:
    assert AdversarialKD.for_pair(pair()).logged["accuracy"].item() == 0
    with pytest.raises(ValueError, match=r"adv\.strength is 0"):
        AdversarialKD.for_pair(pair(), strength=0)
    with pytest.raises(ValueError, match=r"adv\.hidden is 0"):
        AdversarialKD.for_pair(pair(), hidden=0)
    loss = AdversarialKD.for_pair(pair())
    with pytest.raises(ValueError, match="needs the pyramid"):
        loss(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="was built for"):
        loss(predictions(widths=(4, 7)), predictions(), assignment())
