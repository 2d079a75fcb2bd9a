"""What is asked of every loss of the table, whatever it does: a new one gets these tests for free.

Where a loss is exempt, it stands in a table here with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers import Scene, each, scene, tensors
from yolokd.losses.base import LOSSES, build_losses

GOLDEN = Path(__file__).with_name("golden.json")

every_loss = pytest.mark.parametrize("name", LOSSES)

# Options without which two calls differ: the generator's masks.
REPEATS: dict[str, dict[str, Any]] = {"mgd": {"ratio": 0.0}}

# What a loss needs of the teacher alone; all else that it needs (`reenter`: hidden features) it also teaches.
OF_THE_TEACHER = {"sl2": {"scores"}, "crosskd": {"scores", "boxes"}}

# They compare across the batch.
NOT_REPEATABLE = {"sp", "rkd", "crd", "adv"}

# Not 0 where student and teacher say the same and adapters are the identity.
NOT_ZERO_AT_TEACHER = {
    "adv": "no distance: log 2 at least, see test_adversarial",
    "crd": "both projections are learnt apart, and 0 is reached only where objects are far apart, see test_contrastive",
    "mgd": "between them stands a block that generates, see test_masked for one that is the identity",
    "sl2": "between them stands a projector with a ReLU, see test_score_weighted for one that is the identity",
}

# What stays zero, with zero gradient, until something else has moved: its last layer begins at 0.
LATE = {"fgd": "_context."}


def build(name: str, s: Scene, **options: Any) -> nn.Module:
    return build_losses({name: 1.0}, {name: REPEATS.get(name, {}) | options}, s.pair, seed=0)[name]


def value(name: str, s: Scene) -> Tensor:
    result: Tensor = build(name, s)(s.student, s.teacher, s.assigned)
    return result


def identity(module: nn.Module) -> nn.Module:
    """Let every adapter pass on what it is given."""
    with torch.no_grad():
        for path, part in module.named_modules():
            if "adapter" in path and isinstance(part, nn.Conv2d):
                part.weight.copy_(torch.eye(part.out_channels)[..., None, None])
                if part.bias is not None:
                    part.bias.zero_()
    return module


def taught(name: str) -> set[str]:
    """The fields of the student's predictions that the loss must move."""
    needs = LOSSES[name].needs - {"truth"} - OF_THE_TEACHER.get(name, set())
    return {"hidden" if need == "reenter" else need for need in needs}


# Value ---------------------------------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_float32_scalar_whatever_comes_in(name: str, dtype: torch.dtype, autocast: bool) -> None:
    s = scene()
    low = replace(s, student=each(s.student, lambda x: x.to(dtype)), teacher=each(s.teacher, lambda x: x.to(dtype)))
    low = low.leaves()
    # As the criterion calls a loss: in the trainer's autocast, switched off.
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.autocast("cpu", enabled=False):
        found = value(name, low)
    assert found.dtype == torch.float32
    assert found.shape == ()
    assert found.item() > 0
    assert found.item() == pytest.approx(value(name, s).item(), rel=0.05)
    found.backward()
    assert all(x.grad is None or x.grad.isfinite().all() for field in tensors(low.student).values() for x in field)


@every_loss
def test_zero_at_the_teacher_and_never_below(name: str) -> None:
    for seed in range(4):
        assert value(name, scene(seed=seed)).item() >= 0
        s = scene(alike=True, seed=seed)
        found = identity(build(name, s))(s.student, s.teacher, s.assigned).item()
        assert (abs(found) < 1e-5) is (name not in NOT_ZERO_AT_TEACHER)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in NOT_REPEATABLE])
def test_the_batch_repeated_has_the_same_value(name: str) -> None:
    s = scene()
    assert value(name, s.twice()).item() == pytest.approx(value(name, s).item(), rel=1e-4)


# Invariances: loss, field, change. A change must not matter on either side.
def shift(x: Tensor) -> Tensor:
    """All logits of an anchor by the same amount."""
    return x + torch.linspace(-3, 5, x.shape[2])


def loudness(x: Tensor) -> Tensor:
    return x * (2 + x.shape[1])  # each level its own


def channels(x: Tensor) -> Tensor:
    """Each channel's scale and offset."""
    scale = torch.linspace(0.5, 4, x.shape[1])[:, None, None]
    return x * scale + 3 - scale


def offset(x: Tensor) -> Tensor:
    return x + torch.linspace(-2, 1, x.shape[1])[:, None, None]


@pytest.mark.parametrize(
    ("name", "field", "change"),
    [
        ("kd", "scores", shift),
        ("pkd", "feats", channels),
        ("cwd", "feats", channels),
        ("at", "feats", loudness),
        ("sp", "feats", loudness),
        ("rkd", "feats", loudness),
        ("rkd", "feats", offset),
        ("graph", "feats", loudness),
        ("graph", "feats", offset),
        ("crd", "feats", loudness),
        ("adv", "feats", offset),
    ],
)
def test_what_the_paper_does_not_count(name: str, field: str, change: Callable[[Tensor], Tensor]) -> None:
    s, other = scene(alike=True), scene(alike=True, seed=1)  # equal widths, another teacher
    s = replace(s, teacher=replace(other.teacher, reenter=s.teacher.reenter))
    expected = identity(build(name, s))(s.student, s.teacher, s.assigned).item()
    assert expected > 1e-3
    for side in ("student", "teacher"):
        changed = replace(s, **{side: each(getattr(s, side), change, field)})
        found = identity(build(name, s))(changed.student, changed.teacher, s.assigned).item()
        assert found == pytest.approx(expected, rel=2e-3), side


# Gradient ------------------------------------------------------------------------------------------------------------


@every_loss
def test_gradient_reaches_student_and_module_and_never_the_teacher(name: str) -> None:
    s = scene().leaves()
    loss = build(name, s)
    loss(s.student, s.teacher, s.assigned).backward()
    for field, found in tensors(s.student).items():
        for x in found:
            assert (x.grad is not None and bool(x.grad.any())) is (field in taught(name)), field
    assert all(x.grad is None for found in tensors(s.teacher).values() for x in found)
    for path, p in loss.named_parameters():
        assert p.grad is not None, path
        assert bool(p.grad.any()) or LATE.get(name, "-") in path, path


@every_loss
def test_every_parameter_has_a_gradient_at_the_second_step_at_the_latest(name: str) -> None:
    s = scene().leaves()
    loss = build(name, s)
    for _ in range(2):
        loss.zero_grad()
        loss(s.student, s.teacher, s.assigned).backward()
        with torch.no_grad():
            for p in loss.parameters():
                p -= 0.1 * p.grad
    assert all(bool(p.grad.any()) for p in loss.parameters())


# Little to go by -----------------------------------------------------------------------------------------------------

# Each situation, and the losses of which a student can learn nothing in it.
LITTLE: dict[str, tuple[dict[str, Any], set[str]]] = {
    "no foreground": ({"foreground": False}, {"kd", "box", "iou"}),
    "no object": ({"objects": (0, 0)}, {"kd", "box", "iou", "rkd", "graph", "crd"}),
    "one object": ({"objects": (0, 1)}, {"rkd", "crd"}),
    "one class": ({"classes": 1}, {"kd"}),
    "a batch of 1": ({"objects": (3,)}, {"sp"}),
    "one image without object": ({"objects": (0,)}, {"kd", "box", "iou", "rkd", "graph", "crd", "sp"}),
    # One value a channel: no position stands out.
    "1x1": (
        {"objects": (3,), "size": (1, 1), "levels": 1},
        {"at", "cwd", "pkd", "sp", "rkd", "graph", "crd", "adv"},
    ),
    # All objects of an image are one point there, and two points have neither angles nor a ratio of distances.
    "1x1 of two images": ({"size": (1, 1), "levels": 1}, {"at", "cwd", "rkd"}),
    "1x1, one class, nothing": (
        {"objects": (0,), "size": (1, 1), "levels": 1, "classes": 1},
        {"kd", "box", "iou", "at", "cwd", "pkd", "sp", "rkd", "graph", "crd", "adv"},
    ),
}


@every_loss
@pytest.mark.parametrize("situation", LITTLE)
def test_little_to_go_by(name: str, situation: str) -> None:
    arguments, silent = LITTLE[situation]
    s = scene(**arguments).leaves()
    loss = build(name, s)
    found = loss(s.student, s.teacher, s.assigned)
    assert torch.isfinite(found)
    found.backward()
    gradients = [x.grad for field in tensors(s.student).values() for x in field if x.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert any(bool((g.abs() > 1e-7).any()) for g in gradients) is (name not in silent)
    # None would be skipped when gradients are averaged: a rank without objects would leave the others waiting.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


def test_the_tables_name_losses_that_there_are() -> None:
    for table in (REPEATS, OF_THE_TEACHER, NOT_REPEATABLE, NOT_ZERO_AT_TEACHER, LATE, *(v for _, v in LITTLE.values())):
        assert set(table) <= set(LOSSES)
    assert sorted(NOT_REPEATABLE) == ["adv", "crd", "rkd", "sp"]  # no loss may join them: it would depend on the batch
    for name in NOT_REPEATABLE:
        assert "across the batch" in LOSSES[name].cls.__doc__ or "depends on the batch" in LOSSES[name].cls.__doc__
    for name, info in LOSSES.items():
        assert (info.batch > 1) is (name in LITTLE["a batch of 1"][1])
        assert (info.classes > 1) is (name in LITTLE["one class"][1])


# Shapes --------------------------------------------------------------------------------------------------------------


@every_loss
@given(
    objects=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    levels=st.integers(1, 3),
    classes=st.integers(1, 4),
    reg_max=st.integers(2, 16),
    seed=st.integers(0, 1000),
)
@settings(max_examples=6, deadline=None)
def test_any_shape(name: str, objects: list[int], size: tuple[int, int], **arguments: int) -> None:
    s = scene(tuple(objects), size=size, **arguments).leaves()  # type: ignore[arg-type]
    found = value(name, s)
    assert found.shape == ()
    assert found.dtype == torch.float32
    assert torch.isfinite(found)
    assert found.item() > -1e-6
    found.backward()
    assert all(x.grad is None or x.grad.isfinite().all() for field in tensors(s.student).values() for x in field)


# Taps ----------------------------------------------------------------------------------------------------------------


@every_loss
def test_layers_of_other_strides_and_widths_beside_the_pyramids_anchors(name: str) -> None:
    pyramid, backbone = scene(), scene(size=(8, 8), levels=3, stride=4)  # the same 32 x 32 px with the same objects
    student, teacher = (
        replace(getattr(pyramid, side), feats=getattr(backbone, side).feats) for side in ("student", "teacher")
    )
    built = build_losses({name: 1.0}, {name: REPEATS.get(name, {})}, pyramid.pair, 0, tapped=backbone.pair)[name]
    if not LOSSES[name].taps:  # it is built for the pyramid and shown the pyramid
        found, expected = built(pyramid.student, pyramid.teacher, pyramid.assigned), value(name, pyramid)
    else:
        found, expected = built(student, teacher, pyramid.assigned), value(name, backbone)
    assert found.item() == pytest.approx(expected.item())


# Golden --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> dict[str, float]:
    """Values of earlier, all options at their defaults."""
    if request.config.getoption("--renew-golden"):
        values = {name: golden_value(name) for name in LOSSES}
        GOLDEN.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    known: dict[str, float] = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
    return known


def golden_value(name: str) -> float:
    s = scene(seed=11)
    loss = build_losses({name: 1.0}, {}, s.pair, seed=0)[name]
    return float(loss(s.student, s.teacher, s.assigned).item())


def look_up(known: dict[str, float], name: str) -> float:
    if name not in known:
        pytest.fail(f"{GOLDEN.name} has no value of {name}: run this once with --renew-golden, and look at the change")
    return known[name]


@every_loss
def test_the_value_is_that_of_before(name: str, golden: dict[str, float]) -> None:
    expected = look_up(golden, name)
    assert golden_value(name) == pytest.approx(expected, rel=1e-4), "if this is meant: --renew-golden"


def test_a_value_that_is_not_there_is_asked_for(golden: dict[str, float]) -> None:
    assert set(golden) <= set(LOSSES), "values of losses that are no more: --renew-golden"
    with pytest.raises(pytest.fail.Exception, match="--renew-golden"):
        look_up({}, "cwd")
