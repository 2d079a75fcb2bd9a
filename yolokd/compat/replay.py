"""A data set whose samples bring along what a teacher saw in their images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ultralytics.data.dataset import YOLODataset

from yolokd.compat.joined import UnlabelledDataset
from yolokd.compat.replay_carried import BOX, GAIN, ROW, SEEN, SHIFT, SIZE, Carried
from yolokd.compat.replay_transforms import KEY, carry
from yolokd.errors import UserError


class StoredBoxes(Protocol):
    """What a data set reads of a cache; it goes to the workers, so it must pickle."""

    def rows(self, image_hash: str, mirrored: bool) -> range:
        """The rows of an image, or of its mirror image."""
        ...

    def boxes(self, rows: range) -> NDArray[np.float32]:
        """``(N, 4)`` (x1, y1, x2, y2), normalised to the image that was stored."""
        ...


class ReplayDataset(YOLODataset):  # type: ignore[misc]
    """Ultralytics' data set; beside the labels of an image go the soft boxes that a teacher left of it.

    Nothing is added to ``labels``: statistics, class weights, plots and the label cache on disk see the data set that
    was there before. A sample has one more key, ``replay``, and so has a batch (see `landed`). Never built: `attach`
    makes one of a data set.
    """

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Ultralytics' own, with the soft boxes of the image and of its mirror image."""
        label: dict[str, Any] = super().get_image_and_label(index)
        start, stop, mirrored_start, mirrored_stop = self.soft_rows[index].tolist()
        spans = range(start, stop), range(mirrored_start, mirrored_stop)
        label[KEY] = Carried.place(
            np.concatenate([np.arange(span.start, span.stop) for span in spans]),
            np.concatenate([self.soft_boxes.boxes(span) for span in spans]),
            np.repeat([False, True], [len(span) for span in spans]),
            label["ori_shape"],
            label["resized_shape"],
            self.soft_polygons,
        )
        return label

    def build_transforms(self, hyp: Any) -> Any:
        """Ultralytics' own, also when it closes the mosaic; each transform moves the soft boxes, too."""
        transforms = super().build_transforms(hyp)
        carry(transforms)
        return transforms


def attach(dataset: Any, cache: StoredBoxes, hashes: Mapping[str, str]) -> None:
    """Let a data set bring along the soft detections of a cache; in place.

    Images and labels stay what they are, bit by bit, and so does the random stream.

    Args:
        dataset: a training data set of Ultralytics, as ``build_dataset`` returns it.
        cache: the boxes.
        hashes: image file, as in ``dataset.im_files``, to the hash by which the cache knows it.

    Raises:
        UserError: a data set of another kind, an image without a hash, or an augmentation that cannot be followed.
    """
    if type(dataset) not in (YOLODataset, UnlabelledDataset):
        raise UserError(
            f"teacher_cache= cannot be used with a data set of the kind {type(dataset).__name__}.",
            "Use a data set of images with boxes or polygons, or let the teacher run live.",
        )
    if unknown := [file for file in dataset.im_files if file not in hashes]:
        raise UserError(
            f"teacher_cache= does not know {len(unknown)} of the training images, {unknown[0]} among them.",
            "Fill the cache again with the data set of this run.",
        )
    carry(dataset.transforms)  # first: it may refuse
    ours = [[cache.rows(hashes[file], mirrored) for mirrored in (False, True)] for file in dataset.im_files]
    dataset.soft_rows = np.array([[a.start, a.stop, b.start, b.stop] for a, b in ours], dtype=np.int64)
    dataset.soft_boxes = cache
    # Ultralytics treats boxes and polygons by different rules; in a data set there are only the one or the other.
    dataset.soft_polygons = any(len(label["segments"]) for label in dataset.labels)
    dataset.__class__ = ReplayDataset


class Landed(NamedTuple):
    """Where the soft boxes of a batch are after augmentation: N boxes, image after image.

    Attributes:
        rows: ``(N,)`` rows of the cache, int64. Of an image that ended mirrored they are those of the mirror image.
        image: ``(N,)`` index of the image in the batch, int64.
        boxes: ``(N, 4)`` (x1, y1, x2, y2), normalised to the batch's images.
        edges: ``(N, 4)`` bool, in the same order: this edge has not been cut off.
        gain: ``(N, 2)`` and
        shift: ``(N, 2)`` from (x, y) normalised to the stored image to (x, y) normalised to the batch's images; a
            negative gain in y: the image was turned upside down. Both gains 0: it was rotated, sheared or seen in
            perspective, so there is no such factor.
        size: ``(N, 2)`` width and height of the original image, pixels.
    """

    rows: Tensor
    image: Tensor
    boxes: Tensor
    edges: Tensor
    gain: Tensor
    shift: Tensor
    size: Tensor


def landed(batch: Mapping[str, Any]) -> Landed:
    """Read off a batch what its samples brought along; on the CPU, float32.

    Args:
        batch: of a data set that was `attach`-ed, before or after ``preprocess_batch``.

    Raises:
        ValueError: the batch comes from another data set.
    """
    if KEY not in batch:
        raise ValueError("the batch brings no soft detections along: its data set was not attached to a cache")
    samples: tuple[NDArray[np.float64], ...] = batch[KEY]
    table = torch.from_numpy(np.concatenate(samples))
    counts = torch.tensor([len(sample) for sample in samples])
    return Landed(
        table[:, ROW].long(),
        torch.arange(len(samples)).repeat_interleave(counts),
        table[:, BOX].float(),
        table[:, SEEN].bool(),
        table[:, GAIN].float(),
        table[:, SHIFT].float(),
        table[:, SIZE].float(),
    )
