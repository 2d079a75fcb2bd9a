from __future__ import annotations

from pathlib import Path

import pytest

from yolokd.errors import UserError
from yolokd.evaluation.results import read_results

HEADER = "epoch,time,train/box_loss,metrics/mAP50-95(B),val/box_loss"


def read(folder: Path, *rows: str, header: str = HEADER) -> dict[str, list[float | None]]:
    (folder / "results.csv").write_text("\n".join([header, *rows, ""]))
    return dict(read_results(folder / "results.csv"))


def test_columns_row_by_row(tmp_path: Path) -> None:
    columns = read(tmp_path, "1,10,2.5,0.1,3", "2,20,nan,0.2,inf", header=HEADER.replace("time", "  time "))
    assert columns == {
        "epoch": [1, 2],
        "time": [10, 20],
        "train/box_loss": [2.5, None],
        "metrics/mAP50-95(B)": [0.1, 0.2],
        "val/box_loss": [3, None],
    }


def test_zeros_of_an_epoch_without_validation_are_none(tmp_path: Path) -> None:
    columns = read(tmp_path, "1,10,2,0,0", "2,20,0,0,1.5")
    assert columns["metrics/mAP50-95(B)"] == [None, 0]  # the second was validated, and found nothing
    assert columns["val/box_loss"] == [None, 1.5]
    assert columns["train/box_loss"] == [2, 0]


def test_an_epoch_that_stands_twice_counts_once(tmp_path: Path) -> None:
    assert read(tmp_path, "1,10,2,.1,3", "2,20,2,.2,3", "2,21,2,.3,3")["metrics/mAP50-95(B)"] == [0.1, 0.3]


def test_no_epoch_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished epoch"):
        read(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "other.csv")
