"""Single values as people write them: read, checked, and what is wrong collected."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from yolokd.errors import UserError
from yolokd.keys import loss_pairs
from yolokd.teachers.spec import read_teachers

GUARD_PATIENCE = 20  # the validation result of a small training rises and falls over ten epochs and more
_OFF = ("off", "false", "none", "0")  # YAML and Ultralytics' grammar read `off` in three ways
_LAYERS = 200  # more than any model has; YAML reads 4:6 as 4 minutes and 6 seconds, 246


class Problems:
    """Collects what is wrong, so that a person hears of all of it at once."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, problem: str, remedy: str) -> None:
        """Note what is wrong and what to do."""
        self._found.append((problem, remedy))

    def raise_if_any(self) -> None:
        """Raise one UserError that names all that was noted."""
        if self._found:
            problems = "; ".join(problem.rstrip(".") for problem, _ in self._found)
            remedies = " ".join(dict.fromkeys(remedy for _, remedy in self._found))
            raise UserError(f"{problems}.", remedies)


def count(ours: Mapping[str, Any], key: str, problems: Problems, what: str = "epochs", least: int = 0) -> int:
    """A number of epochs, or of something else, ``least`` of them at least; 0 where it is not given."""
    value = ours.get(key, least)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        some = ", ".join(str(least + i) for i in range(3))
        problems.add(f"{key}={value} is not a number of {what}", f"{key} counts {what}: {some}, ...")
        return 0
    return value if key in ours else 0


def folder(ours: Mapping[str, Any], key: str, problems: Problems) -> str:
    """The name of a folder; empty where none is given."""
    value = ours.get(key)
    if value is True:
        problems.add(f"{key}=True names no folder", f"Write e.g. {key}=answers, or leave it out.")
    return "" if isinstance(value, bool) else str(value or "")


def switch(ours: Mapping[str, Any], key: str, problems: Problems) -> bool:
    """True or False; False where it is not given."""
    value = ours.get(key, False)
    if not isinstance(value, bool):
        problems.add(f"{key}={value} is neither True nor False", f"Write {key}=True, or leave it out.")
        return False
    return value


def choice(ours: Mapping[str, Any], key: str, what: str, among: Sequence[str], problems: Problems) -> str:
    """One of several words; the first where nothing is said."""
    value = ours.get(key, among[0])
    if value not in among:
        problems.add(
            f"{key}={value} is not a {what}", f"{what.capitalize()}s are {', '.join(among[:-1])} and {among[-1]}."
        )
    return str(value)


def teacher_weights(ours: Mapping[str, Any], teachers: int, problems: Problems) -> tuple[float, ...]:
    """How much each of several teachers counts; empty where nothing is said."""
    value = ours.get("teacher_weights")
    if value in (None, ""):
        return ()
    if teachers == 1:
        problems.add(f"teacher_weights={value} weighs several teachers, and here is one", "Leave it out.")
        return ()
    words = list(value) if isinstance(value, (list, tuple)) else str(value).split(",")
    try:
        weights = tuple(float(word) for word in words)
    except (TypeError, ValueError):
        weights = ()
    if len(weights) != teachers or not all(0 < w < math.inf for w in weights):
        problems.add(
            f"teacher_weights={value} is not a positive number for each of {teachers} teachers",
            "Write one for each, in their order, e.g. teacher=a.pt,b.pt teacher_weights=2,1.",
        )
        return ()
    return weights


def teacher_device(ours: Mapping[str, Any], problems: Problems) -> str:
    """The device of ``teacher_device=`` as PyTorch names it, ``cuda:1`` or ``cpu``; empty where nothing is said."""
    value = ours.get("teacher_device")
    if value in (None, ""):
        return ""
    word = str(value).strip().lower()
    word = {"cuda": "cuda:0", "mps:0": "mps"}.get(word, f"cuda:{int(word)}" if word.isdecimal() else word)
    if not re.fullmatch(r"cpu|mps|cuda:(0|[1-9][0-9]?)", word):
        problems.add(
            f"teacher_device={value} is not one device", "Write teacher_device=1, cuda:1 or cpu; it is one for all."
        )
        return ""
    return word


def exported_only(key: str, ours: Mapping[str, Any], teacher: str, problems: Problems) -> tuple[str, ...]:
    """The words of a key that only exported teachers look at; empty where nothing is said."""
    value = ours.get(key)
    if value in (None, ""):
        return ()
    words = value if isinstance(value, (list, tuple)) else str(value).split(",")
    found = tuple(str(word).strip() for word in words)
    if not any(spec.kind in ("onnx", "openvino") for spec in (read_teachers(teacher) if teacher else ())):
        problems.add(f"{key} is for an exported teacher, and teacher={teacher} is none", f"Leave out {key}=.")
    elif not all(found):
        problems.add(f"{key}={value} has an empty place", "Write teacher_names=person,bicycle, in order, from 0.")
    return found


def balance_share(ours: Mapping[str, Any], losses: Mapping[str, float], problems: Problems) -> float | None:
    """The share that ``balance=`` asks for; None where the gains are fixed."""
    value = ours.get("balance", "off")
    if str(value).lower() in _OFF:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        problems.add(f"balance={value} is not a share", "balance is above 0 and at most 1, e.g. balance=0.1, or off.")
        return None
    if not losses:
        problems.add("balance is set, but there are no losses", "Name losses, or leave out balance=.")
    elif _gains_given(ours.get("losses")):
        problems.add(
            "balance= sets the gains, and losses= sets them too", f"Write losses={','.join(losses)}, or balance=off."
        )
    return float(value)


def _gains_given(losses: Any) -> bool:
    try:
        return any(gain is not None for gain in loss_pairs(losses).values())
    except ValueError:  # a problem that is named already
        return False


def guard_patience(ours: Mapping[str, Any], problems: Problems) -> int | None:
    """After how many epochs the guard acts; None where it is off."""
    guard, patience = str(ours.get("guard", "on")).lower(), ours.get("guard_patience", GUARD_PATIENCE)
    if guard not in ("on", "true", *_OFF):
        problems.add(f"guard={ours['guard']} is neither on nor off", "Write guard=off, or leave it out.")
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
        if "guard_patience" in ours and patience is not None:
            problems.add(f"guard_patience={patience} is not a number of epochs", "guard_patience is 1, 2, 3, ...")
        patience = GUARD_PATIENCE
    return None if guard in _OFF else patience


def tapped_layers(value: Any, losses: Mapping[str, float], problems: Problems) -> tuple[tuple[int, int], ...]:
    """The (student, teacher) layers of ``taps=``; empty where it is off or not given."""
    from yolokd.losses.base import LOSSES

    if value in ("", [], ()) or str(value).lower() in _OFF[:3]:  # 0 is a layer
        return ()
    words = [str(word) for word in value] if isinstance(value, (list, tuple)) else str(value).split(",")
    pairs = []
    for word in words:
        student, colon, teacher = (part.strip() for part in word.partition(":"))
        if not student.isdecimal() or not (teacher if colon else student).isdecimal():
            problems.add(f"taps={value} is not a list of layers", "Write taps=4,6,10, or taps=STUDENT:TEACHER,...")
            return ()
        if int(student) >= _LAYERS:
            problems.add(f"taps={value}: no model has a layer {student}", "In YAML, quote a pair of layers: '4:6'.")
            return ()
        pairs.append((int(student), int(teacher) if colon else int(student)))
    if all(name in LOSSES and not LOSSES[name].taps for name in losses):  # a mistyped loss is named already
        able = ", ".join(name for name, info in LOSSES.items() if info.taps)
        problems.add("taps= is set, but no loss looks at layers", f"Losses that do: {able}.")
    return tuple(pairs)


def like(default: Any, value: Any) -> Any:
    """Bring a value to the type of the option's default.

    Raises:
        ValueError: it has another type.
    """
    if isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
            return value
        raise ValueError
    if isinstance(default, float) and isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    if default is None or (type(value) is type(default) and not isinstance(default, float)):
        return value
    raise ValueError


def class_names(value: Any, problems: Problems) -> dict[str, str]:
    """``class_map=`` as teacher name to student name."""
    if isinstance(value, Mapping):
        return {str(teacher): str(student) for teacher, student in value.items()}
    pairs: dict[str, str] = {}
    for word in str(value).split(",") if value is not None else []:
        teacher, _, student = (part.strip() for part in word.partition(":"))
        if not teacher or not student or teacher in pairs:
            problems.add(
                f"class_map={value} is not a map of class names", "Write class_map=TEACHER:STUDENT,... by name."
            )
            break
        pairs[teacher] = student
    return pairs
