"""A YAML file that says what a folder is and how far it has come, with the number of its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from yolokd.errors import UserError

Made = TypeVar("Made")
_DAMAGE = (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError)


def read_manifest(file: Path, version: int, make: Callable[[dict[str, Any]], Made], *, again: str) -> Made:
    """Read a manifest.

    Args:
        file: it is there.
        version: the format that this yolokd writes.
        make: from the content, without its version, to what it describes.
        again: a remedy without its point, for one that cannot be used.

    Returns:
        what ``make`` returns.

    Raises:
        UserError: it is damaged, or written by another version.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        written_by = content.pop("version")
        if written_by == version:
            return make(content)
    except _DAMAGE:
        raise UserError(f"{file} cannot be read.", f"{again[0].upper()}{again[1:]}.") from None
    raise UserError(
        f"{file} was written by another version of yolokd (format {written_by}, here {version}).",
        f"Go on with that version, or {again}.",
    )


def manifest_text(content: Mapping[str, Any], version: int) -> str:
    """What stands in a manifest.

    Args:
        content: without ``folder``, if it has one: the folder may be moved.
        version: of the format.

    Raises:
        UserError: a setting that YAML cannot hold.
    """
    written = {"version": version, **{key: value for key, value in content.items() if key != "folder"}}
    try:
        return str(yaml.safe_dump(written, sort_keys=False))
    except yaml.YAMLError as error:
        what = " ".join(str(part) for part in error.args)[:200]
        raise UserError(f"A setting cannot be written down: {what}.", "Give numbers, words, lists and dicts.") from None
