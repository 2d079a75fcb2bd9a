"""Ultralytics' augmentation, step by step: each transform becomes one that also moves what yolokd sends along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultralytics.data.augment import Albumentations, Compose, RandomHSV

from yolokd.errors import UserError


def exchange(transform: Any, followers: Mapping[type, type], method: str, problem: str, remedy: str) -> None:
    """Give a transform, and those inside it, the class that also moves what goes along; in place.

    Args:
        transform: of Ultralytics; one that was exchanged before stays.
        followers: class of a transform to the subclass that takes its place.
        method: that the subclass builds on; a class of Ultralytics that has it no longer is refused.
        problem: the first line of the error, up to "the augmentation".
        remedy: the second line of the error.

    Raises:
        UserError: one of them moves pixels or boxes and is not known here, or is not built as it was.
    """
    kind = type(transform)
    if kind in followers.values() or kind is RandomHSV:  # a transform can stand in several places; HSV moves nothing
        return
    if kind is Compose:
        for step in transform.transforms:
            exchange(step, followers, method, problem, remedy)
    elif kind in followers and method in vars(kind):
        transform.__class__ = followers[kind]
        if getattr(transform, "pre_transform", None) is not None:
            exchange(transform.pre_transform, followers, method, problem, remedy)
    elif kind is not Albumentations or (transform.transform and transform.contains_spatial):
        raise UserError(f"{problem} the augmentation {kind.__name__}.", remedy)
