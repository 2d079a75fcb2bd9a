"""``report.json`` read and checked, so that the page never meets what it cannot show."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolokd.errors import UserError

FILE = "report.json"
VERSION = 1
TEACHER = "teacher"


@dataclass(frozen=True)
class _Maybe:
    """May be null or missing; both become None."""

    of: Any


class _Number:
    """An integer or a float; null, missing and what is not finite become None."""


class _Score:
    """An AP with its spread over seeds, or the single number of what was judged once."""


@dataclass(frozen=True)
class _Every:
    """An object with any keys, all of whose values are alike."""

    of: Any


_TEXT, _WHOLE, _FLAG, _ANY = str, int, bool, object
_MEASURED = {"mean": _Number, "sd": _Number, "values": [_Number]}
_SCORES = {
    "ap": _Score,
    **{key: _Maybe(_Score) for key in ("ap50", "ap75", "small", "medium", "large", "last_ap")},
    "per_class": _Maybe(_Every(_Score)),
    **{key: _Number for key in ("parameters", "gflops", "size", "peak_memory", "kept", "gap_closed")},
}
_DIFFERENCE = {
    **{key: _Number for key in ("mean", "low", "high", "seeds_sd", "images_sd")},
    "per_seed": [_Number],
    "verdict": _TEXT,
    "seeds": _WHOLE,
}
_ARM = {
    **_SCORES,
    "name": _TEXT,
    "kind": _TEXT,
    "keys": _Maybe(_Every(_Maybe(_ANY))),
    "seeds_done": [_WHOLE],
    "to_plain": _Maybe(_DIFFERENCE),
    "to_native": _Maybe(_DIFFERENCE),
    "train_seconds": _Maybe(_MEASURED),
    "same_start": _Maybe(_FLAG),
    "unlike": _Maybe([_TEXT]),
}
_REPEATED = {"teacher": _WHOLE, "arm": _Number, "plain": _Number}
_BY_GROUP = {"all": _REPEATED, "by_class": _Maybe(_Every(_REPEATED)), "by_size": _Maybe(_Every(_REPEATED))}
_ROBUST = {"clean": _Number, "corruptions": _Every([_Number]), **dict.fromkeys(("fgsm", "mean", "relative"), _Number)}
_CURVE = {"epoch": [_WHOLE], **{key: [_Number] for key in ("mean", "low", "high")}}
_TERMS = {"epoch": [_WHOLE], "loss": _Every([_Number]), "share": _Maybe(_Every([_Number]))}
_SPEED = dict.fromkeys(("onnx_ms_median", "onnx_ms_p95", "images_per_second", "energy_j_per_image"), _Number)
_MACHINE = {key: _Maybe(_TEXT) for key in ("cpu", "gpu", "python", "torch", "ultralytics", "yolokd")}
_REPORT: dict[str, Any] = {
    "date": _TEXT,
    "command": _TEXT,
    "folder": _TEXT,
    "verdict": {"arm": _TEXT, "word": _TEXT, "text": _TEXT},
    "data": {
        **{key: _TEXT for key in ("yaml", "eval_split")},
        "note": _Maybe(_TEXT),
        "held_out": _FLAG,
        "images": _WHOLE,
        "objects": _WHOLE,
    },
    "settings": _Every(_Maybe(_ANY)),
    "seeds": [_WHOLE],
    "machine": {**_MACHINE, "cores": _Maybe(_WHOLE), "memory_gb": _Number},
    "files": _Maybe(_Every(_TEXT)),
    TEACHER: _Maybe({**_SCORES, "name": _TEXT, "imgsz": _Maybe(_WHOLE)}),
    "arms": [_ARM],
    "curves": _Maybe(_Every(_CURVE)),
    "terms": _Maybe(_Every(_TERMS)),
    "speed_note": _Maybe(_TEXT),
    "speed": _Maybe(_Every({**_SPEED, "energy_note": _Maybe(_TEXT)})),
    "calibration": _Maybe(_Every({"ece": _Number, "bins": [[_Number]]})),
    "fairness": _Maybe(
        _Every(
            {
                "lost_classes": [{"name": _TEXT, "difference": _Number, "low": _Number, "high": _Number}],
                "inherited": _Maybe({"false_positives": _BY_GROUP, "misses": _BY_GROUP}),
            }
        )
    ),
    "robustness": _Maybe(
        {
            "off": _Maybe(_FLAG),
            "arms": _Maybe(_Every(_ROBUST)),
            "seeds": _Maybe([_WHOLE]),
            "strengths": _Maybe(_ANY),
        }
    ),
    "audit": _Maybe([{"image": _Maybe(_TEXT), "file": _TEXT, "score": _Number, "reason": _TEXT}]),
    "examples": _Maybe([{"file": _TEXT, "images": _Every(_TEXT)}]),
}


class _Damaged(Exception):
    """The place in the file, and what is wrong there."""


def read_report(folder: Path) -> dict[str, Any]:
    """Read ``report.json`` of a comparison.

    Every field that the page knows is there in what comes back, None where there is nothing. Numbers that are not
    finite become None, a score that is a single number gets ``mean``, ``sd`` and ``values``, the note on speed moves
    from ``speed`` to ``speed_note``.

    Args:
        folder: of the comparison.

    Raises:
        UserError: the file is damaged, or was written by another version.
    """
    file = folder / FILE
    remedy = f"Delete {FILE}, then `yolokd compare resume={folder}` writes it again; finished runs are not repeated."
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}", remedy) from None
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise UserError(
            f"{file} was written by another version of yolokd (format {version}, here {VERSION}).",
            "Make the report with that version, or compare again with this one.",
        )
    try:
        if version is None:
            raise _Damaged("version is missing")
        if isinstance(content.get("speed"), dict):
            content["speed_note"] = content["speed"].pop("note", None)
        report: dict[str, Any] = _checked(content, _REPORT, "")
        _check_lengths(report)
    except _Damaged as error:
        raise UserError(f"{file} is damaged: {error}.", remedy) from None
    return report


def _checked(value: Any, shape: Any, place: str) -> Any:
    """What stands at a place of the file, in the shape that it must have."""
    if isinstance(shape, _Maybe):
        return None if value is None else _checked(value, shape.of, place)
    if shape is _Number:
        return _number(value, place)
    if shape is _Score:
        scored = value if isinstance(value, dict) else {"mean": value, "sd": None, "values": [value]}
        return _checked(scored, _MEASURED, place)
    if isinstance(shape, list):
        values = _of_type(value, list, place)
        return [_checked(v, shape[0], f"{place}[{i}]") for i, v in enumerate(values)]
    if isinstance(shape, _Every):
        values = _of_type(value, dict, place)
        return {k: _checked(v, shape.of, f"{place}.{k}") for k, v in values.items()}
    if isinstance(shape, dict):
        values = _of_type(value, dict, place)
        return {k: _checked(values.get(k), s, f"{place}.{k}".lstrip(".")) for k, s in shape.items()}
    return _of_type(value, shape, place)


def _of_type(value: Any, kind: type, place: str) -> Any:
    if value is None:
        raise _Damaged(f"{place or 'all of it'} is missing")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _Damaged(f"{place or 'all of it'} is not what it should be")
    return value


def _number(value: Any, place: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Damaged(f"{place} is not a number")
    return value if math.isfinite(value) else None


def _check_lengths(report: Mapping[str, Any]) -> None:
    """Lists that are drawn against each other are equally long."""
    drawn = [(f"curves.{name}", list(curve.values())) for name, curve in (report["curves"] or {}).items()]
    for name, terms in (report["terms"] or {}).items():
        values = [*terms["loss"].values(), *(terms["share"] or {}).values()]
        drawn.append((f"terms.{name}", [terms["epoch"], *values]))
    for name, course in (report["calibration"] or {}).items():
        drawn.append((f"calibration.{name}", [[0, 0, 0], *course["bins"]]))
    for place, lists in drawn:
        if len({len(values) for values in lists}) > 1:
            raise _Damaged(f"the lists of {place} differ in length")
