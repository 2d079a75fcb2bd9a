from __future__ import annotations

import pytest

from tests.evaluation.results import Box, image
from yolokd.compat.validation import ImageResult
from yolokd.evaluation.fairness import inherited, lost_classes
from yolokd.evaluation.precision import matched

NAMES = {0: "cat", 1: "dog"}
A, B, C = (0, 0, 100, 100), (200, 200, 300, 300), (400, 100, 430, 130)  # large, large, small
D = (400, 300, 450, 350)  # medium
NEAR_B, FAR_B = (200, 200, 300, 260), (250, 250, 350, 350)  # IoU .6 and .14 with B
TRUTH = [(A, 0), (C, 0), (D, 1)]


def seen(*found: tuple[Box, float, int]) -> list[ImageResult]:
    return [image(found=list(found), truth=TRUTH)]


# Finds A. Wrong: a cat at B (large), a dog at C (small, where a cat is), and unsure at D. Misses the cat C, the dog D.
TEACHER = seen((A, 0.9, 0), (B, 0.8, 0), (C, 0.7, 1), (D, 0.2, 1))


def test_a_case_that_a_person_can_compute() -> None:
    repeats_both = seen((NEAR_B, 0.3, 0), (C, 0.9, 1), (D, 0.24, 1))  # and misses C, D
    repeats_one = seen((FAR_B, 0.9, 0), (B, 0.9, 1), (C, 0.25, 1), (C, 0.9, 0))  # a dog at C, and finds the cat there
    knows = seen((A, 0.9, 0), (C, 0.9, 0), (D, 0.9, 1))
    too_unsure = seen((B, 0.24, 0), (D, 0.26, 1))
    result = inherited([repeats_both, repeats_one], [knows, too_unsure], TEACHER, NAMES)
    wrong, missed = result["false_positives"], result["misses"]
    assert wrong["all"] == {"teacher": 2, "arm": 0.75, "plain": 0.0}
    assert wrong["by_class"] == {
        "cat": {"teacher": 1, "arm": 0.5, "plain": 0.0},
        "dog": {"teacher": 1, "arm": 1.0, "plain": 0.0},
    }
    assert wrong["by_size"] == {
        "small": {"teacher": 1, "arm": 1.0, "plain": 0.0},
        "medium": {"teacher": 0, "arm": None, "plain": None},
        "large": {"teacher": 1, "arm": 0.5, "plain": 0.0},
    }
    # The arm: C and D missed, then D alone. Plain: none, then C (A is no miss of the teacher).
    assert missed["all"] == {"teacher": 2, "arm": 0.75, "plain": 0.25}
    assert missed["by_class"]["cat"] == {"teacher": 1, "arm": 0.5, "plain": 0.5}
    assert missed["by_class"]["dog"] == {"teacher": 1, "arm": 1.0, "plain": 0.0}
    assert missed["by_size"]["small"] == {"teacher": 1, "arm": 0.5, "plain": 0.5}
    assert missed["by_size"]["medium"] == {"teacher": 1, "arm": 1.0, "plain": 0.0}
    assert missed["by_size"]["large"] == {"teacher": 0, "arm": None, "plain": None}


def test_what_the_student_has_right_is_not_repeated() -> None:
    """The teacher's second box on an object is wrong; the student's only box there is right."""
    teacher = seen((A, 0.9, 0), ((0, 0, 100, 90), 0.8, 0))
    once = seen(((0, 0, 100, 90), 0.8, 0))
    result = inherited([once], [teacher], teacher, NAMES)["false_positives"]["all"]
    assert result == {"teacher": 1, "arm": 0.0, "plain": 1.0}


def test_the_confidence_is_asked_of_every_model() -> None:
    student = seen((B, 0.5, 0))
    assert inherited([student], [student], TEACHER, NAMES)["false_positives"]["all"]["teacher"] == 2
    result = inherited([student], [student], TEACHER, NAMES, confidence=0.6)["false_positives"]["all"]
    assert result == {"teacher": 2, "arm": 0.0, "plain": 0.0}
    result = inherited([student], [student], TEACHER, NAMES, confidence=0.1)
    assert result["false_positives"]["all"] == {"teacher": 2, "arm": 0.5, "plain": 0.5}
    assert result["misses"]["all"]["teacher"] == 1  # D is found now


def test_mistakes_of_other_images_are_others() -> None:
    teacher = [image("1.jpg", [(B, 0.9, 0)]), image("2.jpg", truth=[(A, 0)])]
    student = [image("1.jpg"), image("2.jpg", [(B, 0.9, 0)], [(A, 0)])]
    result = inherited([student], [student], teacher, NAMES)
    assert result["false_positives"]["all"] == {"teacher": 1, "arm": 0.0, "plain": 0.0}
    assert result["misses"]["all"] == {"teacher": 1, "arm": 1.0, "plain": 1.0}


def test_a_teacher_without_a_mistake() -> None:
    perfect = seen(*((box, 0.9, label) for box, label in TRUTH))
    result = inherited([TEACHER], [TEACHER], perfect, NAMES)
    assert result["false_positives"]["all"] == {"teacher": 0, "arm": None, "plain": None}
    assert result["misses"]["all"] == {"teacher": 0, "arm": None, "plain": None}


def test_another_order_of_the_images_is_refused() -> None:
    images = [image("1.jpg", truth=[(A, 0)]), image("2.jpg", truth=[(A, 0)])]
    with pytest.raises(ValueError, match="another order"):
        inherited([images], [images[::-1]], images, NAMES)


def test_lost_classes_are_those_with_less_ap() -> None:
    def run(cats: int, dogs: int) -> list[ImageResult]:
        """Twelve images with a cat and a dog; so many of each are found, everything else is right."""
        return [
            image(f"{i}.jpg", [(A, 0.9, 0)] * (i < cats) + [(B, 0.9, 1)] * (i < dogs), [(A, 0), (B, 1)])
            for i in range(12)
        ]

    names = {**NAMES, 2: "unseen"}
    plain = [matched(run(6, 12), names), matched(run(7, 12), names), matched(run(6, 12), names)]
    arm = [matched(run(9, 5), names), matched(run(9, 6), names), matched(run(9, 5), names)]
    (lost,) = lost_classes(arm, plain, resamples=200)
    assert lost["name"] == "dog"
    expected = [a.ap_per_class()["dog"] - p.ap_per_class()["dog"] for a, p in zip(arm, plain, strict=True)]
    assert lost["difference"] == pytest.approx(sum(expected) / 3)
    assert lost["low"] < lost["difference"] < lost["high"] < 0
    assert [row["name"] for row in lost_classes(plain, arm, resamples=200)] == ["cat"]
    assert lost_classes(arm, arm, resamples=200) == []
