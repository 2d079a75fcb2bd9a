from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from jinja2 import UndefinedError

from yolokd.evaluation.report import rendering
from yolokd.evaluation.report.rendering import render

HERE = "page.html"


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture, and a template that shows what it is given."""
    noise = np.random.default_rng(0).integers(0, 255, (300, 700, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), noise)
    (tmp_path / HERE).write_text("{{ name }} {{ score | points }}{% set p = picture(path) %}{{ p.uri if p }}")
    monkeypatch.setattr(rendering, "__file__", str(tmp_path / "rendering.py"))
    return tmp_path


def test_names_from_anywhere_are_escaped_and_numbers_in_points(template: Path) -> None:
    html = render(HERE, template, name="<b>&", score=0.3012, path="a.png")
    assert html.startswith("&lt;b&gt;&amp; 30.1data:image/")


def test_what_is_not_given_is_an_error(template: Path) -> None:
    with pytest.raises(UndefinedError, match="score"):
        render(HERE, template, name="a", path="a.png")


@pytest.mark.parametrize("path", ["../a.png", "/etc/hostname", "none.png"])
def test_a_picture_outside_or_missing_is_none(template: Path, path: str) -> None:
    folder = template / "inner"
    folder.mkdir()
    assert render(HERE, folder, name="a", score=0.5, path=path) == "a 50.0"


def test_pictures_shrink_and_then_go(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for most in (3_000_000, 60_000, 100):
        monkeypatch.setattr(rendering, "MOST_BYTES", most)
        sizes.append(len(render(HERE, template, name="a", score=0.5, path="a.png")))
    assert sizes[0] > 60_000 > sizes[1] > 100
    assert sizes[2] == len("a 50.0")
