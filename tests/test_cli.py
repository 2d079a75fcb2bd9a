from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from yolokd import api, cli
from yolokd.cli import main, parse
from yolokd.errors import UserError
from yolokd.export import Exported

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    calls: list[tuple[str, dict[str, Any]]] = []

    def record(name: str, result: Any) -> Callable[..., Any]:
        def function(model: Any = None, data: Any = None, teacher: Any = None, **pairs: Any) -> Any:
            given = {"model": model, "data": data, "teacher": teacher, **pairs}
            calls.append((name, {key: value for key, value in given.items() if value is not None}))
            return result

        return function

    results = {
        "distill": SimpleNamespace(best="best.pt", peers=()),
        "evaluate": "table",
        "export": ("table", []),
        "check": "ok",
    }
    results["cache"] = "stored"
    results["compare"] = SimpleNamespace(failed=())
    results["report"] = Path("report.html")
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
            ["cache", "teacher=a.pt", "data=b.yaml", "imgsz=64"],
            ("cache", {"teacher": "a.pt", "data": "b.yaml", "imgsz": 64}),
        ),
        (
            ["compare", "teacher=a.pt", "seeds=3", "robustness=off"],
            ("compare", {"teacher": "a.pt", "seeds": 3, "robustness": "off"}),
        ),
        (["compare", "resume=runs/detect/worth"], ("compare", {"resume": "runs/detect/worth"})),
        (["report", "runs/detect/worth"], ("report", {"folder": "runs/detect/worth"})),
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


def test_runs_that_failed_are_exit_code_1(called: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "compare", lambda **pairs: SimpleNamespace(failed=("yolokd/seed1",)))
    assert main(["compare", "teacher=a.pt"]) == 1


@pytest.mark.parametrize(("rows", "code"), [(["", ""], 0), (["pip install x", ""], 0), (["pip install x"], 1)])
def test_an_export_that_made_no_file_is_exit_code_1(
    called: Any, here: Path, monkeypatch: pytest.MonkeyPatch, rows: list[str], code: int
) -> None:
    made = [Exported("onnx", missing=missing) for missing in rows]
    monkeypatch.setattr(api, "export", lambda **pairs: ("table", made))
    assert main(["export", "model=a.pt", "format=onnx"]) == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "teacher=a.pt"], "Stopped before the run began."),
        (["cache", "teacher=a.pt", "data=b.yaml"], "Stopped. The same command goes on; at most a minute's answers are"),
    ],
)
def test_stopped_while_torch_is_being_loaded(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", stop)
    monkeypatch.setitem(sys.modules, "ultralytics.utils", None)  # importing it again fails, as torch does
    assert main(words) == 130
    assert said in capsys.readouterr().err


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


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name}-version")
    assert main(["version"]) == 0
    assert capsys.readouterr().out == "yolokd yolokd-version, ultralytics ultralytics-version, torch torch-version\n"


def test_checks_alone_describe_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checks"]) == 0


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
