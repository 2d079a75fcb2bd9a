from __future__ import annotations

import sys

import pytest

from tests.evaluation.results import image
from tests.evaluation.test_precision import random_data
from yolokd.errors import UserError
from yolokd.evaluation.annotations import from_labels
from yolokd.evaluation.backends import evaluator
from yolokd.evaluation.coco import coco_scores

DATA = from_labels([image(truth=[((0, 0, 9, 9), 0)], found=[((0, 0, 9, 9), 0.5, 0)])], {0: "cat"})


def test_pycocotools_is_fed() -> None:
    judge = evaluator(DATA)
    assert (judge.params.imgIds, judge.params.catIds, judge.params.iouType) == ([1], [0], "bbox")


def test_an_unknown_tool_is_refused() -> None:
    with pytest.raises(UserError, match=r"backend=coco is not known[\s\S]*pycocotools, faster-coco-eval"):
        evaluator(DATA, "coco")


def test_a_tool_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # as if it were not there
    with pytest.raises(UserError, match=r"pip install faster-coco-eval"):
        coco_scores(DATA, backend="faster-coco-eval")


@pytest.mark.parametrize("seed", range(5))
def test_faster_coco_eval_gives_the_same_numbers(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faster_coco_eval")
    data = random_data(seed, crowds=True, ties=seed % 2 == 0)
    ours, theirs = coco_scores(data), coco_scores(data, backend="faster-coco-eval")
    assert ours.ap is not None
    for name in ("ap", "ap50", "ap75", "small", "medium", "large"):
        assert getattr(theirs, name) == pytest.approx(getattr(ours, name), abs=1e-12), name
    assert theirs.per_class == pytest.approx(ours.per_class, abs=1e-12)
    assert capfd.readouterr().out == ""


def test_faster_coco_eval_says_where_there_is_nothing() -> None:
    pytest.importorskip("faster_coco_eval")
    nothing = from_labels([image(found=[((0, 0, 9, 9), 0.5, 0)])], {0: "cat", 1: "dog"})
    assert coco_scores(nothing, backend="faster-coco-eval") == coco_scores(nothing)
