from __future__ import annotations

import re

import pytest
from matplotlib.axes import Axes

from yolokd.evaluation.report.drawing import COLOURS, Drawing, draw, series, styles

BAD = 'a$b$<b>&"'


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    style = styles(["plain"])

    def paint(all_axes: list[Axes]) -> None:
        all_axes[0].plot([1, 2], [3, 4], **style["plain"].line(marker="o"))
        all_axes[0].fill_between([1, 2], [3, 4], color=style["plain"].colour, alpha=0.2)
        all_axes[0].set_title(BAD)

    return draw("key", paint, alt=f"what it says: {BAD}", legend=style)


def test_every_colour_is_the_pages(drawing: Drawing) -> None:
    for svg in (drawing.svg, drawing.legend[0][1]):
        paints = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
        assert paints <= {"none", "currentColor", "var(--line)", "var(--c0)"}
        assert "var(--c0)" in paints


def test_names_stay_text_and_are_escaped(drawing: Drawing) -> None:
    assert "a$b$&lt;b&gt;&amp;" in drawing.svg
    assert 'aria-label="what it says: a$b$&lt;b&gt;&amp;&#34;"' in drawing.svg
    assert "<b>" not in drawing.svg


def test_it_brings_neither_style_sheet_nor_foreign_addresses(drawing: Drawing) -> None:
    assert "<style" not in drawing.svg
    assert "<metadata" not in drawing.svg
    assert "http" not in drawing.svg
    assert re.match(r'<svg viewBox="0 0 360 230"', drawing.svg)  # no fixed size


def test_ids_are_used_and_begin_with_the_key(drawing: Drawing) -> None:
    ids = re.findall(r' id="([^"]*)"', drawing.svg)
    asked = set(re.findall(r'(?:url\(|xlink:href=")#([^)"]+)', drawing.svg))
    assert len(ids) == len(set(ids))
    assert set(ids) == asked
    assert all(name.startswith("key-") for name in ids)


def test_the_same_figure_has_the_same_bytes() -> None:
    first, second = (draw("k", lambda axes: axes[0].set_title("t") and None, alt="a") for _ in range(2))
    assert first == second


def test_a_name_without_a_glyph_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    drawn = draw("k", lambda axes: axes[0].set_title("魚") and None, alt="a")
    assert "魚" in drawn.svg
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_every_arm_has_a_look_of_its_own() -> None:
    names = ["plain", "native", "yolokd", *(f"{i}.yaml" for i in range(12)), "teacher"]
    found = styles(names)
    assert len(set(found.values())) == len(names)
    assert found["yolokd"] == styles(["yolokd"])["yolokd"]
    assert len(set(series([str(i) for i in range(20)]).values())) == 20


def contrast(one: str, other: str) -> float:
    """WCAG's ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("pair", COLOURS)
def test_colours_are_seen_on_both_papers(pair: tuple[str, str]) -> None:
    assert contrast(pair[0], "#ffffff") >= 3
    assert contrast(pair[1], "#10141a") >= 3
