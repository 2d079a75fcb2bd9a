"""All of a student's teachers behind one door: what the criterion asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from yolokd.compat.replay import attach
from yolokd.layout import Seen, lay_out
from yolokd.predictions import Pair, Predictions
from yolokd.teachers.cache import Cache
from yolokd.teachers.detr import DetrTeacher
from yolokd.teachers.elsewhere import Elsewhere, bare
from yolokd.teachers.live import LiveTeacher, is_finite, refuse_not_finite
from yolokd.teachers.replay import ReplayTeacher
from yolokd.teachers.several import average
from yolokd.teachers.view import View

STUDENT = "student"  # key of the batch under which a teacher finds what the student has just said


class Panel:
    """Asks each teacher, lays out on the grid what has none, and makes one answer of several.

    Args:
        views: the teachers, each as the student sees it, all with the same levels of the student.
        weights: how much each counts, above 0.
    """

    def __init__(self, views: Sequence[View], weights: Sequence[float] = (1.0,)) -> None:
        self.views = list(views)
        self.weights = tuple(weights)
        self._checked = False

    @property
    def levels(self) -> tuple[int, ...]:
        """The student's levels that are taught."""
        return self.views[0].match.student

    def to_precision(self, dtype: torch.dtype) -> None:
        """Convert the teachers that can be converted; a network in training and an exported file stay as they are."""
        for view in self.views:
            if convert := getattr(view.teacher, "to_precision", None):
                convert(dtype)

    def compile(self) -> None:
        """Run the teachers that are networks of their own through torch.compile."""
        for view in self.views:
            teacher = bare(view.teacher)
            if isinstance(teacher, LiveTeacher):
                teacher.compile()

    def replay(self, dataset: Any, cache: Cache, hashes: Mapping[str, str]) -> None:
        """Let a data set bring along what the cache holds, and the teacher read from that very cache."""
        attach(dataset, cache, hashes)
        for view in self.views:
            assert isinstance(view.teacher, ReplayTeacher)
            view.teacher.cache = cache

    @torch.no_grad()
    def beside(self, images: Tensor) -> list[Predictions]:
        """What networks of their own say of ``(B, 3, H, W)`` images, for measuring the memory that they take.

        One on another device takes that of its answer alone here.
        """
        answers = []
        for view in self.views:
            if isinstance(bare(view.teacher), (LiveTeacher, DetrTeacher)):
                larger = images if view.match.ratio == 1 else F.interpolate(images, scale_factor=view.match.ratio)
                answers.append(view.teacher({"img": larger}))
        return answers

    def progress(self, step: int) -> None:
        """Say how many steps of the training are done, before the next batch; these teachers stay as they are."""

    def begin(self, batch: Mapping[str, Any]) -> None:
        """Let teachers on another device begin their answers to a batch about which they will be asked."""
        for view in self.views:
            if isinstance(view.teacher, Elsewhere):
                view.teacher.begin(batch)

    def pairs(self) -> list[Pair]:
        """What the losses are built for: the student beside each teacher, at the levels that are taught."""
        return [view.pair() for view in self.views]

    @property
    def whole(self) -> bool:
        """Every level of the student is taught."""
        return all(view.match.whole for view in self.views)

    @torch.no_grad()
    def ask(self, batch: Mapping[str, Any], student: Predictions | None = None) -> list[Predictions] | None:
        """What each teacher says of a batch, in the student's class space; of one without a grid its detections.

        Args:
            batch: Ultralytics' batch.
            student: the student's dense predictions at the taught levels; needed by ``teacher=self:levels`` alone.

        Returns:
            None where a peer says NaN or Inf: it will be taken up again from its checkpoint, and is not to take the
            student along until then.

        Raises:
            UserError: the first answer of one of the teachers holds NaN or Inf.
        """
        answers = []
        for view in self.views:
            said = view({**batch, STUDENT: student})
            if not self._checked:
                refuse_not_finite(_raw(said), view.teacher)
            elif getattr(view.teacher, "learns", False) and not is_finite(said):
                return None
            answers.append(said)
        self._checked = True
        return answers

    @torch.no_grad()
    def __call__(
        self,
        batch: Mapping[str, Any],
        student: Predictions,
        anchors: Tensor,
        strides: Tensor,
        seen: Seen = None,
        answers: Sequence[Predictions] | None = None,
    ) -> Predictions | None:
        """The answer to a batch, in the student's class space, on its anchors of the taught levels.

        Args:
            batch: Ultralytics' batch.
            student: the student's dense predictions at the taught levels.
            anchors: ``(A, 2)`` of these, pixels.
            strides: ``(A,)`` pixels.
            seen: see `lay_out`.
            answers: what `ask` has said of this batch already.

        Returns:
            None where `ask` says so.

        Raises:
            UserError: as `ask`.
        """
        answers = self.ask(batch, student) if answers is None else answers
        if answers is None:
            return None
        on_grid = []
        for said in answers:
            if said.detections is not None:
                laid = lay_out(said.detections, student, anchors, strides, said.classes, seen)
                said = replace(said, scores=laid.scores, boxes=laid.boxes, edges=laid.edges, detections=None)
            on_grid.append(said)
        assert student.scores is not None
        return on_grid[0] if len(on_grid) == 1 else average(on_grid, self.weights, student.scores.shape[1])


def _raw(said: Predictions) -> Predictions:
    """The numbers of an answer: of one without a grid, those of its detections."""
    found = said.detections
    return said if found is None else replace(said, scores=found.scores, boxes=found.boxes)
