"""The images without labels of a run: found, looked through, and those left out that must not be learnt from."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from yolokd.compat.dataset import all_images, image_files, used_files
from yolokd.compat.files import atomic_replace
from yolokd.compat.labels import labelled as labelled_among
from yolokd.data.duplicates import near_duplicates
from yolokd.data.sources import find_sources, readable, refuse_video, sample_frames
from yolokd.errors import UserError
from yolokd.image_config import ImageConfig

LIST = "unlabelled.txt"  # in the run folder: the images that are learnt from
LEFT_OUT = "unlabelled_left_out.csv"  # beside it: the others, and why
LABELLED = "labelled.txt"  # beside it, where some images of train: are among them: the rest of train:
FRAMES = "frames"  # beside them: what was taken of videos
_SHOWN = 3


@dataclass(frozen=True)
class Unlabelled:
    """The images of ``unlabelled=``.

    Attributes:
        files: those that are learnt from.
        unreadable: those that cannot be read.
        twins: those that (nearly) equal an image that judges, and that image.
        labelled: those that are among the labelled training images.
    """

    files: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    twins: tuple[tuple[str, str], ...] = ()
    labelled: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """What a person should hear of them."""
        lines = [f"unlabelled: {len(self.files)} images without labels to learn from"]
        if self.twins:
            some = ", ".join(f"{Path(a).name} ({Path(b).name})" for a, b in self.twins[:_SHOWN])
            lines.append(f"{len(self.twins)} more are left out: they nearly equal images that judge, such as {some}")
        if self.labelled:
            lines.append(f"{len(self.labelled)} more are left out: they are labelled training images")
        if self.unreadable:
            lines.append(f"WARNING: {len(self.unreadable)} cannot be read and are left out: {_some(self.unreadable)}")
        return lines

    def write(self, folder: Path) -> Path:
        """Write the lists into a run folder.

        Returns:
            the list of the images that are learnt from.
        """
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("image", "why", "beside"))
        rows.writerows((file, "cannot be read", "") for file in self.unreadable)
        rows.writerows((file, "nearly equals an image that judges", twin) for file, twin in self.twins)
        rows.writerows((file, "is a labelled training image", "") for file in self.labelled)
        atomic_replace(folder / LEFT_OUT, lambda file: file.write_text(text.getvalue(), encoding="utf-8"))
        return write_list(self.files, folder / LIST)


def collect(
    config: ImageConfig, data: Mapping[str, Any], frames: Path | None = None, fraction: Any = None
) -> Unlabelled:
    """Find the images of ``unlabelled=`` and look through them.

    Args:
        config: the validated keys.
        data: Ultralytics' dictionary of the data set.
        frames: where the frames of videos go; None: they are looked at before a run folder exists, so a video counts
            as readable and nothing is written.
        fraction: Ultralytics' ``fraction=``, of the training images.

    Raises:
        UserError: nothing is there, nothing can be read, or all of it is validation images.
    """
    sources = find_sources(config.unlabelled)
    taken = _frames_of(config, sources.videos, frames)
    judging = {_whole(file) for file in all_images({**data, "train": None})}
    used = used_files(image_files(data, "train"), fraction)
    trained = {_whole(file) for file in labelled_among(used)}
    found = {file: _whole(file) for file in (*sources.images, *taken)}
    _refuse_judging(config, found.values(), judging, bool(sources.videos))
    labelled = [file for file, whole in found.items() if whole in trained]
    good, bad = _readable(
        tuple(file for file, whole in found.items() if whole not in trained), int(data.get("channels", 3))
    )
    twins = _twins(tuple(good), tuple(sorted(judging)))
    files = tuple(file for file in good if file not in twins)
    if not files and not (sources.videos and frames is None):
        why = "can be read" if bad else "is without labels: all are labelled training images"
        why = "is left: all nearly equal validation or test images" if good else why
        raise UserError(
            f"unlabelled={','.join(config.unlabelled)}: none of its {len(found)} images {why}.",
            "Name a folder with other images.",
        )
    return Unlabelled(files, tuple(bad), tuple(sorted(twins.items())), tuple(labelled))


def _frames_of(config: ImageConfig, videos: Sequence[str], folder: Path | None) -> list[str]:
    """Frames of the videos; without a folder for them they are only looked at."""
    if config.teacher_images and videos:
        raise UserError(
            f"teacher_images= needs a partner for each image, and {videos[0]} is a video.",
            "Name folders of images in unlabelled=, or leave out teacher_images=.",
        )
    taken: list[str] = []
    for video in videos:
        if folder is None:
            refuse_video(video)
        else:
            taken += sample_frames(video, folder, config.unlabelled_seconds)
    return taken


def write_list(images: Sequence[str], file: Path) -> Path:
    """Write a list of images as Ultralytics reads one."""
    text = "".join(f"{image}\n" for image in images)
    atomic_replace(file, lambda partial: partial.write_text(text, encoding="utf-8"))
    return file


def read_list(folder: Path) -> list[str] | None:
    """The images that a run has chosen before, as far as they are still there; None where it has not."""
    file = folder / LIST
    if not file.is_file():
        return None
    chosen = file.read_text(encoding="utf-8").splitlines()
    there = [image for image in chosen if os.path.isfile(image)]
    if gone := len(chosen) - len(there):
        LOGGER.warning(f"{gone} of the {len(chosen)} images without labels are not there any more and are passed over.")
    return there


def _refuse_judging(config: ImageConfig, found: Collection[str], judging: set[str], videos: bool) -> None:
    if found and not videos and all(file in judging for file in found):
        raise UserError(
            f"unlabelled={','.join(config.unlabelled)} holds the images that judge: all {len(found)} are validation or "
            "test images of data=.",
            "Name a folder with other images: what is learnt from cannot judge.",
        )


@lru_cache(maxsize=2)  # a run looks twice: before its folder exists, and when it begins
def _readable(files: tuple[str, ...], channels: int) -> tuple[list[str], list[str]]:
    return readable(files, channels)


@lru_cache(maxsize=2)
def _twins(files: tuple[str, ...], judging: tuple[str, ...]) -> dict[str, str]:
    return near_duplicates(files, judging)


def _whole(file: str) -> str:
    return os.path.realpath(file)


def _some(files: Sequence[str]) -> str:
    return ", ".join(files[:_SHOWN]) + (", ..." if len(files) > _SHOWN else "")
