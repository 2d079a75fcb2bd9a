"""Figures as inline SVG that takes its colours from the page, so that it is readable in light and in dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Light and dark of each series: at least 3:1 against the page's background, and told apart by colour-blind eyes with
# the help of marker and dash.
COLOURS = (
    ("#6a7280", "#a9b2bf"),
    ("#c2540a", "#ff9a4d"),
    ("#1d5fd1", "#73acff"),
    ("#0b7a50", "#45c88f"),
    ("#8a3ab9", "#cf93f5"),
    ("#b3205f", "#ff85b3"),
    ("#7b6000", "#dcb93a"),
    ("#0b7089", "#4cc5e0"),
)
INK, FAINT = "#111213", "#d9dadb"  # become the page's text colour and its line colour
_MARKERS, _DASHES = "osD^vPX*", ("-", "--", "-.", ":")
_FIXED = {"plain": 0, "native": 1, "yolokd": 2, "teacher": 3}
WIDTH = 360  # of a figure, in its own units; a phone shows it at about that many pixels
_UNITS_PER_INCH = 72  # of matplotlib's SVG
_FONT = 12.0
_RC: Any = {  # matplotlib types this by 300 literals
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "yolokd",  # the same figure has the same bytes
    "text.parse_math": False,  # a class may be called a$b$
    "font.family": "DejaVu Sans",
    "font.size": _FONT,
    "axes.labelsize": _FONT,
    "axes.titlesize": _FONT,
    "xtick.labelsize": _FONT - 1,
    "ytick.labelsize": _FONT - 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
}


@dataclass(frozen=True)
class Style:
    """How a series looks, the same in every figure.

    Attributes:
        colour: one of the light `COLOURS`.
        marker: as matplotlib knows it.
        dash: as matplotlib knows it.
    """

    colour: str
    marker: str
    dash: str

    def line(self, **more: Any) -> dict[str, Any]:
        """Arguments of ``Axes.plot``."""
        return {"color": self.colour, "linestyle": self.dash, "linewidth": 1.6, "markersize": 4.5, **more}


@dataclass(frozen=True)
class Drawing:
    """A figure, ready for the page.

    Attributes:
        svg: an ``<svg>`` element with an accessible name.
        legend: name and swatch of each series.
    """

    svg: Markup
    legend: Sequence[tuple[str, Markup]] = ()


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each arm: plain, native, yolokd and the teacher have theirs, the others take what is left."""
    others = [name for name in names if name not in _FIXED]
    free = len(COLOURS) - len(_FIXED)
    found = {}
    for name in names:
        position = _FIXED[name] if name in _FIXED else len(_FIXED) + others.index(name) % free
        dash = 1 if name in ("native", "teacher") else 0 if name in _FIXED else others.index(name) // free
        found[name] = Style(COLOURS[position][0], _MARKERS[position], _DASHES[dash % len(_DASHES)])
    return found


def series(names: Sequence[str]) -> dict[str, Style]:
    """A style for each of several terms, in their order."""
    count = len(COLOURS)
    return {
        name: Style(COLOURS[(i + 2) % count][0], _MARKERS[i % count], _DASHES[i // count % len(_DASHES)])
        for i, name in enumerate(names)
    }


def draw(
    key: str,
    paint: Callable[[list[Axes]], None],
    *,
    alt: str,
    height: float = 230,
    grid: tuple[int, int] = (1, 1),
    legend: dict[str, Style] | None = None,
) -> Drawing:
    """Paint a figure.

    Args:
        key: begins the ids in it; unique on the page.
        paint: gets the axes, row by row.
        alt: what the figure says, in words.
        height: in units of which it is `WIDTH` wide.
        grid: rows and columns of axes.
        legend: style of each series.
    """
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has a font where matplotlib has none
        figure = Figure(figsize=(WIDTH / _UNITS_PER_INCH, height / _UNITS_PER_INCH), layout="constrained")
        paint(list(figure.subplots(*grid, squeeze=False).flat))
        svg = _inline(figure, key, alt)
    series = enumerate((legend or {}).items())
    return Drawing(svg, [(name, _swatch(style).replace("KEY-", f"{key}-s{i}-")) for i, (name, style) in series])


@cache  # one for each look
def _swatch(style: Style) -> Markup:
    """A piece of the line with its marker; ids in it begin with ``KEY``."""
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(32 / _UNITS_PER_INCH, 12 / _UNITS_PER_INCH))
        line = Line2D([0.03, 0.5, 0.97], [0.5] * 3, marker=style.marker, markevery=[1], **style.line(markersize=6))
        figure.add_artist(line)
        return _inline(figure, "KEY", "")


def _inline(figure: Figure, key: str, alt: str) -> Markup:
    """An SVG without prolog, metadata, unused ids or fixed size, in the page's colours."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    body = svg[svg.index(">", box.end()) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(url\(|xlink:href=")#', rf"\1#{key}-", body)
    paints = {INK: "currentColor", FAINT: "var(--line)"} | {c[0]: f"var(--c{i})" for i, c in enumerate(COLOURS)}
    body = re.sub(r"(fill|stroke): (#\w{6})", lambda found: f"{found[1]}: {paints.get(found[2], found[2])}", body)
    name = f'role="img" aria-label="{escape(alt)}"' if alt else 'aria-hidden="true"'
    return Markup(f"<svg {box[0]} {name}>{body}")  # matplotlib has escaped the text in it
