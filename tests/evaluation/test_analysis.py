"""From a folder of runs to ``report.json``: whole, cut off, with arms, seeds and files missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.judged import MACHINE, VERSIONS, finish, judged
from yolokd.errors import UserError
from yolokd.evaluation import sections
from yolokd.evaluation.analysis import analyse, bring_up_to_date
from yolokd.evaluation.compare import table
from yolokd.evaluation.report.contents import read_report
from yolokd.evaluation.report.page import write_report

RUNS = {"plain": {0: 3, 1: 4, 2: 5}, "native": {0: 4, 1: 4, 2: 6}, "yolokd": {0: 6, 1: 8, 2: 9}, "teacher": {0: 10}}
KEYS = {
    *("version", "date", "command", "folder", "verdict", "data", "settings", "seeds", "machine", "files", "teacher"),
    *("arms", "curves", "terms", "speed", "calibration", "fairness", "robustness", "audit", "examples"),
}


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is exported, nothing validated; what is asked for is noted."""
    calls: list[str] = []
    row = {"onnx_ms_median": 5.0, "onnx_ms_p95": 6.0, "images_per_second": 190.0, "energy_j_per_image": None}

    def speed(models: Any, folder: Path, **how: Any) -> dict[str, Any]:
        calls.append("speed")
        return {name: {**row, "energy_note": "unknown"} for names in models for name in names} | {"note": "made up"}

    def robustness(models: Any, data: str, **how: Any) -> dict[str, Any]:
        calls.append("robustness")
        arms = dict.fromkeys(run.partition("/")[0] for run in models)
        made = {"clean": 0.5, "corruptions": {"noise": [0.4, 0.3, 0.2]}, "fgsm": 0.1, "mean": 0.3, "relative": 0.6}
        return {"arms": dict.fromkeys(arms, made), "seeds": [0], "strengths": {"noise": [1, 2, 3]}}

    monkeypatch.setattr(sections.timing, "speed", speed)
    monkeypatch.setattr(sections.robust, "robustness", robustness)
    for name in ("calibrated", "paired", "inherited"):
        whole = getattr(sections, name)

        def counted(*given: Any, name: str = name, whole: Any = whole) -> Any:
            calls.append(name)
            return whole(*given)

        monkeypatch.setattr(sections, name, counted)
    return calls


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {arm["name"]: arm for arm in report["arms"]}


def test_a_whole_comparison(tmp_path: Path) -> None:
    folder = tmp_path / "cats"
    judged(folder, RUNS)
    report = analyse(folder)
    assert json.loads((folder / "report.json").read_text()) == report
    assert set(report) == KEYS
    assert (report["version"], report["date"], report["folder"]) == (1, "2026-11-21", "cats")
    assert report["command"] == "yolokd compare teacher=t.pt"
    assert report["data"] == {
        **{"yaml": "cats.yaml", "names": {"0": "cat", "1": "dog"}, "eval_split": "test", "held_out": False},
        **{"note": "", "images": 10, "objects": 10},
    }
    assert report["settings"] == {"epochs": 3, "imgsz": 64, "batch": 4}
    assert (report["seeds"], report["machine"]) == ([0, 1, 2], {**MACHINE, **VERSIONS})
    assert report["files"] == {"t.pt": "0" * 64}
    arms = by_name(report)
    assert arms["yolokd"]["to_plain"]["per_seed"] == pytest.approx([30 / 101, 40 / 101, 40 / 101])
    assert arms["yolokd"]["to_plain"]["verdict"] == "helps"
    assert arms["yolokd"]["to_native"]["per_seed"] == pytest.approx([20 / 101, 40 / 101, 30 / 101])
    assert arms["native"]["to_plain"]["per_seed"] == pytest.approx([10 / 101, 0, 10 / 101])
    assert arms["native"]["to_native"] is None
    assert (arms["plain"]["to_plain"], arms["plain"]["to_native"]) == (None, None)
    assert arms["yolokd"]["gap_closed"] == pytest.approx((61 + 81 + 91 - 31 - 41 - 51) / (303 - 31 - 41 - 51))
    assert report["verdict"]["word"] == "helps"
    assert report["verdict"]["text"].startswith("yolokd helps: +36.30 points of mAP50-95 over plain (95 % interval +")
    band = ("mean", "low", "high")
    assert report["curves"]["plain"] == {"epoch": [1, 2, 3], **{key: [0.1, 0.2, 0.3] for key in band}}
    assert report["terms"] == {}
    assert list(report["calibration"]) == ["plain", "native", "yolokd", "teacher"]
    assert list(report["fairness"]) == ["native", "yolokd"]
    assert list(report["robustness"]["arms"]) == ["plain", "native", "yolokd"]
    assert list(report["speed"]) == ["plain", "native", "yolokd", "teacher", "note"]
    assert len(report["examples"]) == 8
    assert report["audit"] == []


def test_it_is_what_the_table_and_the_page_read(tmp_path: Path) -> None:
    folder = tmp_path / "cats"
    judged(folder, {**RUNS, "teacher": {0: 9}})
    report = analyse(folder)
    lines = table(report).splitlines()
    assert lines[1].split() == ["teacher", "t.pt", "0.901"]
    assert lines[4].split()[:4] == ["yolokd", "3", "0.769", "+0.363"]
    assert read_report(folder)["arms"][2]["ap"]["mean"] == report["arms"][2]["ap"]["mean"]
    page = write_report(folder).read_text(encoding="utf-8")
    assert "yolokd helps: +36.30 points" in page


def test_nothing_is_done_twice(tmp_path: Path, asked: list[str]) -> None:
    comparison = judged(tmp_path / "c", RUNS)
    report = analyse(comparison.folder)
    assert sorted(asked) == sorted(["paired"] * 3 + ["speed"] + ["calibrated"] * 4 + ["inherited"] * 2 + ["robustness"])
    asked.clear()
    assert analyse(comparison.folder) == report
    assert asked == []
    assert analyse(comparison.folder, robustness=False) == {**report, "robustness": {"off": True}}
    assert asked == []
    finish(comparison, "native", 1, range(5))
    analyse(comparison.folder)
    assert sorted(asked) == ["calibrated", "inherited", "paired", "paired", "robustness"]  # what native is in


def test_killed_in_the_middle_it_goes_on(tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = judged(tmp_path / "c", RUNS)
    audit = sections.auditing.audit

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sections.auditing, "audit", killed)
    with pytest.raises(KeyboardInterrupt):
        analyse(comparison.folder)
    assert not (comparison.folder / "report.json").exists()
    asked.clear()
    monkeypatch.setattr(sections.auditing, "audit", audit)
    assert analyse(comparison.folder)["verdict"]["word"] == "helps"
    assert asked == ["robustness"]


def test_an_interrupted_comparison(tmp_path: Path) -> None:
    comparison = judged(tmp_path / "c", {**RUNS, "plain": {0: 3, 1: 4}, "yolokd": {0: 6}, "native": {}})
    report = analyse(comparison.folder)
    arms = by_name(report)
    assert arms["yolokd"]["to_plain"]["per_seed"] == pytest.approx([30 / 101])
    assert arms["yolokd"]["to_plain"]["seeds"] == 1
    assert arms["native"]["ap"]["mean"] is None
    assert report["data"]["note"] == (
        "not all of the 3 seeds are finished (plain 2, native 0, yolokd 1): arms are compared on the seeds that both "
        "have"
    )
    assert report["verdict"]["word"] == ""
    assert report["verdict"]["text"].startswith("1 seed: too few for a verdict; yolokd against plain: +29.70 points")
    assert "native" not in {*report["curves"], *report["speed"], *report["calibration"], *report["fairness"]}
    write_report(comparison.folder)


def test_seeds_that_were_added_after_a_look(tmp_path: Path) -> None:
    comparison = judged(tmp_path / "c", RUNS)
    comparison.looked = [1, 2]
    comparison.save()
    assert analyse(comparison.folder)["data"]["note"].startswith("seeds were added after a look at 1, then at 2: ")


def test_a_report_of_a_comparison_that_goes_on(tmp_path: Path, asked: list[str]) -> None:
    comparison = judged(tmp_path / "c", {**RUNS, "yolokd": {0: 6}})
    folder = comparison.folder

    def seeds() -> int:
        report = json.loads((folder / "report.json").read_text())
        return len(by_name(report)["yolokd"]["seeds_done"])

    bring_up_to_date(folder)  # there was none
    assert seeds() == 1
    assert "robustness" not in asked  # it takes long
    assert "Robustness was not measured." in write_report(folder).read_text()
    finish(comparison, "yolokd", 1, range(8))
    bring_up_to_date(folder)
    assert seeds() == 2
    whole = (folder / "report.json").stat().st_mtime_ns
    bring_up_to_date(folder)
    bring_up_to_date(tmp_path)  # no comparison
    assert (folder / "report.json").stat().st_mtime_ns == whole
    (folder / "report.json").write_text("{")
    bring_up_to_date(folder)
    with pytest.raises(UserError, match="cannot be read"):
        write_report(folder)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_give_no_verdict(tmp_path: Path, seeds: int) -> None:
    runs = {arm: {k: hits for k, hits in found.items() if k < seeds} for arm, found in RUNS.items()}
    report = analyse(judged(tmp_path / "c", runs, seeds=seeds).folder)
    found = by_name(report)["yolokd"]["to_plain"]
    assert (found["verdict"], found["low"], found["high"], found["seeds"]) == ("", None, None, seeds)
    assert found["images_sd"] > 0
    assert (by_name(report)["plain"]["ap"]["sd"] is None) == (seeds == 1)
    assert report["data"]["note"] == ""
    assert f"{seeds} seed" in report["verdict"]["text"]


def test_without_native_and_without_a_teacher(tmp_path: Path) -> None:
    report = analyse(judged(tmp_path / "c", {"plain": RUNS["plain"], "mine": RUNS["yolokd"]}).folder)
    assert report["teacher"] is None
    arm = by_name(report)["mine"]
    assert (arm["to_native"], arm["kept"], arm["gap_closed"]) == (None, None, None)
    assert arm["to_plain"]["verdict"] == "helps"
    assert (report["verdict"]["arm"], report["audit"]) == ("mine", [])
    assert report["fairness"]["mine"]["inherited"] is None


def test_without_plain(tmp_path: Path) -> None:
    report = analyse(judged(tmp_path / "c", {key: RUNS[key] for key in ("native", "yolokd", "teacher")}).folder)
    arm = by_name(report)["yolokd"]
    assert (arm["to_plain"], arm["gap_closed"], arm["same_start"]) == (None, None, None)
    assert arm["to_native"]["per_seed"] == pytest.approx([20 / 101, 40 / 101, 30 / 101])
    assert arm["kept"] == pytest.approx(233 / 303)
    text = "No verdict: no seed of yolokd has a finished run of plain beside it."
    assert report["verdict"] == {"arm": "yolokd", "word": "", "text": text}
    assert report["fairness"] == {}
    write_report(tmp_path / "c")


def test_when_weights_and_images_are_gone(tmp_path: Path) -> None:
    comparison = judged(tmp_path / "c", {**RUNS, "teacher": {0: 8}})
    whole = analyse(comparison.folder)
    assert len(whole["audit"]) == 2
    for file in [*comparison.folder.rglob("*.pt"), *(comparison.folder / "images").iterdir()]:
        file.unlink()
    assert analyse(comparison.folder) == whole


def test_no_comparison_and_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no comparison"):
        analyse(tmp_path)
    with pytest.raises(UserError, match="has no finished run to analyse"):
        analyse(judged(tmp_path / "c", {"plain": {}, "yolokd": {}, "teacher": {0: 9}}).folder)
    assert not (tmp_path / "c" / "report.json").exists()
