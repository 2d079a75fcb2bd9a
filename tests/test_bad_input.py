"""Each mistake gets two lines and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO

from tests.conftest import save_detector, train_words
from yolokd import api
from yolokd.cli import main


@pytest.mark.parametrize(
    ("changes", "problem", "remedy"),
    [
        ({"techer": "a.pt"}, "'techer': no such key", "teacher"),
        ({"epoch": "3"}, "'epoch': no such key", "epochs"),
        ({"losses": "cls,bx"}, "'bx' is not a loss", "box"),
        ({"losses": "cls:-1"}, "negative: -1", "positive"),
        ({"losses": "cls:0"}, "zero throughout", "Leave cls out"),
        ({"kd_close": "1"}, "zero throughout", "losses=none"),
        ({"cwd.heat": "1"}, "no option 'heat'", "temperature"),
        ({"distill_model": "t.pt"}, "distill_model", "Leave out distill_model"),
        ({"dis": "6.0"}, "dis", "Leave out dis"),
        ({"recipe": "nowhere.yaml"}, "nowhere.yaml", "YAML"),
        ({"epochs": "many"}, "epochs=many", "int"),
        ({"teacher": "missing/teacher.pt"}, "teacher=missing/teacher.pt: no such file", "path"),
        ({"teacher": "yolo11x.pt"}, "teacher=yolo11x.pt is not here", "Put the file into"),
        ({"student": "yolo11nn.yaml"}, "student=yolo11nn.yaml", "yolo11n.yaml"),
        ({"teacher_imgsz": "64"}, "the larger ones", "teacher_imgsz=1280"),
        ({"teacher_weights": "1,2"}, "and here is one", "Leave it out."),
        ({"teacher": "a.pt,,b.pt"}, "an empty place", "A.pt,B.pt"),
        ({"teacher": "self,b.pt"}, "teacher=self cannot be one of several", "self"),
        ({"kd_start": "1"}, "leaves none with distillation", "below"),
        ({"teacher_device": "gpu"}, "teacher_device=gpu is not one device", "teacher_device=1"),
        ({"teacher_device": "99"}, "teacher_device=cuda:99 is not there", "teacher_device=cpu"),
        ({"teacher_device": "cpu", "teacher": "self"}, "runs where it is trained", "Leave out teacher_device="),
        ({"student": "yolo11n-seg.yaml"}, "a segmenter", "must be a detector"),
        ({"data": "nowhere.yaml"}, "data=nowhere.yaml: no such file", "data YAML"),
        ({"model": "other.pt"}, "differ", "Keep one"),
        # the loss library
        ({"losses": "cls,corsskd"}, "'corsskd' is not a loss", "Did you mean crosskd?"),
        ({"losses": "sp", "batch": "1"}, "The loss sp compares the images of a batch", "batch=2"),
        ({"losses": "sp", "batch": "4", "device": "0,1,2,3"}, "batch=4 is 1 on each of 4 devices", "batch=8"),
        ({"losses": "crosskd", "crosskd.depth": "5"}, "crosskd.depth is 5; it must be from 1 to 2", "yolokd losses"),
        ({"losses": "mgd", "mgd.ratio": "1"}, "mgd.ratio is 1.0", "yolokd losses"),
        ({"losses": "cls,crd", "crd.temperature": "0"}, "crd.temperature is 0.0", "yolokd losses"),
        ({"losses": "cls,rkd", "mgd.ratio": "0.5"}, "mgd is not among the losses", "Add mgd"),
        ({"taps": "4,x"}, "taps=4,x is not a list of layers", "taps=STUDENT:TEACHER"),
        ({"taps": "4:6"}, "layer 4 of the student has stride 8, layer 6 of the teacher 16", "layers of one stride"),
        ({"taps": "4,99"}, "there is no layer 99", "one feature map"),
        ({"taps": "23:21"}, "student: layer 23 is the head of the model", "one feature map"),
        ({"taps": "16:22"}, "teacher: layer 22 is the head of the model", "one feature map"),
        ({"taps": "4,6,10", "losses": "crosskd"}, "no loss looks at layers", "cwd"),
        ({"taps": "4,6,10", "losses": "cls"}, "no loss looks at layers", "cwd"),
        ({"balance": "0.1", "compile": "True"}, "balance= compares gradients", "Leave out compile="),
        ({"balance": "2"}, "balance=2 is not a share", "balance=0.1"),
        ({"balance": "0.1", "losses": "cls:1,box"}, "losses= sets them too", "losses=cls,box"),
        ({"balance": "0.1", "losses": "none"}, "there are no losses", "balance="),
        ({"guard": "maybe"}, "guard=maybe is neither on nor off", "guard=off"),
        ({"guard_patience": "0"}, "guard_patience=0", "1, 2, 3"),
        ({"refine_epochs": "1"}, "refine_epochs=1 with epochs=1: every gain is zero", "below 1"),
        ({"refine_epochs": "1", "epochs": "9", "time": "0.5"}, "with time=0.5 nobody knows", "leave out refine_epochs"),
        ({"kd_start": "1", "epochs": "9", "time": "0.5"}, "with time=0.5 nobody knows", "leave out kd_start"),
        ({"teacher": "self", "losses": "cls", "batch": "-1"}, "before there is a running average", "batch=16"),
        ({"refine_epochs": "1", "kd_close": "1", "epochs": "9"}, "both end distillation early", "Keep one"),
    ],
)
def test_bad_input(
    refused: Callable[..., tuple[str, str]],
    toy_teacher: Path,
    toy_student: Path,
    toy_data: Path,
    changes: dict[str, str],
    problem: str,
    remedy: str,
) -> None:
    first, second = refused(*train_words(toy_teacher, toy_student, toy_data, **changes))
    assert problem in first
    assert remedy in second


def test_a_run_folder_under_a_file(
    refused: Callable[..., tuple[str, str]], toy_teacher: Path, toy_student: Path, toy_data: Path, here: Path
) -> None:
    (here / "run").write_text("a file")  # project=
    first, second = refused(*train_words(toy_teacher, toy_student, toy_data))
    assert "cannot be written to" in first
    assert "project=" in second


def test_a_tool_for_ap_that_nobody_knows(
    refused: Callable[..., tuple[str, str]], toy_student: Path, toy_data: Path
) -> None:
    first, second = refused("val", f"model={toy_student}", f"data={toy_data}", "backend=cocoapi")
    assert "backend=cocoapi is not known" in first
    assert "faster-coco-eval" in second


def test_report_of_nothing(refused: Callable[..., tuple[str, str]]) -> None:
    first, second = refused("report")
    assert "needs the folder of a comparison, or of a run" in first
    assert "yolokd report runs/" in second


def no_checkpoint(file: Path, good_file: Path) -> str:
    file.write_text("this is no checkpoint")
    return "not a PyTorch checkpoint"


def truncated(file: Path, good_file: Path) -> str:
    file.write_bytes(good_file.read_bytes()[:50_000])
    return "truncated"


def classifier(file: Path, good_file: Path) -> str:
    YOLO("yolo11n-cls.yaml").save(file)
    return "a classifier"


def nan(file: Path, good_file: Path) -> str:
    model = YOLO(good_file)
    with torch.no_grad():
        model.model.model[-1].cv3[0][-1].bias[0] = float("nan")
    model.save(file)
    return "class scores hold NaN"


def other_classes(file: Path, good_file: Path) -> str:
    save_detector("yolov8n.yaml", file, {0: "cat"})
    return "No class of the teacher (cat) is a class of the data (red, green, blue)"


def one_class(file: Path, good_file: Path) -> str:
    save_detector("yolov8n.yaml", file, {0: "red"})
    return "The loss kd compares classes with one another and needs 2; teacher and data share 1"


class Marks:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


def malicious(file: Path, good_file: Path) -> str:
    torch.save({**torch.load(good_file, weights_only=False), "epoch": Marks(file.with_name("ran"))}, file)
    return f"references {os.system.__module__}.system"


@pytest.mark.parametrize("make", [no_checkpoint, truncated, classifier, nan, other_classes, one_class, malicious])
def test_a_teacher_that_cannot_serve(
    refused: Callable[..., tuple[str, str]],
    toy_teacher: Path,
    toy_student: Path,
    toy_data: Path,
    tmp_path: Path,
    make: Callable[[Path, Path], str],
) -> None:
    file = tmp_path / "bad.pt"
    problem = make(file, toy_teacher)
    first, _ = refused(*train_words(toy_teacher, toy_student, toy_data, teacher=str(file), losses="box,cls,kd"))
    assert problem in first
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("role", ["student", "pretrained"])
def test_every_checkpoint_that_is_named_is_read_safely(
    refused: Callable[..., tuple[str, str]],
    toy_teacher: Path,
    toy_student: Path,
    toy_data: Path,
    tmp_path: Path,
    role: str,
) -> None:
    file = tmp_path / "evil.pt"
    problem = malicious(file, toy_student)
    first, _ = refused(*train_words(toy_teacher, toy_student, toy_data, **{role: str(file)}))
    assert problem in first
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("mode", ["val", "export", "resume"])
def test_other_modes_read_safely_too(
    refused: Callable[..., tuple[str, str]], toy_student: Path, toy_data: Path, tmp_path: Path, mode: str
) -> None:
    file = tmp_path / "evil.pt"
    problem = malicious(file, toy_student)
    commands = {
        "val": ["val", f"model={file}", f"data={toy_data}"],
        "export": ["export", f"model={file}", "format=torchscript"],
        "resume": ["train", f"resume={file}"],
    }
    first, _ = refused(*commands[mode])
    if mode != "resume":  # resume may find other faults in the folder first
        assert problem in first
    assert not (tmp_path / "ran").exists()


def test_an_empty_split(
    refused: Callable[..., tuple[str, str]], toy_teacher: Path, toy_student: Path, toy_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    file = tmp_path / "data.yaml"
    for split, folder in {"train": "images/train", "val": "images/val"}.items():
        file.write_text(toy_data.read_text().replace(folder, str(tmp_path / "empty")))
        first, _ = refused(*train_words(toy_teacher, toy_student, toy_data, data=str(file)))
        assert f"the split {split} has no images" in first


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["trian"], "'trian' is not a mode"),
        (["train", "teacher="], "has no value"),
        (["train", "epochs"], "epochs needs a value"),
        (["train", "imgsz=[3"], "["),
        (["train", "exist_okk"], "'exist_okk'"),
        (["val", "data=coco8.yaml"], "needs model="),
        (["val", "model=x.pt", "data=a.yaml", "dta=b"], "'dta'"),
        (["export"], "needs model= and format="),
        (["checks", "teacher=x.pt"], "needs student= and data="),
        (["losses", "kind=box"], "'kind'"),
        (["cache", "teacher=x.pt"], "needs data="),
        (["cache", "teacher=x.pt", "data=a.yaml", "teacher_cach=y"], "'teacher_cach'"),
        (["cache", "teacher=x.pt", "data=a.yaml"], "teacher=x.pt: no such file"),
        (["cache", "teacher=x.pt,y.pt", "data=a.yaml"], "one teacher that stays as it is"),
        (["cache", "teacher=x.pt", "data=a.yaml", "teacher_imgsz=0.5"], "teacher_imgsz=0.5"),
        (["cache", "teacher=x.pt", "data=a.yaml", "conf=0.5"], "conf: `yolokd cache` reads no such key."),
        (
            ["cache", "teacher=x.pt", "data=a.yaml", "iou=0.3", "max_det=5", "classes=0"],
            "iou, max_det, classes: `yolokd",
        ),
        (
            ["cache", "teacher=x.pt", "data=a.yaml", "losses=cls", "recipe=r.yaml"],
            "losses, recipe: `yolokd cache` reads",
        ),
        (["cache", "teacher=x.pt", "data=a.yaml", "batch=-1"], "batch=-1 is not a number of images"),
        (["cache", "teacher=x.pt", "data=a.yaml", "batch=0.5"], "batch=0.5 is not a number of images"),
        (["cache", "teacher=x.pt", "data=a.yaml", "teacher_cache=True"], "teacher_cache=True names no folder"),
        (["cache", "teacher=x.pt", "data=a.yaml", "teacher_cache=False"], "teacher_cache= names no folder"),
        (["cache", "teacher=x.pt", "data=a.yaml", "teacher_names=red"], "teacher_names is for an exported teacher"),
        (["demo", "epocs=1"], "'epocs'"),
        (["train", "losses=cls"], "teacher= is missing"),
    ],
)
def test_mistakes_in_the_command(refused: Callable[..., tuple[str, str]], words: list[str], problem: str) -> None:
    assert problem in refused(*words)[0]


def test_a_failure_inside_keeps_its_traceback(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**pairs: Any) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(api, "distill", broken)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        main(["train", "epochs=1"])


def test_a_check_of_ultralytics_becomes_two_lines(
    refused: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics.cfg import get_cfg

    monkeypatch.setattr(api, "distill", lambda **pairs: get_cfg(overrides={"epochs": "many"}))
    assert "epochs=many" in refused("train", "epochs=1")[0]
