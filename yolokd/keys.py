"""The keys of the command line and of recipes: which there are, whose they are, and how they are told apart."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from yolokd.errors import UserError

# Every key that yolokd adds to those of Ultralytics, with the line that `yolokd train --help` prints.
OUR_KEYS: dict[str, str] = {
    "teacher": "what to learn from: a.pt, several a.pt,b.pt, for some classes a.pt:person,b.pt:dog, self, born-again",
    "teacher_weights": "how much each of several teachers counts, e.g. 2,1",
    "teacher_imgsz": "side of the images that the teacher sees, e.g. 1280 with imgsz=640; the student's are reduced",
    "teacher_cache": "a folder: ask the teacher once for every image, then replay its answers; nearly free afterwards",
    "teacher_every": "ask the teacher in every k-th step only; its losses count k times there",
    "student": "the small detector to train: a .pt file or a model YAML (Ultralytics' own word is model=)",
    "via": "models in between, the largest first: each is distilled, then teaches the next: yolo11m.pt,yolo11s.pt",
    "peers": "instead of teacher= and student=: they train together, each under the others: yolo11n.yaml,yolo11s.yaml",
    "generations": "of teacher=born-again: rounds in which the best student so far teaches a fresh one (1)",
    "losses": "which losses with which gain, e.g. cls:0.5,box:1.5,cwd (no gain: its default); none: train without",
    "NAME.OPTION": "an option of one loss, e.g. cwd.temperature=2 (`yolokd losses` lists them)",
    "schedule": "the gains over training after the warm-up: constant or cosine",
    "kd_start": "train the first K epochs without distillation",
    "kd_close": "train the last K epochs without distillation",
    "refine_epochs": "train the last K epochs on ground truth alone, at the final learning rate",
    "balance": "a share, e.g. 0.1: set each gain so that its gradient is that part of the detection loss's; off",
    "guard": "fade distillation out where it has begun to harm the student: on or off",
    "guard_patience": "epochs without a better validation result, while distillation still improves, until it does",
    "taps": "layers of student and teacher instead of the pyramid for losses on features: 4,6,10 or 4:4,6:6,10:9",
    "teacher_precision": "arithmetic of the teacher: auto, fp32, bf16 or fp16",
    "teacher_device": "where the teacher runs, if not with the student: 1 or cuda:1 for a second GPU, or cpu",
    "teacher_compile": "run the teacher through torch.compile (True, False)",
    "teacher_names": "class names, in order, of an exported teacher that does not say them: person,bicycle",
    "teacher_boxes": "how an exported teacher writes down boxes where that is unclear: xyxy, xywh, xyxyn or xywhn",
    "class_map": "teacher classes that have another name in the data, e.g. motorbike:motorcycle,auto:car",
    "unlabelled": "images without labels to learn from: folders, lists (.txt) or videos, e.g. images/,clip.mp4",
    "unlabelled_ratio": "images without labels for each one with, in every batch, e.g. 1 (each image once an epoch)",
    "unlabelled_seconds": "between two frames that are taken of a video (1)",
    "pseudo_precision": "the share of the teacher's boxes that is to be right where they stand for labels (0.9); off",
    "student_classes": "the classes of the student, by name, where it is to know fewer than the teacher: person,car",
    "domain": "adapt: from the labelled images to the domain of unlabelled=, by a teacher that follows the student",
    "teacher_images": "a folder with an image of the same name for each of the student's: what the teacher sees (RGB)",
    "student_view": "make the student's images from the teacher's: gray, dark or half (of the resolution)",
    "trust": "load .pt files that hold more than an Ultralytics model; this runs code from the file (True, False)",
    "recipe": "a YAML file with any of these keys and of Ultralytics'; the command line wins over it",
}
MANIFEST = "chain.yaml"  # in the folder around several trainings (yolokd.steps)
# What `yolokd compare` has beside the keys of a training.
COMPARE_KEYS: dict[str, str] = {
    "arms": "plain, native (Ultralytics' distill_model=), yolokd, and recipes: plain,yolokd,mine.yaml",
    "seeds": "how many (5; a verdict takes 3) or which: 0,1,2",
    "eval_split": "the images that judge (test; without one a fifth of the training images is held out)",
    "jobs": "runs at once; cores are divided, of device=0,1 each run has one",
    "robustness": "off leaves that part out",
    "backend": "faster-coco-eval computes the same AP as pycocotools faster (pip install yolokd[fast])",
    "resume": "folder of a comparison that was cut off, or that is to have more seeds=",
}
PEERS = "peers"  # it asks for several trainings at the same time (yolokd.peers)
# They ask for a training in several steps (yolokd.chain), as this teacher does.
STEP_KEYS = ("via", "generations")
BORN_AGAIN = "born-again"
# What `yolokd cache` reads; the others say something about a training.
_CACHED = "teacher teacher_cache teacher_imgsz teacher_names teacher_boxes data imgsz device workers batch fraction"
CACHE_KEYS = (*_CACHED.split(), "unlabelled", "trust")
# They say which images there are, and what teacher and student see of them (yolokd.image_config).
_IMAGES = "unlabelled unlabelled_ratio unlabelled_seconds pseudo_precision student_classes domain teacher_images"
IMAGE_KEYS = (*_IMAGES.split(), "student_view")
# Accepted by Ultralytics' get_cfg although they do not stand in its default.yaml.
_EXTRA_KEYS = {"augmentations", "save_dir", "end2end", "int8", "half", "boxes", "hide_labels", "hide_conf"}
_EXTRA_KEYS |= {"line_thickness", "label_smoothing", "save_hybrid", "crop_fraction", "keras"}


def known_keys() -> list[str]:
    """Every key that `yolokd train` accepts: ours, Ultralytics', and the options of the losses."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    from yolokd.losses.base import LOSSES

    options = [f"{name}.{option}" for name, info in LOSSES.items() for option in info.options]
    return [*(k for k in OUR_KEYS if k != "NAME.OPTION"), *options, *DEFAULT_CFG_DICT]


def refuse_unknown(keys: Iterable[str], known: Iterable[str], where: str = "", accepted: Iterable[str] = ()) -> None:
    """Raise for the keys that nobody knows, with what was probably meant.

    Args:
        keys: what a person wrote.
        known: what there is; the suggestions come from here.
        where: where the keys were written, e.g. ``" in mine.yaml"``.
        accepted: keys that pass although they are not suggested.

    Raises:
        UserError: at least one key is unknown.
    """
    known = list(known)
    unknown = [key for key in keys if key not in known and key not in _EXTRA_KEYS and key not in set(accepted)]
    if not unknown:
        return
    near = {key: difflib.get_close_matches(key, known, 3) for key in unknown}
    hints = [f"{' or '.join(near[key])} (for {key})" if len(unknown) > 1 else " or ".join(near[key]) for key in unknown]
    asked = ", ".join(repr(key) for key in unknown)
    raise UserError(
        f"{asked}{where}: no such key." if len(unknown) == 1 else f"{asked}{where}: no such keys.",
        f"Did you mean {', '.join(h for h, key in zip(hints, unknown, strict=True) if near[key])}?"
        if any(near.values())
        else "`yolokd train --help` lists the keys of yolokd, `yolo cfg` those of Ultralytics.",
    )


def split_keys(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part what a person wrote into yolokd's keys and Ultralytics' keys.

    ``recipe=`` is read here and everything else written wins over it; ``student=`` becomes Ultralytics' ``model=``.

    Returns:
        Our keys (for `build_config`) and Ultralytics' keys (for its trainer).

    Raises:
        UserError: a mistyped key, a value of the wrong type, a recipe that cannot be read, ``student`` beside another
            ``model``, Ultralytics' own distillation asked for, or several steps, which one training cannot do.
    """
    merged = with_recipe(overrides)
    _refuse_steps(merged)
    # A dotted key belongs to a loss; build_config knows which loss has it.
    refuse_unknown([key for key in merged if "." not in key], known_keys())
    ours = {key: value for key, value in merged.items() if "." in key or key in OUR_KEYS}
    theirs = {key: value for key, value in merged.items() if key not in ours}
    student = ours.pop("student", None)
    if student is not None:
        if theirs.get("model") not in (None, student):
            raise UserError(f"student={student} and model={theirs['model']} are the same key, but differ.", "Keep one.")
        theirs["model"] = student
    refuse_native(theirs)
    _refuse_wrong_types(theirs)
    return ours, theirs


def _refuse_steps(merged: Mapping[str, Any]) -> None:
    asked = [f"{key}=" for key in (*STEP_KEYS, PEERS) if merged.get(key) is not None]
    asked += [f"teacher={BORN_AGAIN}"] if merged.get("teacher") == BORN_AGAIN else []
    if asked:
        raise UserError(
            f"{' and '.join(asked)}: these are several trainings, and this is about one.",
            "Say it to `yolokd train`, or to yolokd.distill(...).",
        )


def refuse_native(theirs: Mapping[str, Any], typed: bool = False) -> None:
    """Refuse Ultralytics' own distillation beside ours.

    Args:
        theirs: Ultralytics' keys.
        typed: they were typed one by one, so even a default is a mistake; a whole ``cfg=`` file holds every default.

    Raises:
        UserError: ``distill_model`` or ``dis`` is set.
    """
    from ultralytics.utils import DEFAULT_CFG_DICT

    native = [
        key
        for key in ("distill_model", "dis")
        if theirs.get(key) is not None and (typed or theirs[key] != DEFAULT_CFG_DICT[key])
    ]
    if native:
        raise UserError(
            f"{' and '.join(native)}: Ultralytics' own distillation cannot run beside yolokd's.",
            f"Leave out {' and '.join(native)}; teacher= and losses= say what yolokd distils.",
        )


def _refuse_wrong_types(theirs: Mapping[str, Any]) -> None:
    from ultralytics.cfg import check_cfg
    from ultralytics.utils import DEFAULT_CFG_DICT

    try:
        check_cfg({key: value for key, value in theirs.items() if key in DEFAULT_CFG_DICT})
    except (TypeError, ValueError) as error:
        problem, _, remedy = " ".join(str(error).split()).partition(". ")
        raise UserError(f"{problem}.", remedy or "`yolo cfg` prints Ultralytics' keys with their types.") from None


def load_recipe(path: str | Path, key: str = "recipe") -> dict[str, Any]:
    """Read a recipe: a YAML mapping of yolokd's keys and of Ultralytics'.

    Args:
        path: the file.
        key: what messages call it.

    Raises:
        UserError: no such file, not YAML, not a mapping, or an unknown key in it.
    """
    file = Path(str(path))
    if not file.is_file():
        raise UserError(f"{key}={path}: no such file.", "Give the path of a YAML file with keys such as losses:.")
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{key}={path} is not YAML: {line}.", "One `key: value` a line, e.g. `kd_close: 5`.") from None
    if not isinstance(recipe, dict):
        raise UserError(f"{key}={path} holds no keys.", "One `key: value` a line, e.g. `kd_close: 5`.")
    keys = [str(key) for key in recipe if "." not in str(key)]
    refuse_unknown(keys, [key for key in known_keys() if key != "recipe"], f" in {key} {path}")
    return {str(key): value for key, value in recipe.items()}


def with_recipe(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Read the files that ``recipe=`` and Ultralytics' own ``cfg=`` name, and lay the other keys over them.

    Raises:
        UserError: as `load_recipe`.
    """
    merged = {key: value for key, value in overrides.items() if key not in ("recipe", "cfg")}
    for key in ("recipe", "cfg"):
        if overrides.get(key) is not None:
            merged = _over(load_recipe(overrides[key], key), merged)
    return merged


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay what was written over the recipe; losses that are chosen anew take their options from above only."""
    if "losses" in above:
        below = {key: value for key, value in below.items() if "." not in key or _names(above["losses"], key)}
    if "student" in above or "model" in above:
        below = {key: value for key, value in below.items() if key not in ("student", "model")}
    return {**below, **above}


def _names(losses: Any, key: str) -> bool:
    """Does the choice of losses contain the loss that an option such as ``cwd.temperature`` belongs to?"""
    try:
        return key.partition(".")[0] in loss_pairs(losses)
    except ValueError:
        return True


def loss_pairs(value: Any) -> dict[str, Any]:
    """Read ``a:1,b`` (or the same as a list, or a mapping) into name to number, or to None where there is none."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "")):
        return {}
    if isinstance(value, Mapping):
        return {str(name): gain for name, gain in value.items()}
    if not isinstance(value, (str, list, tuple)):
        raise ValueError(f"losses={value} is not a list of losses")
    words = value.split(",") if isinstance(value, str) else [str(word) for word in value]
    pairs: dict[str, Any] = {}
    for word in words:
        name, colon, gain = (part.strip() for part in word.partition(":"))
        if not name or name in pairs:
            raise ValueError(f"losses={value} names {name} twice" if name else f"losses={value} has an empty name")
        pairs[name] = _number(gain) if colon else None
    return pairs


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def arguments_yaml(args: Mapping[str, Any]) -> str:
    """Ultralytics' arguments of a run, where they differ from their defaults, as lines of a recipe.

    Args:
        args: all of them; ``model`` becomes ``student``.
    """
    from ultralytics.utils import DEFAULT_CFG

    moot = {"mode", "task", "resume", "save_dir", "model"}
    plain = (str, int, float, bool, list, dict, type(None))
    args = {k: v if isinstance(v, plain) else str(v) for k, v in args.items()}  # a Path, a torch.device
    asked = {
        k: v for k, v in args.items() if k not in moot and hasattr(DEFAULT_CFG, k) and v != getattr(DEFAULT_CFG, k)
    }
    # Files by their whole path, so that the run can begin again from another folder.
    paths = ((k, asked[k]) for k in ("data", "pretrained") if isinstance(asked.get(k), str))
    files = {k: str(Path(v).resolve()) for k, v in paths if Path(v).is_file()}
    student = Path(args["model"])
    whole = {"student": str(student.resolve() if student.is_file() else student), **asked, **files}
    return str(yaml.safe_dump(whole, sort_keys=False))
