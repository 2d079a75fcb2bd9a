"""The figures of a report; AP in points, shares in percent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from yolokd.evaluation.report.drawing import INK, Drawing, Style, draw, series
from yolokd.evaluation.report.words import amount, interval, percent, points, shorten, signed, spread

MOST_CLASSES = 20  # bars of more are thinner than a pixel is high on a phone
Styles = Mapping[str, Style]


def _percent(values: Iterable[float | None]) -> list[float]:
    """For an axis; what does not exist is not drawn."""
    return [math.nan if value is None else 100 * value for value in values]


def _floats(values: Iterable[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _epochs(axes: Axes, epochs: Sequence[float]) -> None:
    """The whole training, also where nothing was measured in a part of it."""
    margin = 0.03 * (max(epochs) - min(epochs)) or 0.5
    axes.set_xlim(min(epochs) - margin, max(epochs) + margin)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))


def differences(arms: Sequence[Mapping[str, Any]], styles: Styles) -> Drawing | None:
    """Each arm's difference to plain and to native, with its interval and a point for each seed."""
    rows = [
        (arm["name"], other, arm[f"to_{other}"])
        for other in ("plain", "native")
        for arm in arms
        if arm[f"to_{other}"] and arm[f"to_{other}"]["mean"] is not None
    ]
    if not rows:
        return None

    def paint(all_axes: list[Axes]) -> None:
        (axes,) = all_axes
        for y, (name, _, found) in enumerate(rows):
            colour, marker = styles[name].colour, styles[name].marker
            seeds = _percent(found["per_seed"])
            axes.plot(seeds, [y + 0.22] * len(seeds), "o", color=colour, markersize=3.5, fillstyle="none")
            if interval(found):
                axes.plot(_percent((found["low"], found["high"])), [y, y], color=colour, linewidth=2.2)
            axes.plot(_percent([found["mean"]]), [y], marker, color=colour, markersize=7)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [f"{shorten(name)}\nagainst {other}" for name, other, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("difference of AP, points")

    said = [f"{a} against {b} {signed(d['mean'])} ({interval(d) or 'no interval'})" for a, b, d in rows]
    return draw("differences", paint, height=70 + 48 * len(rows), alt=f"Difference of AP in points: {'; '.join(said)}.")


def curves(found: Mapping[str, Mapping[str, Any]], styles: Styles, what: str, key: str = "curves") -> Drawing | None:
    """Validation over epochs: the mean over seeds with a band from the lowest to the highest.

    Args:
        found: epochs, means and bands by arm.
        styles: of each arm.
        what: is measured, for the axis.
        key: of the figure.
    """
    found = {name: curve for name, curve in found.items() if any(v is not None for v in curve["mean"])}
    if not found:
        return None

    def paint(all_axes: list[Axes]) -> None:
        (axes,) = all_axes
        for name, curve in found.items():
            style, epochs = styles[name], _floats(curve["epoch"])
            axes.fill_between(
                epochs, _percent(curve["low"]), _percent(curve["high"]), color=style.colour, alpha=0.18, linewidth=0
            )
            axes.plot(epochs, _percent(curve["mean"]), **style.line(), **_sparse(style, len(epochs)))
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"{what}, points")
        _epochs(axes, [epoch for curve in found.values() for epoch in _floats(curve["epoch"])])

    ends = [f"{name} {points(_last(curve['mean']))}" for name, curve in found.items()]
    alt = f"{what} over epochs; at the end, in points: {', '.join(ends)}."
    return draw(key, paint, alt=alt, legend={name: styles[name] for name in found})


def _sparse(style: Style, count: int) -> dict[str, Any]:
    """Some markers on a long line, all on a short one."""
    return {"marker": style.marker, "markevery": max(1, count // 8)}


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None and not math.isnan(value)), None)


def shown_classes(arms: Sequence[Mapping[str, Any]], arm: str) -> list[str]:
    """The classes that the bars show: all, or those that changed most between plain and the arm of the verdict."""
    by_name = {found["name"]: found["per_class"] or {} for found in arms}
    names = list(dict.fromkeys(name for classes in by_name.values() for name in classes))
    if len(names) <= MOST_CLASSES:
        return names

    def change(name: str) -> float:
        ends = [by_name.get(who, {}).get(name, {}).get("mean") for who in ("plain", arm)]
        return 0.0 if None in ends else abs(ends[1] - ends[0])

    largest = sorted(names, key=change, reverse=True)[:MOST_CLASSES]
    return [name for name in names if name in largest]


def classes(shown: Sequence[str], judged: Sequence[Mapping[str, Any]], styles: Styles) -> Drawing | None:
    """AP of each class as bars, the standard deviation over seeds as whiskers.

    Args:
        shown: the classes.
        judged: arms and teacher, each with ``per_class``.
        styles: of each.
    """
    judged = [one for one in judged if one["per_class"]]
    if not shown or not judged:
        return None

    def paint(all_axes: list[Axes]) -> None:
        (axes,) = all_axes
        thick = 0.82 / len(judged)
        for i, one in enumerate(judged):
            scores = [one["per_class"].get(name) or {"mean": None, "sd": None} for name in shown]
            places = [j + (i - (len(judged) - 1) / 2) * thick for j in range(len(shown))]
            means, errors = (_percent(score[key] for score in scores) for key in ("mean", "sd"))
            axes.barh(
                places,
                means,
                thick * 0.92,
                xerr=None if all(map(math.isnan, errors)) else errors,
                color=styles[one["name"]].colour,
                error_kw={"ecolor": INK, "elinewidth": 0.9},
            )
        axes.set_yticks(range(len(shown)), [shorten(name, 16) for name in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(False, axis="y")
        axes.set_xlabel("AP, points")

    height = 50 + len(shown) * (8 + 9 * len(judged))
    alt = f"AP of {len(shown)} classes under each arm; the table has the numbers."
    return draw("classes", paint, height=height, alt=alt, legend={one["name"]: styles[one["name"]] for one in judged})


def latency(judged: Sequence[Mapping[str, Any]], speed: Mapping[str, Any], styles: Styles) -> Drawing | None:
    """AP against milliseconds of an image."""
    times: Mapping[str, float | None] = {name: found["onnx_ms_median"] for name, found in speed.items()}
    timed = [(one, times.get(one["name"])) for one in judged if one["ap"]["mean"] is not None]
    there = [(one, ms) for one, ms in timed if ms is not None]
    if not there:
        return None

    def paint(all_axes: list[Axes]) -> None:
        (axes,) = all_axes
        for one, ms in there:
            style, (deviation,) = styles[one["name"]], _percent([one["ap"]["sd"]])
            axes.errorbar(
                [ms],
                _percent([one["ap"]["mean"]]),
                yerr=None if math.isnan(deviation) else [deviation],
                fmt=style.marker,
                color=style.colour,
                markersize=7,
            )
        axes.set_xlim(left=0, right=1.15 * max(ms for _, ms in there))
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        axes.set_xlabel("milliseconds an image, median")
        axes.set_ylabel("AP, points")

    said = [f"{one['name']} {amount(ms)} ms, AP {spread(one['ap'])}" for one, ms in there]
    legend = {one["name"]: styles[one["name"]] for one, _ in there}
    return draw("latency", paint, alt=f"AP against latency: {'; '.join(said)}.", legend=legend)


def terms(found: Mapping[str, Any], key: str) -> tuple[Drawing | None, Drawing | None]:
    """The distillation terms of an arm over epochs, and the shares of their gradients.

    Args:
        found: ``epoch``, ``loss`` and ``share`` as `report.json` has them.
        key: begins the names of the two figures.
    """
    names = list(dict.fromkeys([*found["loss"], *(found["share"] or {})]))
    style = series(names)
    losses = {name: _floats(values) for name, values in found["loss"].items()}
    shares = {name: _percent(_measured(values)) for name, values in (found["share"] or {}).items()}
    return (
        lines(found["epoch"], losses, style, f"{key}-loss", "loss, mean of the epoch", log=True),
        lines(found["epoch"], shares, style, f"{key}-share", "share of the gradient, %"),
    )


def _measured(values: Sequence[float | None]) -> list[float | None]:
    """Without the zeros at the beginning: they stand for epochs before the first measurement."""
    first = next((i for i, value in enumerate(values) if value), len(values))
    return [None] * first + list(values[first:])


def lines(
    epochs: Sequence[float], found: Mapping[str, list[float]], style: Styles, key: str, what: str, log: bool = False
) -> Drawing | None:
    """Lines over epochs.

    Args:
        epochs: shared by all lines.
        found: values of each line; NaN where there is none.
        style: of each line.
        key: of the figure.
        what: is drawn, for the axis.
        log: the axis in decades, where the values differ by more than a factor of 20.
    """
    there = {name: values for name, values in found.items() if any(not math.isnan(v) for v in values)}
    if not there:
        return None
    drawn = [v for values in there.values() for v in values if not math.isnan(v)]
    least, most = min(drawn), max(drawn)

    def paint(all_axes: list[Axes]) -> None:
        (axes,) = all_axes
        for name, values in there.items():
            axes.plot(
                _floats(epochs), values, **style[name].line(), **_sparse(style[name], sum(v == v for v in values))
            )
        if log and most > 20 * least > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if most < 500 * least else (1.0,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        elif least >= 0:
            axes.set_ylim(bottom=0)
        axes.set_ylabel(what)
        _epochs(axes, _floats(epochs))

    ends = [f"{name} {amount(_last(values[::-1]), 3)} to {amount(_last(values), 3)}" for name, values in there.items()]
    legend = {name: style[name] for name in there}
    return draw(key, paint, alt=f"{what} over epochs, first to last: {', '.join(ends)}.", legend=legend)


def reliability(calibration: Mapping[str, Any], styles: Styles) -> Drawing | None:
    """How often detections of a confidence are right; on the diagonal a detector means what it says."""
    there = {name: found for name, found in calibration.items() if found["bins"]}
    if not there:
        return None

    def paint(all_axes: list[Axes]) -> None:
        (axes,) = all_axes
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
        for name, found in there.items():
            confidence, precision = (_percent(row[i] for row in found["bins"]) for i in (0, 1))
            axes.plot(confidence, precision, **styles[name].line(marker=styles[name].marker))
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("right, %")

    errors = ", ".join(f"{name} {percent(found['ece'])}" for name, found in there.items())
    legend = {name: styles[name] for name in there}
    alt = f"Precision against confidence; calibration error: {errors}."
    return draw("reliability", paint, alt=alt, legend=legend, height=300)


def corruptions(robust: Mapping[str, Any], styles: Styles) -> Drawing | None:
    """AP under each corruption by strength, an axis for each."""
    kinds = list(dict.fromkeys(kind for found in robust.values() for kind in found["corruptions"]))
    if not kinds:
        return None
    rows = math.ceil(len(kinds) / 2)

    def paint(all_axes: list[Axes]) -> None:
        for axes, kind in zip(all_axes, kinds, strict=False):
            for name, found in robust.items():
                values = _percent([found["clean"], *found["corruptions"].get(kind, [])])
                axes.plot(range(len(values)), values, **styles[name].line(marker=styles[name].marker))
            axes.set_title(shorten(kind))
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in all_axes[len(kinds) :]:
            axes.set_axis_off()
        for axes in all_axes[-2:]:
            axes.set_xlabel("strength")
        for axes in all_axes[::2]:
            axes.set_ylabel("AP, points")

    said = ", ".join(f"{name} {percent(found['relative'])}" for name, found in robust.items())
    alt = f"AP under {', '.join(kinds)} by strength; share of the clean AP that is left on average: {said}."
    legend = {name: styles[name] for name in robust}
    return draw("corruptions", paint, alt=alt, grid=(rows, 2), height=40 + 120 * rows, legend=legend)
