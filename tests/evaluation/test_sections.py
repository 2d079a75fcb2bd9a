"""The parts of an analysis on made-up runs: what is paired with what, what is stored, what is made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.judged import finish, judged
from yolokd.evaluation import sections
from yolokd.evaluation.comparison import Comparison
from yolokd.evaluation.outcomes import Outcomes

RUNS = {"plain": {0: 3, 1: 6, 2: 5}, "native": {0: 4, 1: 5, 2: 5}, "yolokd": {0: 6, 1: 8, 2: 9}, "teacher": {0: 10}}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Comparison]:
    def call(runs: dict[str, dict[int, int]], **how: Any) -> Comparison:
        comparison = judged(tmp_path / "c", runs, **how)
        (comparison.folder / "analysis").mkdir()
        return comparison

    return call


def test_a_difference_pairs_by_seed(make: Callable[..., Comparison]) -> None:
    found = sections.difference(Outcomes(make(RUNS)), "yolokd", "plain")
    assert found is not None
    assert found["per_seed"] == pytest.approx([30 / 101, 20 / 101, 40 / 101])
    assert found["mean"] == pytest.approx(30 / 101)
    assert found["low"] < found["mean"] < found["high"]
    assert found["seeds"] == 3
    assert set(found) == {"mean", "low", "high", "seeds_sd", "images_sd", "per_seed", "verdict", "seeds"}


def test_only_the_seeds_that_both_have(make: Callable[..., Comparison]) -> None:
    outcomes = Outcomes(make({"plain": {0: 3, 2: 6}, "yolokd": {1: 9, 2: 8}, "native": {}}))
    found = sections.difference(outcomes, "yolokd", "plain")
    assert found is not None
    assert found["per_seed"] == pytest.approx([20 / 101])
    assert (found["seeds"], found["verdict"], found["low"], found["high"]) == (1, "", None, None)
    for arm, other in (("plain", "plain"), ("yolokd", "native"), ("yolokd", "nobody")):
        assert sections.difference(outcomes, arm, other) is None


def test_stored_until_the_runs_change(make: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = make({**RUNS, "plain": {0: 3, 1: 5}})
    calls: list[int] = []
    paired = sections.paired

    def counted(ours: Any, theirs: Any) -> Any:
        calls.append(len(ours))
        return paired(ours, theirs)

    monkeypatch.setattr(sections, "paired", counted)
    first = sections.difference(Outcomes(comparison), "yolokd", "plain")
    assert sections.difference(Outcomes(comparison), "yolokd", "plain") == first
    assert calls == [2]
    finish(comparison, "plain", 2, range(6))
    again = sections.difference(Outcomes(comparison), "yolokd", "plain")
    assert again is not None
    assert again["seeds"] == 3
    assert calls == [2, 3]
    finish(comparison, "plain", 2, range(7))  # judged anew
    sections.difference(Outcomes(comparison), "yolokd", "plain")
    assert calls == [2, 3, 3]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def speed(models: Any, folder: Path, **how: Any) -> dict[str, Any]:
        calls.append({"models": models, "folder": folder, **how})
        return {"note": f"call {len(calls)}"}

    monkeypatch.setattr(sections.timing, "speed", speed)
    return calls


def test_one_file_is_timed_for_arms_that_are_alike(
    make: Callable[..., Comparison], timed: list[dict[str, Any]]
) -> None:
    comparison = make({**RUNS, "plain": {1: 3}, "mine": {}})
    finish(comparison, "native", 0, [0], gflops=2.5)
    (comparison.folder / "t.pt").unlink()
    outcomes = Outcomes(comparison)
    assert sections.speed(outcomes) == sections.speed(outcomes) == {"note": "call 1"}
    (call,) = timed
    weights = {
        ("plain", "yolokd"): comparison.folder / "plain/seed1/weights/best.pt",
        ("native",): comparison.folder / "native/seed0/weights/best.pt",
        ("teacher",): comparison.folder / "t.pt",
    }
    assert call["models"] == weights
    assert (call["folder"], call["imgsz"], call["trust"]) == (comparison.folder / "analysis", 64, False)
    finish(comparison, "yolokd", 0, range(2))  # other weights of the same architecture are as fast
    assert sections.speed(Outcomes(comparison)) == {"note": "call 1"}
    finish(comparison, "mine", 0, range(2))
    assert sections.speed(Outcomes(comparison)) == {"note": "call 2"}


def test_another_runtime_is_timed_anew(
    make: Callable[..., Comparison], timed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = Outcomes(make(RUNS))
    for runtime in ("", "1.0", "1.0", "2.0"):
        monkeypatch.setattr(sections.timing, "version_of_runtime", lambda runtime=runtime: runtime)
        sections.speed(outcomes)
    assert len(timed) == 3


def test_calibration_of_all_seeds_together(make: Callable[..., Comparison]) -> None:
    found = sections.calibration(Outcomes(make({"plain": {0: 3, 1: 5}, "yolokd": {}, "teacher": {0: 10}})))
    assert list(found) == ["plain", "teacher"]
    assert found["plain"]["bins"] == [[pytest.approx(0.9), 1.0, 8]]
    assert found["plain"]["ece"] == pytest.approx(0.1)


def test_fairness_of_every_arm_that_has_plain_beside_it(make: Callable[..., Comparison]) -> None:
    comparison = make({"plain": {0: 5, 1: 5, 2: 5}, "yolokd": {0: 3, 1: 4}, "native": {}, "teacher": {0: 4}})
    found = sections.fairness(Outcomes(comparison))
    assert list(found) == ["yolokd"]
    (lost,) = found["yolokd"]["lost_classes"]
    assert lost["difference"] == pytest.approx((31 + 41 - 2 * 51) / 2 / 101)
    assert (lost["name"], lost["low"], lost["high"]) == ("cat", None, None)  # of two seeds
    # The teacher misses images 4 to 9; plain finds image 4, ours none of them.
    assert found["yolokd"]["inherited"]["misses"]["all"] == {"teacher": 6, "arm": 1.0, "plain": pytest.approx(5 / 6)}
    finish(comparison, "yolokd", 2, range(3))
    (lost,) = sections.fairness(Outcomes(comparison))["yolokd"]["lost_classes"]
    assert lost["low"] < lost["difference"] < lost["high"]


def test_without_a_teacher_nothing_is_inherited_or_audited(make: Callable[..., Comparison]) -> None:
    outcomes = Outcomes(make({"plain": {0: 5}, "yolokd": {0: 3}}))
    assert sections.fairness(outcomes)["yolokd"]["inherited"] is None
    assert sections.audit(outcomes) == []
    assert list(sections.calibration(outcomes)) == ["plain", "yolokd"]
    assert set(sections.examples(outcomes)[0]["images"]) == {"truth", "plain", "yolokd"}
    assert sections.fairness(Outcomes(make_alone(outcomes))) == {}


def make_alone(outcomes: Outcomes) -> Comparison:
    """The same without plain."""
    comparison = outcomes.comparison
    comparison.arms = [arm for arm in comparison.arms if arm.name != "plain"]
    return comparison


def test_the_audit_is_drawn_again_where_a_picture_is_gone(make: Callable[..., Comparison]) -> None:
    comparison = make({**RUNS, "teacher": {0: 8}})
    found = sections.audit(Outcomes(comparison))
    assert len(found) == 2  # two labels where it sees nothing
    picture = comparison.folder / found[0]["image"]
    at = picture.stat().st_mtime_ns
    assert sections.audit(Outcomes(comparison)) == found
    assert picture.stat().st_mtime_ns == at
    picture.unlink()
    assert sections.audit(Outcomes(comparison)) == found
    assert picture.is_file()


def test_the_arm_of_the_verdict_is_shown_whatever_it_scored(make: Callable[..., Comparison]) -> None:
    runs = {"plain": {0: 9, 1: 9}, "native": {1: 9}, "mine": {1: 3}, "better": {1: 5, 2: 6}, "teacher": {0: 10}}
    comparison = make(runs)
    found = sections.examples(Outcomes(comparison))
    assert len(found) == 8
    assert list(found[0]["images"]) == ["truth", "plain", "mine", "teacher"]
    assert found[0]["images"]["truth"].startswith("analysis/examples/0-truth")
    stored = (comparison.folder / "analysis/examples.json").read_text()
    assert "plain/seed1" in stored  # the first seed that both have
    assert "mine/seed1" in stored
    comparison.arms = [arm for arm in comparison.arms if arm.kind != "recipe"]
    assert list(sections.examples(Outcomes(comparison))[0]["images"]) == ["truth", "plain", "native", "teacher"]


def test_robustness_of_the_first_seeds_that_all_have(
    make: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def robustness(models: Any, data: str, **how: Any) -> dict[str, Any]:
        calls.append({"models": models, "data": data, **how})
        return {"arms": {}}

    monkeypatch.setattr(sections.robust, "robustness", robustness)
    whole = dict.fromkeys(range(6), 3)
    comparison = make({"plain": whole, "yolokd": {k: 4 for k in (1, 2, 4, 5)}, "native": {}}, seeds=6)
    comparison.settings |= {"device": "1,0", "workers": 1, "rect": False, "iou": 0.6, "lr0": 0.1}
    comparison.trust = True
    for _ in range(2):
        assert sections.robustness(Outcomes(comparison)) == {"arms": {}}
    (call,) = calls
    assert list(call["models"]) == [f"{arm}/seed{k}" for k in (1, 2, 4) for arm in ("plain", "yolokd")]
    assert call["models"]["yolokd/seed4"] == comparison.folder / "yolokd/seed4/weights/best.pt"
    assert call["data"] == comparison.split.source
    judging = {"split": "test", "imgsz": 64, "batch": 4, "rect": False, "iou": 0.6, "trust": True}  # lr0 judges nothing
    where = {"store": comparison.folder / "analysis", "machine": {"device": "1", "workers": 1}}
    assert {key: value for key, value in call.items() if key not in ("models", "data")} == judging | where
    for seed in (1, 2, 4, 5):
        (comparison.folder / f"yolokd/seed{seed}/result.json").unlink()
    finish(comparison, "native", 0, [0])
    assert sections.robustness(Outcomes(comparison)) == {"arms": {}}
    assert list(calls[1]["models"]) == ["plain/seed0", "native/seed0"]


def test_no_seed_that_all_have_no_robustness(make: Callable[..., Comparison]) -> None:
    assert sections.robustness(Outcomes(make({"plain": {0: 3}, "yolokd": {1: 3}}))) is None
