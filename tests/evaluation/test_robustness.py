from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.results import image
from yolokd.compat.validation import Validation
from yolokd.errors import UserError
from yolokd.evaluation import robustness as module
from yolokd.evaluation.corruptions import STRENGTHS, corrupt
from yolokd.evaluation.robustness import robustness

A = (0, 0, 100, 100)
PIXELS = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
MACHINE = {"device": "cpu"}
JUDGING = {"split": "test", "imgsz": 96, "batch": 2, "trust": False, "iou": 0.6}
RUN: dict[str, Any] = {**JUDGING, "machine": MACHINE}


class Judge:
    """Stands for Ultralytics: finds as many of ten objects as it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.hits = {"clean": 10, "fgsm": 1}
        self.dies_after = 10**6

    def __call__(self, model: Path, *, data: Any, corrupt: Any = None, epsilon: float = 0, **arguments: Any) -> Any:
        if len(self.calls) == self.dies_after:
            raise KeyboardInterrupt
        assert arguments == {**JUDGING, **MACHINE}
        key = "fgsm" if epsilon else "clean" if corrupt is None else self.kind(corrupt(PIXELS, "a.jpg"))
        self.calls.append((Path(model).name, key))
        hits = self.hits.get(key, 5)
        images = [image(f"{i}.jpg", [(A, 0.9, 0)] * (i < hits), [(A, 0)]) for i in range(10)]
        return Validation(names={0: "cat"}, images=images)

    @staticmethod
    def kind(changed: np.ndarray) -> str:
        """Which corruption of seed 3 it was."""
        keys = [(kind, s) for kind in STRENGTHS for s in (1, 2, 3)]
        (key,) = [k for k in keys if (corrupt(PIXELS, *k, name="a.jpg", seed=3) == changed).all()]
        return f"{key[0]} {key[1]}"


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    judge = Judge()
    monkeypatch.setattr(module, "validate_changed", judge)
    return judge


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for run in ("plain/seed0", "plain/seed2", "yolokd/seed0", "yolokd/seed2"):
        found[run] = tmp_path / f"{run.replace('/', '-')}.pt"
        found[run].write_text(run)
    return found


def test_the_numbers_are_where_the_report_looks(judge: Judge, models: dict[str, Path], tmp_path: Path) -> None:
    judge.hits["blur 2"] = 2
    result = robustness({"plain": models["plain/seed0"]}, "data.yaml", store=tmp_path / "analysis", seed=3, **RUN)
    assert len(judge.calls) == len(set(judge.calls)) == 20
    half, fifth = (51 / 101, 21 / 101)  # of 101 recalls, as COCO's AP has it
    (arm,) = result["arms"].values()
    assert arm["clean"] == pytest.approx(1)
    assert arm["fgsm"] == pytest.approx(11 / 101)
    assert list(arm["corruptions"]) == ["noise", "blur", "brightness", "contrast", "jpeg", "haze"]
    assert arm["corruptions"]["blur"] == pytest.approx([half, fifth, half])
    assert arm["mean"] == pytest.approx((17 * half + fifth) / 18)
    assert arm["relative"] == pytest.approx(arm["mean"])
    assert result["seeds"] == []
    assert result["strengths"] == {**{k: list(v) for k, v in STRENGTHS.items()}, "fgsm": 4 / 255}
    json.dumps(result)


def test_an_arm_is_the_mean_of_its_seeds(judge: Judge, models: dict[str, Path], tmp_path: Path) -> None:
    result = robustness(models, "data.yaml", store=tmp_path / "analysis", seed=3, **RUN)
    assert list(result["arms"]) == ["plain", "yolokd"]
    assert result["seeds"] == [0, 2]
    file = tmp_path / "analysis" / "robustness-plain-seed2.json"
    content = json.loads(file.read_text())
    content["ap"]["clean"] = 0.5
    file.write_text(json.dumps(content))
    again = robustness(models, "data.yaml", store=tmp_path / "analysis", seed=3, **RUN)
    assert len(judge.calls) == 80
    assert again["arms"]["plain"]["clean"] == pytest.approx(0.75)
    assert again["arms"]["plain"]["relative"] == pytest.approx(again["arms"]["plain"]["mean"] / 0.75)
    assert again["arms"]["yolokd"] == result["arms"]["yolokd"]


def test_a_killed_call_goes_on(judge: Judge, models: dict[str, Path], tmp_path: Path) -> None:
    judge.dies_after = 27
    with pytest.raises(KeyboardInterrupt):
        robustness(models, "data.yaml", store=tmp_path / "analysis", seed=3, **RUN)
    judge.dies_after = 10**6
    robustness(models, "data.yaml", store=tmp_path / "analysis", seed=3, **RUN)
    assert len(judge.calls) == len(set(judge.calls)) == 80


def test_other_settings_or_another_model_are_measured_anew(
    judge: Judge, models: dict[str, Path], tmp_path: Path
) -> None:
    one = {"plain": models["plain/seed0"]}
    robustness(one, "data.yaml", store=tmp_path / "analysis", seed=3, **RUN)
    robustness(one, "other.yaml", store=tmp_path / "analysis", seed=3, **RUN)
    assert len(judge.calls) == 40
    models["plain/seed0"].write_text("trained again")
    robustness(one, "other.yaml", store=tmp_path / "analysis", seed=3, **RUN)
    assert len(judge.calls) == 60


def test_a_model_that_finds_nothing_has_no_relative_robustness(
    judge: Judge, models: dict[str, Path], tmp_path: Path
) -> None:
    judge.hits["clean"] = 0
    result = robustness({"plain": models["plain/seed0"]}, "data.yaml", store=tmp_path, seed=3, **RUN)
    assert result["arms"]["plain"]["relative"] is None


def test_what_cannot_be_measured_is_said_in_words(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no such file"):
        robustness({"plain": tmp_path / "none.pt"}, "data.yaml", store=tmp_path, **RUN)
    empty = Validation(names={0: "cat"}, images=[image()])
    monkeypatch.setattr(module, "validate_changed", lambda *args, **more: empty)
    with pytest.raises(UserError, match="no object"):
        robustness(models, "data.yaml", store=tmp_path / "analysis", **RUN)


def test_with_a_real_model(toy_data: Path, toy_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRENGTHS", {"noise": STRENGTHS["noise"]})
    result = robustness({"plain/seed0": toy_student}, toy_data, store=tmp_path, **{**RUN, "split": "val"})
    assert set(result["arms"]["plain"]) == {"clean", "corruptions", "fgsm", "mean", "relative"}
    assert result["seeds"] == [0]
    assert [file.name for file in tmp_path.iterdir()] == ["robustness-plain-seed0.json"]
