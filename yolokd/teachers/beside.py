"""What an exported teacher keeps beside its file, read without the packages that run it."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

# ONNX says of a tensor that lies in another file: field 1 "location", field 2 that file's path from the model's folder.
_LOCATION = b"\x0a\x08location\x12"


def weights_beside(file: Path) -> list[Path]:
    """The files with weights that an ONNX file names, in order; empty where they are all inside it.

    Found by their bytes, so that what is found does not depend on whether the package onnx is installed.
    """
    with file.open("rb") as stream:
        if not file.stat().st_size:
            return []
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            named = sorted(set(_locations(content)))
    return [file.parent / name for name in named if os.path.isfile(file.parent / name)]  # False for what is no path


def _locations(content: mmap.mmap) -> Iterator[str]:
    place = content.find(_LOCATION)
    while place >= 0:
        start = place + len(_LOCATION)
        low, high = (*content[start : start + 2], 0, 0)[:2]  # seven bits a byte; no path is longer than two of them say
        length, size = (low & 127 | high << 7, 2) if low & 128 else (low, 1)
        yield content[start + size : start + size + length].decode(errors="replace")
        place = content.find(_LOCATION, start)


def names_beside(path: Path) -> str:
    """The class names in ``metadata.yaml`` beside an OpenVINO model, as one text; empty where there are none.

    Args:
        path: the ``.xml`` file, or the folder around it.
    """
    notes = (path if path.is_dir() else path.parent) / "metadata.yaml"
    try:
        names = yaml.safe_load(notes.read_text(encoding="utf-8"))["names"]
        pairs = dict(enumerate(names)) if isinstance(names, list) else names
        return json.dumps(sorted((int(i), str(name)) for i, name in pairs.items()))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return ""  # what is wrong with it is said when the teacher is opened
