from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ultralytics.utils.metrics import compute_ap

from tests.evaluation.results import Box, image
from yolokd.compat.validation import Validation, validate
from yolokd.errors import UserError
from yolokd.evaluation import coco
from yolokd.evaluation.annotations import from_json, from_labels
from yolokd.evaluation.coco import CocoScores, Evaluation, coco_scores, evaluate, evaluation_table, retention

NAMES = {0: "cat", 1: "dog"}
LARGE: Box = (100, 100, 300, 300)
MEDIUM: Box = (400, 100, 450, 150)
SMALL: Box = (500, 300, 520, 320)


def test_perfect_detections_score_one() -> None:
    images = [image(truth=[(LARGE, 0), (SMALL, 1)], found=[(LARGE, 0.9, 0), (SMALL, 0.8, 1)])]
    scores = coco_scores(from_labels(images, NAMES))
    assert (scores.ap, scores.ap50, scores.ap75) == pytest.approx((1, 1, 1))
    assert scores.per_class == pytest.approx({"cat": 1, "dog": 1})


def test_a_shifted_class_scores_nothing() -> None:
    scores = coco_scores(from_labels([image(truth=[(LARGE, 0)], found=[(LARGE, 0.9, 1)])], NAMES))
    assert scores.ap == 0
    assert scores.per_class == {"cat": 0, "dog": None}


def test_one_of_two_missed() -> None:
    images = [image(truth=[(LARGE, 0), (MEDIUM, 0)], found=[(LARGE, 0.9, 0)])]
    # Precision is 1 at the 51 recall points 0, .01, ..., .50 and 0 at the 50 above.
    assert coco_scores(from_labels(images, NAMES)).ap == pytest.approx(51 / 101)


def test_a_box_beside_the_object_counts_at_low_overlap_only() -> None:
    shifted = (100, 100, 300, 244)  # IoU .72: enough at .50, .55, .60, .65, .70
    scores = coco_scores(from_labels([image(truth=[(LARGE, 0)], found=[(shifted, 0.9, 0)])], NAMES))
    assert (scores.ap, scores.ap50, scores.ap75) == pytest.approx((0.5, 1, 0))


def test_what_is_found_on_a_background_image_is_wrong() -> None:
    found = image("1.jpg", truth=[(LARGE, 0)], found=[(LARGE, 0.5, 0)])
    background = image("2.jpg", found=[(SMALL, 0.9, 0)])
    assert coco_scores(from_labels([found, background], NAMES)).ap == pytest.approx(0.5)
    assert coco_scores(from_labels([found], NAMES)).ap == pytest.approx(1)


def test_sizes_are_apart_and_empty_ones_are_none() -> None:
    images = [image(truth=[(SMALL, 0), (LARGE, 0)], found=[(LARGE, 0.9, 0)])]
    scores = coco_scores(from_labels(images, NAMES))
    assert (scores.small, scores.medium) == (0, None)
    assert scores.large == pytest.approx(1)


def test_a_hundred_detections_count_and_no_more() -> None:
    wrong = [((0.0, 0.0, 5.0 + i, 5.0), 0.9, 0) for i in range(100)]
    data = from_labels([image(truth=[(LARGE, 0)], found=[*wrong, (LARGE, 0.1, 0)])], NAMES)
    assert coco_scores(data).ap == 0
    data = from_labels([image(truth=[(LARGE, 0)], found=[*wrong[:99], (LARGE, 0.1, 0)])], NAMES)
    assert coco_scores(data).ap == pytest.approx(1 / 100)


def test_nothing_found_is_zero_and_nothing_to_find_is_none() -> None:
    assert coco_scores(from_labels([image(truth=[(LARGE, 0)])], NAMES)).ap == 0
    assert coco_scores(from_labels([image(found=[(LARGE, 0.9, 0)])], NAMES)).ap is None


def test_crowds_do_not_count_and_ids_may_begin_at_zero(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "categories": [{"id": 44, "name": "dog"}, {"id": 90, "name": "cat"}],
        "annotations": [
            {"id": 0, "image_id": 1, "category_id": 90, "bbox": [100, 100, 200, 200], "area": 40000, "iscrowd": 0},
            {"id": 1, "image_id": 1, "category_id": 90, "bbox": [400, 90, 90, 90], "area": 8100, "iscrowd": 1},
        ],
    }
    file = tmp_path / "instances.json"
    images = [image(truth=[(LARGE, 0)], found=[(MEDIUM, 0.9, 0), (LARGE, 0.8, 0)])]
    file.write_text(json.dumps(content))
    assert coco_scores(from_json(file, images, NAMES)).ap == pytest.approx(1)  # the medium box lies in the crowd
    assert coco_scores(from_labels(images, NAMES)).ap == pytest.approx(0.5)  # labels know no crowd


def test_pycocotools_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    coco_scores(from_labels([image(truth=[(LARGE, 0)])], NAMES))
    assert capsys.readouterr().out == ""


def test_ultralytics_gives_a_perfect_detector_less_than_one() -> None:
    assert compute_ap(np.array([0.5, 1.0]), np.array([1.0, 1.0]))[0] == pytest.approx(0.995)


@pytest.mark.parametrize(
    ("student", "teacher", "share"), [(0.3, 0.4, 0.75), (0.5, 0.4, 1.25), (None, 0.4, None), (0.3, 0.0, None)]
)
def test_retention(student: float | None, teacher: float | None, share: float | None) -> None:
    assert retention(student, teacher) == pytest.approx(share)


STUDENT = Evaluation(
    name="best.pt",
    images=4,
    boxes=9,
    map=0.3,
    map50=0.5,
    coco=CocoScores(0.33, 0.55, 0.35, None, 0.2, 0.4, {"cat": 0.4, "dog": None}),
    parameters=2_600_000,
    gflops=6.5,
    size=5_500_000,
)
TEACHER = replace(
    STUDENT,
    name="yolo11x.pt",
    map=0.4,
    coco=CocoScores(0.44, 0.6, 0.5, None, 0.4, 0.5, {"cat": 0.5, "dog": None}),
    parameters=52_000_000,
    unknown=("dog",),
)


def cells(table: str, label: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(label))
    return line.removeprefix(label).split()


def test_table_of_one_model() -> None:
    table = evaluation_table(STUDENT)
    assert table.startswith("4 images, 9 objects")
    assert cells(table, "Ultralytics mAP50-95") == ["0.300"]
    assert cells(table, "pycocotools AP small") == ["-"]  # no small object: not -1
    assert cells(table, "parameters") == ["2,600,000"]
    assert cells(table, "AP of cat") == ["0.400"]
    assert "kept" not in table
    assert "AP of dog" not in table


def test_table_beside_the_teacher_says_what_is_kept() -> None:
    table = evaluation_table(STUDENT, TEACHER)
    assert cells(table, "Ultralytics mAP50-95") == ["0.300", "0.400", "75.0%"]
    assert cells(table, "pycocotools AP ") == ["0.330", "0.440", "75.0%"]
    assert cells(table, "pycocotools AP small") == ["-", "-", "-"]
    assert cells(table, "parameters") == ["2,600,000", "52,000,000", "5.0%"]
    assert cells(table, "file, MB") == ["5.5", "5.5", "100.0%"]
    assert STUDENT.kept(TEACHER) == pytest.approx(0.75)
    assert "yolo11x.pt does not know dog" in table


def test_many_classes_are_not_listed() -> None:
    many = replace(STUDENT.coco, per_class={f"class {i}": 0.5 for i in range(coco.MOST_CLASSES + 1)})
    assert "AP of" not in evaluation_table(replace(STUDENT, coco=many))


def test_evaluate_puts_both_tools_beside_each_other(toy_data: Path, toy_student: Path) -> None:
    found = evaluate(toy_student, toy_data, imgsz=96, batch=2, device="cpu")
    assert (found.name, found.images, found.boxes) == ("student.pt", 4, 12)
    assert found.coco.ap == pytest.approx(found.map, abs=0.01)  # next to nothing: the weights are random
    assert found.parameters == pytest.approx(2.58e6, rel=0.02)
    assert found.gflops == pytest.approx(6.3 * (96 / 640) ** 2, rel=0.1)
    assert found.size == toy_student.stat().st_size


@pytest.mark.parametrize(
    ("model", "split", "annotations", "message"),
    [
        ("none.pt", "val", None, "none.pt"),
        ("none.onnx", "val", None, "none.onnx"),
        (None, "test", None, "test"),
        (None, "val", "none.json", "does not exist"),
    ],
)
def test_bad_input_is_said_in_words(
    toy_data: Path, toy_student: Path, model: str | None, split: str, annotations: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(model or toy_student, toy_data, split=split, annotations=annotations, imgsz=96, device="cpu")


def ultralytics_integral(run: Validation) -> float:
    """pycocotools' matches (300 detections), under Ultralytics' integral instead of pycocotools'."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = from_labels(run.images, run.names)
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset, found.dataset = data.truth, {**data.truth, "annotations": data.detections}
        truth.createIndex()
        found.createIndex()
        judge = COCOeval(truth, found, "bbox")
        judge.params.maxDets = [300]
        judge.params.areaRng = judge.params.areaRng[:1]
        judge.evaluate()
    scores = []
    count = len(judge.params.imgIds)
    for k in range(len(judge.params.catIds)):
        images = [e for e in judge.evalImgs[k * count : (k + 1) * count] if e]
        objects = sum(len(e["gtIds"]) for e in images)
        if not objects:
            continue
        order = np.argsort(-np.concatenate([e["dtScores"] for e in images]), kind="stable")
        right = np.concatenate([e["dtMatches"] for e in images], 1)[:, order] > 0
        hits = right.cumsum(1)
        ranks = np.arange(1, right.shape[1] + 1)
        scores += [compute_ap(h / objects, h / ranks)[0] if len(h) else 0.0 for h in hits]
    return float(np.mean(scores))


@pytest.mark.e2e
@pytest.mark.shared
def test_the_two_tools_differ_by_what_we_say(shared: Path, tmp_path: Path) -> None:
    """shared/README.md says .434 and .580: Ultralytics' own numbers, at batch 4 (it decides the letterbox)."""
    root = tmp_path / "tinycoco100"
    shutil.copytree(shared / "data" / "tinycoco100", root, copy_function=shutil.copyfile)
    for folder in [root, *root.rglob("*/")]:
        folder.chmod(0o755)
    run = validate(shared / "weights" / "yolov8n.pt", root / "data.yaml", imgsz=640, batch=4, device="cpu")
    assert len(run.images) == 50  # two of them without labels
    assert (run.map, run.map50) == pytest.approx((0.434, 0.580), abs=0.003)
    labels = coco_scores(from_labels(run.images, run.names))
    official = from_json(root / "instances_val2017.json", run.images, run.names)
    # The same matches under the same integral are the same mAP ...
    assert ultralytics_integral(run) == pytest.approx(run.map, abs=1e-4)
    # ... which pycocotools' own integral raises by some thousandths.
    assert 0 < labels.ap - run.map < 0.006
    # COCO's own annotations differ from the labels by their crowds, and by the areas that decide the size.
    crowds = [a for a in official.truth["annotations"] if a["iscrowd"]]
    assert len(crowds) == 5
    assert coco_scores(official).ap - labels.ap == pytest.approx(0.004, abs=0.002)
    official.truth["annotations"] = [a for a in official.truth["annotations"] if not a["iscrowd"]]
    assert coco_scores(official).ap == pytest.approx(labels.ap, abs=1e-5)
