from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yolokd.errors import UserError
from yolokd.manifest import manifest_text, read_manifest


def written(folder: Path, text: str) -> Path:
    file = folder / "what.yaml"
    file.write_bytes(text.encode("latin1"))
    return file


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = written(tmp_path, manifest_text({"folder": "elsewhere", "seeds": [0, 1], "a": {"b": None}}, 3))
    assert read_manifest(file, 3, dict, again="start again") == {"seeds": [0, 1], "a": {"b": None}}


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\x80", "seeds: [1]", "version: 1\nseeds: [one]", "version: 1"])
def test_damage_is_said_in_words(tmp_path: Path, text: str) -> None:
    def make(content: dict[str, Any]) -> list[int]:
        return [int(seed) for seed in content["seeds"]]

    with pytest.raises(UserError) as refused:
        read_manifest(written(tmp_path, text), 1, make, again="start again")
    assert str(refused.value) == f"{tmp_path / 'what.yaml'} cannot be read.\nStart again."


def test_another_format(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(format 2, here 1\)\.\nGo on with that version, or start again\.$"):
        read_manifest(written(tmp_path, "version: 2"), 1, dict, again="start again")


def test_what_yaml_cannot_hold() -> None:
    with pytest.raises(UserError, match="cannot be written down"):
        manifest_text({"augmentations": [object()]}, 1)
