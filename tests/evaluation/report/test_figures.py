"""What is drawn, read off the axes: the right numbers at the right places, in points and percent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from tests.evaluation.report.made_up import made_up
from yolokd.evaluation.report import figures
from yolokd.evaluation.report.drawing import Drawing, series, styles

Paint = Callable[[list[Axes]], None]


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """Where the next figure is painted."""
    found: list[Axes] = []

    def draw(key: str, paint: Paint, *, grid: tuple[int, int] = (1, 1), alt: str, **_: Any) -> Drawing:
        assert alt
        found[:] = list(Figure().subplots(*grid, squeeze=False).flat)
        paint(found)
        return Drawing(alt)  # type: ignore[arg-type]

    monkeypatch.setattr(figures, "draw", draw)
    return found


def lines(axes: Axes) -> list[list[float]]:
    return [[float(v) for v in np.asarray(line.get_xdata())] for line in axes.lines]


def difference(mean: float, low: float | None, high: float | None, seeds: list[float]) -> dict[str, Any]:
    return {"mean": mean, "low": low, "high": high, "per_seed": seeds, "verdict": "helps", "seeds": len(seeds)}


def test_a_difference_is_drawn_in_points_with_its_interval_and_its_seeds(axes: list[Axes]) -> None:
    arms = [
        {"name": "plain", "to_plain": None, "to_native": None},
        {"name": "yolokd", "to_plain": difference(0.02, 0.01, 0.03, [0.015, 0.025]), "to_native": None},
    ]
    drawn = figures.differences(arms, styles(["plain", "yolokd"]))
    assert drawn is not None
    assert drawn.svg == "Difference of AP in points: yolokd against plain +2.00 (+1.00 to +3.00)."
    seeds, ends, mean, zero = lines(axes[0])
    assert (seeds, ends, mean) == ([pytest.approx(1.5), pytest.approx(2.5)], pytest.approx([1, 3]), pytest.approx([2]))
    assert zero == [0, 0]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["yolokd\nagainst plain"]


def test_without_an_interval_there_is_no_line_for_one(axes: list[Axes]) -> None:
    arms = [{"name": "yolokd", "to_plain": difference(0.02, None, None, [0.02]), "to_native": None}]
    figures.differences(arms, styles(["yolokd"]))
    assert len(axes[0].lines) == 3  # seeds, mean, zero


def test_nothing_to_compare_is_no_figure() -> None:
    assert figures.differences([{"name": "plain", "to_plain": None, "to_native": None}], {}) is None
    assert figures.curves({}, {}, "mAP") is None
    assert figures.curves({"plain": {"epoch": [1], "mean": [None], "low": [None], "high": [None]}}, {}, "mAP") is None
    assert figures.latency([], {}, {}) is None
    assert figures.reliability({}, {}) is None
    assert figures.corruptions({}, {}) is None
    assert figures.classes([], [], {}) is None
    assert figures.terms({"epoch": [1], "loss": {}, "share": None}, "t") == (None, None)


def test_a_curve_has_its_band(axes: list[Axes]) -> None:
    curve = {"epoch": [1, 2], "mean": [0.1, 0.2], "low": [0.05, 0.1], "high": [0.2, 0.4]}
    drawn = figures.curves({"plain": curve}, styles(["plain"]), "mAP50-95")
    assert drawn is not None
    assert "plain 20.0" in drawn.svg
    assert np.asarray(axes[0].lines[0].get_ydata()).tolist() == pytest.approx([10, 20])
    band = axes[0].collections[0].get_datalim(axes[0].transData)
    assert (band.y0, band.y1) == pytest.approx((5, 40))


def test_bars_are_as_long_as_the_ap_of_the_class(axes: list[Axes]) -> None:
    score = {"fish": {"mean": 0.3, "sd": 0.01}, "ray": {"mean": None, "sd": None}}
    judged = [
        {"name": "plain", "per_class": score},
        {"name": "yolokd", "per_class": {"fish": {"mean": 0.4, "sd": None}}},
    ]
    figures.classes(["fish", "ray"], judged, styles(["plain", "yolokd"]))
    widths = [patch.get_width() for patch in axes[0].patches]  # type: ignore[attr-defined]
    assert widths[0] == pytest.approx(30)
    assert widths[2] == pytest.approx(40)
    assert np.isnan(widths[1])
    assert np.isnan(widths[3])
    fish = [patch.get_y() + patch.get_height() / 2 for patch in (axes[0].patches[0], axes[0].patches[2])]  # type: ignore[attr-defined]
    assert np.mean(fish) == pytest.approx(0)  # both around the class's tick


def test_of_many_classes_those_that_changed_are_shown() -> None:
    names = [f"class {i}" for i in range(30)]
    plain = {name: {"mean": 0.3} for name in names}
    ours = {name: {"mean": 0.3 + (0.01 * i if i % 2 else -0.01 * i)} for i, name in enumerate(names)}
    arms = [{"name": "plain", "per_class": plain}, {"name": "yolokd", "per_class": ours}]
    assert figures.shown_classes(arms, "yolokd") == names[10:]
    assert figures.shown_classes(arms[:1], "yolokd") == names[:20]


def test_a_point_of_latency_lies_at_its_milliseconds(axes: list[Axes]) -> None:
    judged = [
        {"name": n, "ap": {"mean": ap, "sd": 0.01}} for n, ap in (("plain", 0.3), ("yolokd", None), ("native", 0.2))
    ]
    speed = {"plain": {"onnx_ms_median": 12.0}, "yolokd": {"onnx_ms_median": 12.0}, "native": {"onnx_ms_median": None}}
    drawn = figures.latency(judged, speed, styles(["plain", "yolokd", "native"]))
    assert drawn is not None
    assert drawn.svg == "AP against latency: plain 12.0 ms, AP 30.0\xa0±\xa01.0."
    points = [c for c in axes[0].containers if isinstance(c, ErrorbarContainer)]
    assert len(points) == 1
    assert points[0].lines[0].get_xydata().tolist() == [[12.0, pytest.approx(30)]]


def test_shares_are_percent_and_begin_where_they_are_measured(axes: list[Axes]) -> None:
    share = {"cls": [0.0, 0.0, 0.25, 0.0]}
    _, drawn = figures.terms({"epoch": [1, 2, 3, 4], "loss": {}, "share": share}, "t")
    assert drawn is not None
    values = np.asarray(axes[0].lines[0].get_ydata(), dtype=float)
    assert np.isnan(values[:2]).all()
    assert values[2:].tolist() == [25, 0]  # 0 at the end is measured: the term has faded


@pytest.mark.parametrize(("values", "scale"), [([3.0, 0.1], "log"), ([3.0, 0.2], "linear"), ([3.0, 0.0], "linear")])
def test_terms_far_apart_are_drawn_in_decades(axes: list[Axes], values: list[float], scale: str) -> None:
    figures.lines([1, 2], {"cls": values}, series(["cls"]), "k", "loss", log=True)
    assert axes[0].get_yscale() == scale


def test_an_axis_of_epochs_is_the_whole_training(axes: list[Axes]) -> None:
    nan = float("nan")
    figures.lines([1, 2, 3, 4, 5], {"cls": [nan, nan, nan, nan, 0.3]}, series(["cls"]), "k", "share")
    assert axes[0].get_xlim() == pytest.approx((0.88, 5.12))
    figures.lines([1], {"cls": [0.3]}, series(["cls"]), "k", "share")
    assert axes[0].get_xlim() == (0.5, 1.5)
    assert 1 in axes[0].get_xticks()
    figures.curves({"a": {"epoch": [1, 3], "mean": [0, 0], "low": [0, 0], "high": [0, 0]}}, styles(["a"]), "AP")
    assert axes[0].get_ylim()[0] == 0  # no AP below


def test_a_lone_point_of_a_line_has_a_marker(axes: list[Axes]) -> None:
    nan = float("nan")
    figures.lines(range(40), {"val": [nan] * 39 + [1.0]}, series(["val"]), "k", "loss")
    assert axes[0].lines[0].get_markevery() == 1


def test_reliability_is_percent_over_percent(axes: list[Axes]) -> None:
    figures.reliability({"plain": {"ece": 0.1, "bins": [[0.15, 0.1, 40], [0.95, 0.9, 3]]}}, styles(["plain"]))
    diagonal, line = axes[0].lines
    assert np.asarray(diagonal.get_xydata()).tolist() == [[0, 0], [100, 100]]
    assert np.asarray(line.get_xydata()).tolist() == [pytest.approx([15, 10]), pytest.approx([95, 90])]


def test_corruptions_begin_with_the_clean_images(axes: list[Axes]) -> None:
    robust = made_up()["robustness"]["arms"]
    figures.corruptions(robust, styles(list(robust)))
    assert [a.get_title() for a in axes] == ["noise", "blur", "brightness", "contrast", "jpeg", "haze"]
    assert len(axes[0].lines) == 2
    values = np.asarray(axes[1].lines[0].get_ydata()).tolist()
    assert values == pytest.approx(
        [100 * v for v in (robust["plain"]["clean"], *robust["plain"]["corruptions"]["blur"])]
    )
