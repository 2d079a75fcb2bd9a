"""The table of the arms in Markdown, for a README or an issue."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from yolokd.evaluation.report import words

MARKDOWN = "report.md"


def plain(text: Any) -> str:
    """Text that Markdown shows as it is, on one line."""
    one_line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", one_line)


def code(text: str) -> str:
    """A block of code: indented, so that nothing in it can end it."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, its first column to the left and the others to the right; cells are ready for Markdown."""
    rules = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rules, *rows))


def comparison_markdown(report: Mapping[str, Any]) -> str:
    """The verdict, the table of the arms, and how to reproduce it.

    Args:
        report: as `read_report` returns it.
    """
    headings = ["arm", "AP", "against plain", "against native", "teacher's AP kept", "gap closed", "parameters"]
    headings += ["GFLOPs", "file", "training", "peak memory", "ONNX, ms"]
    data, machine = report["data"], report["machine"]
    note = plain(words.sentence(data["note"])) if data["note"] else ""
    held_out = ", held out of the training images" if data["held_out"] else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("yolokd", "ultralytics", "torch") if machine[name])
    where = ", ".join(str(machine[name]) for name in ("cpu", "gpu") if machine[name])
    parts = [
        f"# {plain(report['folder'])}: was distilling worth it?",
        f"**{plain(report['verdict']['text'])}**",
        table(headings, _rows(report)),
        "AP is COCO's (pycocotools, IoU .50 to .95, best.pt) in points: 30.1 means .301; ± is the standard deviation "
        "over seeds; in parentheses the 95 % interval over seeds and images.",
        f"Judged on {words.plural(data['images'], 'image')} with {words.plural(data['objects'], 'object')}: "
        f"split {plain(data['eval_split'])} of {plain(data['yaml'])}{held_out}. {note}".strip(),
        f"Seeds {', '.join(map(str, report['seeds']))}; {plain(report['date'])}; {plain(versions)}; {plain(where)}.",
        code(report["command"]),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(report: Mapping[str, Any]) -> Iterable[list[str]]:
    speed = report["speed"] or {}

    def cost(one: Mapping[str, Any]) -> list[str]:
        return [words.millions(one["parameters"]), words.amount(one["gflops"]), words.size(one["size"])]

    def milliseconds(name: str) -> str:
        return words.amount((speed.get(name) or {}).get("onnx_ms_median"))

    for arm in report["arms"]:
        gained = [words.spread(arm["ap"]), _difference(arm["to_plain"]), _difference(arm["to_native"])]
        shares = [words.percent(arm["kept"]), words.percent(arm["gap_closed"])]
        times = [words.duration(arm["train_seconds"]), words.size(arm["peak_memory"])]
        yield [plain(arm["name"]), *gained, *shares, *cost(arm), *times, milliseconds(arm["name"])]
    if teacher := report["teacher"]:
        none = [words.NONE] * 4
        name = f"teacher ({plain(teacher['name'])})"
        yield [name, words.spread(teacher["ap"]), *none, *cost(teacher), *none[:2], milliseconds("teacher")]


def _difference(found: Mapping[str, Any] | None) -> str:
    if not found:
        return words.NONE
    ends = words.interval(found)
    return f"{words.signed(found['mean'])}{f' ({ends})' if ends else ''}, {words.verdict(found)}"
