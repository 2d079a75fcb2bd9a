"""From a template to one HTML file of bounded size."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import yolokd
from yolokd.compat.files import atomic_replace
from yolokd.evaluation.report import words
from yolokd.evaluation.report.drawing import COLOURS
from yolokd.evaluation.report.pictures import LADDER, Picture, encode

HTML = "report.html"
MOST_BYTES = 3_000_000  # of the page
_FILTERS = (
    *("points", "signed", "spread", "interval", "percent", "amount", "millions", "size", "duration"),
    *("plural", "verdict", "setting", "sentence"),
)


def render(template: str, folder: Path, **content: Any) -> str:
    """Fill a template; its pictures become as small as the page must.

    Args:
        template: file name, beside this module.
        folder: where the paths of pictures begin.
        content: what the template shows. It also gets ``picture(path)``.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of classes, files and arms come from anywhere
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(words, name) for name in _FILTERS}
    page = environment.get_template(template)
    html = ""
    for step in (*LADDER, None):
        picture = partial(_picture, folder, step)
        html = page.render(content, picture=picture, colours=COLOURS, yolokd=yolokd.__version__)
        if len(html.encode()) < MOST_BYTES:
            break
    return html


def _picture(folder: Path, step: tuple[int, int] | None, path: str) -> Picture | None:
    """An image of the folder; None where it is unreadable, lies outside, or no size fits."""
    file = (folder / path).resolve()
    if step is None or not file.is_relative_to(folder.resolve()):
        return None
    return encode(file, *step)


def write(file: Path, text: str) -> Path:
    """Write a text file, whole or not at all."""
    atomic_replace(file, lambda partial: partial.write_text(text, encoding="utf-8"))
    return file
