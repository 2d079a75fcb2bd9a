"""Ground truth and detections in COCO's format, for pycocotools."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolokd.classes import ClassMap, shorten
from yolokd.compat.validation import ImageResult
from yolokd.errors import UserError


@dataclass(frozen=True)
class CocoData:
    """Both sides of an evaluation, in COCO's format.

    Attributes:
        truth: COCO data set of the evaluated images (``images``, ``annotations``, ``categories``).
        detections: COCO result entries, each with a box (x, y, width, height) in pixels.
    """

    truth: dict[str, Any]
    detections: list[dict[str, Any]]

    @property
    def names(self) -> dict[int, str]:
        """Category id to name."""
        return {c["id"]: c["name"] for c in self.truth["categories"]}


def from_labels(images: Sequence[ImageResult], names: Mapping[int, str]) -> CocoData:
    """Take the ground truth from the labels: an object's area is its box's, and there are no crowds.

    Args:
        images: detections and labels in pixels; an image without labels counts (what is found there is wrong).
        names: class names by index.
    """
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, 1):
        for box, label in zip(_xywh(image.true_boxes), image.true_classes.tolist(), strict=True):
            annotation = {"image_id": image_id, "category_id": label, "bbox": box, "area": box[2] * box[3]}
            # pycocotools reads a match with annotation 0 as no match: ids begin at 1.
            annotations.append({**annotation, "iscrowd": 0, "id": len(annotations) + 1})
    truth = {
        "images": [_image(i, image) for i, image in enumerate(images, 1)],
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in names.items()],
    }
    return CocoData(truth, _detections(images, range(1, len(images) + 1), {i: i for i in names}))


def from_json(file: str | Path, images: Sequence[ImageResult], names: Mapping[int, str]) -> CocoData:
    """Take the ground truth from a COCO annotation file: its crowds, areas and category ids.

    Images are found by file name, else by the number in it (``000000000139.jpg`` is image 139). Categories are
    found by name, never by index: COCO's ids have gaps. Annotations of other images and of categories that the data
    set does not have are left out.

    Args:
        file: COCO JSON with ``images``, ``annotations`` and ``categories``.
        images: detections in pixels.
        names: class names of the data set by index.

    Raises:
        UserError: the file is missing or no COCO annotation, lacks one of the images, or shares no category name.
    """
    content = _read(Path(file))
    category = _categories(content["categories"], names, file)
    ids = _image_ids(content["images"], images, file)
    wanted, kept = set(ids), set(category.values())
    annotations: list[dict[str, Any]] = []
    for entry in content["annotations"]:
        if entry["image_id"] in wanted and entry["category_id"] in kept:
            box = entry["bbox"]
            annotation = {key: entry[key] for key in ("image_id", "category_id", "bbox")}
            annotation["area"] = entry.get("area", box[2] * box[3])
            # Ids are given anew: pycocotools reads a match with annotation 0 as no match.
            annotations.append({**annotation, "iscrowd": int(entry.get("iscrowd", 0)), "id": len(annotations) + 1})
    truth = {
        "images": [_image(i, image) for i, image in zip(ids, images, strict=True)],
        "annotations": annotations,
        "categories": [{"id": c["id"], "name": c["name"]} for c in content["categories"] if c["id"] in kept],
    }
    return CocoData(truth, _detections(images, ids, category))


def _xywh(corners: Any) -> list[list[float]]:
    return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in corners.tolist()]


def _image(image_id: int, image: ImageResult) -> dict[str, Any]:
    return {"id": image_id, "file_name": image.file.name, "height": image.height, "width": image.width}


def _detections(images: Sequence[ImageResult], ids: Sequence[int], category: Mapping[int, int]) -> list[dict[str, Any]]:
    """Return result entries; a class without a category in the ground truth cannot be judged and is left out."""
    found: list[dict[str, Any]] = []
    for image_id, image in zip(ids, images, strict=True):
        rows = zip(_xywh(image.boxes), image.scores.tolist(), image.classes.tolist(), strict=True)
        for box, score, label in rows:
            if label in category:
                entry = {"image_id": image_id, "category_id": category[label], "bbox": box, "score": score}
                found.append({**entry, "area": box[2] * box[3], "iscrowd": 0, "id": len(found) + 1})
    return found


def _read(file: Path) -> dict[str, Any]:
    remedy = "Give COCO's own JSON, e.g. annotations=instances_val2017.json, or leave annotations= out."
    if not file.is_file():
        raise UserError(f"annotations={file} does not exist.", remedy)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"annotations={file} is not JSON: {error}", remedy) from error
    needed = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in needed):
        raise UserError(f"annotations={file} is no COCO data set: it needs {', '.join(needed)}.", remedy)
    return content


def _categories(entries: Sequence[Mapping[str, Any]], names: Mapping[int, str], file: str | Path) -> dict[int, int]:
    """Return the category id of each class index that has one."""
    known = {int(entry["id"]): str(entry["name"]) for entry in entries}
    category = {index: found[0] for index, found in ClassMap.by_name(known, names).pairs.items()}
    if not category:
        raise UserError(
            f"annotations={file} shares no category name with the data: it has {shorten(list(known.values()))}.",
            f"The data's classes are {shorten(list(names.values()))}; categories are matched by name.",
        )
    return category


def _image_ids(entries: Sequence[Mapping[str, Any]], images: Sequence[ImageResult], file: str | Path) -> list[int]:
    """Return the annotation file's id of each image."""
    by_name: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
    for entry in entries:
        parts = Path(str(entry.get("file_name", ""))).parts
        if parts:
            by_name[parts[-1]].append((parts, entry["id"]))
    known = {entry["id"] for entry in entries}
    ids = [_image_id(image.file, by_name[image.file.name], known) for image in images]
    missing = [image.file.name for image, found in zip(images, ids, strict=True) if found is None]
    if missing:
        raise UserError(
            f"annotations={file} lacks {len(missing)} of the {len(images)} images, {missing[0]} among them.",
            "Use the annotations of the split that is evaluated (split=val|test|train).",
        )
    return [i for i in ids if i is not None]


def _image_id(file: Path, candidates: Sequence[tuple[tuple[str, ...], int]], known: set[int]) -> int | None:
    if len(candidates) == 1:
        return candidates[0][1]
    for parts, image_id in candidates:  # the same name in several folders: the folder decides
        if file.parts[-len(parts) :] == parts:
            return image_id
    return int(file.stem) if file.stem.isdecimal() and int(file.stem) in known else None
