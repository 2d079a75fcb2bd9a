"""Training in steps: who teaches whom, and what every kill leaves; the trainings are made up here."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.conftest import NAMES, save_detector
from tests.test_resume import said  # noqa: F401
from yolokd import api, chain, config
from yolokd.cli import main
from yolokd.errors import UserError
from yolokd.runs import Run
from yolokd.steps import Chain
from yolokd.trainer import RECIPE, DistillationTrainer


class Killed(BaseException):
    """Stands for a SIGKILL: no `except Exception` sees it."""


class Machine:
    """Trains without training: writes what a training writes, in two parts, and dies when it is told to."""

    def __init__(self) -> None:
        self.fuse = -1  # how many moments until it dies; -1: never
        self.calls: list[dict[str, Any]] = []
        self.fitness: dict[str, float] = {}

    def moment(self) -> None:
        self.fuse -= 1
        if self.fuse == -1:
            raise Killed

    def train(self, given: dict[str, Any]) -> Run:
        self.moment()
        self.calls.append(dict(given))
        folder = Path(given.get("resume") or given["save_dir"])
        weights = folder / "weights"
        weights.mkdir(parents=True, exist_ok=True)
        if not given.get("resume"):
            (folder / RECIPE).write_text(yaml.safe_dump(given))
        self.moment()
        teacher, student = given.get("teacher"), yaml.safe_load((folder / RECIPE).read_text())["student"]
        under = f"({Path(teacher).read_text()})" if teacher else ""
        for file in (weights / "best.pt", weights / "last.pt"):
            if not file.exists():
                file.write_text(f"{folder.name}:{Path(student).read_text()}{under}")
                self.moment()
        return Run(folder, {"fitness": self.fitness.get(folder.name, 0.5)})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, here: Path) -> Machine:
    """Chains in an empty folder with four files that are called models."""
    made = Machine()
    for name in ("x", "m", "s", "n"):
        (here / f"{name}.pt").write_text(name)

    def settle(overrides: dict[str, Any], worker: bool) -> Any:
        teacher = overrides.get("teacher") or ""
        return None, SimpleNamespace(teacher_sha256=chain._fingerprints(teacher) if teacher else ""), {}

    monkeypatch.setattr(chain, "settle", settle)
    monkeypatch.setattr(chain, "train", made.train)
    monkeypatch.setattr(chain, "finished_run", lambda folder, trust: Run(folder, {}))
    monkeypatch.setattr(chain, "data_of", lambda *args: {"names": {0: "a"}, "channels": 3})
    monkeypatch.setattr(chain, "build_student", lambda *args, **more: None)
    monkeypatch.setattr(chain.gc, "collect", lambda: None)  # slow, and nothing is there
    replace = os.replace

    def watched(source: Any, target: Any) -> None:
        made.moment()
        replace(source, target)
        made.moment()

    monkeypatch.setattr(os, "replace", watched)
    return made


VIA: dict[str, Any] = {"teacher": "x.pt", "via": "m.pt,s.pt", "student": "n.pt", "data": "d.yaml", "epochs": 3}
AGAIN: dict[str, Any] = {"teacher": "born-again", "generations": 3, "student": "n.pt", "data": "d.yaml", "epochs": 3}
WORSE = {"0": 0.5, "1": 0.4, "2": 0.6, "3": 0.6}


def begin(here: Path, keys: dict[str, Any], **more: Any) -> Run:
    return api.distill(**keys, **{"project": str(here / "run"), "name": "c", **more})


def weights(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in sorted(folder.glob("**/*.pt"))}


def steps(here: Path) -> list[tuple[str, str, str]]:
    return [(step.name, step.teacher, step.state) for step in Chain.load(here / "run" / "c").steps]


def test_each_step_is_taught_by_what_the_one_before_trained(machine: Machine, here: Path) -> None:
    run = begin(here, VIA)
    assert run.save_dir == here / "run" / "c"
    assert run.best.read_text() == run.last.read_text() == "3-n:n(2-s:s(1-m:m(x)))"
    assert [Path(call["student"]) for call in machine.calls] == [here / "m.pt", here / "s.pt", here / "n.pt"]
    assert [Path(call["save_dir"]).name for call in machine.calls] == ["1-m", "2-s", "3-n"]
    assert all(call["epochs"] == 3 for call in machine.calls)
    assert not any(key in call for call in machine.calls for key in ("via", "name", "exist_ok"))


def test_a_generation_that_is_worse_or_equal_neither_teaches_nor_stays(
    machine: Machine,
    here: Path,
    said: list[str],  # noqa: F811
) -> None:
    machine.fitness = WORSE
    run = begin(here, AGAIN)
    assert "generation 1: put aside, not better than generation 0 (fitness 0.4000, 0.5000)" in said
    assert "generation 2: kept, better than generation 0 (fitness 0.6000, 0.5000)" in said
    assert run.best.read_text() == run.last.read_text() == "2:n(0:n)"  # 3 is as good as 2, which taught it
    assert weights(run.save_dir)["3/weights/best.pt"] == "3:n(2:n(0:n))"
    assert [name for _, name, _ in steps(here)] == ["", "0", "0", "2"]


def test_generation_0_differs_by_its_teacher_alone(machine: Machine, here: Path) -> None:
    keys = {"losses": "cls,cwd", "cwd.temperature": 2, "balance": 0.1, "refine_epochs": 1, "kd_close": 0, "seed": 5}
    begin(here, {**AGAIN, "generations": 1}, **keys, lr0=0.1)
    plain, taught = machine.calls
    assert plain["losses"] == "none"
    assert set(taught) - set(plain) == {"cwd.temperature", "balance", "kd_close", "teacher"}
    assert (plain["seed"], taught["seed"]) == (5, 6)  # else a generation after one that was put aside would repeat it
    for key in ("refine_epochs", "lr0", "epochs", "student", "data"):
        assert key in plain
        assert plain[key] == taught[key]


def test_born_again_alone_is_one_round(machine: Machine, here: Path) -> None:
    begin(here, {key: value for key, value in AGAIN.items() if key != "generations"})
    assert [name for name, _, _ in steps(here)] == ["0", "1"]


def test_what_is_said_of_the_teacher_or_the_student_reaches_no_other_step(machine: Machine, here: Path) -> None:
    (here / "p.pt").write_text("p")
    begin(here, VIA, class_map={"a": "b"}, pretrained="p.pt")
    assert [call.get("class_map") for call in machine.calls] == [{"a": "b"}, None, None]
    assert [call.get("pretrained") for call in machine.calls] == [None, None, str(here / "p.pt")]


def test_what_is_said_of_the_first_teacher_reaches_no_later_step(machine: Machine, here: Path) -> None:
    (here / "x.onnx").write_text("x")
    first = {"teacher_names": "red,green", "teacher_boxes": "xyxy", "teacher_imgsz": 1280}
    every = {"teacher_every": 2, "teacher_device": "cpu"}
    begin(here, {**VIA, "teacher": "x.onnx"}, **first, **every)
    one, *others = machine.calls
    assert {key: one.get(key) for key in first} == first
    assert len(others) == 2
    for call in machine.calls:
        assert {key: call.get(key) for key in every} == every
    assert not any(key in call for call in others for key in first)
    for call in others:  # or it would be refused: their teachers are checkpoints
        config.build_config({k: v for k, v in call.items() if k.startswith("teacher") or k == "losses"})


def test_the_manifest_comes_first_and_knows_the_files(machine: Machine, here: Path) -> None:
    machine.fuse = 2  # the moments around the folder's appearance are over
    with pytest.raises(Killed):
        begin(here, VIA)
    content = yaml.safe_load((here / "run" / "c" / chain.MANIFEST).read_text())
    assert content["files"][str(here / "x.pt")] == chain.sha256(here / "x.pt")
    assert len(content["files"]) == 4
    assert content["settings"]["epochs"] == 3
    assert [step["state"] for step in content["steps"]] == ["waiting"] * 3
    assert not machine.calls


@pytest.mark.parametrize("keys", [VIA, AGAIN], ids=["via", "born-again"])
def test_killed_at_every_moment_and_resumed_it_ends_the_same(
    machine: Machine, here: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.fitness = WORSE
    whole = begin(here, keys, name="whole")
    expected, trainings = weights(whole.save_dir), len(machine.calls)
    assert trainings == len(expected) // 2 - 1
    for moment in itertools.count():
        folder = here / "run" / f"c{moment}"
        machine.fuse, machine.calls = moment, []
        try:
            begin(here, keys, name=folder.name)
        except Killed:
            machine.fuse = -1
        if machine.fuse >= 0:
            break  # it outlived the whole chain
        if folder.exists():
            finished = {name for name, step in weights(folder).items() if state(folder, name) == "finished"}
            before = stamps(folder, finished)
            machine.calls = []
            # Another folder to stand in: every path must have been written down whole.
            monkeypatch.chdir(here.parent)
            api.distill(resume=folder)
            monkeypatch.chdir(here)
            assert stamps(folder, finished) == before
            assert not {Path(c.get("resume") or c["save_dir"]).name for c in machine.calls} & {
                name.split("/")[0] for name in finished
            }
        else:  # killed before there was a run
            begin(here, keys, name=folder.name)
        assert weights(folder) == expected
        assert {step.state for step in Chain.load(folder).steps} == {"finished"}
        after, machine.calls = stamps(folder, set(expected)), []
        api.distill(resume=folder)
        assert stamps(folder, set(expected)) == after
        assert not machine.calls
        assert not list(folder.rglob(".*"))
    assert moment > 25


def state(folder: Path, name: str) -> str:
    return {step.name: step.state for step in Chain.load(folder).steps}.get(name.split("/")[0], "")


def stamps(folder: Path, names: set[str]) -> dict[str, tuple[int, str]]:
    return {name: ((folder / name).stat().st_mtime_ns, (folder / name).read_text()) for name in names}


def cut_off(machine: Machine, here: Path, keys: dict[str, Any], calls: int, **more: Any) -> Path:
    """A chain that was killed when the given number of trainings had begun."""

    def dying(given: dict[str, Any], train: Callable[[Any], Run] = machine.train) -> Run:
        if len(machine.calls) == calls:
            machine.fuse = 1  # within the next one, after its settings were written down
        return train(given)

    chain.train = dying  # type: ignore[assignment]
    with pytest.raises(Killed):
        begin(here, keys, **more)
    chain.train, machine.calls = machine.train, []  # type: ignore[assignment]
    return here / "run" / "c"


def test_resume_names_the_current_teacher_since_the_folder_may_have_moved(machine: Machine, here: Path) -> None:
    folder = cut_off(machine, here, VIA, 1)
    assert [s for _, _, s in steps(here)] == ["finished", "running", "waiting"]
    for torn in (".chain.yaml.0123abcd.partial", "weights/.best.pt.0123abcd.partial"):
        (folder / "weights").mkdir(exist_ok=True)
        (folder / torn).write_text("torn")
    (folder / ".2-s.partial").mkdir()  # the step's folder was about to appear
    (folder / ".2-s.partial" / RECIPE).write_text("whole")
    moved = folder.rename(here / "elsewhere")
    api.distill(resume=moved)
    first = machine.calls[0]
    assert (first["resume"], first["teacher"]) == (str(moved / "2-s"), str(moved / "1-m/weights/best.pt"))
    assert (moved / "weights/best.pt").read_text() == "3-n:n(2-s:s(1-m:m(x)))"
    assert not list(moved.rglob(".*"))


def test_what_resume_may_change_is_remembered_and_the_rest_is_ignored_aloud(
    machine: Machine,
    here: Path,
    said: list[str],  # noqa: F811
) -> None:
    folder = cut_off(machine, here, VIA, 1)
    machine.fuse = 4  # the changes are written down, the step is taken up
    with pytest.raises(Killed):
        api.distill(resume=folder, device=(0, 1), batch=4, epochs=9, losses="cwd")
    machine.fuse = -1
    api.distill(resume=folder)
    first, again, last = machine.calls
    assert (first["device"], first["batch"], first.get("epochs")) == ((0, 1), 4, None)
    assert "batch" not in again  # of itself a run that was resumed goes on as it was
    assert (last["device"], last["batch"], last["epochs"]) == ([0, 1], 4, 3)
    assert any("Resume ignores epochs, losses" in line for line in said)


@pytest.mark.parametrize("change", [{"data": "typo.yaml"}, {"teacher_device": "gpu"}, {"batch": "many"}])
def test_what_resume_cannot_change_to_is_not_remembered(machine: Machine, here: Path, change: dict[str, Any]) -> None:
    folder = cut_off(machine, here, VIA, 1)
    before = (folder / chain.MANIFEST).read_text()
    with pytest.raises((UserError, TypeError)):
        api.distill(resume=folder, **change)
    assert (folder / chain.MANIFEST).read_text() == before


def test_the_teacher_may_move_but_not_change(machine: Machine, here: Path) -> None:
    folder = cut_off(machine, here, VIA, 0)
    (folder / "1-m" / RECIPE).unlink()  # it had not begun at all
    (here / "x.pt").rename(here / "y.pt")
    with pytest.raises(UserError, match=r"x\.pt: no such file"):
        api.distill(resume=folder)
    (here / "x.pt").write_text("another")
    with pytest.raises(UserError, match=r"x\.pt is not the file that this chain began with"):
        api.distill(resume=folder)
    with pytest.raises(UserError, match=r"s\.pt is not the file that this chain began with"):
        api.distill(resume=folder, teacher="s.pt")
    (here / "x.pt").unlink()
    assert api.distill(resume=folder, teacher="y.pt").best.read_text() == "3-n:n(2-s:s(1-m:m(x)))"


def test_a_model_that_is_still_to_be_trained_must_be_the_same_file(machine: Machine, here: Path) -> None:
    folder = cut_off(machine, here, VIA, 1)
    (here / "m.pt").write_text("done with")  # what step 2 began with stands in its own files
    (here / "s.pt").write_text("done with as well")
    (here / "n.pt").write_text("another")
    with pytest.raises(UserError, match=r"n\.pt is not the file that this chain began with"):
        api.distill(resume=folder)
    (here / "n.pt").unlink()
    with pytest.raises(UserError, match=r"n\.pt is not there any more"):
        api.distill(resume=folder)
    assert not machine.calls
    (here / "n.pt").write_text("n")
    assert api.distill(resume=folder).best.is_file()


def test_resume_finds_the_chain_from_anywhere_in_it(machine: Machine, here: Path) -> None:
    folder = begin(here, VIA).save_dir
    places = [folder, folder / "weights/last.pt", folder / "1-m", folder / "2-s/weights/last.pt", "run/c"]
    assert [chain.chain_of(place) for place in places] == [folder] * len(places)
    other = folder / "other"
    (other / "weights").mkdir(parents=True)
    assert chain.chain_of(other) is None
    assert chain.chain_of(here / "nowhere") is None
    assert chain.chain_of(True) == chain.chain_of("True") == folder


def test_a_finished_chain_says_so(
    machine: Machine,
    here: Path,
    said: list[str],  # noqa: F811
) -> None:
    folder = begin(here, VIA).save_dir
    assert main(["train", f"resume={folder}"]) == 0
    assert f"{folder} is finished, nothing to resume. Its student is {folder / 'weights/best.pt'}." in said
    assert "\nstep 2 of 3: m (distilled) -> s" in said
    assert "\nstep 1 of 3: x -> m" in said


def test_an_older_run_in_the_same_folder_counts_for_nothing(machine: Machine, here: Path) -> None:
    folder = begin(here, VIA).save_dir
    (folder / RECIPE).write_text("of a plain run")
    (here / "m.pt").write_text("newer")
    for moment in range(12):
        machine.fuse, machine.calls = moment, []
        with pytest.raises(Killed):
            begin(here, VIA, exist_ok=True)
        machine.fuse = -1
        if Chain.load(folder).steps[0].state == "finished":
            continue  # it had not come to write its own manifest, or was done with the step
        machine.calls = []
        api.distill(resume=folder)
        assert [Path(c.get("resume") or c["save_dir"]).name for c in machine.calls] == ["1-m", "2-s", "3-n"]
        assert not (folder / RECIPE).exists()
        assert (folder / "weights/best.pt").read_text() == "3-n:n(2-s:s(1-m:newer(x)))"
    assert begin(here, VIA).save_dir == here / "run" / "c-2"
    assert begin(here, VIA, save_dir=str(here / "own")).save_dir == here / "own"


def test_a_file_that_the_new_run_would_write_over_is_refused(machine: Machine, here: Path) -> None:
    folder = begin(here, VIA).save_dir
    before = weights(folder)
    with pytest.raises(UserError, match="which this run would begin anew"):
        begin(here, {**VIA, "student": str(folder / "weights/best.pt")}, exist_ok=True)
    assert weights(folder) == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "cannot be read"),
        ("", "cannot be read"),
        ("version: 1", "cannot be read"),
        ("version: 9\nsteps: []", "9"),
    ],
)
def test_a_manifest_that_is_not_ours(machine: Machine, here: Path, text: str, problem: str) -> None:
    (here / "c").mkdir()
    (here / "c" / chain.MANIFEST).write_text(text)
    with pytest.raises(UserError, match=problem):
        api.distill(resume=here / "c")


def test_a_setting_that_cannot_be_written_down_is_refused(machine: Machine, here: Path) -> None:
    with pytest.raises(UserError, match="cannot be written down"):
        begin(here, VIA, augmentations=[object()])
    assert not (here / "run").exists()


def test_via_as_a_list_of_paths_and_an_empty_one(machine: Machine, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(here, {**VIA, "via": [Path("m.pt")]})
    assert [name for name, _, _ in steps(here)] == ["1-m", "2-n"]
    alone: list[dict[str, Any]] = []
    monkeypatch.setattr(api, "train", lambda given: alone.append(given))
    begin(here, {**VIA, "via": []})
    assert alone
    assert "via" not in alone[0]


def test_a_recipe_may_hold_the_chain(machine: Machine, here: Path) -> None:
    (here / "mine.yaml").write_text(yaml.safe_dump({**VIA, "project": "run", "epochs": 7}))
    assert main(["train", "recipe=mine.yaml", f"project={here / 'run'}", "epochs=4"]) == 0
    assert [call["epochs"] for call in machine.calls] == [4, 4, 4]


def test_ctrl_c_names_the_folder_of_the_chain(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = here / "run" / "c"

    def interrupted(**pairs: Any) -> None:
        (folder / "1-m").mkdir(parents=True)
        (folder / chain.MANIFEST).write_text("")
        (folder / "1-m" / RECIPE).write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "distill", interrupted)
    assert main(["train", f"project={here / 'run'}"]) == 130
    assert capsys.readouterr().err.strip().endswith(f"yolokd train resume={folder}")


# What is refused, with real models ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(
    toy_teacher: Path, toy_student: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    between = save_detector("yolov8n.yaml", tmp_path_factory.mktemp("via") / "between.pt", NAMES, seed=3)
    return {"teacher": toy_teacher, "via": between, "student": toy_student, "data": toy_data, "epochs": 1, "imgsz": 64}


@pytest.mark.parametrize(
    ("changes", "problem", "remedy"),
    [
        ({"teacher": None}, "via= has no teacher=", "teacher=yolo11x.pt"),
        ({"losses": "none"}, "via= with losses=none", "Name losses"),
        ({"generations": 2}, "generations=2 is for teacher=born-again", "leave out generations="),
        ({"teacher": "born-again"}, "via= leads from a teacher", "Keep one"),
        (
            {"teacher": "born-again", "via": None, "losses": "none"},
            "teacher=born-again with losses=none",
            "Name losses",
        ),
        ({"teacher": "born-again", "via": None, "generations": 0}, "generations=0 is not a number", "1, 2, 3"),
        ({"teacher": "born-again", "via": None, "generations": "x"}, "generations=x is not a number", "1, 2, 3"),
        ({"teacher": "born-again", "via": None, "student": None}, "student= is missing", "yolo11n.pt"),
        ({"via": "a.pt,,b.pt"}, "an empty name", "via=yolo11m.pt"),
        ({"via": "nowhere/a.pt"}, "via=nowhere/a.pt: no such file", "Check the path"),
        ({"via": "yolo11m.pt"}, "via=yolo11m.pt is not here", "Put the file into"),
        ({"via": "yolo11n-seg.yaml"}, "teacher -> yolo11n-seg", "must be a detector"),
        ({"via": "yolo11nn.yaml"}, "yolo11nn.yaml: no such model YAML", "by name"),
        ({"save": "False"}, "save=False keeps no best.pt", "Leave out save="),
        ({"teacher_cache": "answers"}, "one teacher's answers", "Leave out teacher_cache="),
        ({"losses": "cls,bx"}, "'bx' is not a loss", "box"),
        ({"data": "nowhere.yaml"}, "data=nowhere.yaml: no such file", "data YAML"),
        ({"kd_close": 1}, "every gain is zero throughout", "below 1"),
    ],
)
def test_refused_before_the_first_step(
    refused: Callable[..., tuple[str, str]], inputs: dict[str, Any], changes: dict[str, Any], problem: str, remedy: str
) -> None:
    keys = {**inputs, **changes}
    first, second = refused("train", *(f"{key}={value}" for key, value in keys.items() if value is not None))
    assert problem in first
    assert remedy in second


def test_a_model_that_stands_twice_is_refused(refused: Callable[..., tuple[str, str]], inputs: dict[str, Any]) -> None:
    for twice in (f"{inputs['via']},{inputs['via']}", inputs["teacher"], inputs["student"]):
        keys = {**inputs, "via": twice}
        assert "stands twice" in refused("train", *(f"{key}={value}" for key, value in keys.items()))[0]


def test_a_later_pair_that_cannot_work_is_refused_by_its_own_names(
    refused: Callable[..., tuple[str, str]], inputs: dict[str, Any], toy_student: Path
) -> None:
    # Layer 22 of YOLO11 is the deepest level, that of YOLOv8 is its head.
    keys = {**inputs, "teacher": save_detector("yolo11n.yaml", inputs["via"].with_name("first.pt"), NAMES, 4)}
    keys |= {"taps": "21:22", "losses": "cwd"}
    problem, _ = refused("train", *(f"{key}={value}" for key, value in keys.items()))
    assert problem.startswith("Step 2 of 2: between (distilled) -> student: ")
    assert "teacher: layer 22 is the head of the model" in problem


def test_one_trainer_cannot_do_several_steps(inputs: dict[str, Any]) -> None:
    plain = {key: str(value) for key, value in inputs.items() if key != "via"}
    for several in ({"via": "a.pt"}, {"generations": 2}, {"teacher": "born-again"}):
        with pytest.raises(UserError, match="these are several trainings"):
            DistillationTrainer(overrides={**plain, **several})
        with pytest.raises(UserError, match="these are several trainings"):
            api.check(**{**plain, **several})
