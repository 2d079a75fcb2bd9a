"""From what ``teacher=`` names to teachers that can be asked, and to what the criterion asks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import nn

from yolokd.classes import ClassMap, normalise, shorten
from yolokd.compat.checkpoint import find_checkpoint, head_info, load_detector, sha256
from yolokd.compat.detr import is_detr
from yolokd.errors import UserError
from yolokd.levels import match_levels
from yolokd.predictions import HeadInfo
from yolokd.teachers.beside import names_beside, weights_beside
from yolokd.teachers.detr import DetrTeacher
from yolokd.teachers.exported import ExportedTeacher
from yolokd.teachers.itself import DeepestLevel, RunningTeacher
from yolokd.teachers.live import LiveTeacher, Teacher
from yolokd.teachers.panel import Panel
from yolokd.teachers.spec import TeacherSpec, shares
from yolokd.teachers.view import View

Networks: TypeAlias = Mapping[str, Callable[[], nn.Module]]  # name of a peer to what gives its network as it is now
NOBODY: Networks = MappingProxyType({})


def find_teacher(spec: TeacherSpec) -> TeacherSpec:
    """The same teacher with the absolute path of its file; fetched where Ultralytics publishes it.

    Raises:
        UserError: no such file.
    """
    if spec.kind in ("self", "levels", "peer"):
        return spec
    if spec.kind == "checkpoint":
        return spec.at(find_checkpoint(spec.path, role="teacher"))
    path = Path(spec.path).resolve()
    if not path.exists():
        raise UserError(f"teacher={spec.path}: no such file.", "Check the path.")
    return spec.at(path)


def fingerprint(spec: TeacherSpec) -> str:
    """What tells this teacher from another: the SHA-256 of its file and of those that belong to it; empty without any.

    Of an exported teacher these are the files with its weights, and its classes where they stand in a file beside it.
    """
    if spec.kind in ("self", "levels", "peer"):
        return ""
    path = Path(spec.path)
    files = sorted(path.glob("*.*")) if path.is_dir() else [path]
    files += [path.with_suffix(".bin")] if path.suffix == ".xml" else []  # OpenVINO keeps the weights beside it
    files += weights_beside(path) if spec.kind == "onnx" else []
    known = [sha256(file) for file in files if file.suffix not in (".yaml", ".txt") or len(files) == 1]
    if spec.kind == "openvino" and (names := names_beside(path)):
        known.append(hashlib.sha256(names.encode()).hexdigest())
    return "+".join(known)


def open_teacher(
    spec: TeacherSpec,
    device: torch.device,
    student: HeadInfo,
    network: Callable[[], nn.Module],
    peers: Networks,
    side: int,
    trust: bool,
    **exported: Any,
) -> Teacher:
    """Load a teacher, in float32.

    Args:
        spec: from `find_teacher`.
        device: where it runs.
        student: the student's head, for a student that teaches itself.
        network: gives the network that ``teacher=self`` asks.
        peers: whom ``teacher=peer:NAME`` asks; their networks are moved to the device.
        side: of the images that the teacher will see, pixels.
        trust: load a checkpoint that references unknown globals.
        **exported: of `ExportedTeacher`: ``precision``, ``names``, ``box_format``.

    Raises:
        UserError: the file cannot serve as a teacher, or the peer is not being trained here.
    """
    if spec.kind == "levels":
        return DeepestLevel(student)
    if spec.kind == "self":
        return RunningTeacher(network, student, "self")
    if spec.kind == "peer":
        return _open_peer(spec, device, student, peers)
    if spec.kind in ("onnx", "openvino"):
        return ExportedTeacher(spec.path, (side, side), device, **exported)
    model = load_detector(spec.path, role="teacher", trust=trust)
    if is_detr(model):
        return DetrTeacher(model, device, "fp32", spec.path)
    return LiveTeacher(model, device, "fp32", spec.path)


def _open_peer(spec: TeacherSpec, device: torch.device, student: HeadInfo, peers: Networks) -> Teacher:
    network = peers.get(spec.path.removeprefix("peer:"))
    if network is None:
        raise UserError(
            f"teacher={spec.path} is trained beside this student, and here nothing is.",
            "Resume the folder around both, or begin with peers=A.yaml,B.yaml instead of teacher=.",
        )
    model: Any = network().to(device)
    info = replace(head_info(model), names=student.names)  # all learn the classes of the data
    return RunningTeacher(network, info, spec.path)


def seat(
    specs: Sequence[TeacherSpec],
    teachers: Sequence[Teacher],
    student: HeadInfo,
    *,
    overrides: Mapping[str, str],
    only: Collection[int] | None,
    weights: Sequence[float],
    ratio: float,
) -> Panel:
    """Put teachers where the criterion asks them.

    Args:
        specs: as they were named.
        teachers: the same, opened.
        student: the student's head, with the classes of the data.
        overrides: ``class_map=``, teacher name to student name.
        only: Ultralytics' ``classes=``; None is all.
        weights: ``teacher_weights=``, empty where all count alike.
        ratio: side of the teacher's image over the side of the student's.

    Raises:
        UserError: a specialist does not know a class that it is to speak for; an unknown name in ``class_map=``; no
            level of the student has a counterpart in every teacher.
    """
    spoken = [_spoken(spec, teacher.info.names) for spec, teacher in zip(specs, teachers, strict=True)]
    everything = dict(enumerate(name for known in spoken for name in known.values()))
    ClassMap.by_name(everything, student.names, overrides)  # refuses a name that nobody knows
    matches = [match_levels(student, teacher.info, ratio) for teacher in teachers]
    common = set.intersection(*(set(match.student) for match in matches))
    if not common:
        theirs = "; ".join(", ".join(map(str, teacher.info.strides)) for teacher in teachers if teacher.info.strides)
        raise UserError(
            f"No pyramid level of the student (strides {', '.join(map(str, student.strides))}) has a counterpart in "
            f"the teacher (strides {theirs}).",
            "Take a teacher with levels of the same strides.",
        )
    views = []
    for known, teacher, match in zip(spoken, teachers, matches, strict=True):
        here = {t: s for t, s in overrides.items() if normalise(t) in map(normalise, known.values())}
        views.append(View(teacher, student, ClassMap.by_name(known, student.names, here, only), match.only(common)))
    return Panel(views, shares(weights, len(teachers)))


def _spoken(spec: TeacherSpec, names: Mapping[int, str]) -> dict[int, str]:
    """The classes that a teacher speaks for, by their index in its head."""
    if not spec.classes:
        return dict(names)
    wanted = {normalise(name): name for name in spec.classes}
    if unknown := [name for key, name in wanted.items() if key not in {normalise(n) for n in names.values()}]:
        raise UserError(
            f"teacher={spec.path} is to speak for {', '.join(unknown)}, which it does not know.",
            f"Its classes are: {shorten(list(names.values()))}.",
        )
    return {i: name for i, name in names.items() if normalise(name) in wanted}
