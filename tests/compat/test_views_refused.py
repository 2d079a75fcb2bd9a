"""Data sets, partners and augmentations with which the teacher's image cannot go along."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import YOLODataset

from tests.compat.replays import ALL, IMGSZ, PLAIN
from tests.compat.viewing import (
    COLOURLESS,
    attached,
    build,
    each,
    samples,
)
from yolokd.compat.replay import ReplayDataset
from yolokd.compat.views import TEACHER_VIEW, Views, attach_views
from yolokd.errors import UserError

# Refusals.


class Listed(YOLODataset):  # type: ignore[misc]
    """Lists its files otherwise; what it adds is its own."""

    def get_img_files(self, img_path: Any) -> list[str]:
        return super().get_img_files(img_path)[:5]  # type: ignore[no-any-return]

    def extra(self) -> int:
        return 1


class Brighter(Listed):
    def load_image(self, i: int, *args: Any) -> Any:
        return super().load_image(i, *args)


def of_kind(kind: type, folder: Path) -> Any:
    hyp = get_cfg(overrides={"imgsz": IMGSZ, **ALL})
    return kind(str(folder), imgsz=IMGSZ, hyp=hyp, data={"names": {i: str(i) for i in range(100)}})


def test_a_data_set_may_list_its_files_otherwise(polygons: Path, partners: dict[str, str]) -> None:
    dataset = of_kind(Listed, polygons)
    attach_views(dataset, Views(partners))
    assert len(dataset) == 5
    assert all(TEACHER_VIEW in sample for sample in samples(dataset, 0)[:-1])


def test_other_data_sets_are_refused(polygons: Path) -> None:
    replayed = build(polygons)
    replayed.__class__ = ReplayDataset
    for dataset in (of_kind(Brighter, polygons), attached(polygons), replayed, SimpleNamespace(augment=True)):
        with pytest.raises(UserError, match=type(dataset).__name__):
            attach_views(dataset, Views())


def test_what_cannot_be_shown_is_refused(polygons: Path, partners: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"student_view=blue is not known(.|\n)*gray, dark, half"):
        attached(polygons, views=Views(student_view="blue"))
    for views in (Views(student_view="gray"), Views(strong=True)):
        with pytest.raises(UserError, match="1 or 3 channels, not 4"):
            attached(polygons, views=views, channels=4)
    few = dict(list(partners.items())[:-2])
    with pytest.raises(UserError, match="2 training images have no partner"):
        attached(polygons, views=Views(few))


def test_a_partner_of_another_size_is_refused_when_it_is_read(polygons: Path, partners: dict[str, str]) -> None:
    files = list(partners)
    dataset = attached(polygons, PLAIN, Views({file: partners[files[0]] for file in files}))
    assert dataset[0][TEACHER_VIEW].shape == dataset[0]["img"].shape
    with pytest.raises(UserError, match="is not as large as"):
        dataset[1]


def test_augmentations_of_colours_are_the_students_and_spatial_ones_are_refused(polygons: Path) -> None:
    for spatial in (False, True):
        dataset = build(polygons, ALL | COLOURLESS)
        (step,) = [t for t in dataset.transforms.transforms if type(t).__name__ == "Albumentations"]
        step.transform, step.contains_spatial = lambda image: {"image": 255 - image}, spatial
        if spatial:
            with pytest.raises(UserError, match="Albumentations"):
                attach_views(dataset, Views())
        else:
            attach_views(dataset, Views())
            assert all(torch.equal(255 - sample["img"], sample[TEACHER_VIEW]) for sample in each(dataset))
