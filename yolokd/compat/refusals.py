"""Why a checkpoint cannot serve, in words."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import torch
from torch import nn
from ultralytics.nn import tasks

from yolokd.errors import UserError

# What the last layer of a model says about it, by class name (ultralytics/nn/modules/head.py).
_HEADS = {
    "Detect": "a detector",
    "v10Detect": "a detector",
    "Segment": "a segmenter",
    "Segment26": "a segmenter",
    "Classify": "a classifier",
    "OBB": "a detector of oriented boxes",
    "OBB26": "a detector of oriented boxes",
    "Pose": "a pose model",
    "Pose26": "a pose model",
    "RTDETRDecoder": "an RT-DETR",
    "WorldDetect": "a YOLO-World model",
    "YOLOEDetect": "a YOLOE model",
    "YOLOESegment": "a YOLOE model",
    "YOLOESegment26": "a YOLOE model",
    "SemanticSegment": "a semantic segmenter",
    "Depth": "a depth model",
}
_DETECTORS = ("Detect", "v10Detect")
DETR = "RTDETRDecoder"
# The Segment head is a Detect with masks beside: it gives boxes, scores and features, so it can teach.
_TEACHERS = (*_DETECTORS, "Segment", "Segment26", DETR)


def is_plain_detector(model: nn.Module) -> bool:
    """Whether a loaded model answers with boxes alone: no masks beside, no RT-DETR."""
    return type(model.model[-1]).__name__ in _DETECTORS  # type: ignore[index]


def refuse_wrapped(model: nn.Module, path: str | Path, role: str) -> None:
    """Refuse a checkpoint of Ultralytics' own distillation in progress.

    Raises:
        UserError: the model is a student wrapped with its teacher.
    """
    if type(model).__name__ == "DistillationModel":
        raise UserError(
            f"{role}={path} is an unfinished run of Ultralytics' own distillation: a student wrapped with its teacher.",
            "Let that run finish and name its best.pt, which holds the student alone.",
        )


def refuse_wrong_kind(model: nn.Module, path: str | Path, role: str) -> None:
    """Refuse what cannot play the role.

    Raises:
        UserError: no detector (a teacher may be a segmenter), or one that was fused for inference.
    """
    layers = getattr(model, "model", None)
    head = layers[-1] if isinstance(layers, nn.Sequential) else model
    kind = type(head).__name__
    if kind not in (_TEACHERS if role == "teacher" else _DETECTORS):
        what = _HEADS.get(kind, f"a model with the head {kind}, which yolokd does not know")
        able = "a detector or a segmenter" if role == "teacher" else "a detector"
        detr = ", or an RT-DETR" if role == "teacher" else ""
        raise UserError(
            f"{role}={path} is {what}.", f"The {role} must be {able} of YOLOv8, v9, v10, 11, 12 or 26{detr}."
        )
    if kind == DETR:  # nothing of it is lost when it is fused
        return
    if getattr(head, "cv2", None) is None or (role == "student" and tasks.BaseModel.is_fused(model)):
        raise UserError(
            f"{role}={path} was saved fused, for inference: a part that training needs is gone.",
            "Name the best.pt that training wrote.",
        )


def refusal(file: Path, path: str | Path, role: str, error: Exception, trust: bool) -> UserError:
    """Say what is wrong with a file that Ultralytics' reader did not take."""
    if "TorchScript archive" in str(error):
        return UserError(f"{role}={path} is a TorchScript export, not a checkpoint.", "Name the .pt it was made from.")
    if isinstance(error, AttributeError) and "'model'" in str(error):
        return no_model(path, role)
    if foreign := [] if trust else _foreign_globals(file, error):
        listed = ", ".join(sorted(foreign)[:5]) + (", ..." if len(foreign) > 5 else "")
        return UserError(
            f"{role}={path} was not loaded: its pickle references {listed}, which no Ultralytics model needs.",
            "A pickle can run code. If you know where the file comes from, add trust=True.",
        )
    return unreadable(path, role, error)


def _foreign_globals(file: Path, error: Exception) -> list[str]:
    """The globals of a pickle that neither torch nor Ultralytics calls safe."""
    try:
        try:
            allowed = tasks._SafeLoad.loading(str(file))
        except TypeError:  # Ultralytics 8.4.120 allows all that it knows at once, whatever the file
            allowed = tasks._SafeLoad.loading()
        with allowed:
            return list(torch.serialization.get_unsafe_globals_in_checkpoint(str(file)))
    except Exception:  # no zip archive: torch names the first global that it stopped at, or does not know the format
        return re.findall(r"GLOBAL ([\w.]+)", str(error.__cause__))


def unreadable(path: str | Path, role: str, error: Exception) -> UserError:
    """Say what is wrong with a file that is damaged or no checkpoint."""
    with open(path, "rb") as stream:
        begins_as_archive = stream.read(2) == b"PK"
    if (begins_as_archive and not zipfile.is_zipfile(path)) or "PytorchStreamReader" in str(error):
        return UserError(f"{role}={path} is truncated or corrupted.", "Fetch it again, or take an older checkpoint.")
    cause = error.__cause__ if error.__cause__ is not None else error
    if not zipfile.is_zipfile(path):
        return UserError(f"{role}={path} is not a PyTorch checkpoint.", "Name a .pt file that Ultralytics saved.")
    return UserError(
        f"{role}={path} cannot be loaded: {type(cause).__name__}: {first_line(cause)}.",
        "Name a .pt file that this version of Ultralytics can load.",
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; the error's name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")[:200]


def no_model(path: str | Path, role: str) -> UserError:
    """Say that a file holds tensors, but no network."""
    return UserError(
        f"{role}={path} holds no Ultralytics model (perhaps weights alone, without the network).",
        "Name a checkpoint that Ultralytics saved, e.g. runs/detect/train/weights/best.pt.",
    )
