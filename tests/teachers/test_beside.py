"""Read without onnx and without OpenVINO; with real files it is tested in test_cache.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolokd.teachers.beside import names_beside, weights_beside


def entry(place: str) -> bytes:
    """ONNX's external data entry: key "location", value the path, its length in seven bits a byte."""
    path = place.encode()
    size = bytes([len(path)]) if len(path) < 128 else bytes([len(path) & 127 | 128, len(path) >> 7])
    return b"\x0a\x08location\x12" + size + path


def test_the_files_that_an_onnx_file_names(tmp_path: Path) -> None:
    long = "w" * 200
    for name in ("b.data", "a.data", long):
        (tmp_path / name).touch()
    file = tmp_path / "t.onnx"
    file.write_bytes(b"graph" + entry("b.data") + b"x" + entry("a.data") + entry("b.data") + entry(long))
    assert weights_beside(file) == [tmp_path / name for name in ("a.data", "b.data", long)]


@pytest.mark.parametrize("content", [b"", b"graph", entry("missing.data"), b"\x0a\x08location\x12", entry("a\0b")])
def test_no_file_beside(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "t.onnx"
    file.write_bytes(content)
    assert weights_beside(file) == []


def test_the_names_beside_a_model(tmp_path: Path) -> None:
    (tmp_path / "metadata.yaml").write_text("names: {1: dog, 0: cat}")
    assert names_beside(tmp_path) == names_beside(tmp_path / "m.xml") == '[[0, "cat"], [1, "dog"]]'
    (tmp_path / "metadata.yaml").write_text("names: [cat, dog]")
    assert names_beside(tmp_path) == '[[0, "cat"], [1, "dog"]]'


@pytest.mark.parametrize("text", ["", "names: 3", "author: me", "names: {a: b}", "names: [", None])
def test_no_names_beside(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "metadata.yaml").write_text(text)
    assert names_beside(tmp_path) == ""
