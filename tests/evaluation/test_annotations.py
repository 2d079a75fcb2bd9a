from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.results import image
from yolokd.errors import UserError
from yolokd.evaluation.annotations import from_json, from_labels

NAMES = {0: "cat", 1: "dog"}
CAT = ((10.0, 20.0, 110.0, 70.0), 0)
FOUND = ((10.0, 20.0, 110.0, 70.0), 0.9, 0)


def coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """COCO's ids have gaps and another order than the data YAML's: dog 3, cat 17."""
    categories = [{"id": 3, "name": "dog"}, {"id": 17, "name": "cat"}]
    return {"images": images, "annotations": annotations or [], "categories": categories}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def _write(content: Any) -> Path:
        file = tmp_path / "annotations.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    return _write


def test_labels_become_boxes_in_pixels_with_ids_from_one() -> None:
    data = from_labels([image(truth=[CAT, ((0.0, 0.0, 4.0, 5.0), 1)], found=[FOUND])], NAMES)
    first, second = data.truth["annotations"]
    assert first == {"image_id": 1, "category_id": 0, "bbox": [10, 20, 100, 50], "area": 5000, "iscrowd": 0, "id": 1}
    assert (second["id"], second["bbox"], second["area"]) == (2, [0, 0, 4, 5], 20)
    assert data.detections[0]["bbox"] == [10, 20, 100, 50]
    assert data.detections[0]["score"] == 0.9
    assert data.names == NAMES


def test_an_image_without_labels_stays() -> None:
    data = from_labels([image("1.jpg", truth=[CAT]), image("2.jpg", found=[FOUND])], NAMES)
    assert [i["id"] for i in data.truth["images"]] == [1, 2]
    assert data.detections[0]["image_id"] == 2


def test_categories_are_found_by_name(write: Any) -> None:
    file = write(
        coco(
            [{"id": 7, "file_name": "1.jpg"}], [{"id": 5, "image_id": 7, "category_id": 17, "bbox": [10, 20, 100, 50]}]
        )
    )
    data = from_json(file, [image(found=[FOUND, (*FOUND[:2], 1)])], NAMES)
    assert [d["category_id"] for d in data.detections] == [17, 3]
    assert [d["image_id"] for d in data.detections] == [7, 7]
    assert data.names == {3: "dog", 17: "cat"}


def test_crowds_areas_and_ids(write: Any) -> None:
    entries = [
        {"id": 0, "image_id": 7, "category_id": 17, "bbox": [0, 0, 10, 10], "area": 31.5, "iscrowd": 1},
        {"id": 9, "image_id": 7, "category_id": 3, "bbox": [0, 0, 10, 10]},
        {"id": 10, "image_id": 8, "category_id": 3, "bbox": [0, 0, 10, 10]},
    ]
    file = write(coco([{"id": 7, "file_name": "1.jpg"}, {"id": 8, "file_name": "2.jpg"}], entries))
    found = from_json(file, [image()], NAMES).truth["annotations"]
    assert [(a["id"], a["iscrowd"], a["area"]) for a in found] == [(1, 1, 31.5), (2, 0, 100)]  # image 8 was not run


def test_a_category_without_a_class_is_left_out(write: Any) -> None:
    entries = [{"id": 1, "image_id": 7, "category_id": c, "bbox": [0, 0, 9, 9]} for c in (3, 17)]
    file = write(coco([{"id": 7, "file_name": "1.jpg"}], entries))
    data = from_json(file, [image(found=[FOUND, (*FOUND[:2], 1)])], {0: "bird", 1: "dog"})
    assert [a["category_id"] for a in data.truth["annotations"]] == [3]
    assert [d["category_id"] for d in data.detections] == [3]
    assert data.names == {3: "dog"}


@pytest.mark.parametrize(
    ("entries", "name", "expected"),
    [
        ([{"id": 5, "file_name": "a.jpg"}], "a.jpg", 5),
        ([{"id": 139}], "000000000139.jpg", 139),
        ([{"id": 139, "file_name": "other.jpg"}], "000000000139.jpg", 139),
        ([{"id": 1, "file_name": "x/a.jpg"}, {"id": 2, "file_name": "y/a.jpg"}], "y/a.jpg", 2),
        ([{"id": 3, "file_name": "val2017/a.jpg"}], "a.jpg", 3),
    ],
)
def test_images_are_found_by_name_or_number(write: Any, entries: list[Any], name: str, expected: int) -> None:
    data = from_json(write(coco(entries)), [image(name)], NAMES)
    assert [i["id"] for i in data.truth["images"]] == [expected]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is not JSON"),
        ([1], "no COCO data set"),
        ({"images": [], "annotations": []}, "no COCO data set"),
        (coco([{"id": 4, "file_name": "b.jpg"}]), "lacks 1 of the 1 images, 1.jpg"),
        ({**coco([{"id": 1, "file_name": "1.jpg"}]), "categories": [{"id": 1, "name": "car"}]}, "no category name"),
    ],
)
def test_what_cannot_be_used_is_refused(write: Any, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_json(write(content), [image()], NAMES)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        from_json(tmp_path / "none.json", [image()], NAMES)
