"""Looking into a detector's layers and entering its head halfway; the only place that knows how they are laid out."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import unwrap_model

from yolokd.predictions import Hidden, Predictions

# The side of the image that `layer_info` looks at: at least 2 cells at stride 64.
_PROBE = 128


def hidden_widths(model: Any) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """The widths inside a detector's dense (one-to-many) head, for `HeadInfo.hidden`.

    Each branch of a Detect head is, a level, a chain of convolution blocks that ends in the prediction.

    Args:
        model: a DetectionModel, fused or not.

    Returns:
        for each depth, beginning with 1, the output channels after that many blocks: of the box branch and of the
        class branch, a level each. The prediction is left out. Empty where the head has no such branches (any more:
        a fused end2end detector has lost them).
    """
    branches = _branches(model)
    if any(branch is None for branch in branches):
        return ()
    depths = min(len(level) for branch in branches for level in branch) - 1
    boxes, scores = (
        [tuple(_out_channels(level[depth]) for level in branch) for depth in range(depths)] for branch in branches
    )
    return tuple(zip(boxes, scores, strict=True))


def _branches(model: Any) -> tuple[Any, Any]:
    head = unwrap_model(model).model[-1]
    return getattr(head, "cv2", None), getattr(head, "cv3", None)


def _out_channels(block: nn.Module) -> int:
    return [m for m in block.modules() if isinstance(m, nn.Conv2d)][-1].out_channels


def reentry(model: Any, dtype: torch.dtype) -> Callable[[Hidden, int], Predictions]:
    """Open a teacher's dense head as a door.

    Args:
        model: a frozen DetectionModel; what has a gradient in it would get one.
        dtype: the number format that the model computes in.

    Returns:
        a function from hidden features of the teacher's widths after ``depth`` blocks, and that depth, to the scores
        ``(B, C, A)`` and boxes ``(B, 4 * reg_max, A)`` of the rest of the head, in float32 and in the order of the
        anchors. It can be differentiated with respect to the features.
    """
    branches = _branches(model)

    def enter(hidden: Hidden, depth: int) -> Predictions:
        # Autocast would convert again what is in the wanted format already.
        with torch.autocast(hidden[0][0].device.type, enabled=False):
            boxes, scores = (
                torch.cat([level[depth:](x.to(dtype)).flatten(2) for level, x in zip(branch, feats, strict=True)], 2)
                for branch, feats in zip(branches, hidden, strict=True)
            )
        return Predictions(scores.float(), boxes.float(), None)

    return enter


class _Shed(OrderedDict[int, Any]):
    """The forward hooks of a module, of which ours stay behind when the module is copied or pickled.

    Ultralytics copies a student (EMA on resume and after a NaN, AutoBatch) and pickles the copies. A tap in a copy
    would listen to a second model, and in a checkpoint it would be a class that only yolokd can load. A copy holds
    an ordinary OrderedDict instead. What others hooked before us is kept, but their handles no longer remove it.
    """

    def _others(self) -> OrderedDict[int, Any]:
        return OrderedDict((key, hook) for key, hook in self.items() if not isinstance(hook, _Listener))

    def __deepcopy__(self, memo: dict[int, Any]) -> OrderedDict[int, Any]:
        return deepcopy(self._others(), memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (list(self._others().items()),)


class _Listener:
    """A forward hook: writes the output of its module down under a number; begins anew at the model's first layer.

    Beginning anew lets go of what a forward pass left that was never taken (out of memory in the middle of it).
    """

    def __init__(self, seen: dict[int, Any], key: int | None) -> None:
        self.seen = seen
        self.key = key

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.key is None:
            self.seen.clear()
        else:
            self.seen[self.key] = output


class _Tap:
    """Listens to some modules of a model.

    Under ``torch.compile`` the listeners become part of what is compiled. Dynamo shares compiled code between models
    of one architecture and does not look for hooks when it does, so what it has compiled until now is dropped.
    """

    def __init__(self, model: Any, modules: Sequence[nn.Module]) -> None:
        self._seen: dict[int, Any] = {}
        self._count = len(modules)
        listening: list[tuple[nn.Module, int | None]] = [(unwrap_model(model).model[0], None)]
        listening += [(module, key) for key, module in enumerate(modules)]
        self._handles = [self._listen(module, key) for module, key in listening]
        if dynamo := sys.modules.get("torch._dynamo"):
            dynamo.reset()

    def _listen(self, module: nn.Module, key: int | None) -> torch.utils.hooks.RemovableHandle:
        if not isinstance(module._forward_hooks, _Shed):
            module._forward_hooks = _Shed(module._forward_hooks)
        return module.register_forward_hook(_Listener(self._seen, key))

    def _outputs(self) -> list[Any]:
        if len(self._seen) < self._count:
            raise RuntimeError("the model has not run since its features were last taken")
        outputs = [self._seen[key] for key in range(self._count)]
        self._seen.clear()
        return outputs

    def remove(self) -> None:
        """Stop listening and let go of what was heard."""
        for handle in self._handles:
            handle.remove()
        self._seen.clear()


class HeadTap(_Tap):
    """Overhears what is inside a detector's dense head, in each forward pass.

    Args:
        model: a DetectionModel, perhaps in the wrapper of DDP or of ``torch.compile``.
        depth: after how many blocks of each branch, see `hidden_widths`.
    """

    def __init__(self, model: Any, depth: int) -> None:
        boxes, scores = ([level[depth - 1] for level in branch] for branch in _branches(model))
        super().__init__(model, boxes + scores)
        self._levels = len(boxes)

    def take(self) -> Hidden:
        """The features of the last forward pass, of box branch and class branch, forgotten afterwards.

        Raises:
            RuntimeError: there was none since the last time.
        """
        outputs = self._outputs()
        return tuple(outputs[: self._levels]), tuple(outputs[self._levels :])


class LayerTap(_Tap):
    """Overhears the outputs of some of a detector's layers, in each forward pass.

    Args:
        model: a DetectionModel, perhaps in the wrapper of DDP or of ``torch.compile``.
        layers: numbers of the layers, as the model's YAML counts them.
    """

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        super().__init__(model, [unwrap_model(model).model[layer] for layer in layers])

    def take(self) -> tuple[Tensor, ...]:
        """The outputs of the last forward pass in the order of ``layers``, forgotten afterwards.

        Raises:
            RuntimeError: there was none since the last time.
        """
        return tuple(self._outputs())


def layer_info(model: Any, layers: Sequence[int], channels: int = 3) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and widths of some of a detector's layers, found by showing it one small image.

    Args:
        model: a DetectionModel; it is left as it was found.
        layers: numbers of the layers, as the model's YAML counts them.
        channels: image channels that the model takes.

    Returns:
        pixels a cell of each layer's output, and its channels.

    Raises:
        ValueError: a layer does not exist, is the head, or does not give one feature map on a regular grid.
    """
    network = unwrap_model(model)
    last = len(network.model) - 1
    for layer in layers:
        if layer == last:
            raise ValueError(f"layer {layer} is the head of the model, not a layer that gives features")
        if not 0 <= layer < last:
            raise ValueError(f"there is no layer {layer}; the model's layers before its head are 0 to {last - 1}")
    outputs = _probe(network, layers, channels)
    found = [_stride_and_width(layer, output) for layer, output in zip(layers, outputs, strict=True)]
    return tuple(stride for stride, _ in found), tuple(width for _, width in found)


def _probe(network: Any, layers: Sequence[int], channels: int) -> tuple[Any, ...]:
    """Outputs of the layers for one black image; in eval mode, so that no BatchNorm learns from it."""
    weight = next(network.parameters())
    modes = [(module, module.training) for module in network.modules()]
    tap = LayerTap(network, layers)
    try:
        network.eval()
        network.model[-1].training = True  # such a head decodes nothing and so remembers no grid
        with torch.no_grad():
            network(torch.zeros(1, channels, _PROBE, _PROBE, dtype=weight.dtype, device=weight.device))
        return tap.take()
    finally:
        tap.remove()
        for module, training in modes:
            module.training = training


def _stride_and_width(layer: int, output: Any) -> tuple[int, int]:
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise ValueError(f"layer {layer} does not give one feature map of shape (B, C, H, W)")
    _, width, rows, columns = output.shape
    if rows != columns or _PROBE % rows:
        raise ValueError(
            f"layer {layer} turns {_PROBE} x {_PROBE} pixels into {rows} x {columns} cells: no whole stride"
        )
    return _PROBE // rows, width
