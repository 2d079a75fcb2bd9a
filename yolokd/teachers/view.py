"""A teacher as its student sees it: with the student's classes, on the student's grid, in the student's pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

from torch import Tensor

from yolokd.classes import ClassMap
from yolokd.layout import CONFIDENCE
from yolokd.levels import LevelMatch, grid_sizes, on_students_grid, restrict
from yolokd.predictions import HeadInfo, Hidden, Pair, Predictions, SoftDetections
from yolokd.teachers.live import LARGER, Teacher


class View:
    """Brings a teacher's predictions into the student's class space and onto the student's grid.

    Args:
        teacher: any teacher.
        student: the student's head, whose levels and bins are wanted.
        class_map: from the teacher's classes to the student's.
        match: the levels that both see.
    """

    def __init__(self, teacher: Teacher, student: HeadInfo, class_map: ClassMap, match: LevelMatch) -> None:
        self.teacher = teacher
        self.class_map = class_map
        self.match = match
        self._student = student

    def pair(self) -> Pair:
        """Both heads with the levels that take part, at the student's strides: what a loss is built for."""
        student = restrict(self._student, self.match.student)
        return Pair(student, replace(restrict(self.teacher.info, self.match.teacher), strides=student.strides))

    def __call__(self, batch: Mapping[str, Any]) -> Predictions:
        """What the teacher says of ``batch["img"]``, on the student's anchors of the matched levels."""
        said = self.teacher(batch)
        if said.detections is not None:
            said = replace(said, detections=self._scaled(said.detections))
        # First the classes: the box of a coarse cell is that of the cell which is surest of one that counts here.
        said = self._mapped(said) if self.class_map.mapped else said
        if not self.match.whole and self.match.teacher:
            images: Tensor = batch.get(LARGER, batch["img"])
            height, width = batch["img"].shape[-2:]
            theirs = grid_sizes(images.shape[-2], images.shape[-1], self.teacher.info.strides)
            strides = [self._student.strides[i] for i in self.match.student]
            said = on_students_grid(said, self.match, theirs, grid_sizes(height, width, strides), self._student)
        return said if self.class_map.mapped else _without_classes(said)

    def _scaled(self, found: SoftDetections) -> SoftDetections:
        """In pixels of the student's image."""
        if self.match.ratio == 1:
            return found
        ratio = self.match.ratio
        points, strides = found.points, found.strides
        return replace(
            found,
            boxes=found.boxes / ratio,
            points=None if points is None else points / ratio,
            strides=None if strides is None else strides / ratio,
        )

    def _mapped(self, said: Predictions) -> Predictions:
        """With scores of the student's classes."""
        found, classes = said.detections, self.class_map.classes
        if found is not None:
            found = _of_a_class(replace(found, scores=self.class_map(found.scores.T[None])[0].T))
            classes = None if classes is None else classes.to(found.boxes.device)
        elif said.scores is None:
            return said
        else:
            classes = None if classes is None else classes.to(said.scores.device)
        return replace(
            said,
            scores=None if said.scores is None else self.class_map(said.scores),
            detections=found,
            classes=classes,
            reenter=None if said.reenter is None else partial(self._reenter, said.reenter),
        )

    def _reenter(self, door: Any, hidden: Hidden) -> Predictions:
        """Through the teacher's head, with scores in the student's class space."""
        said: Predictions = door(hidden)
        assert said.scores is not None
        return replace(said, scores=self.class_map(said.scores))


def _of_a_class(found: SoftDetections) -> SoftDetections:
    """Without what the teacher takes for none of these classes: such a box would take anchors from those that are."""
    kept = ~(found.scores.amax(1) < CONFIDENCE)  # NaN stays, to be seen
    rows = {field.name: getattr(found, field.name) for field in fields(found)}
    left: dict[str, Any] = {name: None if value is None else value[kept] for name, value in rows.items()}
    return SoftDetections(**left)


def _without_classes(said: Predictions) -> Predictions:
    """What a teacher says that shares no class: boxes and features."""
    found = said.detections
    return replace(said, scores=None, detections=None if found is None else replace(found, scores=found.scores[:, :0]))
