"""From what was written to a comparison that can work, before anything of it is written down."""

from __future__ import annotations

import gc
import shlex
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from ultralytics.cfg import get_cfg, get_save_dir
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

from yolokd.classes import ClassMap, shorten
from yolokd.compat.checkpoint import load_detector, sha256
from yolokd.compat.dataset import check_data
from yolokd.compat.refusals import is_plain_detector
from yolokd.errors import UserError
from yolokd.evaluation.arms import DEFAULT_ARMS, NATIVE, YOLOKD, look_at, read_arms, whole_paths
from yolokd.evaluation.backends import coco_tool
from yolokd.evaluation.children import devices_of
from yolokd.evaluation.comparison import Comparison, machine_facts, refuse_other_files
from yolokd.evaluation.splits import choose_split, data_files
from yolokd.keys import known_keys, load_recipe, refuse_unknown, split_keys
from yolokd.steps import whole, written
from yolokd.teachers.opening import find_teacher, fingerprint
from yolokd.teachers.spec import read_teachers

NAME = "compare"  # of the folder where none is given
# A comparison's own keys; jobs=None is one run on each device.
DEFAULTS: dict[str, Any] = {"arms": DEFAULT_ARMS, "seeds": 5, "eval_split": "test", "jobs": None, "robustness": "on"}
DEFAULTS |= {"backend": "pycocotools"}
# Ultralytics' keys that a comparison has its own word for, or cannot have, and why.
_REFUSED = {
    "seed": ("seeds= says which seeds the arms are trained with.", "Write seeds=5, or seeds=0,1,2."),
    "split": (
        "Ultralytics' split= moves validation, and so the choice of best.pt, to the images that are to judge.",
        "Leave it out; eval_split= says where the finished models are judged.",
    ),
    "time": ("With time= the arms would train for different numbers of epochs.", "Give epochs=."),
    "recipe": ("In a comparison a recipe is an arm.", "Write arms=plain,yolokd,mine.yaml."),
    "distill_model": ("In a comparison teacher= is also the teacher of the arm native.", "Write teacher= instead."),
    "single_cls": ("A comparison judges classes by name, and single_cls= trains without.", "Leave it out."),
}
# What is not Ultralytics' default: its patience would end the arms after different epochs, its plots cost time.
_SETTINGS: dict[str, Any] = {key: DEFAULT_CFG_DICT[key] for key in ("epochs", "imgsz", "batch")}
_SETTINGS |= {"patience": 0, "plots": False}
_PLACE = ("project", "name", "save_dir", "exist_ok")


def plan(given: Mapping[str, Any]) -> tuple[Comparison, bool]:
    """Read what was asked for; files are looked at, models are not loaded.

    Args:
        given: the keys of `DEFAULTS`, yolokd's and Ultralytics'; None stands for not given.

    Returns:
        the comparison, and whether its folder was named, so that it may be there already.

    Raises:
        UserError: a key, a file or the data cannot serve.
    """
    given = {key: value for key, value in given.items() if value is not None}
    refuse_unknown([key for key in given if "." not in key], [*DEFAULTS, *known_keys()])
    own = {key: given.get(key, default) for key, default in DEFAULTS.items()}
    ours, theirs, dis = _parted({key: value for key, value in given.items() if key not in DEFAULTS})
    student, data = theirs.pop("model", None), theirs.pop("data", None)
    if not student:
        raise UserError("student= is missing.", "Name a checkpoint or a model YAML, e.g. student=yolo11n.pt.")
    split, checked = choose_split(data, str(own["eval_split"]))
    robustness = read_switch("robustness", own["robustness"])
    _refuse_data(split.source, checked, robustness)
    coco_tool(own["backend"])
    theirs = {**_SETTINGS, **theirs}
    _refuse_settings(theirs)
    ours = whole_paths(ours)
    comparison = Comparison(
        folder=_folder(theirs),
        student=whole(student, "student"),
        teacher=str(ours.get("teacher") or ""),
        judged="",
        split=split,
        settings={key: value for key, value in written(theirs).items() if key not in _PLACE},
        arms=list(read_arms(own["arms"], ours, dis)),
        seeds=read_seeds(own["seeds"]),
        trust=bool(ours.get("trust")),
        jobs=read_jobs(own["jobs"], theirs.get("device")),
        robustness=robustness,
        backend=str(own["backend"]),
        machine=machine_facts(),
        command=_command({**given, **own}),
        date=date.today().isoformat(),
    )
    comparison.files = look_up_files(comparison, checked)
    return comparison, any(theirs.get(key) for key in ("name", "save_dir"))


def _parted(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Our keys, Ultralytics' keys, and the gain of its own distillation."""
    keys = dict(given)
    if file := keys.pop("cfg", None):  # holds every default
        changed = {k: v for k, v in load_recipe(file, "cfg").items() if v != DEFAULT_CFG_DICT.get(k)}
        keys = {**changed, **keys}
    for key, (problem, remedy) in _REFUSED.items():
        if key in keys and keys[key] is not False:
            raise UserError(f"{key}={keys[key]}: {problem}", remedy)
    dis = keys.pop("dis", None)
    return *split_keys(keys), dis


def _command(given: Mapping[str, Any]) -> str:
    """The command line that asks for the same."""

    def text(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    asked = {k: v for k, v in given.items() if k not in DEFAULTS or v != DEFAULTS[k]}
    return " ".join(["yolokd compare", *(shlex.quote(f"{key}={text(value)}") for key, value in asked.items())])


def _refuse_settings(theirs: Mapping[str, Any]) -> None:
    batch = theirs["batch"]
    if isinstance(batch, (int, float)) and batch < 1:
        raise UserError(
            f"batch={batch}: what fits beside a teacher is less, and all arms need the same batch.",
            "Give the number of images, e.g. batch=16.",
        )
    if theirs.get("save") is False:
        raise UserError("save=False keeps no best.pt, which is what is judged.", "Leave out save=.")
    if theirs.get("exist_ok"):
        raise UserError("exist_ok: a comparison is never overwritten.", "Leave it out, or take another name=.")


def _refuse_data(source: str, checked: Mapping[str, Any], robustness: bool) -> None:
    """What would be found out only after all is trained."""
    names = list(checked["names"].values())
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{source} has two classes called {twice[0]}.", "A comparison tells classes by name: rename one."
        )
    channels = checked.get("channels", 3)
    if robustness and channels != 3:
        problem = f"{source} has images with {channels} channels, and the corruptions are made for RGB."
        raise UserError(problem, "Leave that part out: robustness=off.")


def _folder(theirs: Mapping[str, Any]) -> Path:
    """The named folder, there or not, or a new one."""
    place = {key: theirs[key] for key in _PLACE if theirs.get(key)}
    return get_save_dir(get_cfg(overrides={"name": NAME, **place, "exist_ok": "name" in place}))  # type: ignore[no-any-return]


def read_seeds(value: Any) -> list[int]:
    """``seeds=5`` as 0 to 4, ``seeds=0,3,7`` as these.

    Raises:
        UserError: no number of seeds, a negative one, or one twice.
    """
    one = isinstance(value, int) and not isinstance(value, bool)
    seeds = list(range(value)) if one else list(value) if isinstance(value, (list, tuple)) else []
    right = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not seeds or not right or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds={value} is not a number of seeds.", "Write seeds=5, or name them: seeds=0,1,2.")
    return seeds


def read_jobs(value: Any, device: Any) -> int:
    """How many runs at once; one on each device where nothing is said.

    Raises:
        UserError: no number, or fewer runs than devices.
    """
    devices = max(1, len(devices_of(device)))
    jobs = devices if value is None else value
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise UserError(f"jobs={value} is not a number of runs.", "Write jobs=1, 2, 3, ...")
    if jobs < devices:
        raise UserError(
            f"jobs={jobs} with {devices} devices: in a comparison each run has one device.",
            f"Write jobs={devices}, or name one device.",
        )
    return jobs


def read_switch(key: str, value: Any) -> bool:
    """``on`` or ``off``.

    Raises:
        UserError: neither.
    """
    words = {"on": True, "true": True, "off": False, "false": False, "none": False}
    if str(value).lower() not in words:
        raise UserError(f"{key}={value} is neither on nor off.", f"Write {key}=off, or leave it out.")
    return words[str(value).lower()]


def look_up_files(comparison: Comparison, checked: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of what a comparison reads: data, student, teachers, recipes.

    Args:
        comparison: as planned.
        checked: Ultralytics' dictionary of its data set.
    """
    named = [comparison.student, *(arm.recipe for arm in comparison.arms)]
    named += [str(comparison.settings.get("pretrained") or "")]
    named += [str(arm.keys["distill_model"]) for arm in comparison.arms if arm.way == NATIVE]
    found = {name: sha256(name) for name in named if name and Path(name).is_file()}
    for teachers in {str(arm.keys.get("teacher") or "") for arm in comparison.arms if arm.way == YOLOKD} - {""}:
        for spec in read_teachers(teachers):
            if digest := fingerprint(spec):
                found.setdefault(spec.path, digest)
    return found | data_files(comparison.split, checked)


def look_again(comparison: Comparison) -> None:
    """Refuse to go on where a file has changed since the comparison began.

    A file that is gone is missed only while runs are left to train.

    Args:
        comparison: as it was written down.

    Raises:
        UserError: a file is missing or another one.
    """
    if not comparison.left():
        there = {name: digest for name, digest in comparison.files.items() if Path(name).is_file()}
        refuse_other_files(there, {name: sha256(name) for name in there})
        return
    for arm in comparison.arms:
        for spec in read_teachers(str(arm.keys["teacher"])) if arm.keys.get("teacher") else ():
            find_teacher(spec)
    refuse_other_files(comparison.files, look_up_files(comparison, check_data(comparison.split.source, "train", "val")))


def look_before(comparison: Comparison) -> str:
    """Ask of every arm, before anything is written, what its training would ask; say what was found.

    Args:
        comparison: as planned.

    Returns:
        the teacher's file, where it can be judged as the students are; else empty.

    Raises:
        UserError: an arm cannot work.
    """
    device = next(iter(devices_of(comparison.settings.get("device"))), None)
    place = {"model": comparison.student, "data": comparison.split.source, "seed": comparison.seeds[0]}
    common = {**comparison.settings, **place, **({} if device is None else {"device": device})}
    said: set[str] = set()
    for arm in comparison.arms:
        LOGGER.info(f"looking at arm {arm.name}")
        for line in look_at(arm, common, comparison.trust):
            if line not in said:
                LOGGER.info(f"  {line}")
            said.add(line)
    judged = _judged(comparison)
    gc.collect()
    torch.cuda.empty_cache()  # the runs need it
    return judged


def _judged(comparison: Comparison) -> str:
    """A single checkpoint that Ultralytics' validator can judge, and that knows every class of the data; else empty.

    A teacher that lacks a class has no AP there: what of it a student keeps, or which gap it closes, would be a number
    about other classes than the student's.
    """
    specs = read_teachers(comparison.teacher) if comparison.teacher else ()
    if len(specs) != 1 or specs[0].kind != "checkpoint":
        return ""
    model = load_detector(specs[0].path, role="teacher", trust=comparison.trust)
    names = check_data(comparison.split.source)["names"]
    unknown = ClassMap.by_name(model.names, names, comparison.class_map).unmapped
    if not is_plain_detector(model):
        LOGGER.info("The teacher is not judged: Ultralytics' validator of detectors cannot score it.")
    elif unknown:
        LOGGER.info(f"The teacher is not judged: it does not know {shorten(unknown)}.")
    else:
        return specs[0].path
    return ""
