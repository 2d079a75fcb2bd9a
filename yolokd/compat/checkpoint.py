"""Ultralytics' checkpoints: found, read without running their pickles, refused in words where they cannot serve."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel, load_checkpoint, torch_safe_load
from ultralytics.utils import SETTINGS
from ultralytics.utils import downloads as ultralytics_downloads
from ultralytics.utils.checks import check_model_file_from_stem

from yolokd.compat.refusals import first_line, no_model, refusal, refuse_wrapped, refuse_wrong_kind, unreadable
from yolokd.compat.taps import hidden_widths
from yolokd.errors import UserError
from yolokd.predictions import HeadInfo

# Below torch 2.6 the restricted load of Ultralytics silently turns into an ordinary one, which runs the pickle.
SAFE_LOAD_SUPPORTED = hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")


def load_detector(path: str | Path, *, role: str, trust: bool = False) -> DetectionModel:
    """Load a detector in float32, on the CPU, in eval mode, unfused, with its class names.

    Args:
        path: a ``.pt`` file, or a name that Ultralytics publishes, which Ultralytics then fetches.
        role: ``teacher``, ``student`` or ``model``: what the messages call it, and what it must be able to do.
        trust: load a pickle that references unknown globals; this may run code from the file.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint, not safe, or not a model that can play the role.
    """
    file = find_checkpoint(path, role=role)
    found = _candidate(read_checkpoint(file, role=role, trust=trust), path, role)
    refuse_wrapped(found, path, role)
    try:
        with restricted_loading(trust):
            model = load_checkpoint(str(file))[0]  # again, for what Ultralytics mends in old and quantized models
    except Exception as error:
        raise unreadable(file, role, error) from error
    refuse_wrong_kind(model, path, role)
    names = model.names
    model.names = dict(names) if isinstance(names, dict) else dict(enumerate(names))
    return model


def build_student(
    spec: str | Path,
    *,
    names: dict[int, str] | None = None,
    channels: int = 3,
    trust: bool = False,
) -> DetectionModel:
    """Build the student as Ultralytics' trainer will: from a checkpoint or a model YAML, with the classes of the data.

    Args:
        spec: a ``.pt`` file, or a model YAML such as ``yolo11n.yaml`` (Ultralytics' own are found by name).
        names: class index to name of the data; None keeps the model's own.
        channels: image channels of the data.
        trust: as for `load_detector`.

    Raises:
        UserError: the checkpoint cannot serve, or the YAML is missing or describes no detector.
    """
    if Path(str(spec)).suffix in (".yaml", ".yml"):
        return _from_yaml(spec, names, channels)
    model = load_detector(spec, role="student", trust=trust)
    return model if names is None else fit_to_data(model, names, channels)


def fit_to_data(model: DetectionModel, names: dict[int, str], channels: int = 3) -> DetectionModel:
    """A detector with the classes and image channels of the data, the weights kept where they fit.

    Args:
        model: any detector; it is returned itself (renamed) where it fits already.
        names: class index to name of the data.
        channels: image channels of the data.
    """
    if len(names) != len(model.names) or channels != model.yaml.get("channels", 3):
        fresh = DetectionModel({**deepcopy(model.yaml), "nc": len(names)}, ch=channels, verbose=False)
        fresh.load(model, verbose=False)
        model = fresh.eval()
    model.names = dict(names)
    return model


def head_info(model: DetectionModel) -> HeadInfo:
    """The facts of a detector's head that decide what can be compared with what."""
    head: Any = model.model[-1]
    one2one = getattr(head, "one2one_cv2", None)
    branch: Any = head.cv2 if head.cv2 is not None else one2one
    return HeadInfo(
        names={int(i): str(name) for i, name in model.names.items()},
        strides=tuple(int(s) for s in model.stride),
        widths=tuple(level[0].conv.in_channels for level in branch),
        reg_max=int(head.reg_max),
        end2end=one2one is not None,
        hidden=hidden_widths(model),
    )


@contextlib.contextmanager
def restricted_loading(trust: bool = False) -> Iterator[None]:
    """Let every checkpoint that Ultralytics itself opens meanwhile be read as `read_checkpoint` does.

    For code that hands a path to Ultralytics (``YOLO(path)``, ``pretrained=``); the names of the refused globals come
    from `read_checkpoint` alone.

    Args:
        trust: leave Ultralytics' own setting as it is.
    """
    before = tasks.SAFE_LOAD
    tasks.SAFE_LOAD = before or not trust
    try:
        yield
    finally:
        tasks.SAFE_LOAD = before


def find_checkpoint(path: str | Path, *, role: str) -> Path:
    """The absolute path of a checkpoint; fetches it through Ultralytics where that publishes it and we are online.

    Raises:
        UserError: no such file, not a ``.pt``, or a published one that cannot be fetched now.
    """
    text = str(check_model_file_from_stem(str(path).strip()))  # yolo11x is yolo11x.pt
    file, url = Path(text), text.lower().startswith(("http://", "https://"))
    if file.suffix != ".pt":
        kind = "a description without weights" if file.suffix in (".yaml", ".yml") else "not a .pt file"
        raise UserError(f"{role}={text} is {kind}.", f"Name a trained PyTorch checkpoint, e.g. {role}=yolo11x.pt.")
    for candidate in () if url else (file, Path(SETTINGS["weights_dir"]) / file):
        if candidate.is_file():
            return candidate.resolve()
    if not url and (text != file.name or file.name not in ultralytics_downloads.GITHUB_ASSETS_NAMES):
        raise UserError(f"{role}={text}: no such file.", "Check the path; a name alone is looked for in this folder.")
    return _fetch(text, role)


def _fetch(name: str, role: str) -> Path:
    from ultralytics.utils import ONLINE

    place = f"Put the file into {Path.cwd()} or {Path(SETTINGS['weights_dir']).resolve()}, or give its path."
    if not ONLINE:
        raise UserError(f"{role}={name} is not here, and there is no connection to fetch it from Ultralytics.", place)
    try:
        file = Path(ultralytics_downloads.attempt_download_asset(name))
    except Exception as error:  # a ConnectionError, an HTTP status, a full disk: all end in the same advice
        raise UserError(f"{role}={name} could not be fetched: {first_line(error)}.", place) from error
    if not file.is_file():
        raise UserError(f"{role}={name} could not be fetched from Ultralytics.", place)
    return file.resolve()


def read_checkpoint(path: str | Path, *, role: str = "model", trust: bool = False) -> dict[str, Any]:
    """Read a checkpoint as Ultralytics saved it (``epoch``, ``optimizer``, ``ema``, ``train_args``, ...).

    A ``.pt`` file is a pickle, and a pickle can run code: only the classes that Ultralytics' own checkpoints need are
    rebuilt, everything else is refused by name.

    Args:
        path: the file.
        role: what the messages call it.
        trust: read it with everything that it holds; this may run code from the file.

    Raises:
        UserError: missing, empty, truncated, TorchScript, not a checkpoint, or holding a foreign global.
    """
    file = Path(path).resolve()  # absolute: by bare name, Ultralytics deletes a corrupt official file and fetches anew
    if not file.is_file():
        raise UserError(f"{role}={path}: no such file.", "Check the path.")
    if not file.stat().st_size:
        raise UserError(f"{role}={path} is empty.", "Fetch or train it again.")
    if not SAFE_LOAD_SUPPORTED and not trust:
        raise UserError(
            f"{role}={path}: torch {torch.__version__} cannot load a checkpoint without running code from it.",
            "Install torch 2.6 or newer, or, if you know where the file comes from, add trust=True.",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on files that are refused below
            checkpoint, _ = torch_safe_load(str(file), safe_only=not trust)
    except Exception as error:
        raise refusal(file, path, role, error, trust) from error
    return dict(checkpoint)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _from_yaml(spec: str | Path, names: dict[int, str] | None, channels: int) -> DetectionModel:
    from ultralytics.nn.tasks import yaml_model_load

    try:
        description = yaml_model_load(spec)
    except FileNotFoundError:
        raise UserError(
            f"student={spec}: no such model YAML.", "Ultralytics' own are found by name, e.g. student=yolo11n.yaml."
        ) from None
    except Exception as error:
        raise UserError(f"student={spec} is not a model YAML: {first_line(error)}.", "Compare yolo11n.yaml.") from error
    try:
        model = DetectionModel({**description, "nc": len(names or {}) or description["nc"]}, channels, verbose=False)
    except Exception as error:  # a mistyped layer or argument ends in any of Python's errors
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"student={spec} does not build: {reason}.", "Compare it with yolo11n.yaml.") from error
    refuse_wrong_kind(model, spec, "student")
    model.names = dict(names) if names is not None else dict(model.names)
    return model.eval()


def _candidate(checkpoint: dict[str, Any], path: str | Path, role: str) -> nn.Module:
    """The model in a checkpoint: the EMA where training was under way."""
    model = checkpoint.get("ema") or checkpoint.get("model")
    if isinstance(model, nn.Module):
        return model
    raise no_model(path, role)
