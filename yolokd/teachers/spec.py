"""What ``teacher=`` asks for: one teacher or several, which kind each is, and for which classes it speaks."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_WORDS = ("self", "self:levels", "born-again")  # that name no file
_FILES = (".pt", ".onnx", "_openvino_model", ".xml")  # what a colon with class names can follow


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher as a person named it.

    Attributes:
        path: a file, a name that Ultralytics publishes, ``self``, or ``peer:NAME``, which learns beside the student.
        classes: the names of the classes it speaks for; empty is all that it knows.
        levels: with ``self``: the deepest level teaches the others, instead of the EMA.
    """

    path: str
    classes: tuple[str, ...] = ()
    levels: bool = False

    @property
    def kind(self) -> str:
        """``self``, ``levels``, ``peer``, ``onnx``, ``openvino`` or ``checkpoint``."""
        if self.path.startswith("peer:"):
            return "peer"
        if self.path == "self":
            return "levels" if self.levels else "self"
        suffix = {".onnx": "onnx", "_openvino_model": "openvino", ".xml": "openvino"}
        return next((kind for end, kind in suffix.items() if self.path.rstrip("/\\").endswith(end)), "checkpoint")

    def __str__(self) -> str:
        """As it is written."""
        if self.levels:
            return f"{self.path}:levels"
        return self.path + (":" + "+".join(self.classes) if self.classes else "")

    def at(self, path: Path) -> TeacherSpec:
        """The same teacher, in the file that was found for it."""
        return replace(self, path=str(path))


def read_teachers(text: str) -> tuple[TeacherSpec, ...]:
    """Read ``a.pt``, ``a.pt,b.pt``, ``a.pt:person+car,b.pt:dog``, ``self`` or ``self:levels``.

    Raises:
        ValueError: in words; an empty place, a class list without a class, ``self`` beside another teacher, or
            a word that is nearly one of these.
    """
    words = [str(text)] if Path(str(text)).is_file() else str(text).split(",")  # a path may have a comma in it
    specs = [_read(word.strip()) for word in words]
    if len(specs) > 1 and any(spec.path == "self" for spec in specs):
        raise ValueError("teacher=self cannot be one of several teachers")
    return tuple(specs)


def _read(word: str) -> TeacherSpec:
    if not word:
        raise ValueError("teacher= has an empty place between two commas")
    if word in ("self", "self:levels"):
        return TeacherSpec("self", levels=word != "self")
    near = difflib.get_close_matches(word, _WORDS, 1, 0.75)
    if near and near[0] != word and not Path(word).exists():
        raise ValueError(f"teacher={word} is no file; did you mean {near[0]}")
    path, colon, names = word.rpartition(":")
    if not colon or not path.rstrip("/\\").endswith(_FILES) or "/" in names or "\\" in names:
        return TeacherSpec(word)  # a drive letter, a URL, a name
    classes = tuple(name.strip() for name in names.split("+"))
    if not all(classes):
        raise ValueError(f"teacher={word} names no class after the colon")
    return TeacherSpec(path, classes)


def shares(weights: Sequence[float], teachers: int) -> tuple[float, ...]:
    """``teacher_weights=`` as shares that sum to 1; equal ones where none are given."""
    given = tuple(weights) or (1.0,) * teachers
    return tuple(w / sum(given) for w in given)
