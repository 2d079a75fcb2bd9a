"""Images without labels beside a data set of Ultralytics: two data sets in one loader, at a set ratio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import colorstr

UNLABELLED = "unlabelled"  # key of a sample and of a batch: nobody has labelled this image


class UnlabelledDataset(YOLODataset):  # type: ignore[misc]
    """Ultralytics' data set of images that nobody has labelled.

    Label files that happen to lie beside the images are not read, and no label cache is written there.
    """

    def get_img_files(self, img_path: Sequence[str]) -> list[str]:
        """The files as they are given: Ultralytics' own would take an image in a list for a list of images."""
        return list(img_path)

    def get_labels(self) -> list[dict[str, Any]]:
        """An empty label for each image."""
        return [
            {
                "im_file": file,
                "shape": (0, 0),  # read where rect=True alone, which is refused
                "cls": np.zeros((0, 1), np.float32),
                "bboxes": np.zeros((0, 4), np.float32),
                "segments": [],
                "keypoints": None,
                "normalized": True,
                "bbox_format": "xywh",
            }
            for file in self.im_files
        ]


def unlabelled_dataset(files: Sequence[str], args: Any, data: Mapping[str, Any], batch: int, stride: int) -> Any:
    """The images without labels, augmented as Ultralytics augments those with labels.

    Args:
        files: the images, all of them readable.
        args: Ultralytics' settings.
        data: Ultralytics' dictionary of the data set.
        batch: images a batch.
        stride: the student's coarsest.
    """
    return UnlabelledDataset(
        img_path=list(files),
        imgsz=args.imgsz,
        batch_size=batch,
        augment=True,
        hyp=args,
        rect=False,
        cache=None if args.cache == "disk" else args.cache or None,  # that would write .npy into a person's folder
        single_cls=args.single_cls or False,
        stride=int(stride),
        pad=0.0,
        prefix=colorstr("unlabelled: "),
        task=args.task,
        classes=None,
        data=data,
        fraction=1.0,
    )


def shares(labelled: int, unlabelled: int, ratio: float | None) -> tuple[int, int]:
    """How many images of either kind an epoch shows: the scarcer kind is repeated, none is left out.

    Args:
        labelled: images with labels.
        unlabelled: images without.
        ratio: images without labels for each one with; None: each image once.

    >>> shares(45, 400, 4), shares(400, 45, 1), shares(45, 400, None), shares(0, 7, 1)
    ((100, 400), (400, 400), (45, 400), (0, 7))
    """
    if ratio is None or not labelled:
        return labelled, unlabelled
    if unlabelled >= labelled * ratio:
        return max(labelled, round(unlabelled / ratio)), unlabelled
    return labelled, max(unlabelled, round(labelled * ratio))


class JoinedDataset(Dataset[dict[str, Any]]):
    """Images with labels and images without, as one data set: what Ultralytics' trainer asks of one is there.

    The two are augmented apart: a mosaic holds images of one kind, so that an image of a batch is labelled as a whole
    or not at all.

    Args:
        labelled: Ultralytics' own data set, or None where no image has labels.
        unlabelled: the other images.
        ratio: images without labels for each one with; None: each image once an epoch.
    """

    collate_fn = staticmethod(YOLODataset.collate_fn)
    rect = False

    def __init__(self, labelled: Any, unlabelled: Any, ratio: float | None) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self.counts = shares(len(labelled) if labelled is not None else 0, len(unlabelled), ratio)

    @property
    def parts(self) -> list[Any]:
        """The data sets, that with labels first."""
        return [part for part in (self.labelled, self.unlabelled) if part is not None]

    @property
    def labels(self) -> list[dict[str, Any]]:
        """Of all images; those without labels have empty ones."""
        return [label for part in self.parts for label in part.labels]

    @property
    def im_files(self) -> list[str]:
        """All images."""
        return [file for part in self.parts for file in part.im_files]

    def __len__(self) -> int:
        return sum(self.counts)

    def is_unlabelled(self, index: int) -> bool:
        """Whether nobody has labelled the image of this index."""
        return index >= self.counts[0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An augmented sample, which says whether it has labels."""
        without = self.is_unlabelled(index)
        part = self.unlabelled if without else self.labelled
        sample: dict[str, Any] = part[(index - self.counts[0] if without else index) % len(part)]
        return {**sample, UNLABELLED: without}

    def close_mosaic(self, hyp: Any) -> None:
        """Ultralytics' own of both."""
        for part in self.parts:
            part.close_mosaic(copy(hyp))


class Spread(Sampler[int]):
    """The order of another sampler, with the images of either kind spread evenly, so that each batch has its share.

    Args:
        inner: a random order, of a process of several perhaps only its part.
        dataset: tells the kinds apart.
    """

    def __init__(self, inner: Sampler[int], dataset: JoinedDataset) -> None:
        self.inner, self.dataset = inner, dataset

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        kinds: tuple[list[int], list[int]] = ([], [])
        for index in self.inner:
            kinds[self.dataset.is_unlabelled(index)].append(index)
        placed = [((i + 0.5) / len(kind), index) for kind in kinds for i, index in enumerate(kind)]
        return (index for _, index in sorted(placed))


def spread(loader: Any) -> Any:
    """Let a loader of a `JoinedDataset` give each batch its share of both kinds; in place.

    Args:
        loader: Ultralytics' InfiniteDataLoader.
    """
    batches = loader.batch_sampler.sampler  # torch's own, inside the one that repeats for ever
    batches.sampler = Spread(batches.sampler, loader.dataset)
    loader.reset()  # workers have begun to load in the order of before
    return loader


def flags(batch: Mapping[str, Any]) -> Tensor | None:
    """``(B,)`` bool on the CPU: nobody has labelled this image; None where all of a batch have labels."""
    said = batch.get(UNLABELLED)
    return torch.tensor([bool(one) for one in said]) if said is not None and any(said) else None
