"""Ultralytics' validator on images that are changed on their way into the model."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ultralytics import YOLO
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, IterableSimpleNamespace

from yolokd.compat.checkpoint import load_detector, restricted_loading
from yolokd.compat.dataset import check_data
from yolokd.compat.offline import no_font_download
from yolokd.compat.training import freeze
from yolokd.compat.validation import CollectingValidator, Validation
from yolokd.errors import UserError

Image = NDArray[np.uint8]
Corrupt = Callable[[Image, str], Image]  # (H, W, 3) BGR and the file's name -> the same shape


class Attack:
    """FGSM: one step along the sign of the image's gradient of the detection loss, to where the loss grows.

    Source: Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015,
    https://arxiv.org/abs/1412.6572. The loss is Ultralytics' own (box, class, DFL; both branches of an end2end
    student) with its default gains, whatever the student was trained with, so that all are attacked alike. Its targets
    are taken as given, as in training.

    Args:
        model: the checkpoint under attack; its own gradients are used (white box).
        epsilon: size of the step, for pixels from 0 to 1.
        trust: load a checkpoint that references unknown globals.
    """

    def __init__(self, model: str | Path, epsilon: float, trust: bool = False) -> None:
        # Beside the validator's: that one may lose the branch that the loss needs when it is fused.
        self.network = freeze(load_detector(model, role="model", trust=trust))
        self.network.args = IterableSimpleNamespace(**DEFAULT_CFG_DICT)
        self.epsilon = epsilon

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        """The images of a preprocessed batch, ``(B, 3, H, W)`` in [0, 1], each pixel moved by epsilon."""
        given = batch["img"]
        with torch.inference_mode(False), torch.enable_grad():  # the validator runs in inference mode
            images = given.float().clone().requires_grad_()
            labels = {key: batch[key].clone() for key in ("cls", "bboxes", "batch_idx")}
            loss = self.network.to(given.device).loss({**labels, "img": images})[0].sum()
            (gradient,) = torch.autograd.grad(loss, images)
        moved: Tensor = given + self.epsilon * gradient.sign().to(given.dtype)
        return moved.clamp(0, 1)


class ChangingValidator(CollectingValidator):
    """A validator whose images are changed after they were resized, before the model sees them.

    The grey border that fills a batch's shape stays as it is.

    Args:
        corrupt: changes an image as it lies in the batch, without its border.
        attack: changes a preprocessed batch.
        arguments: of `CollectingValidator`.
    """

    def __init__(self, *, corrupt: Corrupt | None, attack: Attack | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.corrupt = corrupt
        self.attack = attack

    def preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Ultralytics' own, with the images changed."""
        inside = [_inside(batch, i) for i in range(len(batch["img"]))]
        if self.corrupt is not None:
            for image, place, file in zip(batch["img"], inside, batch["im_file"], strict=True):
                bgr = image[place].flip(0).permute(1, 2, 0).contiguous().numpy()
                changed = torch.from_numpy(self.corrupt(bgr, Path(file).name))
                image[place] = changed.permute(2, 0, 1).flip(0)
        batch = super().preprocess(batch)
        if self.attack is not None:
            for image, place, changed in zip(batch["img"], inside, self.attack(batch), strict=True):
                image[place] = changed[place]
        return batch


def _inside(batch: dict[str, Any], i: int) -> tuple[slice, slice, slice]:
    """Where image i lies in its batch: all channels, rows, columns."""
    (height, width), ((gain_y, gain_x), (left, top)) = batch["ori_shape"][i], batch["ratio_pad"][i]
    rows, columns = round(height * gain_y), round(width * gain_x)
    return slice(None), slice(int(top), int(top) + rows), slice(int(left), int(left) + columns)


def validate_changed(
    model: str | Path,
    data: str | Path,
    *,
    split: str,
    corrupt: Corrupt | None = None,
    epsilon: float = 0.0,
    trust: bool = False,
    **arguments: Any,
) -> Validation:
    """Run Ultralytics' validator on corrupted or attacked images; nothing is written or printed.

    Images are changed at the size that the model sees: noise or JPEG blocks of a large original would vanish when it
    is made small.

    Args:
        model: a checkpoint.
        data: data YAML.
        split: the split to validate.
        corrupt: ``(image, file name) -> image``, uint8 ``(H, W, 3)`` BGR.
        epsilon: step of an FGSM attack on the model, for pixels from 0 to 1; 0: none.
        trust: load a checkpoint that references unknown globals.
        arguments: Ultralytics' validation arguments.

    Returns:
        detections, labels and Ultralytics' mAP; size and cost of the model are not counted again.

    Raises:
        UserError: model or data cannot be read, the images have not 3 channels, or a model that is to be attacked has
            other classes than the data, so that it has no loss there.
    """
    found = check_data(data, split)
    if found.get("channels", 3) != 3:
        raise UserError(f"{data} has images with {found['channels']} channels.", "Leave this out: robustness=off.")
    attack = Attack(model, epsilon, trust) if epsilon else None
    if attack is not None and dict(attack.network.names) != dict(found["names"]):
        raise UserError(f"{model} has other classes than {data}.", "An attack needs a model of the data's own classes.")
    sink = Validation(names=found["names"])
    validator = partial(ChangingValidator, sink=sink, corrupt=corrupt, attack=attack)
    with _quiet(), no_font_download(), tempfile.TemporaryDirectory(prefix="yolokd-val-") as folder:
        with restricted_loading(trust):
            yolo = YOLO(str(model), task="detect")
        wanted = {"plots": False, "verbose": False, "project": folder, "name": "val", **arguments}
        scored = yolo.val(validator=validator, **wanted, data=str(data), split=split)
    sink.map, sink.map50 = float(scored.box.map), float(scored.box.map50)
    return sink


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ultralytics' bars and tables: they would say the same things twenty times."""
    before = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(before)
