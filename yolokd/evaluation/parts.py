"""Parts of an analysis: each written down when it is there, so that a killed analysis goes on behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yolokd
from yolokd.compat.files import atomic_replace


def stored(
    file: Path,
    made_from: Any,
    make: Callable[[], Any],
    *,
    pictures: Callable[[Any], list[Path]] = lambda content: [],
) -> Any:
    """Return what is stored; make it where it is not, or was made from something else.

    Args:
        file: where it is, as JSON; its folder is there.
        made_from: what decides the content (hashes of files, settings); this version of yolokd is added to it.
        make: makes the content, of what JSON has.
        pictures: the image files that belong to a content; where one is missing it is made again.
    """
    from_this = _as_json({"yolokd": yolokd.__version__, "from": made_from})
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["made_from"] == from_this and all(picture.is_file() for picture in pictures(known["content"])):
            return known["content"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing, or not ours
    content = _as_json(make())
    text = json.dumps({"made_from": from_this, "content": content}, indent=1)
    atomic_replace(file, lambda partial: partial.write_text(text, encoding="utf-8"))
    return content


def _as_json(content: Any) -> Any:
    """Content as it will be read again: text as keys, lists for tuples."""
    return json.loads(json.dumps(content))
