from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.evaluation.report.made_up import made_up
from yolokd.evaluation.report.contents import read_report
from yolokd.evaluation.report.markdown import code, comparison_markdown, plain, table


@pytest.fixture
def text(tmp_path: Path) -> str:
    content = made_up()
    content["arms"][3]["name"] = "a|b*c*.yaml"
    content["command"] = "yolokd compare \\\n  name=`x`"
    (tmp_path / "report.json").write_text(json.dumps(content))
    return comparison_markdown(read_report(tmp_path)).replace("\xa0", " ")


def test_every_row_has_as_many_cells_as_the_heading(text: str) -> None:
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4 + 1
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {13}


def test_it_says_what_the_page_says(text: str) -> None:
    assert re.search(r"\| yolokd \| 30\.\d ± 0\.\d \| \+2\.\d\d \(\+1\.\d\d to \+3\.\d\d\), helps \|", text)
    assert "| a\\|b\\*c\\*.yaml |" in text
    assert "| teacher (yolov8m\\_aquarium.pt) | 38." in text
    assert "Judged on 63 images with 584 objects: split test of aquarium416.yaml." in text
    assert "    yolokd compare \\\n      name=`x`" in text
    assert text.startswith("# aquarium: was distilling worth it?\n\n**yolokd helps: ")


@pytest.mark.parametrize(("raw", "safe"), [("a\n# b", "a \\# b"), ("<b>&", "&lt;b&gt;&amp;"), ("[x](y)", "\\[x\\](y)")])
def test_markdown_shows_text_as_it_is(raw: str, safe: str) -> None:
    assert plain(raw) == safe


def test_code_cannot_be_ended_from_inside() -> None:
    assert code("a\n```\n    b") == "    a\n    ```\n        b"


def test_a_table() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
