"""A comparison from its command to its table, through kills, failures and refusals; the runs are made up here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from tests.evaluation.runs import Killed, Machine, finish, machine  # noqa: F401
from tests.test_resume import said  # noqa: F401
from yolokd.errors import UserError
from yolokd.evaluation.compare import Compared, compare
from yolokd.evaluation.comparison import Comparison

Begin = Callable[..., Compared]


@pytest.fixture
def begin(machine: Machine, toy_data: Path, here: Path) -> Begin:  # noqa: F811
    def call(**more: Any) -> Compared:
        keys = {"teacher": "t.pt", "student": "n.pt", "data": toy_data, "arms": "plain,yolokd", "seeds": 2}
        return compare(
            **{**keys, "epochs": 3, "imgsz": 64, "batch": 4, "project": str(here / "run"), "name": "c", **more}
        )

    return call


def refused(call: Callable[..., Any], words: str, **keys: Any) -> None:
    with pytest.raises(UserError) as error:
        call(**keys)
    assert words in error.value.problem
    assert len(str(error.value).splitlines()) == 2
    assert error.value.remedy


def test_the_teacher_first_then_a_seed_of_every_arm(
    begin: Begin,
    machine: Machine,  # noqa: F811
    here: Path,
    said: list[str],  # noqa: F811
) -> None:
    done = begin()
    assert machine.started == ["teacher", "plain/0", "yolokd/0", "plain/1", "yolokd/1"]
    assert machine.analysed == [{"folder": here / "run" / "c", "robustness": True}]
    assert machine.stopped == 5
    assert done.failed == ()
    assert str(done).splitlines() == [
        "              seeds     AP  to plain     95 % interval  verdict",
        "teacher t.pt         0.400",
        "plain             2  0.250",
        "yolokd            2  0.262    +0.012  +0.004 to +0.020    helps",
        "It helps.",
        f"All of it: {here / 'run' / 'c'}",
    ]
    assert "seed 1 of 2, plain: AP .250 in 60 s (about 3 min left)" in said
    assert "seed 2 of 2, yolokd: AP .250 in 60 s" in said
    assert "teacher: AP .250" in said
    assert any("has no split test: 2 of its 8 training images judge" in line for line in said)
    assert any("a verdict takes at least 3 seeds, better 5; here: 2" in line for line in said)


def test_the_manifest_says_all_of_it(begin: Begin, toy_data: Path, here: Path) -> None:
    begin(losses="cls", lr0=0.1, robustness="off")
    content = yaml.safe_load((here / "run" / "c" / "compare.yaml").read_text())
    assert content["settings"] == {
        **{"epochs": 3, "imgsz": 64, "batch": 4, "patience": 0, "plots": False},
        "lr0": 0.1,
    }
    assert content["arms"][1]["keys"] == {"teacher": str(here / "t.pt"), "losses": "cls"}
    assert (content["student"], content["robustness"], content["seeds"]) == (str(here / "n.pt"), False, [0, 1])
    assert len(content["files"]) == 5  # student, teacher, YAML, training and validation labels
    assert all(len(digest) == 64 for digest in content["files"].values())
    assert {"cpu", "cores", "memory_gb", "gpu", "python", "torch", "ultralytics", "yolokd"} == set(content["machine"])
    assert content["command"].startswith("yolokd compare teacher=t.pt student=n.pt data=")
    assert content["command"].endswith(
        "epochs=3 imgsz=64 batch=4 project=" + str(here / "run") + " name=c losses=cls lr0=0.1 robustness=off"
    )
    assert Comparison.load(here / "run" / "c").text() == (here / "run" / "c" / "compare.yaml").read_text()


def test_killed_anywhere_it_goes_on_and_repeats_nothing(begin: Begin, machine: Machine, here: Path) -> None:  # noqa: F811
    whole = ["teacher", "plain/0", "yolokd/0", "plain/1", "yolokd/1"]
    for moment in whole:
        machine.dies[moment] = Killed()
        with pytest.raises(Killed):
            begin()
        begun = Comparison.load(here / "run" / "c")
        assert [f"{arm}/{seed}" for arm, seed in begun.runs_left()] == [
            n for n in whole[whole.index(moment) :] if "/" in n
        ]
    times = {file: file.stat().st_mtime_ns for file in (here / "run" / "c").rglob("result.json")}
    compare(resume=here / "run" / "c")
    assert [name for name in machine.started if machine.started.count(name) != 2] == []  # once killed, once finished
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())
    machine.started.clear()
    assert begin().report["verdict"]["text"] == "It helps."
    assert machine.started == []
    assert len(machine.analysed) == 2


def test_ctrl_c_stops_the_runs_and_says_how_to_go_on(begin: Begin, machine: Machine, here: Path) -> None:  # noqa: F811
    machine.dies["plain/1"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt, match=f"Stopped. Go on with: yolokd compare resume={here / 'run' / 'c'}"):
        begin(jobs=2)
    assert machine.stopped >= 3


def test_a_run_that_fails_stops_no_other_and_is_tried_again(
    begin: Begin,
    machine: Machine,  # noqa: F811
    said: list[str],  # noqa: F811
    here: Path,
) -> None:
    machine.fails = {"yolokd/0"}
    done = begin()
    assert done.failed == ("yolokd/seed0",)
    assert str(done).splitlines()[-3:] == [
        f"All of it: {here / 'run' / 'c'}",
        "1 run failed: yolokd/seed0.",
        f"Go on with: yolokd compare resume={here / 'run' / 'c'}",
    ]
    assert len(machine.analysed) == 1  # of what there is
    at = next(i for i, line in enumerate(said) if "FAILED" in line)
    log = here / "run" / "c" / "yolokd" / "seed0.log"
    assert said[at : at + 2] == [
        f"seed 1 of 2, yolokd: FAILED (exit code 1), see {log}:",
        "  noise | ValueError: it fell over",
    ]
    machine.fails.clear()
    machine.started.clear()
    assert begin().failed == ()
    assert machine.started == ["yolokd/0"]
    machine.fails = {f"{arm}/{seed}" for arm in ("plain", "yolokd") for seed in (0, 1)}
    nothing = begin(name="d")
    assert (nothing.report, len(nothing.failed)) == ({}, 4)
    assert len(machine.analysed) == 2
    assert "4 runs failed" in str(nothing)


def test_a_run_without_its_detections_is_judged_again(begin: Begin, machine: Machine, here: Path) -> None:  # noqa: F811
    begin()
    (here / "run" / "c" / "plain" / "seed1" / "last.npz").unlink()
    machine.started.clear()
    begin()
    assert machine.started == ["plain/1"]


def test_what_runs_where_may_be_said_anew_and_nothing_else(begin: Begin, machine: Machine, here: Path) -> None:  # noqa: F811
    machine.dies["plain/0"] = Killed()
    with pytest.raises(Killed):
        begin(device="cpu")
    folder = here / "run" / "c"
    refused(compare, "epochs= and lr0= beside resume=", resume=folder, lr0=0.1, epochs=4)
    refused(compare, "holds no comparison", resume=here)
    refused(compare, "jobs=0 is not a number of runs", resume=folder, jobs=0)
    compare(resume=folder, jobs=2, device="0,1", robustness="off")
    assert machine.analysed[-1]["robustness"] is False
    devices = [word for words in machine.words[-4:] for word in words if word.startswith("device=")]
    assert sorted(set(devices)) == ["device=0", "device=1"]
    loaded = Comparison.load(folder)
    assert (loaded.jobs, loaded.settings["device"], loaded.robustness) == (2, "0,1", False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 4}, "began with epochs=3, and now it is epochs=4."),
        ({"seeds": 1}, "has seeds=0,1, and now it is 0."),
        ({"seeds": [1, 0, 2]}, "has seeds=0,1, and now it is 1,0,2."),
        ({"arms": "plain,native,yolokd"}, "began with arms=plain,yolokd"),
        ({"losses": "cls"}, "began with no yolokd.losses, and now it is yolokd.losses=cls."),
        ({"eval_split": "val"}, "began with eval_split=test, and now it is eval_split=val."),
        ({"lr0": 0.5}, "began with no lr0, and now it is lr0=0.5."),
    ],
)
def test_another_comparison_under_the_same_name(
    begin: Begin,
    here: Path,
    change: dict[str, Any],
    words: str,
) -> None:
    begin()
    before = (here / "run/c/compare.yaml").read_text()
    refused(begin, words, **change)
    assert (here / "run/c/compare.yaml").read_text() == before


@pytest.mark.parametrize("how", ["the same command", "resume="])
def test_more_seeds(begin: Begin, machine: Machine, here: Path, how: str) -> None:  # noqa: F811
    begin()
    folder, first = here / "run" / "c", list(machine.started)

    def grow(seeds: int) -> None:
        begin(seeds=seeds) if how == "the same command" else compare(resume=folder, seeds=seeds)

    grow(3)
    assert machine.started == [*first, "plain/2", "yolokd/2"]
    assert (Comparison.load(folder).seeds, Comparison.load(folder).looked) == ([0, 1, 2], [])  # nobody had looked
    (folder / "report.json").touch()
    grow(4)
    compare(resume=folder)
    grown = Comparison.load(folder)
    assert (grown.seeds, grown.looked) == ([0, 1, 2, 3], [3])
    assert grown.command.split()[-1] == "seeds=0,1,2,3"  # what would do the same again
    assert grown.command.count("seeds=") == 1


def test_a_file_that_has_changed(begin: Begin, machine: Machine, toy_data: Path, here: Path) -> None:  # noqa: F811
    machine.dies["yolokd/1"] = Killed()
    with pytest.raises(Killed):
        begin()
    folder = here / "run" / "c"
    for file in (here / "t.pt", here / "n.pt"):
        before = file.read_text()
        file.write_text("another")
        refused(begin, f"{file} is not what this comparison began with")
        refused(compare, f"{file} is not what this comparison began with", resume=folder)
        file.unlink()
        refused(compare, f"{file}: no such file" if file.stem == "t" else "n.pt is not there any more", resume=folder)
        file.write_text(before)
    label = toy_data.parent / "labels" / "train" / "0.txt"
    before = label.read_text()
    try:
        label.write_text("0 .5 .5 .1 .1")
        refused(compare, "train: names and labels of 8 images is not what", resume=folder)
    finally:
        label.write_text(before)
    compare(resume=folder)
    (here / "t.pt").unlink()
    compare(resume=folder)  # all is trained: what is gone is not missed
    (here / "n.pt").write_text("another")
    refused(compare, "n.pt is not what this comparison began with", resume=folder)


def test_runs_of_other_versions_are_not_mixed(begin: Begin, machine: Machine, here: Path) -> None:  # noqa: F811
    machine.dies["yolokd/1"] = Killed()
    with pytest.raises(Killed):
        begin()
    file = here / "run" / "c" / "compare.yaml"
    content = yaml.safe_load(file.read_text())
    content["machine"]["ultralytics"] = "8.4.120"
    file.write_text(yaml.safe_dump(content))
    refused(begin, "began with ultralytics 8.4.120 (here ")
    finish(Comparison.load(file.parent), "yolokd", 1)
    assert begin().failed == ()  # nothing is left to train


def test_two_processes_do_not_share_a_folder(begin: Begin, here: Path) -> None:
    begin()
    with FileLock(here / "run" / "c" / ".lock"):
        refused(begin, "Another process is working on")


def test_a_folder_that_holds_something_else(begin: Begin, here: Path) -> None:
    (here / "run" / "c").mkdir(parents=True)
    begin()  # an empty one is no matter
    (here / "run" / "d").mkdir()
    (here / "run" / "d" / "args.yaml").touch()
    refused(begin, "is there already, and it is no comparison", name="d")
    assert [file.name for file in (here / "run" / "d").iterdir()] == ["args.yaml"]


def test_without_a_name_every_comparison_has_a_new_folder(begin: Begin, runs_here: Path, toy_data: Path) -> None:
    for name in ("t", "n"):
        Path(f"{name}.pt").write_text(name)
    folders = [begin(name=None, project=None).folder.name for _ in range(2)]
    assert folders == ["compare", "compare-2"] or folders == ["compare", "compare2"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"student": None}, "student= is missing"),
        ({"student": "x.pt"}, "student=x.pt: no such file"),
        ({"teacher": "x.pt"}, "teacher=x.pt: no such file"),
        ({"data": None}, "data= is missing"),
        ({"data": "x.yaml"}, "x.yaml: no such file"),
        ({"seed": 0}, "seed=0: seeds= says which"),
        ({"split": "test"}, "split=test: Ultralytics' split= moves validation"),
        ({"time": 1}, "time=1: With time= the arms would train for different numbers of epochs"),
        ({"recipe": "x.yaml"}, "a recipe is an arm"),
        ({"distill_model": "t.pt"}, "teacher= is also the teacher of the arm native"),
        ({"single_cls": True}, "judges classes by name"),
        ({"batch": -1}, "all arms need the same batch"),
        ({"batch": 0.7}, "all arms need the same batch"),
        ({"save": False}, "keeps no best.pt"),
        ({"exist_ok": True}, "never overwritten"),
        ({"seeds": 0}, "seeds=0 is not a number of seeds"),
        ({"seeds": (1, 1)}, "is not a number of seeds"),
        ({"seeds": (1, -1)}, "is not a number of seeds"),
        ({"seeds": True}, "is not a number of seeds"),
        ({"seeds": "five"}, "is not a number of seeds"),
        ({"jobs": 1.5}, "jobs=1.5 is not a number of runs"),
        ({"device": "0,1", "jobs": 1}, "jobs=1 with 2 devices"),
        ({"robustness": "maybe"}, "robustness=maybe is neither on nor off"),
        ({"eval_split": "train"}, "have trained on these images"),
        ({"arms": "plain"}, "a comparison takes two"),
        ({"losses": "cls", "arms": "plain,native"}, "losses= is for the arm yolokd"),
        ({"epoch": 3}, "'epoch': no such key"),
        ({"seds": 3}, "'seds': no such key"),
        ({"epochs": "many"}, "epochs"),
        ({"via": "t.pt"}, "several trainings"),
        ({"peers": "n.pt,t.pt"}, "several trainings"),
        ({"teacher": "born-again"}, "several trainings"),
    ],
)
def test_refused_before_anything_is_written(
    begin: Begin,
    machine: Machine,  # noqa: F811
    here: Path,
    keys: dict[str, Any],
    words: str,
) -> None:
    refused(begin, words, **keys)
    assert not (here / "run").exists()
    assert machine.started == []


def test_a_run_at_a_smaller_batch_is_named(begin: Begin, machine: Machine, said: list[str]) -> None:  # noqa: F811
    begin()
    assert not any("memory was short" in line for line in said)  # the made up runs say 4
    begin(name="d", batch=8)
    assert any(line.endswith("WARNING: memory was short, batch=4") for line in said)


def test_a_cfg_file_says_only_what_is_not_a_default(begin: Begin, here: Path) -> None:
    (here / "mine.yaml").write_text("split: val\nseed: 0\nlr0: 0.5\nepochs: 7\nexist_ok: false\ntime:\n")
    begin(cfg="mine.yaml")
    settings = Comparison.load(here / "run" / "c").settings
    assert (settings["lr0"], settings["epochs"]) == (0.5, 3)
    assert "split" not in settings
