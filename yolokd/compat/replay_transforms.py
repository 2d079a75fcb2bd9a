"""Ultralytics' augmentation, each step of which also moves the soft detections that go along with the labels.

A transform of Ultralytics draws its random numbers and takes its decisions in ``get_params``, and applies them to the
boxes in ``apply_instances``. So the soft boxes are a second set of instances: the transform's own code runs on them
once more, with the same parameters. The ground truth never sees them, and no random number is drawn for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ultralytics.data.augment import (
    CopyPaste,
    CutMix,
    Format,
    LetterBox,
    MixUp,
    Mosaic,
    RandomFlip,
    RandomPerspective,
)
from ultralytics.utils.metrics import bbox_ioa

from yolokd.compat.replay_carried import Array, Carried, Labels, axes, project
from yolokd.compat.transforms import exchange

KEY = "replay"  # of a sample's labels, and of a batch

_SAME_OBJECT = 0.50  # IoU from which on a soft box speaks of a ground-truth box that is pasted


class _Mosaic(Mosaic):  # type: ignore[misc]
    def apply_instances(self, labels: Labels, params: Labels) -> Labels:
        layout, moved, first = [], [], 0
        across, down = self.border if self.n == 9 else (0, 0)  # as in Mosaic.apply_instances
        for item in params["layout"]:
            part: Carried = item["labels_patch"][KEY]
            patch = {**part.labels(first), "im_file": "", "ori_shape": ()}
            layout.append({**item, "labels_patch": patch})
            matrix = axes((1, item["padw"] + across), (1, item["padh"] + down))
            moved.append(Carried(part.instances, part.stored, matrix @ part.matrix))
            first += len(part)
        left = super().apply_instances({}, {**params, "layout": layout})
        labels = super().apply_instances(labels, params)
        labels[KEY] = Carried.join(moved).after(left)
        return labels


class _MixUp(MixUp):  # type: ignore[misc]
    def apply_instances(self, labels: Labels, params: Labels) -> Labels:
        labels = super().apply_instances(labels, params)
        labels[KEY] = Carried.join([labels[KEY], labels["mix_labels"][0][KEY]])
        return labels


class _CutMix(CutMix):  # type: ignore[misc]
    def apply_instances(self, labels: Labels, params: Labels) -> Labels:
        if not params.get("skip"):
            area = params["area"][None]
            # Ultralytics pastes where no label of the first image is; a soft box that is there is hidden now.
            first: Carried = labels[KEY].uncovered(area)
            second: Carried = labels["mix_labels"][0][KEY]
            least = 0.01 if len(first.instances.segments) else 0.1  # as in CutMix.get_params
            inside = np.nonzero(bbox_ioa(area, second.boxes)[0] >= least)[0]
            both = {**first.labels(), "mix_labels": [second.labels(len(first))]}
            left = super().apply_instances(both, {**params, "indexes2": inside})
            labels[KEY] = Carried.join([first, second]).after(left)
        return super().apply_instances(labels, params)  # type: ignore[no-any-return]


class _CopyPaste(CopyPaste):  # type: ignore[misc]
    def apply_instances(self, labels: Labels, params: Labels) -> Labels:
        selected = params["selected"]
        if len(selected):
            own: Carried = labels[KEY]
            flip = self.mode == "flip"
            source = own.mirrored(params["im_new"].shape[1]) if flip else labels["mix_labels"][0][KEY]
            # What is pasted are objects of the ground truth; the soft boxes that speak of them go along.
            objects = params["instances2"].bboxes
            overlap = bbox_ioa(source.boxes, objects, iou=True)  # (N, objects)
            speaks = (overlap.max(1) >= _SAME_OBJECT) & np.isin(overlap.argmax(1), selected)
            labels[KEY] = Carried.join([own.uncovered(objects[selected]), source[speaks]])
        return super().apply_instances(labels, params)  # type: ignore[no-any-return]


class _RandomPerspective(RandomPerspective):  # type: ignore[misc]
    def apply_instances(self, labels: Labels, params: Labels) -> Labels:
        left = super().apply_instances(labels[KEY].labels(), params)
        labels[KEY] = labels[KEY].after(left, params["M"])
        return super().apply_instances(labels, params)  # type: ignore[no-any-return]

    def apply_segments(self, segments: Array, M: Array, size: tuple[int, int]) -> tuple[Array, Array]:
        """Ultralytics' own, faster for soft boxes: it looks at polygons one by one, and most are not cut off."""
        if segments.shape[1] != 4:  # a label: Ultralytics resamples those to a hundred points or more
            return super().apply_segments(segments, M, size)  # type: ignore[no-any-return]
        moved = project(segments, M)
        low, high = moved.min(1), moved.max(1)
        boxes = np.concatenate([low, high], 1).clip(0, (*size, *size))
        cut = ((low < 0) | (high > size)).any(1)
        if cut.any() and M[[0, 1, 2, 2], [1, 0, 0, 1]].any():  # what is left of a turned box is no box
            boxes[cut] = super().apply_segments(segments[cut], M, size)[0]
        return boxes, moved.clip(boxes[:, None, :2], boxes[:, None, 2:])


class _RandomFlip(RandomFlip):  # type: ignore[misc]
    def apply_instances(self, labels: Labels, params: Labels) -> Labels:
        carried: Carried = labels[KEY]
        h, w = labels["img"].shape[:2]
        left = super().apply_instances(carried.labels(), {**params, "h": h, "w": w})
        if params["flip"]:
            vertical = params["direction"] == "vertical"
            labels[KEY] = carried.after(left, axes((1, 0), (-1, h)) if vertical else axes((-1, w)))
        return super().apply_instances(labels, params)  # type: ignore[no-any-return]


class _LetterBox(LetterBox):  # type: ignore[misc]
    def apply_instances(self, labels: Labels, params: Labels) -> Labels:
        x, y = params["ratio"]
        left = super().apply_instances(labels[KEY].labels(), params)
        labels[KEY] = labels[KEY].after(left, axes((x, params["left"]), (y, params["top"])))
        return super().apply_instances(labels, params)  # type: ignore[no-any-return]


class _Format(Format):  # type: ignore[misc]
    def apply_instances(self, labels: Labels, params: Labels) -> Labels:
        labels[KEY] = labels[KEY].land(params["w"], params["h"])
        return super().apply_instances(labels, params)  # type: ignore[no-any-return]


_CARRYING: dict[type, type] = {
    Mosaic: _Mosaic,
    MixUp: _MixUp,
    CutMix: _CutMix,
    CopyPaste: _CopyPaste,
    RandomPerspective: _RandomPerspective,
    RandomFlip: _RandomFlip,
    LetterBox: _LetterBox,
    Format: _Format,
}


def carry(transform: Any) -> None:
    """Let a transform, and those inside it, also move the soft detections; in place.

    Raises:
        UserError: one of them is not known here, or is not built as it was: it would leave the soft boxes behind.
    """
    problem = "teacher_cache= cannot carry its boxes through"
    remedy = "Leave that augmentation out (augmentations=), or let the teacher run live."
    exchange(transform, _CARRYING, "apply_instances", problem, remedy)
