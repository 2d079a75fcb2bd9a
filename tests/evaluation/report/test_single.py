from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.evaluation.report.test_page import Page
from yolokd.errors import UserError
from yolokd.evaluation.report import write_report, write_run_report
from yolokd.evaluation.results import read_results

pytestmark = pytest.mark.usefixtures("undrawn")
PLAIN = "epoch,time,train/box_loss,train/cls_loss,metrics/precision(B),metrics/recall(B),metrics/mAP50(B),"
PLAIN += "metrics/mAP50-95(B),val/box_loss,val/cls_loss,lr/pg0"
TERMS = ",train/kd_cls_loss,train/kd_cwd_loss,balance/cls_gain,balance/cls_share,balance/cwd_gain,balance/cwd_share"


def rows(epochs: int = 4, taught: bool = False) -> list[str]:
    header = PLAIN + (TERMS if taught else "")
    lines = [header]
    for i in range(1, epochs + 1):
        line = f"{i},{10.0 * i},2.0,{3 / i},0.5,0.4,{0.1 * i},{0.05 * i},1.9,{2.5 / i},0.001"
        lines.append(line + (f",{0.4 / i},{4 / i},0.25,{0.0 if i == 1 else 0.3},3,0.28" if taught else ""))
    return lines


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A distilled run, without weights."""
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "results.csv").write_text("\n".join(rows(taught=True)) + "\n")
    arguments = {"model": "yolo11n.yaml", "data": "coco8.yaml", "epochs": 4, "imgsz": 96, "lr0": 0.01}
    (folder / "args.yaml").write_text(yaml.safe_dump(arguments))
    recipe = {"teacher": "big.pt", "losses": {"cls": 0.25, "cwd": 3.0}, "student": "yolo11n.yaml", "epochs": 4}
    (folder / "distill.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def page_of(folder: Path) -> Page:
    assert write_report(folder) == folder / "report.html"
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def said(page: Page, section: str) -> str:
    return " ".join(page.text[section].split())


def test_a_distilled_run(run: Path) -> None:
    page = page_of(run)
    assert "my run reaches 20.0 points of mAP50‑95 on its validation split, after 4 epochs." in said(page, "top")
    assert "Taught by big.pt through the losses cls:0.25, cwd:3.0." in said(page, "top")
    assert "yolokd compare answers that" in said(page, "top")
    assert "mAP50, points 40.0 40.0" in said(page, "metrics")
    figures = [str(a["aria-label"]) for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert [figure.split(" over")[0] for figure in figures] == [
        *("Validation", "loss, mean of the epoch", "share of the gradient, %"),
        *("box loss", "cls loss"),
    ]
    assert "cls 30.000 to 30.000, cwd 28.000 to 28.000" in figures[2]  # not 0, which stands for "not yet measured"
    assert "yolokd train 'recipe=" in said(page, "reproduce")
    assert "name=my run-again'" in said(page, "reproduce")
    text = (run / "report.md").read_text()
    assert text.startswith("# my run reaches 20.0 points of mAP50-95")
    assert "| mAP50-95, points | 20.0 | 20.0 |" in text


def test_a_plain_run(run: Path) -> None:
    (run / "results.csv").write_text("\n".join(rows()))
    (run / "distill.yaml").unlink()
    page = page_of(run)
    assert "Trained without a teacher." in said(page, "top")
    assert "This run has no distillation terms." in said(page, "terms")
    assert "yolo train 'cfg=" in said(page, "reproduce")
    assert "imgsz 96" in said(page, "settings")
    assert "lr0" not in said(page, "settings")  # as Ultralytics has it anyway


def test_ultralytics_own_distillation(run: Path) -> None:
    header, *body = rows()
    (run / "results.csv").write_text("\n".join([f"{header},train/dis_loss", *(f"{line},2.5" for line in body)]))
    (run / "distill.yaml").unlink()
    (run / "args.yaml").write_text(yaml.safe_dump({"model": "a.pt", "distill_model": "big.pt", "dis": 6.0}))
    page = page_of(run)
    assert "Taught by big.pt through Ultralytics' own distillation (dis=6.0)." in said(page, "top")
    alts = [str(attrs.get("aria-label")) for tag, attrs in page.tags if tag == "svg"]
    assert "dis 2.500 to 2.500" in alts[1]
    assert [alt.split(" over")[0] for alt in alts[2:]] == ["box loss", "cls loss"]
    assert "shares of the gradient were not measured" in said(page, "terms")


@pytest.mark.parametrize("damaged", ["missing", "torn"])
def test_without_its_settings_nothing_is_claimed(run: Path, damaged: str) -> None:
    (run / "distill.yaml").write_text("losses: {cls: [") if damaged == "torn" else (run / "distill.yaml").unlink()
    page = page_of(run)
    assert "so who taught it is unknown" in said(page, "top")
    assert "no command that repeats it" in said(page, "reproduce")
    (run / "args.yaml").write_text("model: null")
    assert "Neither distill.yaml nor args.yaml is there" in said(page_of(run), "settings")


def test_epochs_without_validation_are_no_zeros(run: Path) -> None:
    header, *body = rows()
    empty = [",".join([*line.split(",")[:4], *["0"] * 6, "0.001"]) for line in body[:-1]]
    (run / "results.csv").write_text("\n".join([header, *empty, body[-1]]))
    columns = read_results(run / "results.csv")
    assert columns["metrics/mAP50-95(B)"] == [None, None, None, pytest.approx(0.2)]
    assert columns["val/box_loss"] == [None, None, None, 1.9]
    assert "not validated in more than one epoch" in said(page_of(run), "curves")
    (run / "results.csv").write_text("\n".join([header, *empty]))
    page = page_of(run)
    assert "my run trained for 3 epochs and was never validated." in said(page, "top")
    assert "The run was never validated." in said(page, "metrics")


def test_a_detector_that_finds_nothing_is_validated_all_the_same(run: Path) -> None:
    header, *body = rows(2)
    poor = [",".join([*line.split(",")[:4], *["0"] * 4, "1.9", "2.5", "0.001"]) for line in body]
    (run / "results.csv").write_text("\n".join([header, *poor]))
    assert read_results(run / "results.csv")["metrics/mAP50-95(B)"] == [0, 0]


def test_best_pt_is_of_the_last_best_epoch(run: Path) -> None:
    header, *body = rows()
    scores = (0.05, 0.2, 0.2, 0.1)
    fields = [line.split(",") for line in body]
    lines = [",".join([*f[:7], str(score), *f[8:]]) for f, score in zip(fields, scores, strict=True)]
    (run / "results.csv").write_text("\n".join([header, *lines]))
    page = page_of(run)
    assert "Best epoch (3)" in page.text["metrics"]
    assert "mAP50-95, points 20.0 10.0" in said(page, "metrics")


def test_the_clock_begins_again_at_a_resume(run: Path) -> None:
    header, *body = rows()
    body[2] = body[2].replace("3,30.0,", "3,7.0,")
    body[3] = body[3].replace("4,40.0,", "4,15.0,")
    (run / "results.csv").write_text("\n".join([header, *body]))
    assert "35.0 s" in page_of(run).text["top"].replace("\xa0", " ")  # 20 and 15


def test_a_torn_row_and_words_for_numbers_are_left_out(run: Path) -> None:
    header, *body = rows()
    body[1] = body[1].replace("2.0,1.5", "nan,inf")
    (run / "results.csv").write_text("\n".join([header.replace("time", "   time"), *body, "5,50.0,2."]))
    columns = read_results(run / "results.csv")
    assert columns["epoch"] == [1, 2, 3, 4]
    assert columns["time"] == [10, 20, 30, 40]
    assert columns["train/box_loss"] == [2, None, 2, 2]
    assert columns["train/cls_loss"][1] is None


@pytest.mark.parametrize("text", ["", "\n", PLAIN, f"{PLAIN}\n1,2", "a,b\n1,2", '"a\n1'])
def test_a_run_without_an_epoch_is_refused(run: Path, text: str) -> None:
    (run / "results.csv").write_text(text)
    with pytest.raises(UserError, match="has no finished epoch") as refused:
        write_run_report(run)
    assert str(refused.value).count("\n") == 1
    assert not (run / "report.html").exists()


def test_a_missing_or_unreadable_table_is_refused(run: Path) -> None:
    (run / "results.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        write_run_report(run)
    (run / "results.csv").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        write_run_report(run)
