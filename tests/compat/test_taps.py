from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel

from yolokd.compat.checkpoint import build_student, read_checkpoint
from yolokd.compat.taps import HeadTap, LayerTap, hidden_widths, layer_info, reentry
from yolokd.compat.training import branches, freeze
from yolokd.predictions import Hidden

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def detector(cfg: str = "yolo11n", classes: int = 2) -> Any:
    torch.manual_seed(0)
    return build_student(f"{cfg}.yaml", names={i: f"c{i}" for i in range(classes)})


@pytest.fixture(scope="module")
def student() -> Any:
    return detector().train()


@pytest.fixture
def tapped(student: Any) -> Iterator[tuple[Any, HeadTap, LayerTap]]:
    head, layers = HeadTap(student, 1), LayerTap(student, [4, 6])
    yield student, head, layers
    head.remove()
    layers.remove()


def shapes(hidden: Hidden) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for branch in hidden for x in branch]


@pytest.mark.parametrize(
    ("cfg", "box", "cls"),
    [
        ("yolov5n", 64, 64),
        ("yolov8n", 64, 64),
        ("yolov9t", 64, 64),
        ("yolov10n", 64, 64),
        ("yolo11n", 64, 64),
        ("yolo12n", 64, 64),
        ("yolo26n", 16, 64),
        ("yolo11x", 96, 384),
    ],
)
def test_hidden_widths_of_each_family(cfg: str, box: int, cls: int) -> None:
    # Detect: box branch max(16, first level / 4, 4 * reg_max), class branch max(first level, min(classes, 100))
    with torch.device("meta") if cfg == "yolo11x" else torch.device("cpu"):
        head = Detect(2, 16, False, (384, 768, 768)) if cfg == "yolo11x" else None
    model = detector(cfg) if head is None else nn.Sequential()
    if head is not None:
        model.model = nn.Sequential(head)
    assert hidden_widths(model) == (((box,) * 3, (cls,) * 3),) * 2


def test_hidden_widths_are_those_of_the_features_and_survive_the_freezing() -> None:
    model = detector("yolov10n")
    before = hidden_widths(model)
    assert hidden_widths(freeze(model)) == before
    for depth, (box, cls) in enumerate(before, start=1):
        tap = HeadTap(model, depth)
        model(IMAGES)
        assert [s[1] for s in shapes(tap.take())] == [*box, *cls]
        tap.remove()


def test_a_fused_end2end_head_has_no_dense_branch_to_enter() -> None:
    model = detector("yolo26n")
    model.model[-1].end2end = True  # as for inference
    model.fuse(verbose=False)
    assert hidden_widths(model) == ()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("cfg", ["yolov8n", "yolo11n", "yolo26n"])
def test_entering_with_its_own_features_gives_its_own_predictions(cfg: str, depth: int) -> None:
    teacher = freeze(detector(cfg))
    tap = HeadTap(teacher, depth)
    own = branches(teacher(IMAGES))[0]
    hidden = tuple(tuple(x.clone().requires_grad_() for x in branch) for branch in tap.take())
    entered = reentry(teacher, torch.float32)(hidden, depth)  # type: ignore[arg-type]
    assert own.scores is not None
    assert own.boxes is not None
    assert entered.scores is not None
    assert entered.boxes is not None
    torch.testing.assert_close(entered.scores, own.scores)
    torch.testing.assert_close(entered.boxes, own.boxes)
    (entered.scores.sum() + entered.boxes.square().sum()).backward()
    assert all(x.grad is not None and x.grad.abs().max() > 0 for branch in hidden for x in branch)
    assert all(p.grad is None for p in teacher.parameters())


def test_entering_a_teacher_of_low_precision() -> None:
    teacher = freeze(detector("yolov8n"))
    tap = HeadTap(teacher, 1)
    teacher(IMAGES)
    hidden = tap.take()
    wanted = reentry(teacher, torch.float32)(hidden, 1)
    teacher.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        entered = reentry(teacher, torch.bfloat16)(hidden, 1)
    for a, b in ((entered.scores, wanted.scores), (entered.boxes, wanted.boxes)):
        assert a is not None
        assert b is not None
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)


def test_taps_hear_the_training_forward_once(tapped: tuple[Any, HeadTap, LayerTap]) -> None:
    student, head, layers = tapped
    dense = branches(student(IMAGES))[0]
    hidden, outputs = head.take(), layers.take()
    assert shapes(hidden) == [(2, 64, s, s) for s in (8, 4, 2)] * 2
    assert [tuple(x.shape) for x in outputs] == [(2, 128, 8, 8), (2, 128, 4, 4)]
    assert hidden[0][0].requires_grad
    # The rest of the head makes of them what the head said (in eval mode there: other BatchNorm).
    assert dense.boxes is not None
    level: nn.Sequential = student.model[-1].cv2[0]
    torch.testing.assert_close(level[1:](hidden[0][0]).flatten(2), dense.boxes[..., :64])
    for tap in (head, layers):
        with pytest.raises(RuntimeError, match="has not run"):
            tap.take()


def test_a_new_forward_pass_lets_go_of_what_an_interrupted_one_left(tapped: tuple[Any, HeadTap, LayerTap]) -> None:
    student, head, layers = tapped
    student(IMAGES)
    assert layers.take()

    def fail(*args: object) -> None:
        raise RuntimeError("out of memory")

    handle = student.model[5].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        student(IMAGES)
    handle.remove()
    for tap in (head, layers):  # of the second pass only layer 4 was heard, the first is forgotten
        with pytest.raises(RuntimeError, match="has not run"):
            tap.take()


def test_the_one2one_branch_is_not_heard() -> None:
    student = detector("yolo26n").train()
    tap = HeadTap(student, 2)
    dense = branches(student(IMAGES))[0]
    boxes = torch.cat([s[2](x).flatten(2) for s, x in zip(student.model[-1].cv2, tap.take()[0], strict=True)], 2)
    assert dense.boxes is not None
    torch.testing.assert_close(boxes, dense.boxes)


class Wrapper(nn.Module):
    """As DistributedDataParallel wraps."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Any:
        return self.module(images)


def test_a_wrapped_model_is_unwrapped(student: Any) -> None:
    wrapped = Wrapper(student)
    head, layers = HeadTap(wrapped, 2), LayerTap(wrapped, [6])
    wrapped(IMAGES)
    assert len(head.take()[1]) == 3
    assert layers.take()[0].shape == (2, 128, 4, 4)
    head.remove()
    layers.remove()
    wrapped(IMAGES)
    with pytest.raises(RuntimeError, match="has not run"):
        layers.take()


def test_a_copy_does_not_speak_to_the_tap(tapped: tuple[Any, HeadTap, LayerTap]) -> None:
    student, head, _ = tapped
    student(IMAGES)
    twin = copy.deepcopy(student).eval()  # as AutoBatch, the EMA and save_model do
    twin(IMAGES[:1])
    twin.fuse(verbose=False)(IMAGES[:1])
    assert not any(m._forward_hooks for m in twin.modules())
    assert shapes(head.take())[0] == (2, 64, 8, 8)
    own = HeadTap(twin, 1)  # a copy can be tapped like any other
    twin(IMAGES[:1])
    assert shapes(own.take())[0] == (1, 64, 8, 8)


def test_a_checkpoint_holds_no_trace(tapped: tuple[Any, HeadTap, LayerTap], tmp_path: Any) -> None:
    student, head, _ = tapped
    student(IMAGES)
    assert b"yolokd" not in pickle.dumps(student)
    buffer = io.BytesIO()
    torch.save({"model": student, "ema": copy.deepcopy(student).half()}, buffer)
    assert b"yolokd" not in buffer.getvalue()
    assert head.take()
    file = tmp_path / "student.pt"
    file.write_bytes(buffer.getvalue())
    assert type(read_checkpoint(file)["model"].model[0]._forward_hooks).__name__ == "OrderedDict"
    code = (
        "import sys; sys.modules['yolokd'] = None; import torch; "
        f"m = torch.load({str(file)!r}, weights_only=False)['model']; m(torch.rand(1, 3, 64, 64))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_hooks_of_others_stay_and_are_copied() -> None:
    student = small()
    module = student.model[1]
    module.register_forward_hook(print_nothing)
    tap = LayerTap(student, [1])
    assert list(copy.deepcopy(module)._forward_hooks.values()) == [print_nothing]
    assert list(pickle.loads(pickle.dumps(module))._forward_hooks.values()) == [print_nothing]
    tap.remove()
    assert list(module._forward_hooks.values()) == [print_nothing]


def print_nothing(module: nn.Module, args: Any, output: Any) -> None: ...


def small() -> Any:
    """Three convolutions and a head."""
    layers = [[-1, 1, "Conv", [width, 3, 2]] for width in (8, 16, 16)]
    return DetectionModel({"nc": 2, "backbone": layers, "head": [[[1, 2], 1, "Detect", ["nc"]]]}, verbose=False).train()


def test_compiled_models_fill_the_taps_even_after_a_run_without() -> None:
    # Dynamo reuses code between models of one architecture and does not look for hooks: the first makes the trap.
    plain, student = small(), small()
    compiled, other = (torch.compile(model, backend="eager") for model in (student, plain))
    other(IMAGES)
    head, layers = HeadTap(compiled, 1), LayerTap(compiled, [1])
    for _ in range(2):
        compiled(IMAGES)
        hidden, (layer,) = head.take(), layers.take()
    assert shapes(hidden)[0] == (2, 64, 16, 16)
    (hidden[0][0].sum() + layer.sum()).backward()
    assert student.model[0].conv.weight.grad.abs().max() > 0
    other(IMAGES)
    with pytest.raises(RuntimeError, match="has not run"):
        head.take()
    torch._dynamo.reset()


def test_layer_info_of_two_families_that_meet() -> None:
    assert layer_info(detector("yolo11n"), [4, 6, 10]) == ((8, 16, 32), (128, 128, 256))
    assert layer_info(detector("yolov8n"), [4, 6, 9]) == ((8, 16, 32), (64, 128, 256))
    assert layer_info(detector("yolo11n"), []) == ((), ())


def test_layer_info_takes_other_channels_and_precisions() -> None:
    grey = build_student("yolo11n.yaml", channels=1).half()
    assert layer_info(grey, [4], channels=1) == ((8,), (128,))


def test_layer_info_leaves_the_model_as_it_was() -> None:
    student = detector().train()
    student.model[3].eval()  # as `freeze=` does with a BatchNorm
    modes = [m.training for m in student.modules()]
    state = copy.deepcopy(student.state_dict())
    layer_info(student, [4, 6])
    assert [m.training for m in student.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())
    assert not any(m._forward_hooks for m in student.modules())
    assert all(p.grad is None for p in student.parameters())


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (23, "layer 23 is the head"),
        (24, "there is no layer 24; the model's layers before its head are 0 to 22"),
        (-1, "there is no layer -1"),
    ],
)
def test_layers_that_cannot_be_tapped(student: Any, layer: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        layer_info(student, [4, layer])


class Listing(nn.Module):
    """Puts another output in the place of a layer's; what follows is not run."""

    def __init__(self, layer: nn.Module, output: Any) -> None:
        super().__init__()
        self.i, self.f, self.layer, self.output = layer.i, layer.f, layer, output

    def forward(self, x: Tensor) -> Any:
        return self.output


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ([torch.zeros(1, 4, 8, 8)], "layer 4 does not give one feature map"),
        (torch.zeros(1, 4, 64), "layer 4 does not give one feature map"),
        (torch.zeros(1, 4, 16, 8), "layer 4 turns 128 x 128 pixels into 16 x 8 cells"),
        (torch.zeros(1, 4, 12, 12), "layer 4 turns 128 x 128 pixels into 12 x 12 cells"),
    ],
)
def test_layers_that_give_no_regular_grid(output: Any, said: str) -> None:
    model = detector()
    model.model[4] = Listing(model.model[4], output)
    head = model.model[-1]
    model.model = nn.Sequential(*list(model.model)[:5], nn.Identity())
    model.model[5].i, model.model[5].f = 5, -1
    assert head is not model.model[-1]
    with pytest.raises(ValueError, match=said):
        layer_info(model, [4])
