from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.report.made_up import RECIPE, UGLY, made_up, write_made_up, write_picture
from yolokd.errors import UserError
from yolokd.evaluation.report import rendering, write_report
from yolokd.evaluation.report.contents import read_report
from yolokd.evaluation.report.page import MOST_AUDITED, comparison_page
from yolokd.evaluation.report.pictures import LADDER

SECTIONS = ["arms", "differences", "curves", "classes", "speed", "terms", "examples", "robustness", "calibration"]
SECTIONS += ["fairness", "audit", "reproduce"]
_EMPTY = {"meta", "link", "img", "br", "path", "use"}


class Page(HTMLParser):
    """Tags with their attributes, the text of each section, and whether every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.where = "top"
        self.text: dict[str, str] = {}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.where = str(dict(attrs)["id"])
        if tag not in _EMPTY:
            self.open.append(tag)
        if tag in ("td", "th", "small", "dt", "dd", "p"):
            self.handle_data(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text[self.where] = self.text.get(self.where, "") + data.replace("\xa0", " ")


def page_of(content: dict[str, Any], folder: Path) -> Page:
    (folder / "report.json").write_text(json.dumps(content))
    return Page(comparison_page(read_report(folder), folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    write_made_up(folder, audited=3)
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_verdict_comes_first_with_number_and_interval(page: Page) -> None:
    top = " ".join(page.text["top"].split())
    assert re.search(r"yolokd helps: \+2\.\d\d points of AP .*95 % interval \+1\.\d\d to \+3\.\d\d, 5 seeds", top)
    assert next(tag for tag, _ in page.tags if tag in ("h1", "table", "svg", "img")) == "h1"


def test_every_section_is_there_and_linked(page: Page) -> None:
    assert [a["id"] for tag, a in page.tags if tag == "section"] == SECTIONS
    assert [a["href"] for tag, a in page.tags if tag == "a"] == [f"#{name}" for name in SECTIONS]


def test_the_table_of_the_arms_has_the_numbers(page: Page, folder: Path) -> None:
    said = " ".join(page.text["arms"].split())
    report = json.loads((folder / "report.json").read_text())
    for arm in report["arms"]:
        assert arm["name"] in said
        assert f"{100 * arm['ap']['mean']:.1f} ± {100 * arm['ap']['sd']:.1f}" in said
        assert f"{100 * arm['kept']:.1f} %" in said
        for found in (arm["to_plain"], arm["to_native"]):
            if found:
                interval = f"{100 * found['mean']:+.2f} {100 * found['low']:+.2f} to {100 * found['high']:+.2f}"
                assert f"{interval.replace('-', '−')} {found['verdict']}" in said
    for word in ("2.58 M", "6.3", "5.5 MB", "min", "1.9 GB", "11.9", "25.84 M", "38."):
        assert word in said


def test_names_from_files_are_text(page: Page, folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in html
    assert not any(tag in ("b", "i", "script") for tag, _ in page.tags)
    assert UGLY in page.text["classes"]
    assert UGLY in page.text["fairness"]
    assert "IMG_0_<i>.jpg" in page.text["examples"]


@pytest.mark.usefixtures("undrawn")
def test_a_hostile_report_stays_text(tmp_path: Path) -> None:
    evil = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\"' $x$ {{ 7*7 }}"

    def poison(value: Any) -> Any:
        if isinstance(value, str):
            return evil
        if isinstance(value, list):
            return [poison(inner) for inner in value]
        if isinstance(value, dict):
            fixed = {"image", "name", "arm"}
            return {k: v if k in fixed else poison(v) for k, v in value.items()}
        return value

    page = page_of(poison(made_up()), tmp_path)
    assert not any(tag == "script" or "onerror" in attrs for tag, attrs in page.tags)
    assert evil in page.text["reproduce"]


def test_it_stands_alone(page: Page, folder: Path) -> None:
    sources = [
        v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "xlink:href", "action") and v
    ]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "url(http" not in (folder / "report.html").read_text()
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")


def test_pictures_and_figures_say_what_they_show(page: Page) -> None:
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 8 * 4 + 3
    assert all(a["alt"] and a["width"] and a["height"] for a in images)
    assert [a["alt"] for a in images[:4]] == [
        f"IMG_0_<i>.jpg: boxes of {who}" for who in ("ground truth", "plain", "yolokd", "teacher")
    ]
    figures = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(figures) == 10
    assert all(a["aria-label"] for a in figures)
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))


def test_tables_scroll_in_a_box_with_a_name(page: Page) -> None:
    tags = [tag for tag, _ in page.tags]
    boxes = [i for i, (_, attrs) in enumerate(page.tags) if attrs.get("class") == "scroll"]
    assert [i + 1 for i in boxes] == [i for i, tag in enumerate(tags) if tag == "table"]
    assert all(page.tags[i][1]["aria-label"] and page.tags[i][1]["tabindex"] == "0" for i in boxes)


ABSENT: dict[str, Any] = {
    **{"teacher": None, "curves": {}, "terms": {}, "calibration": {}, "fairness": {}, "audit": [], "examples": []},
    **{"speed": {"note": "not measured: ONNX needs `onnx`"}, "robustness": {"off": True}},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ABSENT,
            {
                "arms": "No teacher was judged",
                "curves": "not validated while they trained",
                "speed": "Speed: not measured: ONNX needs `onnx`.",
                "terms": "No arm has distillation terms.",
                "examples": "no test images",
                "robustness": "not measured (robustness=off)",
                "calibration": "Calibration was not measured.",
                "fairness": "nothing to compare",
                "audit": "takes a teacher",
            },
        ),
        (
            {"robustness": None, "audit": [], "terms": {"native": {"epoch": [1], "loss": {"dis": [2.0]}, "share": {}}}},
            {
                "robustness": "Robustness was not measured.",
                "audit": "Nothing suspicious was found.",
                "terms": "shares of the gradient were not measured in this arm",
            },
        ),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_what_is_not_there_is_said(tmp_path: Path, changes: dict[str, Any], said: dict[str, str]) -> None:
    page = page_of({**made_up(), **changes}, tmp_path)
    for section, words in said.items():
        assert words in " ".join(page.text[section].split())
    empty = [attrs for tag, attrs in page.tags if tag == "svg" and "nan" in str(attrs.get("aria-label"))]
    assert empty == []


@pytest.mark.usefixtures("undrawn")
def test_few_seeds_get_neither_verdict_nor_interval(tmp_path: Path) -> None:
    page = page_of(made_up(seeds=2), tmp_path)
    said = " ".join("".join(page.text.values()).split())
    assert "With fewer than 3 seeds there is no verdict" in said
    assert "no verdict: fewer than 3 seeds" in said
    assert "2 seeds: no interval" in said


@pytest.mark.usefixtures("undrawn")
def test_what_was_not_alike_is_said(tmp_path: Path) -> None:
    content = made_up()
    content["arms"][2]["unlike"] = ["yolokd, seed 1: memory was short"]
    content["teacher"]["imgsz"] = 640
    said = " ".join(page_of(content, tmp_path).text["arms"].split())
    assert "yolokd, seed 1: memory was short." in said
    assert "The teacher is judged at 640 pixels, where it teaches." in said


@pytest.mark.usefixtures("undrawn")
def test_lost_classes_say_which_are_more_than_noise(tmp_path: Path) -> None:
    content = made_up()
    lost = content["fairness"]["yolokd"]["lost_classes"]
    lost += [{"name": "fish", "difference": -0.001, "low": -0.01, "high": 0.008}]
    content["fairness"][RECIPE]["lost_classes"] = lost[1:]
    said = " ".join(page_of(content, tmp_path).text["fairness"].split())
    assert f"More than noise: {UGLY}. 2 of 7 classes" in said
    assert "fish −0.10 −1.00 to +0.80" in said
    assert "None of these losses is more than noise. 1 of 7 classes" in said


@pytest.mark.usefixtures("undrawn")
def test_other_starting_weights_and_missing_seeds_are_said(tmp_path: Path) -> None:
    content = made_up()
    content["arms"][1]["same_start"] = False
    content["arms"][2]["seeds_done"] = [0, 1, 2]
    said = " ".join(page_of(content, tmp_path).text["arms"].split())
    assert "native did not start from the same weights as plain" in said
    assert "yolokd has 3 of 5 seeds." in said


@pytest.mark.usefixtures("undrawn")
def test_energy_and_what_was_held_out_are_said(tmp_path: Path) -> None:
    content = made_up()
    content["data"] |= {"held_out": True, "note": "the data set has no test split"}
    content["speed"]["plain"]["energy_j_per_image"] = 0.123
    page = page_of(content, tmp_path)
    assert "unknown" in page.text["speed"]
    assert "0.12" in page.text["speed"]
    assert "Energy: this machine does not say" in " ".join(page.text["speed"].split())
    top = " ".join(page.text["top"].split())
    assert "held out of the training images for this comparison. The data set has no test split." in top
    assert "held out of training" in page.text["reproduce"]


def test_how_to_reproduce_has_it_all(page: Page) -> None:
    said = " ".join(page.text["reproduce"].split())
    for word in ('data="my data.yaml" seeds=5', "Seeds 0, 1, 2, 3, 4", "8.4.190", "2.15.0", "Some Processor", "imgsz"):
        assert word in said
    assert "1b0c9ed787111356" * 4 in said
    assert "cls:3, box:5" in said
    assert RECIPE in said


@pytest.mark.usefixtures("undrawn")
def test_of_a_long_audit_the_first_are_shown(tmp_path: Path) -> None:
    page = page_of(made_up(audited=MOST_AUDITED + 7), tmp_path)
    assert "7 more are in report.json" in " ".join(page.text["audit"].split())


@pytest.mark.usefixtures("undrawn")
def test_a_missing_picture_is_said_and_none_is_taken_from_outside(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    write_picture(tmp_path / "outside.jpg")
    content = made_up(audited=2)
    content["audit"][0]["image"] = "../outside.jpg"
    content["audit"][1]["image"] = None
    page = page_of(content, tmp_path / "inside")
    assert page.text["audit"].count("missing or unreadable") == 2
    assert not any(tag == "img" for tag, _ in page.tags)


@pytest.mark.usefixtures("undrawn")
def test_pictures_shrink_until_the_page_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = read_report(folder)
    report["examples"] = report["examples"][:2]
    whole = len(comparison_page(report, folder).encode())
    bare = len(comparison_page({**report, "examples": [], "audit": []}, folder).encode())
    monkeypatch.setattr(rendering, "MOST_BYTES", bare + (whole - bare) // 3)
    html = comparison_page(report, folder)
    assert len(html.encode()) < bare + (whole - bare) // 3
    widths = {attrs["width"] for tag, attrs in Page(html).tags if tag == "img"}
    assert len(widths) == 1
    assert int(str(widths.pop())) in [side for side, _ in LADDER[1:]]
    monkeypatch.setattr(rendering, "MOST_BYTES", bare)
    assert "missing or unreadable" not in html
    assert "<img" not in comparison_page(report, folder)


@pytest.mark.usefixtures("undrawn")
def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.json").write_text(json.dumps(made_up()))
    (tmp_path / "report.html").write_text("the old one")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert (tmp_path / "report.html").read_text() == "the old one"


def test_folders_that_are_neither_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is neither a comparison \(report\.json\) nor a run \(results\.csv\)"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "runs" / "peer0").mkdir(parents=True)
    (tmp_path / "runs" / "peer0" / "results.csv").touch()
    with pytest.raises(UserError, match=r"holds several runs: peer0\.\n.*peer0$"):
        write_report(tmp_path / "runs")
    (tmp_path / "compare.yaml").touch()
    with pytest.raises(UserError, match=r"has not come to its end.*\n.*yolokd compare resume="):
        write_report(tmp_path)
