"""What a person may ask of a distillation, how it is written, and what is refused before anything runs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import yaml

from yolokd.errors import UserError
from yolokd.keys import OUR_KEYS, known_keys, load_recipe, loss_pairs, refuse_unknown, split_keys
from yolokd.schedule import SCHEDULES

__all__ = [
    "OUR_KEYS",
    "DistillConfig",
    "build_config",
    "check_against_epochs",
    "load_recipe",
    "refuse_unknown",
    "split_keys",
]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class DistillConfig:
    """The validated settings of one distillation; `build_config` makes one from what a person wrote.

    Attributes:
        teacher: path of the teacher's checkpoint; empty where there are no losses (a plain run).
        losses: loss name to gain, in the order asked for; empty is a plain run.
        loss_options: loss name to the options that were set, ``{"cwd": {"temperature": 2.0}}``.
        schedule: ``constant`` or ``cosine``.
        kd_close: epochs at the end without distillation.
        teacher_precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        class_map: teacher class name to student class name.
        trust: load checkpoints whose pickle references unknown globals.
    """

    teacher: str
    losses: Mapping[str, float]
    loss_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    schedule: str = "constant"
    kd_close: int = 0
    teacher_precision: str = "auto"
    class_map: Mapping[str, str] = field(default_factory=dict)
    trust: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON and YAML types; `from_dict` brings back an equal config."""
        plain = asdict(self)
        plain["losses"] = dict(self.losses)
        plain["loss_options"] = {name: dict(options) for name, options in self.loss_options.items()}
        plain["class_map"] = dict(self.class_map)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> DistillConfig:
        """The inverse of `to_dict`; a key that this version does not know is a TypeError."""
        return cls(**dict(plain))

    def to_yaml(self) -> str:
        """The settings as a recipe: what `recipe=` reads back into an equal config."""
        flat: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "loss_options"}
        flat["losses"] = dict(self.losses) or "none"
        flat["class_map"] = dict(self.class_map) or None
        for name, options in self.loss_options.items():
            flat |= {f"{name}.{option}": value for option, value in options.items()}
        return yaml.safe_dump({k: v for k, v in flat.items() if v not in (None, "")}, sort_keys=False)


class _Problems:
    """Collects what is wrong, so that a person hears of all of it at once."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, problem: str, remedy: str) -> None:
        self._found.append((problem, remedy))

    def raise_if_any(self) -> None:
        if self._found:
            problems = "; ".join(problem.rstrip(".") for problem, _ in self._found)
            remedies = " ".join(dict.fromkeys(remedy for _, remedy in self._found))
            raise UserError(f"{problems}.", remedies)


def build_config(ours: Mapping[str, Any]) -> DistillConfig:
    """Validate yolokd's keys, as `split_keys` gives them.

    Raises:
        UserError: names every problem at once.
    """
    problems = _Problems()
    losses = _losses(ours, problems)
    options = _options(ours, losses, problems)
    schedule = ours.get("schedule", "constant")
    if schedule not in SCHEDULES:
        problems.add(f"schedule={schedule} is not a schedule", f"Schedules are {' and '.join(SCHEDULES)}.")
    precision = ours.get("teacher_precision", "auto")
    if precision not in PRECISIONS:
        problems.add(f"teacher_precision={precision} is not a precision", f"Precisions are {', '.join(PRECISIONS)}.")
    close = ours.get("kd_close", 0)
    if isinstance(close, bool) or not isinstance(close, int) or close < 0:
        problems.add(f"kd_close={close} is not a number of epochs", "kd_close counts epochs: 0, 1, 2, ...")
    trust = ours.get("trust", False)
    if not isinstance(trust, bool):
        problems.add(f"trust={trust} is neither True nor False", "Write trust=True, or leave it out.")
    teacher = ours.get("teacher")
    if losses and not teacher:
        problems.add("teacher= is missing", "Name a teacher, e.g. teacher=yolo11x.pt, or train plainly: losses=none.")
    class_map = _class_map(ours.get("class_map"), problems)
    problems.raise_if_any()
    return DistillConfig(str(teacher or ""), losses, options, str(schedule), close, str(precision), class_map, trust)


def check_against_epochs(config: DistillConfig, epochs: int, hours: float | None = None) -> None:
    """Refuse a schedule that distils in no epoch at all.

    Raises:
        UserError: ``kd_close`` covers the whole training, so every gain is zero throughout.
    """
    if hours and config.kd_close:
        raise UserError(
            f"kd_close={config.kd_close} counts epochs, and with time={hours} nobody knows how many there will be.",
            "Give epochs= instead of time=, or leave out kd_close.",
        )
    if config.losses and config.kd_close >= epochs:
        raise UserError(
            f"kd_close={config.kd_close} with epochs={epochs}: every gain is zero throughout.",
            f"kd_close must be below {epochs}; without distillation say losses=none.",
        )


def _losses(ours: Mapping[str, Any], problems: _Problems) -> dict[str, float]:
    from yolokd.losses.base import DEFAULT_LOSSES, LOSSES

    if "losses" not in ours:
        return dict(DEFAULT_LOSSES)
    try:
        asked = loss_pairs(ours["losses"])
    except ValueError as error:
        problems.add(str(error), "Write losses=NAME:GAIN,NAME:GAIN, e.g. losses=cls:0.5,box:1.5,cwd:1.")
        return {}
    gains: dict[str, float] = {}
    for name, gain in asked.items():
        gains[name] = math.nan  # never seen: a problem is added wherever it stays
        if name not in LOSSES:
            near = difflib.get_close_matches(name, LOSSES, 1)
            hint = f"Did you mean {near[0]}? " if near else ""
            problems.add(f"{name!r} is not a loss", f"{hint}The losses are {', '.join(LOSSES)}.")
        elif gain is None:
            gains[name] = LOSSES[name].gain
        elif isinstance(gain, bool) or not isinstance(gain, (int, float)) or not math.isfinite(gain):
            problems.add(f"the gain of {name} is not a number: {gain}", "A gain is a positive number, e.g. cls:0.5.")
        elif gain < 0:
            problems.add(f"the gain of {name} is negative: {gain:g}", "A gain is a positive number, e.g. cls:0.5.")
        elif gain == 0:
            problems.add(f"the gain of {name} is zero throughout", f"Leave {name} out of losses=, or give it a gain.")
        else:
            gains[name] = float(gain)
    return gains


def _options(ours: Mapping[str, Any], losses: Mapping[str, float], problems: _Problems) -> dict[str, dict[str, Any]]:
    from yolokd.losses.base import LOSSES

    chosen: dict[str, dict[str, Any]] = {}
    for key in (key for key in ours if "." in key):
        name, _, option = key.partition(".")
        if name not in LOSSES:
            near = difflib.get_close_matches(key, known_keys(), 1)
            hint = f"Did you mean {near[0]}? " if near else ""
            problems.add(f"{key}: {name!r} is not a loss", f"{hint}The losses are {', '.join(LOSSES)}.")
        elif option not in LOSSES[name].options:
            known = ", ".join(LOSSES[name].options) or "none"
            problems.add(f"{name} has no option {option!r}", f"The options of {name}: {known}.")
        elif name not in losses:
            problems.add(f"{key} is set, but {name} is not among the losses", f"Add {name} to losses=, or drop {key}.")
        else:
            default = LOSSES[name].options[option]
            try:
                chosen.setdefault(name, {})[option] = _like(default, ours[key])
            except ValueError:
                kind = type(default).__name__
                problems.add(f"{key}={ours[key]} is not a {kind}", f"The default is {key}={default}.")
    return chosen


def _like(default: Any, value: Any) -> Any:
    """Bring a value to the type of the option's default."""
    if isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
            return value
        raise ValueError
    if isinstance(default, float) and isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    if default is None or (type(value) is type(default) and not isinstance(default, float)):
        return value
    raise ValueError


def _class_map(value: Any, problems: _Problems) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {str(teacher): str(student) for teacher, student in value.items()}
    pairs: dict[str, str] = {}
    for word in str(value).split(",") if value is not None else []:
        teacher, _, student = (part.strip() for part in word.partition(":"))
        if not teacher or not student or teacher in pairs:
            problems.add(
                f"class_map={value} is not a map of class names", "Write class_map=TEACHER:STUDENT,... by name."
            )
            break
        pairs[teacher] = student
    return pairs
