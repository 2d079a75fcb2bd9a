"""The arms of a comparison: ways to train the same student on the same data, for equally long.

``plain`` is Ultralytics' trainer alone, ``native`` the same with its ``distill_model=``, ``yolokd`` ours; a recipe is a
further arm, called by the name of its file. Arms may differ in how they train. They may not differ in what the
comparison holds equal: the student and its first weights, the images and their size, epochs, seeds.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolokd.compat.checkpoint import find_checkpoint
from yolokd.compat.native import NATIVE_KEYS, refuse_native_pair
from yolokd.config import DistillConfig, build_config, check_against_epochs
from yolokd.errors import UserError
from yolokd.keys import IMAGE_KEYS, OUR_KEYS, load_recipe, split_keys
from yolokd.preflight import Report, preflight, preflight_plain
from yolokd.steps import written
from yolokd.teachers.opening import find_teacher
from yolokd.teachers.spec import read_teachers

PLAIN, NATIVE, YOLOKD, RECIPE = "plain", "native", "yolokd", "recipe"
DEFAULT_ARMS = f"{PLAIN},{NATIVE},{YOLOKD}"
# Folders beside those of the arms.
_TAKEN = ("teacher", "analysis", "audit", "note", "truth", PLAIN, NATIVE, YOLOKD)
_FOR_ALL = ("teacher", "trust", "class_map")  # of yolokd's keys, those that recipes have from the command line
# What a recipe may not say, and why.
_EQUAL = "arms that differ in it cannot be compared"
_PLACE = "the comparison says where its runs lie and where they run"
_REFUSED = {
    **dict.fromkeys(("data", "epochs", "time", "seed", "imgsz", "fraction", "single_cls", "classes"), _EQUAL),
    **dict.fromkeys(("student", "model", "pretrained"), "all arms train the same student from the same weights"),
    "patience": "the arms would train for different numbers of epochs",
    "split": "it would choose best.pt on other images than the other arms",
    **dict.fromkeys(("project", "name", "save_dir", "exist_ok", "resume", "device", "save"), _PLACE),
}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: of its folder and in the report.
        kind: ``plain``, ``native``, ``yolokd`` or ``recipe``.
        way: which trainer: ``plain``, ``native`` or ``yolokd``; a recipe can have any of the last two.
        keys: what it is trained with beside the settings that all arms share.
        recipe: the file, by its whole path; empty where there is none.
    """

    name: str
    kind: str
    way: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ""

    def __post_init__(self) -> None:
        """Refuse what a damaged manifest could say; a name becomes a folder."""
        known = self.kind in (PLAIN, NATIVE, YOLOKD, RECIPE) and self.way in (PLAIN, NATIVE, YOLOKD)
        if not known or not self.name or self.name.startswith(".") or Path(self.name).name != self.name:
            raise ValueError(f"no arm: {self}")


def read_arms(asked: Any, ours: Mapping[str, Any], dis: Any = None) -> tuple[Arm, ...]:
    """Make arms of what was written.

    Args:
        asked: ``arms=``: names and files, with commas or as a list.
        ours: yolokd's keys from the command line; they belong to the arm ``yolokd``.
        dis: Ultralytics' own distillation gain; it belongs to the arm ``native``.

    Raises:
        UserError: no such arm or file, a name twice, a key that has no arm, or a recipe that would make the arms
            incomparable.
    """
    words = [str(word).strip() for word in (asked if isinstance(asked, (list, tuple)) else str(asked).split(","))]
    arms = tuple(_read(word, ours, dis) for word in words)
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"arms={asked} has {twice[0]} twice.", "Arms are called by their files: rename one.")
    if len(arms) < 2:
        raise UserError(f"arms={asked} is one arm, and a comparison takes two.", "For example: arms=plain,yolokd.")
    alone = {key: value for key, value in ours.items() if key not in _FOR_ALL}
    for keys, arm in ((alone, YOLOKD), ({} if dis is None else {"dis": dis}, NATIVE)):
        if keys and arm not in names:
            listed = " and ".join(f"{key}=" for key in keys)
            raise UserError(f"{listed} is for the arm {arm}, which is not in arms=.", f"Add {arm}, or use a recipe.")
    return arms


def _read(word: str, ours: Mapping[str, Any], dis: Any) -> Arm:
    _refuse_images(ours, "")
    teacher = {"teacher": ours["teacher"]} if ours.get("teacher") else {}
    if word == PLAIN:
        return Arm(PLAIN, PLAIN, PLAIN)
    if word == NATIVE:
        return Arm(NATIVE, NATIVE, NATIVE, _native({**teacher, **({} if dis is None else {"dis": dis})}, NATIVE))
    if word == YOLOKD:
        return Arm(YOLOKD, YOLOKD, YOLOKD, whole_paths(ours))
    if Path(word).suffix in (".yaml", ".yml"):
        return _from_recipe(word, {key: ours[key] for key in _FOR_ALL if key in ours})
    near = difflib.get_close_matches(word, (PLAIN, NATIVE, YOLOKD), 1)
    raise UserError(
        f"{word!r} is not an arm.",
        f"{f'Did you mean {near[0]}? ' if near else ''}The arms are plain, native, yolokd and recipes, e.g. mine.yaml.",
    )


def _refuse_images(keys: Mapping[str, Any], where: str) -> None:
    """Arms on other images take another number of steps, or are judged on other images: that is no fair comparison."""
    if found := [key for key in IMAGE_KEYS if keys.get(key) is not None]:
        raise UserError(
            f"{found[0]}={where}: a comparison shows all arms the same images, as often.",
            "examples/benchmarks/unlabelled.py compares with equal steps; or train, then `yolokd val` each model.",
        )


def _from_recipe(file: str, common: Mapping[str, Any]) -> Arm:
    # A key without a value is not given, as on the command line.
    recipe, name = {k: v for k, v in load_recipe(file, "arms").items() if v is not None}, Path(file).stem
    if name in _TAKEN or name.startswith("."):
        raise UserError(f"arms={file}: the name {name} is taken.", "Rename the file; its arm is called by it.")
    _refuse_images(recipe, f" in {file}")
    if refused := [key for key in recipe if key in _REFUSED]:
        reason = _REFUSED[refused[0]]
        raise UserError(f"arms={file} says {refused[0]}: {reason}.", "Say it on the command line, for every arm alike.")
    where = str(Path(file).resolve())
    if any(key in recipe for key in NATIVE_KEYS):
        teacher = {"teacher": common["teacher"]} if common.get("teacher") else {}
        return Arm(name, RECIPE, NATIVE, _native({**teacher, **recipe}, name), where)
    return Arm(name, RECIPE, YOLOKD, whole_paths({**common, **recipe}), where)


def _native(keys: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Keys of a training with Ultralytics' own distillation; ``teacher=`` is its ``distill_model=``.

    Raises:
        UserError: no single teacher, other keys of yolokd, or a gain that is no positive number.
    """
    theirs = {key: value for key, value in keys.items() if key not in OUR_KEYS and "." not in key}
    if beside := sorted(set(keys) - set(theirs) - {"teacher"}):
        problem = f"Arm {name}: {' and '.join(beside)} cannot work beside Ultralytics' own distillation."
        raise UserError(problem, "Leave out dis and distill_model, or the others.")
    dis = theirs.get("dis", 1)
    if isinstance(dis, bool) or not isinstance(dis, (int, float)) or not dis > 0:
        raise UserError(f"Arm {name}: dis={dis} is not a positive number.", "Ultralytics' own is dis=6.")
    teacher = str(theirs.get("distill_model") or keys.get("teacher") or "")
    if not teacher:
        raise UserError(f"Arm {name}: teacher= is missing.", "Name a teacher, e.g. teacher=yolo11x.pt.")
    spec = [spec for spec in _specs(teacher) if spec.kind == "checkpoint" and not spec.classes]
    if len(spec) != 1 or str(spec[0]) != teacher:
        problem = f"Arm {name}: Ultralytics' own distillation takes one .pt file, not teacher={teacher}."
        raise UserError(problem, "Leave the arm out, or name one .pt file.")
    return {**theirs, "distill_model": str(find_checkpoint(teacher, role="teacher"))}


def _specs(teacher: str) -> Sequence[Any]:
    try:
        return read_teachers(teacher)
    except ValueError as error:
        raise UserError(f"{error}.", "Write teacher=A.pt, or teacher=A.pt,B.pt.") from None


def whole_paths(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys as they can be used from another folder, and written down.

    Args:
        keys: of an arm.

    Raises:
        UserError: a teacher's file is missing.
    """
    kept = written(keys)
    teacher = kept.get("teacher")
    text = ",".join(map(str, teacher)) if isinstance(teacher, list) else str(teacher or "")
    if text and text != "born-again":  # split_keys refuses that one in words
        kept["teacher"] = ",".join(str(find_teacher(spec)) for spec in _specs(text))
    if kept.get("teacher_cache"):
        kept["teacher_cache"] = str(Path(str(kept["teacher_cache"])).resolve())
    return kept


def look_at(arm: Arm, common: Mapping[str, Any], trust: bool) -> list[str]:
    """Ask of an arm, before anything is written, what its training would ask.

    Args:
        arm: from `read_arms`.
        common: Ultralytics' keys of every run, with ``model``, ``data`` and ``seed``.
        trust: load checkpoints that reference unknown globals.

    Returns:
        what pairs with what and what it costs, as lines; nothing of an arm without a teacher of ours.

    Raises:
        UserError: it cannot work.
    """
    try:
        report = _look_at(arm, common, trust)
    except UserError as error:
        raise UserError(f"Arm {arm.name}: {error.problem}", error.remedy) from None
    return [] if report is None else report.lines


def _look_at(arm: Arm, common: Mapping[str, Any], trust: bool) -> Report | None:
    if arm.way == NATIVE:
        refuse_native_pair(arm.keys["distill_model"], common["model"], trust)
    if arm.way != YOLOKD:
        plain = {key: value for key, value in arm.keys.items() if key not in NATIVE_KEYS}
        config, theirs = settings_of({"losses": "none", "trust": trust, **plain}, common)
        preflight_plain(config, theirs)
        return None
    config, theirs = settings_of(arm.keys, common)
    if config.losses:
        return preflight(config, theirs)
    preflight_plain(config, theirs)
    return None


def settings_of(keys: Mapping[str, Any], common: Mapping[str, Any]) -> tuple[DistillConfig, dict[str, Any]]:
    """Part an arm's keys into ours, validated, and Ultralytics'.

    Args:
        keys: of the arm.
        common: Ultralytics' keys of every run.

    Raises:
        UserError: a mistyped key, a value of the wrong type, several trainings in one, a schedule that never distils.
    """
    from ultralytics.utils import DEFAULT_CFG_DICT

    ours, theirs = split_keys({**common, **keys})
    config = build_config(ours)
    warmup = theirs.get("warmup_epochs", DEFAULT_CFG_DICT["warmup_epochs"])
    check_against_epochs(config, int(theirs["epochs"]), None, float(warmup or 0))
    return config, theirs
