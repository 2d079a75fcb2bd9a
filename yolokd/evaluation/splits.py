"""The images that judge a comparison: a split that training never saw, held out of the training images if need be.

The held-out images are a systematic sample: the training images are put in the order of their rarest class, shuffled
within it, and every fifth is taken, so that each class loses a fifth of its images, give or take one. That costs every
arm the same training images. Images that belong together (frames of one video, tiles of one scene) end up on both
sides: where a data set has such, only its owner can make a split that is really unseen.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from yolokd.compat.dataset import check_data, image_files
from yolokd.compat.files import atomic_replace
from yolokd.compat.labels import classes_in, label_texts
from yolokd.errors import UserError

EVERY = 5  # one of so many training images is held out
HELD_OUT = "data.yaml"  # in the folder of the comparison
_LISTS = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}
_SEED = 0  # the same images are held out whatever the seeds of the training
_SPLITS = ("test", "val", "minival")  # what Ultralytics looks up in a data YAML, beside train
# Keys of a data YAML that are written anew, or lead to the images that these lists replace.
_REPLACED = ("path", "train", "val", "test", "minival", "download", "yaml_file", "nc")


@dataclass(frozen=True)
class EvalSplit:
    """Where the judging images are.

    Attributes:
        source: the data YAML that was asked for, by its whole path.
        split: the split of the data YAML that judges.
        held_out: that YAML lies in the comparison's folder, and its ``test`` was taken from the training images.
        note: what a reader of the numbers must know about it; empty where the split is simply unseen.
    """

    source: str
    split: str
    held_out: bool = False
    note: str = ""

    def yaml(self, folder: Path) -> str:
        """The data YAML to train and to judge with.

        Args:
            folder: of the comparison.
        """
        return str(folder / HELD_OUT) if self.held_out else self.source


def choose_split(data: Any, asked: str = "test") -> tuple[EvalSplit, dict[str, Any]]:
    """Find the split that judges; nothing is written.

    Args:
        data: data YAML.
        asked: ``eval_split=``.

    Returns:
        the split, and Ultralytics' dictionary of the data set.

    Raises:
        UserError: the data cannot serve, ``train`` was asked for, no such split is known, it holds training images, or
            there is too little to hold out.
    """
    if asked == "train":
        raise UserError("eval_split=train: the models have trained on these images.", "Leave out eval_split=.")
    if asked not in _SPLITS:
        raise UserError(f"eval_split={asked} is not a split.", f"The splits are {', '.join(_SPLITS)}.")
    checked = check_data(data, "train", "val")
    source = str(Path(checked["yaml_file"]).resolve())
    missing = f"{Path(source).name} has no split {asked}"
    if checked.get(asked):
        check_data(data, asked)
        if any(map(classes_in, label_texts(image_files(checked, asked)))):
            return EvalSplit(source, asked, note=_seen(checked, asked)), checked
        missing = f"the split {asked} of {Path(source).name} has no labels"  # COCO's test-dev
    return _hold_out(source, checked, missing), checked


def _seen(checked: Mapping[str, Any], asked: str) -> str:
    """What training saw of the images that judge; empty: nothing.

    Raises:
        UserError: it trained on some.
    """
    judging = image_files(checked, asked)
    if trained := len(set(judging) & set(image_files(checked, "train"))):
        raise UserError(
            f"eval_split={asked}: {trained} of its {len(judging)} images are training images.",
            f"Take them out of train or of {asked}; without `test:` in the YAML some images are held out.",
        )
    chose = len(set(judging) & set(image_files(checked, "val")))
    if not chose:
        return ""
    which = asked if asked == "val" else f"{asked}, of whose {len(judging)} images {chose} are in val"
    return f"judged on {which}; val also chose the epoch of best.pt: the numbers are a little too good, in every arm"


def _hold_out(source: str, checked: Mapping[str, Any], missing: str) -> EvalSplit:
    files = image_files(checked, "train")
    judging, training = divide(files)
    labels = label_texts(judging), label_texts(training)
    if not all(any(map(classes_in, texts)) for texts in labels):
        raise UserError(
            f"{missing}, and {len(files)} training images are too few to hold some out.",
            "Add `test: FOLDER` to the YAML, or say eval_split=val.",
        )
    note = (
        f"{missing}: {len(judging)} of its {len(files)} training images judge, and no "
        "arm trains on them; a teacher that was trained on them knows them already"
    )
    return EvalSplit(source, "test", held_out=True, note=note)


def divide(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part images into a fifth that judges and the rest, each class in proportion.

    Args:
        files: the training images, in any order.

    Returns:
        those that judge, and those that are left to train with, both sorted.
    """
    files = sorted(files)
    classes = [classes_in(text) for text in label_texts(files)]
    images = Counter(label for found in classes for label in found)  # class to how many images have it

    def rarest(found: set[int]) -> tuple[int, int]:
        return min(((images[label], label) for label in found), default=(len(files) + 1, -1))

    order = list(range(len(files)))
    random.Random(_SEED).shuffle(order)
    order.sort(key=lambda i: rarest(classes[i]))  # stable: shuffled within a class
    judging = {files[i] for i in order[EVERY // 2 :: EVERY]}
    return sorted(judging), [file for file in files if file not in judging]


def write_held_out(split: EvalSplit, folder: Path) -> None:
    """Write the data YAML and its lists into the comparison's folder, if it is one that holds images out.

    Args:
        split: from `choose_split`.
        folder: of the comparison.
    """
    if not split.held_out or (folder / HELD_OUT).is_file():
        return
    checked = check_data(split.source, "train", "val")
    judging, training = divide(image_files(checked, "train"))
    validating = image_files(checked, "val")
    # Where val holds training images (coco128 trains and validates on the same), it would choose best.pt on these.
    unseen = sorted(set(validating) - set(judging)) or validating
    for split_name, files in (("train", training), ("val", unseen), ("test", judging)):
        _write(folder / _LISTS[split_name], "\n".join(files) + "\n")
    kept = {key: value for key, value in checked.items() if key not in _REPLACED}
    content = {**_LISTS, **{k: v for k, v in kept.items() if isinstance(v, (int, list, dict))}}
    _write(folder / HELD_OUT, yaml.safe_dump(content, sort_keys=False))


def data_files(split: EvalSplit, checked: Mapping[str, Any]) -> dict[str, str]:
    """What tells this data from other data: its YAML, and the names and labels of its images.

    The images' pixels are not read: on a large data set that takes minutes, and Ultralytics itself mends damaged JPEG
    files when it first lists them.

    Args:
        split: from `choose_split`.
        checked: Ultralytics' dictionary of the data set, from there too.

    Returns:
        what was looked at, in words, to SHA-256.
    """
    name = Path(split.source)
    found = {split.source: hashlib.sha256(name.read_bytes()).hexdigest()}
    for part in dict.fromkeys(("train", "val", *([] if split.held_out else [split.split]))):
        files, digest = image_files(checked, part), hashlib.sha256()
        for file, text in zip(files, label_texts(files), strict=True):
            digest.update(f"{_within(file, checked)}\0{text}\0".encode())
        found[f"{name.name}, {part}: names and labels of {len(files)} images"] = digest.hexdigest()
    return found


def _within(file: str, checked: Mapping[str, Any]) -> str:
    """An image's place in its data set, which may be moved as a whole."""
    try:
        return Path(file).relative_to(Path(checked["path"]).resolve()).as_posix()
    except ValueError:
        return file


def _write(path: Path, text: str) -> None:
    atomic_replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))
