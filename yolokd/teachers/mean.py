"""A mean teacher that starts as the teacher and follows the student: for images of a domain that nobody labelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from yolokd.classes import ClassMap
from yolokd.errors import UserError
from yolokd.levels import match_levels
from yolokd.predictions import HeadInfo, Predictions
from yolokd.teachers.elsewhere import bare
from yolokd.teachers.itself import RunningTeacher
from yolokd.teachers.live import LiveTeacher, is_finite
from yolokd.teachers.panel import Panel
from yolokd.teachers.several import average
from yolokd.teachers.view import View

KEEP = 0.9996  # of itself, that the mean teacher keeps in a step: that of Unbiased Teacher


class MeanPanel(Panel):
    """The teachers, and a share of the student's own running average that grows step by step.

    After t steps the answer is the mean of the teachers' with weight ``keep ** t`` and of the average's with the rest:
    what a mean teacher has kept of its beginning, and what it has taken over from the student.

    Sources: Tarvainen, Valpola, "Mean teachers are better role models", NIPS 2017, https://arxiv.org/abs/1703.01780;
    with weak and strong views for detection Liu et al., "Unbiased Teacher", ICLR 2021,
    https://arxiv.org/abs/2102.09480, whose ``keep`` this is; between domains Li et al., "Cross-Domain Adaptive Teacher
    for Object Detection", CVPR 2022, https://arxiv.org/abs/2111.13216. Departures: theirs is one network, whose weights
    move towards those of a student of the same kind. A large teacher and a nano have no weights in common, so the
    answers are averaged instead, as probabilities; the average of the student is Ultralytics' own EMA; no adversary
    brings the features of both domains together.

    Args:
        panel: the teachers; networks on the student's grid.
        average_of_student: the student's running average, as a teacher.
        student: the student's head, with the classes of the data.
        keep: above 0 and below 1.

    Raises:
        UserError: a teacher has no grid of the student's kind, so that there is nothing to average.
    """

    def __init__(self, panel: Panel, average_of_student: RunningTeacher, student: HeadInfo, keep: float = KEEP) -> None:
        super().__init__(panel.views, panel.weights)
        for view in self.views:
            pair, teacher = view.pair(), bare(view.teacher)
            alike = view.match.whole and pair.student.reg_max == pair.teacher.reg_max
            if not isinstance(teacher, LiveTeacher) or not alike:
                raise UserError(
                    f"domain=adapt averages the answers of teacher={view.teacher.name} with the student's own, and it "
                    "is no YOLO of the same strides and bins.",
                    "Take a YOLO checkpoint of the student's family as teacher.",
                )
        classes = ClassMap.by_name(student.names, student.names)
        self._own = View(average_of_student, student, classes, match_levels(student, average_of_student.info))
        self._classes = len(student.names)
        self._keep = keep
        self._step = 0

    @property
    def share(self) -> float:
        """How much the student's average counts now, from 0 on."""
        return 1 - self._keep**self._step

    def progress(self, step: int) -> None:
        """Say how many steps of the training are done."""
        self._step = step

    @torch.no_grad()
    def ask(self, batch: Mapping[str, Any], student: Predictions | None = None) -> list[Predictions] | None:
        """One answer, the mean of all; its features are the teachers'."""
        answers = super().ask(batch, student)
        if not answers or not self.share:
            return answers
        own = self._own(batch)
        if not is_finite(own):
            return answers  # Ultralytics will take the student up again from its last checkpoint
        weights = [*(weight * (1 - self.share) for weight in self.weights), self.share]
        mean = average([*answers, own], weights, self._classes)
        if len(answers) > 1:
            return [replace(mean, members=tuple(answers))]
        first = answers[0]
        return [replace(mean, members=None, feats=first.feats, taps=first.taps, reenter=first.reenter)]
