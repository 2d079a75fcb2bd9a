"""Every example runs, on toy data and for an epoch."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

from tests.conftest import NAMES
from tests.lively import save_lively
from tests.photos import changed, photos

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.e2e


def run(name: str, *words: object) -> None:
    runpy.run_path(str(EXAMPLES / name))["main"](*map(str, words))


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that sees something, although its weights are random; it knows the toy classes among 80."""
    names = {i: str(i) for i in range(80)} | NAMES
    return save_lively(tmp_path_factory.mktemp("lively") / "teacher.pt", names=names)


def test_distil(toy_teacher: Path, toy_student: Path, toy_data: Path, runs_here: Path, capsys: Any) -> None:
    run("distil.py", toy_teacher, toy_student, toy_data, 1, 64)
    said = capsys.readouterr().out
    assert "pycocotools" in said
    assert "onnx" in said
    assert (runs_here / "detect/train/weights/best.pt").is_file()


def test_inside_ultralytics(toy_teacher: Path, toy_student: Path, toy_data: Path, runs_here: Path) -> None:
    run("inside_ultralytics.py", toy_teacher, toy_student, toy_data, 1, 64)
    recipe = yaml.safe_load((runs_here / "detect/train/distill.yaml").read_text())
    assert recipe["losses"] == {"cls": 0.5, "box": 5.0}


def test_ensemble(
    toy_teacher: Path, lively: Path, toy_student: Path, toy_data: Path, runs_here: Path, capsys: Any
) -> None:
    together = f"{toy_teacher},{lively}"
    run("ensemble.py", together, toy_student, toy_data, 1, 64)
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines() if line.startswith("mAP50-95")]
    assert [line[2] for line in lines] == ["no teacher", str(toy_teacher), str(lively), together]
    columns = (runs_here / "detect/ensemble-4/results.csv").read_text().splitlines()[0]
    assert "train/kd_cls_loss" in columns
    assert "kd_" not in (runs_here / "detect/ensemble/results.csv").read_text()


def test_domain(toy_teacher: Path, toy_student: Path, toy_data: Path, runs_here: Path, capsys: Any) -> None:
    """To images of other classes, of which one is what the source calls red."""
    other = runs_here.parent / "dusk"
    shutil.copytree(toy_data.parent, other)
    for file in (other / "images").rglob("*.png"):
        cv2.imwrite(str(file), cv2.flip(cv2.imread(str(file)) // 3, 0))
    target = changed(toy_data, other, path=str(other), names={0: "ember", 1: "leaf", 2: "sky"})
    run("domain.py", toy_teacher, toy_student, toy_data, target, "red:ember,blue:sky", 1, 64)
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.endswith("on the target:")] == [
        "before, on the target:",
        "adapted, on the target:",
    ]
    assert any(line == "last.pt does not know leaf: AP 0 there." for line in said)
    listed = (runs_here / "detect/adapted/unlabelled.txt").read_text().splitlines()
    assert len(listed) == 8
    assert all("dusk" in file for file in listed)
    assert not (runs_here / "detect/before/unlabelled.txt").exists()


def test_unlabelled(toy_student: Path, lively: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row a run; it goes on where it was cut off; the share keeps its labels and no other image does."""
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    for seed, (split, count) in enumerate((("train", 20), ("val", 4), ("test", 4))):
        photos(tmp_path / f"set/images/{split}", count, seed)
        (tmp_path / f"set/labels/{split}").mkdir(parents=True)
        for i in range(count):
            (tmp_path / f"set/labels/{split}/{i}.txt").write_text(f"{i % 3} .5 .5 .5 .5\n")
    parts = {split: f"images/{split}" for split in ("train", "val", "test")}
    (tmp_path / "set/data.yaml").write_text(yaml.safe_dump({**parts, "names": NAMES}))
    words = ["benchmarks/unlabelled.py", tmp_path / "set/data.yaml", lively, toy_student, tmp_path / "out"]
    how = ["shares=25", "seeds=1", "epochs=1", "teacher_epochs=1", "imgsz=64", "batch=4", "cases=share"]
    run(*words, *how, "arms=plain,pseudo")
    folder = tmp_path / "out/25"
    assert len(list((folder / "labelled/images").iterdir())) == 5
    assert len(list((folder / "unlabelled/images").iterdir())) == 15
    assert len((folder / "train.txt").read_text().split()) == 20
    assert len(list((folder / "pseudo-share/labels").iterdir())) == 15
    run(*words, *how, "arms=plain,yolokd,soft", "keys=pseudo_precision=off;losses=cls")
    run(*words, *how, "arms=larger", "teacher_imgsz=96")
    assert yaml.safe_load((folder / "fine-tuning-teacher96/args.yaml").read_text())["imgsz"] == 96
    assert yaml.safe_load((folder / "runs/larger-share-0/distill.yaml").read_text())["teacher_imgsz"] == 96
    with (tmp_path / "out/runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["case"]) for row in rows] == [
        ("plain", "-"), ("pseudo", "share"), ("yolokd", "share"), ("soft", "share"), ("larger", "share")
    ]  # fmt: skip
    assert all(0 <= float(row["both_last_map"]) <= 1 for row in rows)


def test_sensor(
    toy_teacher: Path, toy_student: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    data = changed(toy_data, tmp_path, test="images/val")
    words = ["benchmarks/sensor.py", data, toy_teacher, toy_student, tmp_path / "out"]
    for arms in ("plain", "plain,yolokd"):
        run(*words, "seeds=1", "epochs=1", "imgsz=64", "batch=4", f"arms={arms}")
    with (tmp_path / "out/sensor.csv").open() as file:
        assert [row["arm"] for row in csv.DictReader(file)] == ["plain", "yolokd"]


def test_step_time(capsys: Any) -> None:
    run("benchmarks/step_time.py", "teacher=yolo11s.yaml", "imgsz=64", "batch=2", "rounds=1", "device=cpu", "every=2")
    said = capsys.readouterr().out
    assert "native/yolokd" in said
    assert "seldom/plain" in said
    assert "yolokd/(plain + teacher)" in said


def test_teacher_time(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    sizes = ("imgsz=64", "batch=2", "rounds=1", "device=cpu")
    run("benchmarks/teacher_time.py", "teacher=yolo11n.yaml", "ways=unfused,fp32,bf16,onnx", *sizes)
    lines = [line for line in capsys.readouterr().out.splitlines() if "times as fast" in line]
    assert [line.split()[0] for line in lines] == ["unfused", "fp32", "bf16", "onnx"]
    assert "1.00 times" in lines[0]


def test_step_time_with_loading(lively: Path, toy_data: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.json"
    sizes = ("imgsz=64", "batch=2", "rounds=1", "device=cpu")
    run("benchmarks/step_time.py", f"teacher={lively}", f"data={toy_data}", f"out={out}", *sizes)
    said = capsys.readouterr().out
    assert "replay/loaded" in said
    assert " detections and " in said
    found = json.loads(out.read_text())
    assert {"plain", "native", "yolokd", "watched", "teacher", "loaded", "replay"} == set(found["seconds"])
    assert found["settings"]["data"] == str(toy_data)


def test_replay_says_what_it_costs_and_continues(
    lively: Path, toy_student: Path, toy_data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks = EXAMPLES / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    out, begun = tmp_path / "out.csv", []
    monkeypatch.setattr("aquarium.run", lambda arm, keys, seed, *rest: begun.append((arm, seed, keys)))
    run("benchmarks/replay.py", toy_data, lively, toy_student, out, "seeds=0", "imgsz=64")
    assert [(arm, seed) for arm, seed, _ in begun] == [("plain", "0"), ("live", "0"), ("replay", "0")]
    assert begun[0][2] == {}
    assert begun[1][2]["losses"] == begun[2][2]["losses"] == {"cls": 0.25, "box": 5.0}
    assert Path(begun[2][2]["teacher_cache"]).is_dir()
    assert " bytes an image" in capsys.readouterr().out


def test_summary_of_the_stored_results(capsys: Any) -> None:
    results = EXAMPLES / "benchmarks/results"
    run("benchmarks/summary.py", f"{results / 'aquarium.csv'},{results / 'losses.csv'}")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "+0.00 (+0.00, +0.00, +0.00, +0.00, +0.00)" in lines["plain"]
    assert "5 seed(s)" in lines["strong-cwd3"]
    assert "95 % interval" in lines["strong-cwd3"]
    assert "+1.43 (+1.74, +1.12)" in lines["at@0.3"]  # .2994 - .282, .3 - .2888


def test_summary_against_another_arm(capsys: Any) -> None:
    run("benchmarks/summary.py", EXAMPLES / "benchmarks/results/aquarium.csv", "both_map50", "native")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "to native +0.00 (+0.00, +0.00, +0.00, +0.00, +0.00)" in lines["native"]
    assert "to native" in lines["plain"]


def test_summary_of_one_share_of_labels(capsys: Any) -> None:
    table = EXAMPLES / "benchmarks/results/unlabelled_aquarium.csv"
    run("benchmarks/summary.py", table, "both_last_map", "plain 10")
    lines = {" ".join(line.split()[:3]): line for line in capsys.readouterr().out.splitlines()}
    assert "+13.14 (+13.29, +12.45, +13.68)  95 % interval +11.58 to +14.70" in lines["p7 all 10"]
    assert "+2.74 (+2.83, +3.75, +1.65)" in lines["p7 share 10"]
    assert not [name for name in lines if "25" in name.split()]
    run("benchmarks/summary.py", table, "both_last_map", "plain 25")
    assert "+3.20 (+3.07, +4.05, +2.48)" in capsys.readouterr().out
    run("benchmarks/summary.py", table.with_name("unlabelled_bccd.csv"), "both_last_map", "plain 10")
    assert "+3.38 (+2.91, +3.72, +3.50)  95 % interval +2.34 to +4.42" in capsys.readouterr().out


def test_evidence_and_again(lively: Path, toy_student: Path, toy_data: Path, tmp_path: Path, capsys: Any) -> None:
    data = yaml.safe_load(toy_data.read_text())
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({**data, "test": data["val"]}))
    words = (tmp_path / "toy.yaml", lively, toy_student, tmp_path / "out", "seeds=1", "epochs=1", "imgsz=64", "batch=4")
    words += ("teacher_epochs=1", "device=cpu", "robustness=off")
    run("benchmarks/evidence.py", *words)
    table = list(csv.DictReader((tmp_path / "out/runs.csv").open()))
    assert [(row["arm"], row["seed"]) for row in table] == [(a, "0") for a in ("plain", "native", "yolokd", "replay")]
    assert all(0 <= float(row["ap"]) <= 1 and float(row["seconds"]) > 0 for row in table)
    assert (tmp_path / "out/comparison/report.html").is_file()
    kept = {name: (tmp_path / "out" / name).read_text() for name in ("compare.yaml", "report.md")}
    assert yaml.safe_load(kept["compare.yaml"])["student"] == toy_student.name
    assert not [name for name, text in kept.items() if str(tmp_path) in text]  # no place of this machine
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.pt")}
    run("benchmarks/evidence.py", *words)  # nothing is trained again
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.pt")} == before


def test_loss_cost(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    options = ("teacher=yolo11s.yaml", "imgsz=64", "batch=2", "rounds=1", "device=cpu", "each=cls,crosskd")
    run("benchmarks/loss_cost.py", *options)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert all("%" in lines[name] for name in ("plain", "cls", "crosskd"))


def test_losses_takes_over_what_a_killed_process_had_begun(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks = EXAMPLES / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    out, begun = tmp_path / "out.csv", []
    monkeypatch.setattr("aquarium.run", lambda name, keys, seed, *rest: begun.append((name, seed, keys["losses"])))
    claims = tmp_path / "out.csv.claims"
    claims.mkdir()
    (claims / "at@0.3-0").write_text("1")  # a process that lives
    (claims / "cls@0.3-0").write_text("999999999")
    run("benchmarks/losses.py", "data.yaml", "t.pt", "s.pt", out, "arms=at,cls,box+pkd", "seeds=0")
    assert begun == [("cls@0.3", "0", "cls"), ("box+pkd@0.3", "0", "box,pkd")]
    assert "at@0.3, seed 0: another process has it" in capsys.readouterr().out


def test_aquarium_continues_where_it_stopped(
    toy_teacher: Path, toy_student: Path, toy_data: Path, tmp_path: Path, runs_here: Path
) -> None:
    data = tmp_path / "set"
    shutil.copytree(toy_data.parent, data)
    (data / "toy.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load(toy_data.read_text()), "path": str(data), "test": "images/val"})
    )
    table = tmp_path / "out.csv"
    for seeds in ("0", "0,1"):
        options = (f"seeds={seeds}", "arms=plain,native,strong", "epochs=1", "imgsz=64")
        run("benchmarks/aquarium.py", data / "toy.yaml", toy_teacher, toy_student, table, *options)
    rows = list(csv.DictReader(table.open()))
    assert [(row["arm"], row["seed"]) for row in rows] == [
        (arm, seed) for seed in "01" for arm in ("plain", "native", "strong")
    ]
    assert all(0 <= float(row["both_map"]) <= 1 for row in rows)
