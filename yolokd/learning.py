"""The images that a run would learn from, looked at before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yolokd.classes import ClassMap, shorten
from yolokd.compat.dataset import all_images, image_files, sample_images
from yolokd.compat.open_data import OWN_NAMES, open_data, refuse_unknown_classes
from yolokd.config import DistillConfig
from yolokd.data.paired import find_partners
from yolokd.errors import UserError
from yolokd.teachers.elsewhere import bare
from yolokd.teachers.live import channels_of
from yolokd.teachers.panel import Panel
from yolokd.unlabelled import collect


def data_of(config: DistillConfig, train_args: Mapping[str, Any]) -> dict[str, Any]:
    """Ultralytics' dictionary of the data set of a run (see `open_data`).

    Args:
        config: the validated settings.
        train_args: Ultralytics' train arguments; ``data``, ``split``, ``val``, ``rect``, ``single_cls`` and ``classes``
            are looked at.

    Raises:
        UserError: the data cannot serve, or these arguments do not go together with images without labels.
    """
    images, val = config.images, train_args.get("val")
    asked = [key for key in ("unlabelled", "student_classes") if getattr(images, key)]
    for key, value in ((one, train_args.get(one)) for one in ("rect", "single_cls", "classes")):
        # `classes` counts the data's classes, and where the student has its own nobody knows which are meant.
        clash = images.unlabelled if key == "rect" else images.student_classes if key == "classes" else asked
        if clash and value is not None and value is not False:  # classes=0 is the first one
            beside = "unlabelled" if key == "rect" else "student_classes" if key == "classes" else asked[0]
            raise UserError(f"{key}={value} and {beside}= do not go together.", f"Leave out {key}=.")
    return open_data(
        train_args.get("data"),
        str(train_args.get("split") or "val"),
        unlabelled=bool(images.unlabelled),
        classes=images.student_classes,
        val=val is None or bool(val),
    )


def unlabelled_of(config: DistillConfig, data: Mapping[str, Any], fraction: Any = None) -> list[str]:
    """The images without labels of a run, those of videos not yet among them."""
    return list(collect(config.images, data, fraction=fraction).files) if config.images.unlabelled else []


@dataclass(frozen=True)
class ImagesToLearn:
    """What a run learns from.

    Attributes:
        config: the validated settings.
        data: from `data_of`.
        files: the images to train on, with labels and without; of videos none.
        partners: of each of them the image that the teacher sees, where that is another file.
        lines: what a person should hear of them.
    """

    config: DistillConfig
    data: Mapping[str, Any]
    files: list[str]
    partners: Mapping[str, str]
    lines: tuple[str, ...] = ()

    @classmethod
    def find(cls, config: DistillConfig, data: Mapping[str, Any], train_args: Mapping[str, Any]) -> ImagesToLearn:
        """Look for them.

        Args:
            config: the validated settings.
            data: from `data_of`.
            train_args: Ultralytics' train arguments; ``split`` is looked at.

        Raises:
            UserError: see `collect` and `find_partners`.
        """
        images = config.images
        found = collect(images, data, fraction=train_args.get("fraction")) if images.unlabelled else None
        files = [*image_files(data, "train"), *(found.files if found else ())]
        # The thresholds of pseudo-boxes are found on what the teacher sees of the validation images.
        judging = image_files(data, str(train_args.get("split") or "val")) if found and images.pseudo_precision else []
        partners = {}
        if images.teacher_images:
            partners = find_partners([*files, *judging], images.teacher_images, among=all_images(data))
        return cls(config, data, files, partners, tuple(found.lines) if found else ())

    def refuse(self, panel: Panel) -> None:
        """Refuse ``student_classes=`` that neither teachers nor labels know.

        Raises:
            UserError: there are such.
        """
        classes, known = self.config.images.student_classes, self.config.class_map
        if not classes:
            return
        labels = [self.data[OWN_NAMES]] if self.data["train"] else []
        refuse_unknown_classes(classes, [*(view.teacher.info.names for view in panel.views), *labels], known)
        lacking = ClassMap.by_name(labels[0], dict(enumerate(classes))).unmapped if labels else []
        if lacking:
            raise UserError(
                f"student_classes={','.join(classes)}: the labels of data= do not know {shorten(lacking)}, so in the "
                "labelled images it would be taught as background.",
                f"Leave out {shorten(lacking)}, or move the images of train: in the data YAML to unlabelled=.",
            )

    def teachers_channels(self, panel: Panel) -> int:
        """Channels of the images that the teachers see: the data's, or their own where theirs are other images."""
        own = channels_of(bare(panel.views[0].teacher))
        return own if self.config.images.paired else int(self.data["channels"])

    def sample(self, panel: Panel, side: int, n: int) -> tuple[Tensor, Tensor | None]:
        """A few images as the student sees them, and as the teacher does where that differs.

        Args:
            panel: the teachers.
            side: of the student's images, pixels.
            n: how many at most.

        Returns:
            ``(m, C, H, W)`` float32 in [0, 1] of each; the second None where both see the same.
        """
        spread = self.files[:: max(1, len(self.files) // n)][:n]
        if not spread:  # a video alone: what it holds is seen when the run begins
            grey = torch.full((n, int(self.data["channels"]), side, side), 0.45)
            wider = self.config.teacher_imgsz or side
            differs = self.config.teacher_imgsz or self.config.images.paired
            return grey, torch.full((n, self.teachers_channels(panel), wider, wider), 0.45) if differs else None
        seen = sample_images(self.data, "train", imgsz=side, n=n, files=spread)
        larger, theirs = self.config.teacher_imgsz, {**self.data, "channels": self.teachers_channels(panel)}
        if not larger and not self.config.images.paired:
            return seen, None
        files = [self.partners.get(file, file) for file in spread]
        return seen, sample_images(theirs, "train", imgsz=larger or side, n=n, files=files)
