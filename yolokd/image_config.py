"""What a person may ask of the images: without labels, from another domain, from another sensor."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from yolokd.errors import UserError
from yolokd.keys import BORN_AGAIN
from yolokd.teachers.spec import read_teachers
from yolokd.values import Problems, folder

DOMAINS = ("adapt",)
VIEWS = ("gray", "dark", "half")
_OFF = ("off", "false", "none", "0")
_PRECISION = 0.9
_SECONDS = 1.0
# They train while they teach, so no threshold that is found before the training is true of them.
_UNFINISHED = ("self", "levels", "peer")


@dataclass(frozen=True)
class ImageConfig:
    """The validated keys about images; `image_config` makes one from what a person wrote.

    Attributes:
        unlabelled: folders, lists and videos of images that nobody has labelled.
        unlabelled_ratio: of these for each labelled one; None: each image once an epoch.
        unlabelled_seconds: between two frames that are taken of a video.
        pseudo_precision: the share of pseudo-boxes that is to be right; None: no pseudo-boxes.
        student_classes: the classes of the student, in order; empty: those of the data.
        domain: ``adapt``, or empty.
        teacher_images: folder of the images that the teacher sees; empty: the student's.
        student_view: ``gray``, ``dark`` or ``half``: how the student's images are made of the files; or empty.
    """

    unlabelled: tuple[str, ...] = ()
    unlabelled_ratio: float | None = None
    unlabelled_seconds: float = _SECONDS
    pseudo_precision: float | None = _PRECISION
    student_classes: tuple[str, ...] = ()
    domain: str = ""
    teacher_images: str = ""
    student_view: str = ""

    @property
    def paired(self) -> bool:
        """The teacher sees other images than the student."""
        return bool(self.domain or self.teacher_images or self.student_view)

    def placed(self) -> ImageConfig:
        """The same with whole paths: a run may be resumed from another folder."""
        folders = tuple(os.path.abspath(name) for name in self.unlabelled)
        teacher = os.path.abspath(self.teacher_images) if self.teacher_images else ""
        return replace(self, unlabelled=folders, teacher_images=teacher)

    def flat(self) -> dict[str, Any]:
        """The keys as a recipe has them; those that say nothing are None."""
        plain = asdict(self)
        plain |= {key: list(plain[key]) or None for key in ("unlabelled", "student_classes")}
        if not self.unlabelled:
            plain |= dict.fromkeys(("unlabelled_ratio", "unlabelled_seconds", "pseudo_precision"))
        elif self.pseudo_precision is None:
            plain["pseudo_precision"] = "off"
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ImageConfig:
        """The inverse of ``asdict``, also after JSON has made lists of tuples."""
        lists = {key: tuple(plain.get(key, ())) for key in ("unlabelled", "student_classes")}
        return cls(**{**plain, **lists})


def image_config(ours: Mapping[str, Any], teacher: str, losses: Mapping[str, float], problems: Problems) -> ImageConfig:
    """Validate the keys about images.

    Args:
        ours: yolokd's keys.
        teacher: ``teacher=`` as one text.
        losses: the losses asked for.
        problems: takes what is wrong.
    """
    config = ImageConfig(
        unlabelled=_words(ours, "unlabelled", problems),
        unlabelled_ratio=_above_0(ours, "unlabelled_ratio", None, problems),
        unlabelled_seconds=_above_0(ours, "unlabelled_seconds", _SECONDS, problems) or _SECONDS,
        pseudo_precision=_precision(ours, problems),
        student_classes=_words(ours, "student_classes", problems),
        domain=_one_of(ours, "domain", "domain", DOMAINS, problems),
        teacher_images=folder(ours, "teacher_images", problems),
        student_view=_one_of(ours, "student_view", "view", VIEWS, problems),
    )
    _refuse_unlabelled(config, ours, teacher, losses, problems)
    _refuse_pairs(config, ours, teacher, losses, problems)
    if len(set(config.student_classes)) < len(config.student_classes):
        problems.add(f"student_classes={ours['student_classes']} names a class twice", "Name each class once.")
    return config


def in_steps_too(config: ImageConfig, ours: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``ours`` that name folders, with their whole paths: a chain may be resumed from another folder.

    Raises:
        UserError: a key that a chain cannot follow.
    """
    if alone := [key for key in ("student_view", "domain") if getattr(config, key)]:
        raise UserError(
            f"{alone[0]}= says what one teacher and its student see, and the steps of a chain have a teacher each.",
            f"Train once with {alone[0]}=, without via= or teacher=born-again.",
        )
    return {key: value for key, value in config.placed().flat().items() if value and key in ours}


def _refuse_unlabelled(
    config: ImageConfig, ours: Mapping[str, Any], teacher: str, losses: Mapping[str, float], problems: Problems
) -> None:
    if not config.unlabelled:
        of_them = ("unlabelled_ratio", "unlabelled_seconds", "pseudo_precision", "domain")
        if idle := [key for key in of_them if ours.get(key) not in (None, "")]:
            problems.add(f"{', '.join(idle)} without unlabelled=", "Name images: unlabelled=FOLDER.")
        return
    if not losses:
        problems.add("unlabelled= without a teacher's losses teaches nothing", "Name a teacher and losses.")
    if teacher == BORN_AGAIN or any(kind in _UNFINISHED for kind in _kinds(teacher)):
        problems.add(
            f"unlabelled= needs a teacher that has learnt already, and teacher={teacher} trains here",
            "Name a finished checkpoint as teacher.",
        )
    if ours.get("teacher_every") not in (None, 1):
        problems.add(
            "teacher_every= would leave images without labels untaught in between", "Leave out one of the two."
        )


def _refuse_pairs(
    config: ImageConfig, ours: Mapping[str, Any], teacher: str, losses: Mapping[str, float], problems: Problems
) -> None:
    asked = [key for key in ("domain", "teacher_images", "student_view") if getattr(config, key)]
    if len(asked) > 1:
        problems.add(
            f"{' and '.join(asked)} each say what student and teacher see, and cannot be together", "Keep one of them."
        )
    if not asked:
        return
    if asked[0] == "teacher_images" and not losses:
        problems.add("teacher_images= without a teacher", "Name a teacher and losses, or leave it out.")
    if losses and (others := [key for key in ("teacher_cache", "teacher_imgsz") if ours.get(key)]):
        problems.add(
            f"{asked[0]}= and {' and '.join(others)} do not go together: both say which image the teacher sees",
            f"Leave out {' and '.join(others)}.",
        )
    if losses and "self:levels" in teacher.split(","):
        problems.add(
            f"teacher=self:levels speaks of the student's own image, so {asked[0]}= has no meaning there",
            "Take teacher=self, or another teacher.",
        )


def _kinds(teacher: str) -> list[str]:
    try:
        return [spec.kind for spec in read_teachers(teacher)] if teacher else []
    except ValueError:  # a problem that is named already
        return []


def _words(ours: Mapping[str, Any], key: str, problems: Problems) -> tuple[str, ...]:
    value = ours.get(key)
    if value in (None, ""):
        return ()
    words = [str(word).strip() for word in (value if isinstance(value, (list, tuple)) else str(value).split(","))]
    if isinstance(value, bool) or not all(words):
        problems.add(f"{key}={value} is not a list of names", f"Write {key}=A, or {key}=A,B.")
    return tuple(words)


def _one_of(ours: Mapping[str, Any], key: str, what: str, among: tuple[str, ...], problems: Problems) -> str:
    """One of several words; empty where nothing is said."""
    value = ours.get(key)
    if value in (None, "", *among):
        return str(value or "")
    problems.add(f"{key}={value} is not a {what}", f"Write {' or '.join(f'{key}={word}' for word in among)}.")
    return ""


def _above_0(ours: Mapping[str, Any], key: str, default: float | None, problems: Problems) -> float | None:
    value = ours.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        problems.add(f"{key}={value} is not a positive number", f"Write e.g. {key}=2.")
        return default
    return float(value)


def _precision(ours: Mapping[str, Any], problems: Problems) -> float | None:
    value = ours.get("pseudo_precision")
    if value is None:
        return _PRECISION
    if str(value).lower() in _OFF:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        problems.add(
            f"pseudo_precision={value} is not a share",
            "It is above 0 and at most 1, e.g. 0.9, or off: no pseudo-boxes.",
        )
        return _PRECISION
    return float(value)
