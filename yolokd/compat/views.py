"""A training data set whose samples bring along a second image, for the teacher.

Ultralytics' transforms draw random numbers in ``get_params`` and act on pixels in ``apply_image``. One that moves them
runs the second on the teacher's image as well, with the same parameters; one that changes colours never sees it. To
stack both as channels of one array would change the student's image: OpenCV rounds otherwise when it warps 6 channels.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ultralytics.data import augment
from ultralytics.data.augment import BaseTransform, Format
from ultralytics.data.dataset import YOLODataset

from yolokd.compat.transforms import exchange
from yolokd.errors import UserError

Image = NDArray[np.uint8]  # (H, W, C); 3 channels are BGR, as OpenCV reads them
Labels = dict[str, Any]

TEACHER_VIEW = "teacher_view"  # of a sample, and of a batch

_CV2_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}
# dark: light in [0, 1] is gain * x ** gamma; one is worth so many photons.
_GAIN, _GAMMA, _PHOTONS, _READ_NOISE = 0.5, 2.0, 250, 0.01
# Strong: probability, share of the image, height over width of what is erased.
_ERASED = ((0.7, (0.05, 0.2), (0.3, 3.3)), (0.5, (0.02, 0.2), (0.1, 6.0)), (0.3, (0.02, 0.2), (0.05, 8.0)))
# The methods that a data set may have of its own: none touches an image.
_LISTING = {"get_img_files", "get_labels", "cache_labels", "get_label_files", "get_cache_hash", "verify_args"}
_LISTING |= {"result_to_label", "scan_summary", "verify_labels", "update_labels", "_load_or_scan_cache"}


@dataclass(frozen=True)
class Views:
    """What teacher and student see of an image; it goes to the workers, so it pickles.

    Attributes:
        partners: image file, as in ``dataset.im_files``, to the file that the teacher sees. Empty: the image itself.
        student_view: ``gray``, ``dark`` or ``half``: what becomes of the student's image. Empty: it stays.
        strong: the student's training images also go through `Strong`.
        channels: of the teacher's images.
    """

    partners: Mapping[str, str] = field(default_factory=dict)
    student_view: str = ""
    strong: bool = False
    channels: int = 3


def _gray(image: Image, file: str = "") -> Image:
    """Luminance, in as many equal channels."""
    return image if image.shape[2] == 1 else np.repeat(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None], 3, 2)


def _dark(image: Image, file: str) -> Image:
    """As if there had been little light, with shot and read noise that the file's name alone decides.

    Source: gamma, gain and noise as in Lv, Li, Lu, "Attention Guided Low-light Image Enhancement with a Large Scale
    Low-light Simulation Dataset", IJCV 2021, https://arxiv.org/abs/1908.00682. Departure: all three are fixed, and the
    shot noise is normal instead of Poisson's.
    """
    light = _GAIN * (np.arange(256) / 255) ** _GAMMA
    spread = np.sqrt(light / _PHOTONS + _READ_NOISE**2)
    noise = np.random.default_rng(zlib.crc32(Path(file).name.encode())).standard_normal(image.shape, dtype=np.float32)
    mean, deviation = (cv2.LUT(image, (255 * table).astype(np.float32)) for table in (light, spread))
    dark = cv2.add(mean, cv2.multiply(deviation, noise), dtype=cv2.CV_8U)  # rounds, and stays within 0 and 255
    return dark.reshape(image.shape)  # type: ignore[no-any-return]


def _half(image: Image, file: str) -> Image:
    """Half the resolution, at the same size."""
    h, w = image.shape[:2]
    small = cv2.resize(image, (math.ceil(w / 2), math.ceil(h / 2)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR).reshape(image.shape)  # type: ignore[no-any-return]


STUDENT_VIEWS: dict[str, Callable[[Image, str], Image]] = {"gray": _gray, "dark": _dark, "half": _half}


class Strong(BaseTransform):  # type: ignore[misc]
    """The strong photometric chain of a student whose teacher sees the image as it is.

    Source: Liu et al., "Unbiased Teacher for Semi-Supervised Object Detection", ICLR 2021,
    https://arxiv.org/abs/2102.09480, probabilities and ranges of its published code. Departure: uniform noise where it
    is erased. By OpenCV, since torchvision's jitter and blur take a quarter of a second for an image of 640 pixels.
    """

    def apply_image(self, labels: Labels, params: Labels | None = None) -> Labels:
        """Change ``labels["img"]``, 1 channel or 3; the random numbers are those of Python and NumPy."""
        image: Image = np.array(labels["img"], order="C")
        if random.random() < 0.8:
            image = _jitter(image)
        if random.random() < 0.2:
            image = _gray(image)
        if random.random() < 0.5:
            image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.1, 2.0)).reshape(image.shape)
        for p, share, ratio in _ERASED:
            if random.random() < p:
                _erase(image, share, ratio)
        return labels | {"img": image}


def _jitter(image: Image) -> Image:
    """Brightness, contrast and saturation change by up to 40 %, the hue by a tenth of its circle, in any order."""
    for what in random.sample(("brightness", "contrast", "saturation", "hue"), 4):
        factor, turn = random.uniform(0.6, 1.4), random.uniform(-0.1, 0.1)
        gray = _gray(image)
        if what != "hue":
            other = {"brightness": np.uint8(0), "contrast": np.uint8(gray.mean()), "saturation": gray}[what]
            image = cv2.addWeighted(image, factor, np.full_like(image, other), 1 - factor, 0).reshape(gray.shape)
        elif image.shape[2] == 3:
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
            hsv[..., 0] += np.uint8(round(turn * 256) % 256)  # FULL: the circle has 256 steps, so it wraps by itself
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)
    return image


def _erase(image: Image, share: tuple[float, float], ratio: tuple[float, float]) -> None:
    """Fill a rectangle with noise, in place; none where ten do not fit, as in torchvision's RandomErasing."""
    for _ in range(10):
        area, tall = image[..., 0].size * random.uniform(*share), math.exp(random.uniform(*map(math.log, ratio)))
        h, w = round(math.sqrt(area * tall)), round(math.sqrt(area / tall))
        if h < image.shape[0] and w < image.shape[1]:
            y, x = random.randint(0, image.shape[0] - h), random.randint(0, image.shape[1] - w)
            image[y : y + h, x : x + w] = np.random.randint(0, 256, (h, w, image.shape[2]), np.uint8)
            return


class _Moved(BaseTransform):  # type: ignore[misc]
    """Before a transform that moves pixels: it moves the teacher's by the same parameters."""

    def apply_image(self, labels: Labels, params: Labels | None = None) -> Labels:
        given = dict(params or {})
        if "layout" in given:  # a mosaic
            given["layout"] = [item | {"labels_patch": _of_teacher(item["labels_patch"])} for item in given["layout"]]
        if given.get("labels2_img") is not None:  # objects are pasted from another image
            given["labels2_img"] = given["mix_labels"][0][TEACHER_VIEW]
        moved = super().apply_image(_of_teacher(labels), given)["img"]
        labels = super().apply_image(labels, params)
        labels[TEACHER_VIEW] = moved
        return labels


def _of_teacher(labels: Labels) -> Labels:
    return {"img": labels[TEACHER_VIEW], "mix_labels": [_of_teacher(other) for other in labels.get("mix_labels", [])]}


class _Format(Format):  # type: ignore[misc]
    def apply_image(self, labels: Labels, params: Labels | None = None) -> Labels:
        image: Image = labels[TEACHER_VIEW]
        ordered = image[..., ::-1] if image.shape[2] == 3 else image  # RGB always: bgr= is for the student
        labels[TEACHER_VIEW] = torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1)))
        return super().apply_image(labels, params)  # type: ignore[no-any-return]


_MOVING: dict[type, type] = {Format: _Format}
for _name in ("Mosaic", "MixUp", "CutMix", "CopyPaste", "RandomPerspective", "RandomFlip", "LetterBox"):
    _kind = getattr(augment, _name)  # in the module under its name, so that it pickles
    _MOVING[_kind] = globals()[f"_{_name}"] = type(f"_{_name}", (_Moved, _kind), {"__module__": __name__})


def _follow(dataset: Any, transforms: Any) -> Any:
    if dataset.augment:
        problem = "The teacher's image cannot follow the student's through"
        exchange(transforms, _MOVING, "apply_image", problem, "Leave that augmentation out (augmentations=).")
        if dataset.views.strong:
            transforms.insert(-1, Strong())
    return transforms


class ViewsDataset(YOLODataset):  # type: ignore[misc]
    """Ultralytics' data set with a view for the student and, in training, one for the teacher (see `attach_views`).

    A training sample has one more key, ``teacher_view``: ``(C, H, W)`` uint8, RGB, and so has a batch (see `stacked`).
    """

    def load_image(self, i: int, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Ultralytics' own, seen by the student; its buffer goes on holding the image of the file."""
        image, *sizes = super().load_image(i, *args, **kwargs)
        if not self.views.student_view:
            return (image, *sizes)
        known, seen = self.seen.pop(i, (None, None))
        if known is not image:
            seen = STUDENT_VIEWS[self.views.student_view](image, self.im_files[i])
        if self.ims[i] is image:  # buffered, so a mosaic will ask for it again
            self.seen[i] = image, seen
            if len(self.seen) > self.max_buffer_length:
                del self.seen[next(iter(self.seen))]
        return (seen, *sizes)

    def get_image_and_label(self, index: int) -> Labels:
        """Ultralytics' own, in training with the teacher's image."""
        label: Labels = super().get_image_and_label(index)
        if self.augment:
            read = super().load_image if self.partners is None else self.partners.load_image
            label[TEACHER_VIEW], shape, _ = read(index)
            if shape != label["ori_shape"]:
                file = self.partners.im_files[index]
                raise UserError(f"{file} is not as large as {self.im_files[index]}.", "Both must have the same size.")
        return label

    def build_transforms(self, hyp: Any) -> Any:
        """Ultralytics' own, also when it closes the mosaic; each transform moves the teacher's image, too."""
        return _follow(self, super().build_transforms(hyp))


def attach_views(dataset: Any, views: Views) -> None:
    """Let a data set show one image to the student and another to the teacher; in place.

    With neither ``student_view`` nor ``strong``, the student's images, labels and random numbers stay what they are,
    bit by bit. In validation (``augment=False``) only ``student_view`` acts.

    Args:
        dataset: as ``build_dataset`` returns it; it may list files and labels in its own way. Becomes a `ViewsDataset`.
        views: what to show.

    Raises:
        UserError: data set, view or augmentation of another kind, or an image without a partner.
    """
    _check(dataset, views)
    dataset.views, dataset.partners, dataset.seen = views, None, {}
    _follow(dataset, dataset.transforms)  # first: it may refuse
    if dataset.augment and (views.partners or views.channels != dataset.channels):
        dataset.partners = _partners(dataset, views)
    dataset.__class__ = ViewsDataset


def _check(dataset: Any, views: Views) -> None:
    kind, view = type(dataset), views.student_view
    if not isinstance(dataset, YOLODataset) or _own(kind) - _LISTING:
        problem = f"A data set of the kind {kind.__name__} cannot show the teacher another image than the student."
        raise UserError(problem, "Use a data set of images with boxes or polygons, and no teacher_cache=.")
    if view and view not in STUDENT_VIEWS:
        raise UserError(f"student_view={view} is not known.", f"Write one of {', '.join(STUDENT_VIEWS)}.")
    if dataset.channels not in (1, 3) and (view == "gray" or views.strong):
        what = "student_view=gray" if view == "gray" else "The strong view of the student"
        raise UserError(f"{what} needs images of 1 or 3 channels, not {dataset.channels}.", "Leave it out.")
    lacking = [file for file in dataset.im_files if file not in views.partners]
    if lacking and views.partners and dataset.augment:
        problem = f"{len(lacking)} training images have no partner for the teacher, {lacking[0]} among them."
        raise UserError(problem, "Put them into teacher_images=, under the same names.")


def _own(kind: type) -> set[str]:
    """What a kind of data set does otherwise than Ultralytics'."""
    names = {name for one in kind.__mro__[: kind.__mro__.index(YOLODataset)] for name in vars(one)}
    ours = {name for name in names if name in ("__getitem__", "__len__") or not name.startswith("__")}
    return {name for name in ours if hasattr(YOLODataset, name)}


def _partners(dataset: Any, views: Views) -> Any:
    """Ultralytics' own reader over the teacher's files: resized alike, buffered alike, in RAM where those are."""
    reader = copy(dataset)
    reader.im_files = [views.partners.get(file, file) for file in dataset.im_files]
    # Never exists: an .npy beside the file may hold other channels, and Ultralytics would write it anew.
    reader.npy_files = [Path(file) / "none.npy" for file in reader.im_files]
    reader.channels, reader.cv2_flag = views.channels, _CV2_FLAGS.get(views.channels, cv2.IMREAD_UNCHANGED)
    reader.buffer, reader.ims, reader.im_hw0, reader.im_hw = [], *([None] * reader.ni for _ in range(3))
    drawn = random.getstate()  # the check looks at random images
    if reader.cache == "ram" and reader.check_cache_ram():
        reader.cache_images()
    random.setstate(drawn)
    return reader


def stacked(batch: Mapping[str, Any]) -> Tensor | None:
    """The teacher's images of a batch, ``(B, C, H, W)`` uint8, RGB, on the CPU; None where there are none.

    Ultralytics' ``preprocess_batch`` does not know them, so ``multi_scale=`` leaves their size alone.
    """
    views = batch.get(TEACHER_VIEW)
    return torch.stack(views) if isinstance(views, (tuple, list)) else views
