"""Match the teacher's classes to the student's by name, never by index."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yolokd.errors import UserError

# Names that data sets use for the same thing: COCO, Pascal VOC, Open Images and Objects365 spellings.
ALIASES: tuple[frozenset[str], ...] = tuple(
    frozenset(group)
    for group in (
        {"motorcycle", "motorbike"},
        {"airplane", "aeroplane", "plane"},
        {"tv", "tvmonitor", "television"},
        {"couch", "sofa"},
        {"potted plant", "pottedplant"},
        {"dining table", "diningtable"},
        {"cell phone", "mobile phone", "cellphone"},
        {"donut", "doughnut"},
        {"hair drier", "hair dryer", "hairdryer"},
        {"traffic light", "trafficlight"},
        {"person", "pedestrian", "human"},
        {"bicycle", "bike"},
        {"car", "automobile"},
    )
)


def normalise(name: str) -> str:
    """A class name as it is compared: case, ``_`` and ``-`` do not count."""
    return " ".join(str(name).lower().replace("_", " ").replace("-", " ").split())


def _same_name(a: str, b: str) -> bool:
    return a == b or any(a in group and b in group for group in ALIASES)


@dataclass(frozen=True)
class ClassMap:
    """Which teacher classes speak for which student class.

    A student class that no teacher class speaks for gets no distillation (never a target of zero). Where several
    teacher classes speak for one student class, the highest logit wins. A teacher class that is not mapped is never
    looked at.

    Attributes:
        pairs: student class index to the teacher class indices that speak for it; only mapped student classes.
        student_names: all the student's class names by index.
        teacher_names: all the teacher's class names by index.
    """

    pairs: Mapping[int, tuple[int, ...]]
    student_names: Mapping[int, str]
    teacher_names: Mapping[int, str]

    @classmethod
    def by_name(
        cls,
        teacher_names: Mapping[int, str],
        student_names: Mapping[int, str],
        overrides: Mapping[str, str] | None = None,
        only: Collection[int] | None = None,
    ) -> ClassMap:
        """Match by name: case, ``_`` and ``-`` do not count, a small table of aliases does.

        Args:
            teacher_names: teacher class index to name.
            student_names: student class index to name.
            overrides: teacher name to student name; each takes that teacher class away from its namesake.
            only: the student classes that are trained at all (Ultralytics' ``classes=``); None is all of them.

        Raises:
            UserError: an override names a class that teacher or student does not have.
        """
        forced = {normalise(t): normalise(s) for t, s in (overrides or {}).items()}
        teacher = {i: normalise(n) for i, n in teacher_names.items()}
        student = {i: normalise(n) for i, n in student_names.items()}
        for whose, asked, known in (("teacher", forced.keys(), teacher), ("student", forced.values(), student)):
            if unknown := sorted(set(asked) - set(known.values())):
                raise UserError(
                    f"class_map names {', '.join(unknown)}, which the {whose} does not know.",
                    f"The {whose}'s classes are: {shorten(list(known.values()))}.",
                )
        pairs: dict[int, tuple[int, ...]] = {}
        for s, wanted in student.items():
            named = [t for t, name in teacher.items() if name not in forced and name == wanted]
            # An exact namesake beats an alias: a teacher may know both `plane` and `airplane`.
            alike = named or [t for t, name in teacher.items() if name not in forced and _same_name(name, wanted)]
            found = alike + [t for t, name in teacher.items() if forced.get(name) == wanted]
            if found and (only is None or s in only):
                pairs[s] = tuple(found)
        return cls(pairs, dict(student_names), dict(teacher_names))

    @property
    def mapped(self) -> int:
        """How many student classes the teacher speaks for."""
        return len(self.pairs)

    @property
    def total(self) -> int:
        """How many classes the student has."""
        return len(self.student_names)

    @property
    def unmapped(self) -> list[str]:
        """The student classes that get no distillation on their logits."""
        return [name for i, name in self.student_names.items() if i not in self.pairs]

    @property
    def classes(self) -> Tensor | None:
        """``(M,)`` the mapped student class indices, or None where they are all of them in order."""
        return None if self.mapped == self.total else torch.tensor(sorted(self.pairs), dtype=torch.long)

    def __call__(self, scores: Tensor) -> Tensor:
        """Bring teacher logits into the student's class space.

        Args:
            scores: ``(B, C_teacher, A)`` logits.

        Returns:
            ``(B, M, A)`` logits of the mapped student classes, in the order of ``classes``.
        """
        rows = [self.pairs[s] for s in sorted(self.pairs)]
        if all(len(row) == 1 for row in rows):
            index = [row[0] for row in rows]
            if index == list(range(scores.shape[1])):
                return scores
            return scores[:, torch.tensor(index, device=scores.device)]
        # The maximum of the probabilities is the maximum of the logits: sigmoid rises monotonically.
        return torch.stack([scores[:, list(row)].amax(1) for row in rows], 1)


def shorten(names: list[str], limit: int = 12) -> str:
    """Join class names for a message, at most ``limit`` of them."""
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def trained_classes(classes: Any) -> set[int] | None:
    """Read Ultralytics' ``classes=``, an index or a list of them; None where all classes are trained."""
    if classes is None:
        return None
    return {int(c) for c in (classes if isinstance(classes, (list, tuple)) else [classes])}
