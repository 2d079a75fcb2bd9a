from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ultralytics import YOLO

from tests.conftest import save_detector
from yolokd import api
from yolokd.cli import main, parse
from yolokd.errors import UserError
from yolokd.losses.base import LOSSES

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run a command that must be refused: exit code 2, two lines on stderr, nothing written."""

    def call(*words: str) -> tuple[str, str]:
        run = here / "run"
        known = sorted(here.rglob("*"))
        capsys.readouterr()
        needs_run = words and words[0] == "train"
        assert main([*words, *([f"project={run}"] if needs_run else [])]) == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        lines = err.splitlines()
        assert len(lines) == 2, err
        assert all(line.strip() for line in lines)
        assert sorted(here.rglob("*")) == known
        return lines[0], lines[1]

    return call


def good(toy_teacher: Path, toy_student: Path, toy_data: Path, **changes: str) -> list[str]:
    pairs = {"teacher": toy_teacher, "student": toy_student, "data": toy_data, "epochs": 1, "imgsz": 64} | changes
    return ["train", *(f"{key}={value}" for key, value in pairs.items())]


# Bad input ------------------------------------------------------------------------------------------------------------


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
        ({"student": "yolov8n-p2.yaml"}, "3 levels", "same levels"),
        ({"student": "yolo11n-seg.yaml"}, "a segmenter", "must be a detector"),
        ({"data": "nowhere.yaml"}, "data=nowhere.yaml: no such file", "data YAML"),
        ({"model": "other.pt"}, "differ", "Keep one"),
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
    first, second = refused(*good(toy_teacher, toy_student, toy_data, **changes))
    assert problem in first
    assert remedy in second


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


class Marks:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


def malicious(file: Path, good_file: Path) -> str:
    torch.save({**torch.load(good_file, weights_only=False), "epoch": Marks(file.with_name("ran"))}, file)
    return f"references {os.system.__module__}.system"


@pytest.mark.parametrize("make", [no_checkpoint, truncated, classifier, nan, other_classes, malicious])
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
    first, _ = refused(*good(toy_teacher, toy_student, toy_data, teacher=str(file)))
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
    first, _ = refused(*good(toy_teacher, toy_student, toy_data, **{role: str(file)}))
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
        first, _ = refused(*good(toy_teacher, toy_student, toy_data, data=str(file)))
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


# What is passed on ----------------------------------------------------------------------------------------------------


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    calls: list[tuple[str, dict[str, Any]]] = []

    def record(name: str, result: Any) -> Callable[..., Any]:
        def function(model: Any = None, data: Any = None, teacher: Any = None, **pairs: Any) -> Any:
            given = {"model": model, "data": data, "teacher": teacher, **pairs}
            calls.append((name, {key: value for key, value in given.items() if value is not None}))
            return result

        return function

    results = {"distill": SimpleNamespace(best="best.pt"), "evaluate": "table", "export": ("table", []), "check": "ok"}
    for name, result in results.items():
        monkeypatch.setattr(api, name, record(name, result))
    return calls


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["train", "teacher=a.pt", "student=b.pt"], ("distill", {"teacher": "a.pt", "student": "b.pt"})),
        (["train", "resume"], ("distill", {"resume": True})),
        (["train", "resume=x/last.pt"], ("distill", {"resume": "x/last.pt"})),
        (["train", "losses=none", "model=b.pt"], ("distill", {"losses": "none", "model": "b.pt"})),
        (["train", "cwd.temperature=2", "epochs", "=", "3"], ("distill", {"cwd.temperature": 2, "epochs": 3})),
        (["val", "model=a.pt", "data=b.yaml"], ("evaluate", {"model": "a.pt", "data": "b.yaml"})),
        (["export", "model=a.pt", "format=onnx,ncnn"], ("export", {"model": "a.pt", "format": "onnx,ncnn"})),
        (
            ["checks", "teacher=a.pt", "model=b.pt", "data=c.yaml"],
            ("check", {"teacher": "a.pt", "student": "b.pt", "data": "c.yaml"}),
        ),
    ],
)
def test_each_mode_calls_one_function(
    called: list[tuple[str, dict[str, Any]]], here: Path, words: list[str], call: tuple[str, dict[str, Any]]
) -> None:
    if words[0] in ("val", "export"):
        call[1].setdefault("data", None)
    assert main(words) == 0
    assert called == [(call[0], {key: value for key, value in call[1].items() if value is not None})]


def test_checks_read_the_recipe(called: list[tuple[str, dict[str, Any]]], here: Path) -> None:
    (here / "mine.yaml").write_text("teacher: a.pt\nstudent: b.pt\ndata: c.yaml\nkd_close: 2\n")
    assert main(["checks", "recipe=mine.yaml", "data=d.yaml"]) == 0
    wanted = {"teacher": "a.pt", "student": "b.pt", "data": "d.yaml", "kd_close": 2}
    assert called == [("check", wanted)]


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        (["a=1", "b=1.5", "c=True", "d=none", "e=text"], {"a": 1, "b": 1.5, "c": True, "d": None, "e": "text"}),
        (["exist_ok", "half", "trust"], {"exist_ok": True, "half": True, "trust": True}),
        (["--epochs=3", "imgsz=[64,", "96]", "lr0=.1,"], {"epochs": 3, "imgsz": [64, 96], "lr0": 0.1}),
        (["losses=cls:1,box:2"], {"losses": "cls:1,box:2"}),
        (["losses=None"], {"losses": "none"}),
        (["losses={'cls': 1}"], {"losses": {"cls": 1}}),
        (["device=0,1"], {"device": (0, 1)}),
        (["name=007"], {"name": "007"}),
    ],
)
def test_the_grammar_is_ultralytics(words: list[str], pairs: dict[str, Any]) -> None:
    assert parse(words) == pairs


def test_a_bare_word_that_is_no_flag_is_refused() -> None:
    with pytest.raises(UserError, match="needs a value"):
        parse(["teacher"])


@pytest.mark.parametrize(("began", "resume"), [(True, None), (False, None), (False, "x/weights/last.pt")])
def test_ctrl_c_says_how_to_go_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], began: bool, resume: str | None
) -> None:
    folder = here / "run" / "train"

    def interrupted(**pairs: Any) -> None:
        if began:
            folder.mkdir(parents=True)
            (folder / "distill.yaml").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "distill", interrupted)
    words = ["train", f"project={here / 'run'}", *([f"resume={resume}"] if resume else [])]
    assert main(words) == 130
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert ("yolokd train resume=" in error) == (began or resume is not None)
    if began:
        assert error.endswith(f"resume={folder / 'weights' / 'last.pt'}")


# Help -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["-h"]])
def test_help_lists_modes_and_keys(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    for word in ("train", "val", "export", "checks", "losses", "demo", "teacher_precision", "kd_close", "class_map"):
        assert f"  {word} " in out


@pytest.mark.parametrize("mode", ["train", "val", "export", "checks", "losses", "demo"])
def test_help_of_a_mode(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([mode, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"yolokd {mode}: ")
    assert f"  yolokd {mode}" in out
    if mode in ("train", "checks"):
        assert all(info.link in out for info in LOSSES.values())


def test_losses_are_listed_with_gain_needs_options_and_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses"]) == 0
    out = capsys.readouterr().out
    for info in LOSSES.values():
        for piece in (info.name, info.family, info.link, info.paper, f"gain {info.gain:g}", *info.needs):
            assert piece in out
    assert "cwd.temperature=1.0" in out


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name}-version")
    assert main(["version"]) == 0
    assert capsys.readouterr().out == "yolokd yolokd-version, ultralytics ultralytics-version, torch torch-version\n"


def test_checks_alone_describe_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checks"]) == 0


def test_help_comes_at_once(here: Path) -> None:
    code = "import sys, yolokd.cli; yolokd.cli.main(['--help']); print({'torch', 'ultralytics'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"  # importing torch takes seconds


def test_a_refused_command_prints_two_lines_and_nothing_of_pythons(here: Path, toy_teacher: Path) -> None:
    words = ["train", f"teacher={toy_teacher}", "student=nowhere.pt", "data=coco8.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "yolokd", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "student=nowhere.pt: no such file.",
        "Check the path; a name alone is looked for in this folder.",
    ]
    assert list(here.iterdir()) == []
