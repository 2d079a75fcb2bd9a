import pytest
import torch

from yolokd.classes import ClassMap, shorten, trained_classes
from yolokd.errors import UserError

COCO = {0: "person", 1: "bicycle", 2: "car", 3: "motorcycle", 4: "airplane", 5: "tv"}


def test_the_index_never_decides() -> None:
    classes = ClassMap.by_name({0: "dog", 1: "cat"}, {0: "cat", 1: "dog"})
    scores = torch.tensor([[[1.0], [2.0]]])  # dog 1, cat 2
    assert classes(scores).tolist() == [[[2.0], [1.0]]]  # cat 2, dog 1
    assert classes.classes is None


@pytest.mark.parametrize(
    ("student", "teacher_index"),
    [("Motorbike", 3), ("aeroplane", 4), ("TVmonitor", 5), ("CAR", 2), ("automobile", 2), ("pedestrian", 0)],
)
def test_aliases_and_spelling(student: str, teacher_index: int) -> None:
    assert ClassMap.by_name(COCO, {0: student}).pairs == {0: (teacher_index,)}


def test_underscore_hyphen_and_case_do_not_count() -> None:
    assert ClassMap.by_name({7: "traffic light"}, {0: "Traffic_Light", 1: "traffic-light"}).pairs == {0: (7,), 1: (7,)}


def test_an_exact_name_beats_an_alias() -> None:
    assert ClassMap.by_name({0: "airplane", 1: "plane"}, {0: "plane"}).pairs == {0: (1,)}


def test_unmapped_student_classes_are_left_out_not_zero() -> None:
    classes = ClassMap.by_name(COCO, {0: "shark", 1: "car", 2: "person"})
    assert (classes.mapped, classes.total, classes.unmapped) == (2, 3, ["shark"])
    assert classes.classes is not None
    assert classes.classes.tolist() == [1, 2]
    scores = torch.arange(6.0).view(1, 6, 1)
    assert classes(scores).flatten().tolist() == [2.0, 0.0]  # car, person


def test_many_to_one_takes_the_maximum() -> None:
    overrides = {"car": "vehicle", "motorcycle": "vehicle"}
    classes = ClassMap.by_name(COCO, {0: "vehicle", 1: "person"}, overrides)
    scores = torch.tensor([0.0, 9, 2, 3, 9, 9]).view(1, 6, 1)
    assert classes(scores).flatten().tolist() == [3.0, 0.0]


def test_an_override_takes_the_class_away_from_its_namesake() -> None:
    classes = ClassMap.by_name(COCO, {0: "car", 1: "person"}, {"car": "person"})
    assert classes.pairs == {1: (0, 2)}


@pytest.mark.parametrize(("overrides", "whose"), [({"ship": "car"}, "teacher"), ({"car": "ship"}, "student")])
def test_an_override_with_an_unknown_name_is_refused(overrides: dict[str, str], whose: str) -> None:
    with pytest.raises(UserError, match=f"ship, which the {whose} does not know"):
        ClassMap.by_name(COCO, {0: "car"}, overrides)


def test_no_shared_class() -> None:
    assert ClassMap.by_name(COCO, {0: "shark"}).mapped == 0


def test_shorten() -> None:
    assert shorten(["a", "b"]) == "a, b"
    assert shorten([str(i) for i in range(20)], 2) == "0, 1, ... (20 in all)"


def test_classes_that_are_not_trained_are_not_taught() -> None:
    classes = ClassMap.by_name(COCO, {0: "person", 1: "car", 2: "tv"}, only=trained_classes([0, 2]))
    assert classes.pairs == {0: (0,), 2: (5,)}
    assert trained_classes(1) == {1}
    assert trained_classes(None) is None
