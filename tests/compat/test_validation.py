from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.lively import save_lively
from yolokd.compat.validation import validate
from yolokd.errors import UserError

# Random weights are sure of nothing: with this threshold there is something to look at.
RUN = {"imgsz": 96, "batch": 2, "device": "cpu", "conf": 1e-5}


def renamed(data: Path, tmp_path: Path, names: list[str]) -> Path:
    """The same images and labels under other class names."""
    content = yaml.safe_load(data.read_text())
    file = tmp_path / "renamed.yaml"
    file.write_text(yaml.safe_dump({**content, "names": dict(enumerate(names))}))
    return file


def test_labels_come_in_pixels_of_the_image(toy_data: Path, toy_student: Path) -> None:
    run = validate(toy_student, toy_data, **RUN)
    assert sorted(i.file.name for i in run.images) == ["0.png", "1.png", "2.png", "3.png"]
    for image in run.images:
        rows = np.loadtxt(toy_data.parent / "labels" / "val" / f"{image.file.stem}.txt", ndmin=2)
        assert (image.height, image.width) == (96, 96)
        corners = np.concatenate([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], 1) * 96
        assert np.sort(image.true_boxes, 0) == pytest.approx(np.sort(corners, 0), abs=1e-4)
        assert sorted(image.true_classes) == sorted(rows[:, 0])


def test_detections_are_those_of_predict(toy_data: Path, toy_student: Path) -> None:
    from ultralytics import YOLO

    image = validate(toy_student, toy_data, **RUN).images[0]
    best = image.scores.argmax()
    found = YOLO(toy_student).predict(image.file, imgsz=96, conf=1e-5, device="cpu", save=False, verbose=False)[0]
    assert image.scores[best] == pytest.approx(float(found.boxes.conf.max()), rel=1e-3)
    assert image.boxes[best] == pytest.approx(found.boxes.xyxy[found.boxes.conf.argmax()].numpy(), abs=0.1)
    assert image.boxes.min() >= 0
    assert image.boxes.max() <= 96
    assert round(float(image.scores[best]), 5) != float(image.scores[best])  # as Ultralytics' save_json would


def test_classes_are_matched_by_name(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    plain = validate(toy_student, toy_data, **RUN)
    data = renamed(toy_data, tmp_path, ["blue", "red", "green"])  # the model says red, green, blue
    turned = validate(toy_student, data, **RUN)
    for a, b in zip(plain.images, turned.images, strict=True):
        assert a.scores == pytest.approx(b.scores)
        assert ((a.classes + 1) % 3).tolist() == b.classes.tolist()
    by_index = validate(toy_student, data, match_names=False, **RUN)
    assert by_index.images[0].classes.tolist() == plain.images[0].classes.tolist()


def test_a_class_that_the_model_lacks_is_missed_and_named(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    run = validate(toy_student, renamed(toy_data, tmp_path, ["sofa", "blue", "table"]), **RUN)
    assert run.unknown == ("sofa", "table")
    assert {c for image in run.images for c in image.classes} == {1}
    assert {c for image in run.images for c in image.true_classes} == {0, 1, 2}  # none of the labels is dropped


def test_a_class_map_names_what_the_names_do_not_tell(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    plain = validate(toy_student, toy_data, **RUN)
    data = renamed(toy_data, tmp_path, ["sofa", "green", "table"])
    others = {"puppy": "green"}  # what another teacher calls it
    mapped = validate(toy_student, data, class_map={"red": "table", "blue": "sofa", **others}, **RUN)
    assert mapped.unknown == ()
    for a, b in zip(plain.images, mapped.images, strict=True):
        assert (2 - a.classes).tolist() == b.classes.tolist()
    swapped = validate(toy_student, toy_data, class_map={"red": "blue", "blue": "red"}, **RUN)  # of equal names too
    assert (2 - plain.images[0].classes).tolist() == swapped.images[0].classes.tolist()


def test_no_shared_class_is_refused(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="share no class name"):
        validate(toy_student, renamed(toy_data, tmp_path, ["sofa", "chair", "table"]), **RUN)


def test_no_run_folder_unless_asked(
    toy_data: Path, toy_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics.utils import SETTINGS

    monkeypatch.setitem(SETTINGS, "runs_dir", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    validate(toy_student, toy_data, **RUN)
    assert list(tmp_path.iterdir()) == []
    validate(toy_student, toy_data, save_json=True, project=str(tmp_path / "mine"), name="here", **RUN)
    assert (tmp_path / "mine" / "here" / "predictions.json").is_file()


def test_missing_data_is_said_in_words(toy_student: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml"):
        validate(toy_student, tmp_path / "none.yaml", **RUN)


def test_a_model_can_be_judged_on_what_its_sensor_sees(toy_data: Path, tmp_path: Path) -> None:
    model = save_lively(tmp_path / "m.pt")
    whole, gray = (validate(model, toy_data, student_view=view, **RUN) for view in ("", "gray"))
    assert [len(image.true_boxes) for image in whole.images] == [len(image.true_boxes) for image in gray.images]
    assert any(
        len(a.scores) != len(b.scores) or (a.scores != b.scores).any()
        for a, b in zip(whole.images, gray.images, strict=True)
    )
    with pytest.raises(UserError, match="student_view=night"):
        validate(model, toy_data, student_view="night", **RUN)
