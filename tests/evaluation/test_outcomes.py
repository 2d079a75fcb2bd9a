"""What finished runs came to, in numbers that a person can compute."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import pytest

from tests.evaluation.judged import NAMES, ap_of, begin, finish, judged
from yolokd.errors import UserError
from yolokd.evaluation.comparison import Comparison
from yolokd.evaluation.outcomes import Outcomes, spread


def test_mean_and_standard_deviation() -> None:
    assert spread([0.25, None, 0.75]) == {"mean": 0.5, "sd": pytest.approx(sqrt(0.125)), "values": [0.25, None, 0.75]}
    assert spread([0.25]) == {"mean": 0.25, "sd": None, "values": [0.25]}
    assert spread([None]) == {"mean": None, "sd": None, "values": [None]}
    assert spread([]) == {"mean": None, "sd": None, "values": []}


def test_the_scores_of_an_arm(tmp_path: Path) -> None:
    comparison = judged(tmp_path, {"plain": {0: 3, 1: 5, 2: 6}})
    finish(comparison, "plain", 1, range(5), train_seconds=90.0, peak_memory=30)
    found = Outcomes(comparison).arm(comparison.arm("plain"))
    aps = [31 / 101, 51 / 101, 61 / 101]
    assert found["ap"]["values"] == pytest.approx(aps)
    assert found["ap"]["mean"] == pytest.approx(sum(aps) / 3)
    assert found["ap"]["sd"] == pytest.approx(sqrt(sum((ap - sum(aps) / 3) ** 2 for ap in aps) / 2))
    for key in ("ap50", "ap75", "small", "last_ap"):
        assert found[key] == found["ap"]
    assert found["large"] == {"mean": None, "sd": None, "values": [None] * 3}
    assert found["per_class"] == {"cat": found["ap"], "dog": found["large"]}
    assert found["train_seconds"]["mean"] == 70.0
    assert found["peak_memory"] == 30
    assert (found["parameters"], found["gflops"], found["size"]) == (100, 1.5, 1000)
    assert (found["name"], found["kind"], found["keys"]) == ("plain", "plain", {"lr0": 0.1})
    assert (found["seeds_done"], found["runs"]) == ([0, 1, 2], ["plain/seed0", "plain/seed1", "plain/seed2"])
    assert found["kept"] is None
    assert found["gap_closed"] is None


def test_kept_and_gap_closed_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    comparison = judged(
        tmp_path,
        {"plain": {0: 3, 1: 5, 2: 9}, "yolokd": {0: 4, 1: 8}, "native": {}, "teacher": {0: 10}},
    )
    outcomes = Outcomes(comparison)
    ours = outcomes.arm(comparison.arm("yolokd"))
    assert ours["kept"] == pytest.approx((41 + 81) / 2 / 101)
    assert ours["gap_closed"] == pytest.approx((61 - 41) / (101 - 41))  # plain's third seed has none beside it
    plain = outcomes.arm(comparison.arm("plain"))
    assert plain["kept"] == pytest.approx((31 + 51 + 91) / 3 / 101)
    assert plain["gap_closed"] is None
    nothing = outcomes.arm(comparison.arm("native"))
    assert (nothing["ap"]["mean"], nothing["kept"], nothing["gap_closed"]) == (None, None, None)
    assert (nothing["parameters"], nothing["peak_memory"], nothing["seeds_done"]) == (None, None, [])
    assert outcomes.seeds("plain", "yolokd") == [0, 1]
    assert outcomes.seeds("plain", "other") == []


@pytest.mark.parametrize("teacher", [5, 2])
def test_there_is_no_gap_to_a_teacher_that_is_not_better(tmp_path: Path, teacher: int) -> None:
    comparison = judged(tmp_path, {"plain": {0: 5}, "yolokd": {0: 6}, "teacher": {0: teacher}})
    ours = Outcomes(comparison).arm(comparison.arm("yolokd"))
    assert ours["gap_closed"] is None
    assert ours["kept"] == pytest.approx(ap_of(6) / ap_of(teacher))


def test_the_teacher(tmp_path: Path) -> None:
    comparison = judged(tmp_path, {"plain": {0: 5}, "teacher": {0: 8}})
    found = Outcomes(comparison).judged_teacher()
    assert found is not None
    assert found["name"] == "t.pt"
    assert found["ap"] == pytest.approx(81 / 101)
    assert found["per_class"] == {"cat": pytest.approx(81 / 101), "dog": None}
    assert (found["parameters"], found["gflops"], found["size"]) == (900, 9.5, 9000)
    (tmp_path / "teacher" / "result.json").unlink()
    assert Outcomes(comparison).judged_teacher() is None


def test_a_run_that_is_not_like_the_others(tmp_path: Path) -> None:
    comparison = judged(tmp_path, {"plain": {0: 3, 1: 3, 2: 3, 3: 3}}, seeds=4)
    finish(comparison, "plain", 1, range(3), batch=2, processes=1, machine=comparison.machine)
    finish(comparison, "plain", 2, range(3), batch=4, processes=3)
    finish(comparison, "plain", 3, range(3), machine={**comparison.machine, "gpu": "another"})
    assert Outcomes(comparison).arm(comparison.arm("plain"))["unlike"] == [
        "plain, seed 1: memory was short, so it trained with batch=2 in place of 4",
        "plain, seed 2: cut off and resumed 2 times: from there on it saw the images in another order than the runs "
        "beside it",
        "plain, seed 3: trained on another machine (another)",
    ]


def test_the_same_start(tmp_path: Path) -> None:
    comparison = judged(tmp_path, {"plain": {0: 5, 1: 5}, "yolokd": {0: 5, 1: 5}, "mine": {0: 5}, "native": {2: 5}})
    finish(comparison, "yolokd", 1, range(5), start_sha256="another")
    starts = {arm.name: Outcomes(comparison).arm(arm)["same_start"] for arm in comparison.arms}
    assert starts == {"plain": True, "yolokd": False, "mine": True, "native": None}
    finish(comparison, "mine", 0, range(5), start_sha256=None)
    assert Outcomes(comparison).arm(comparison.arm("mine"))["same_start"] is None


@pytest.mark.parametrize(
    ("arms", "headline"),
    [
        (("plain", "native", "a", "yolokd"), "yolokd"),
        (("plain", "native", "b", "a"), "b"),
        (("plain", "native"), "native"),
        (("a", "b"), "a"),
    ],
)
def test_the_arm_of_the_verdict(tmp_path: Path, arms: tuple[str, ...], headline: str) -> None:
    comparison = begin(tmp_path, arms)
    finish(comparison, arms[0], 0, [0])
    assert Outcomes(comparison).headline() == headline


def test_nothing_is_finished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no finished run"):
        Outcomes(begin(tmp_path))


def test_detections_are_read_when_asked_for_and_matched_once(tmp_path: Path) -> None:
    comparison: Comparison = judged(tmp_path, {"plain": {0: 5, 2: 8}})
    outcomes = Outcomes(comparison)
    assert outcomes.names == NAMES
    first = outcomes.matched("plain", [2, 0])
    assert [one.ap() for one in first] == pytest.approx([ap_of(8), ap_of(5)])
    assert outcomes.matched("plain", [0])[0] is first[1]
    digests = outcomes.digests("plain", [0, 2])
    assert list(digests) == ["plain/seed0", "plain/seed2"]
    assert len(set(digests.values())) == 2
