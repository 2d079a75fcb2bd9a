"""Data sets of which a part may be missing: no labelled image to train on, no validation split, other classes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_file

from yolokd.classes import ClassMap, normalise, shorten
from yolokd.compat.dataset import any_labels, check_data, image_files
from yolokd.errors import UserError

OWN_NAMES = "own_names"  # key of the dictionary: the classes that the labels on disk speak of


def open_data(
    data: Any, split: str = "val", *, unlabelled: bool = False, classes: Sequence[str] = (), val: bool = True
) -> dict[str, Any]:
    """Resolve a data set for training.

    Args:
        data: path of a data YAML, or a name that Ultralytics knows; None where ``unlabelled``, ``classes`` and
            ``val=False`` make up for it.
        split: what validates.
        unlabelled: there are images without labels to train on; then ``train`` may be missing, or hold no label.
        classes: the student's classes, in order; empty: those of the data.
        val: Ultralytics' ``val=``.

    Returns:
        Ultralytics' dictionary. ``train`` is None where no image to train on has a label, the split where there is
        nothing to validate on; ``names`` are the student's, ``own_names`` those of the labels.

    Raises:
        UserError: see `check_data`; or something is missing that nothing makes up for.
    """
    if not unlabelled:
        checked = check_data(data, "train", split)
    elif data is None and (not classes or val):
        raise UserError(
            "data= is missing.",
            "Name a data YAML for validation, or train without: student_classes=person,car val=False.",
        )
    elif data is None or (not val and _is_bare(_content(data), split)):
        content = {} if data is None else _content(data)
        names = dict(content.get("names") or enumerate(classes))
        checked = {"names": names, "channels": int(content.get("channels", 3)), "path": Path.cwd()}
        checked |= {"train": None, split: None, "yaml_file": str(data or "")}
    else:
        checked = _perhaps_without_train(data, split)
    own = dict(checked["names"])
    names = own if not classes else dict(enumerate(classes))
    return {**checked, OWN_NAMES: own, "names": names, "nc": len(names)}


def _perhaps_without_train(data: Any, split: str) -> dict[str, Any]:
    """`check_data`, with ``train`` None where it names no labelled image."""
    content = _content(data)
    if not content or content.get("train"):
        checked = check_data(data, split)
        return checked if any_labels(image_files(checked, "train")) else {**checked, "train": None}
    file = check_file(str(data), hard=False)
    whole = {"path": str(Path(file).parent.resolve()), **content, "train": content.get(split) or content.get("val")}
    with tempfile.TemporaryDirectory() as folder:  # Ultralytics wants the key, and a file to read it from
        complete = Path(folder) / Path(file).name
        YAML.save(complete, whole)
        return {**check_data(complete, split), "train": None, "yaml_file": str(file)}


def _content(data: Any) -> dict[str, Any]:
    """What stands in a data YAML; nothing where it is none."""
    file = check_file(str(data), hard=False) if Path(str(data)).suffix in (".yaml", ".yml") else ""
    found = YAML.load(file) if file and Path(file).is_file() else {}
    return found if isinstance(found, dict) else {}


def _is_bare(content: Mapping[str, Any], split: str) -> bool:
    """Does a data YAML name no images at all? `complete_yaml` writes such a one for a run that resumes from it."""
    return "train" in content and not content["train"] and not content.get(split)


def names_nothing(data: Any, split: str) -> bool:
    """Is this the data YAML of a run that had nothing to validate on (see `complete_yaml`)?"""
    return _is_bare(_content(data), split)


def complete_yaml(checked: Mapping[str, Any], split: str, file: Path) -> Path:
    """Write a data YAML with every key that Ultralytics wants where the one asked for lacks one; else name that one.

    Args:
        checked: from `open_data`.
        split: what validates.
        file: where to write.
    """
    source = str(checked.get("yaml_file") or "")
    if source and "train" in _content(source):
        return Path(source)
    parts = {key: checked.get(key) for key in dict.fromkeys(("val", split, "test")) if checked.get(key)}
    content = {"path": str(file.parent), "train": None, "val": None, **parts}
    YAML.save(file, {**content, "names": checked[OWN_NAMES], "channels": checked["channels"]})
    return file


def refuse_unknown_classes(
    classes: Sequence[str], known: Sequence[Mapping[int, str]], class_map: Mapping[str, str] | None = None
) -> None:
    """Refuse ``student_classes=`` that nobody can teach.

    Args:
        classes: as they were asked for.
        known: the classes of each teacher, and those of the labels to train on.
        class_map: a teacher's name to the student's, where they differ.

    Raises:
        UserError: one of them is known to nobody.
    """
    asked = dict(enumerate(classes))
    maps = [ClassMap.by_name(names, asked, _here(class_map or {}, names)) for names in known]
    if unknown := [name for i, name in asked.items() if all(i not in m.pairs for m in maps)]:
        names = sorted({normalise(name) for one in known for name in one.values()})
        raise UserError(
            f"student_classes={','.join(classes)}: neither teacher nor labels know {shorten(unknown)}.",
            f"They know {shorten(names)}.",
        )


def _here(class_map: Mapping[str, str], names: Mapping[int, str]) -> dict[str, str]:
    """What ``class_map=`` says of these classes."""
    there = set(map(normalise, names.values()))
    return {theirs: ours for theirs, ours in class_map.items() if normalise(theirs) in there}


def of_the_labels(checked: Mapping[str, Any]) -> dict[str, Any]:
    """The dictionary with the classes that the labels on disk speak of, as Ultralytics needs it to read them."""
    own = checked.get(OWN_NAMES, checked["names"])
    return {**checked, "names": own, "nc": len(own)}


def in_students_classes(dataset: Any, checked: Mapping[str, Any]) -> Any:
    """Bring the labels of a data set into the student's classes, by name; the others' objects are left out.

    Args:
        dataset: of Ultralytics, changed in place.
        checked: from `open_data`.
    """
    own, names = checked.get(OWN_NAMES, checked["names"]), checked["names"]
    if own == names:
        return dataset
    pairs = ClassMap.by_name(own, names).pairs
    index = np.full(len(own), -1)
    for student, theirs in pairs.items():
        index[list(theirs)] = student
    for label in dataset.labels:
        found = index[label["cls"].astype(int).ravel()]
        kept = found >= 0
        label["cls"] = found[kept, None].astype(label["cls"].dtype)
        label["bboxes"] = label["bboxes"][kept]
        if label["segments"]:
            label["segments"] = [s for s, keep in zip(label["segments"], kept, strict=True) if keep]
    return dataset
