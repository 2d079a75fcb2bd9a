"""Curves and terms from results.csv files that a person can average."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from yolokd.evaluation.curves import curve, read_courses, terms

Write = Callable[[str, list[str]], Path]
PLAIN = "epoch,time,train/box_loss,metrics/mAP50-95(B),val/box_loss"
OURS = "epoch,train/kd_cls_loss,train/kd_box_loss,metrics/mAP50-95(B),balance/cls_gain,balance/cls_share"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def call(header: str, rows: list[str]) -> Path:
        folder = tmp_path / f"seed{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "results.csv").write_text("\n".join([header, *rows, ""]))
        return folder

    return call


def test_mean_and_band_over_the_seeds_that_still_ran(write: Write) -> None:
    runs = read_courses(
        [
            write(PLAIN, ["1,9,1,0.1,2", "2,9,1,0.3,2"]),
            write(PLAIN, ["1,9,1,0.2,2", "2,9,1,0.4,2", "3,9,1,0.5,2"]),
            write(PLAIN, ["1,9,1,0.6,2", "2,9,1,0.2,2", "3,9,1,0.7,2"]),
        ]
    )
    found = curve(runs)
    assert found is not None
    assert found["epoch"] == [1, 2, 3]
    assert found["mean"] == pytest.approx([0.3, 0.3, 0.6])
    assert found["low"] == [0.1, 0.2, 0.5]
    assert found["high"] == [0.6, 0.4, 0.7]


def test_epochs_without_validation_are_no_zeros(write: Write) -> None:
    folders = [write(PLAIN, ["1,9,1,0,0", "2,9,1,0,0", "3,9,1,0.4,2"])]
    assert curve(read_courses(folders)) == {"epoch": [3], "mean": [0.4], "low": [0.4], "high": [0.4]}
    never = write(PLAIN, ["1,9,1,0,0", "2,9,1,0,0"])
    assert curve(read_courses([never])) is None
    folders.append(write(PLAIN, ["1,9,1,0.2,2", "2,9,1,0,2", "3,9,1,0.6,2"]))  # here 0 was measured
    found = curve(read_courses(folders))
    assert found is not None
    assert (found["epoch"], found["mean"]) == ([1, 2, 3], [0.2, 0.0, 0.5])


def test_nothing_where_a_column_is_not_there(write: Write, tmp_path: Path) -> None:
    runs = read_courses([write("epoch,time", ["1,9"]), tmp_path / "none", write(PLAIN, [])])
    assert len(runs) == 1
    assert curve(runs) is None
    assert terms(runs) is None
    assert curve([]) is None
    assert terms([]) is None


def test_terms_and_shares(write: Write) -> None:
    runs = read_courses(
        [
            write(OURS, ["1,2,8,0.1,.5,0", "2,1,4,0.1,.5,0.2"]),
            write(OURS, ["1,4,8,0.1,.5,0", "2,3,nan,0.1,.5,0.4", "3,7,nan,0.1,.5,0.6"]),
        ]
    )
    assert terms(runs) == {
        "epoch": [1, 2, 3],
        "loss": {"cls": [3.0, 2.0, 7.0], "box": [8.0, 4.0, None]},
        "share": {"cls": pytest.approx([0.0, 0.3, 0.6])},
    }


def test_the_term_of_ultralytics_own_distillation(write: Write) -> None:
    runs = read_courses([write("epoch,train/box_loss,train/dis_loss,val/dis_loss", ["1,2,6.5,1", "2,2,5.5,1"])])
    assert terms(runs) == {"epoch": [1, 2], "loss": {"dis": [6.5, 5.5]}, "share": {}}


def test_a_row_that_was_torn_and_one_that_stands_twice(write: Write) -> None:
    runs = read_courses([write(PLAIN, ["1,9,1,0.1,2", "2,9,1,0.2,2", "2,9,1,0.4,2", "3,9"])])
    found = curve(runs)
    assert found is not None
    assert (found["epoch"], found["mean"]) == ([1, 2], [0.1, 0.4])
