"""What a person may ask of a distillation, how it is written, and what is refused before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import yaml

from yolokd.asked_losses import asked_losses, asked_options
from yolokd.errors import UserError
from yolokd.image_config import ImageConfig, image_config
from yolokd.keys import OUR_KEYS, load_recipe, refuse_unknown, split_keys
from yolokd.schedule import SCHEDULES, Schedule
from yolokd.teachers.spec import read_teachers
from yolokd.values import (
    GUARD_PATIENCE,
    Problems,
    balance_share,
    choice,
    class_names,
    count,
    exported_only,
    folder,
    guard_patience,
    switch,
    tapped_layers,
    teacher_device,
    teacher_weights,
)

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
_LISTS = ("teacher_weights", "teacher_names")  # tuples in the config, lists in JSON and YAML


@dataclass(frozen=True)
class DistillConfig:
    """The validated settings of one distillation; `build_config` makes one from what a person wrote.

    Attributes:
        teacher: the teacher, or several with commas (see `teachers.spec.read_teachers`); empty where there are no
            losses (a plain run).
        teacher_weights: how much each of several teachers counts; empty is alike.
        teacher_imgsz: side of the images that the teacher sees; None is the student's.
        teacher_cache: folder of stored answers that are replayed instead of asking the teacher; empty: it is asked.
        teacher_every: the teacher is asked in every so many-th step.
        teacher_device: where the teacher runs, ``cuda:1`` or ``cpu``; empty is where the student does.
        teacher_compile: run the teacher through torch.compile.
        teacher_names: class names, in order, of an exported teacher that does not say them itself.
        teacher_boxes: how an exported teacher writes down its boxes; empty: it is found out.
        losses: loss name to gain, in the order asked for; empty is a plain run.
        chosen: the losses were named; where not, those that the teacher cannot serve are left out.
        loss_options: loss name to the options that were set, ``{"cwd": {"temperature": 2.0}}``.
        schedule: ``constant`` or ``cosine``.
        kd_start: epochs at the beginning without distillation.
        kd_close: epochs at the end without distillation.
        refine_epochs: epochs at the end without distillation and at the final learning rate.
        balance: the share of the detection loss's gradient that each gain is set to; None keeps the gains.
        guard_patience: epochs after which the guard fades out what harms the student; None is no guard.
        taps: pairs of layers, (student, teacher), that losses on features compare; empty is the pyramid.
        teacher_precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        class_map: teacher class name to student class name.
        trust: load checkpoints whose pickle references unknown globals.
        images: what was asked of the images.
    """

    teacher: str
    losses: Mapping[str, float]
    loss_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    schedule: str = "constant"
    kd_close: int = 0
    refine_epochs: int = 0
    balance: float | None = None
    guard_patience: int | None = GUARD_PATIENCE
    taps: tuple[tuple[int, int], ...] = ()
    teacher_precision: str = "auto"
    teacher_weights: tuple[float, ...] = ()
    teacher_imgsz: int | None = None
    teacher_cache: str = ""
    teacher_every: int = 1
    teacher_device: str = ""
    teacher_compile: bool = False
    teacher_names: tuple[str, ...] = ()
    teacher_boxes: str = ""
    kd_start: int = 0
    class_map: Mapping[str, str] = field(default_factory=dict)
    trust: bool = False
    images: ImageConfig = field(default_factory=ImageConfig)
    chosen: bool = field(default=True, compare=False)

    @property
    def closing(self) -> int:
        """Epochs at the end without distillation, for whichever reason."""
        return max(self.kd_close, self.refine_epochs)

    @property
    def exported(self) -> dict[str, Any]:
        """What `ExportedTeacher` is told beside its file."""
        precision, names, boxes = self.teacher_precision, self.teacher_names, self.teacher_boxes
        return {"precision": precision, "names": names or None, "box_format": boxes or None}

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON and YAML types; `from_dict` brings back an equal config."""
        plain = asdict(self)
        plain["losses"] = dict(self.losses)
        plain["loss_options"] = {name: dict(options) for name, options in self.loss_options.items()}
        plain["class_map"] = dict(self.class_map)
        plain["taps"] = [list(pair) for pair in self.taps]
        plain |= {key: list(plain[key]) for key in _LISTS}
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> DistillConfig:
        """The inverse of `to_dict`; a key that this version does not know is a TypeError."""
        taps = tuple((s, t) for s, t in plain.get("taps", ()))
        # A run that began before there was a guard goes on as it began.
        lists = {key: tuple(plain.get(key, ())) for key in _LISTS}
        images = ImageConfig.from_dict(plain.get("images", {}))
        return cls(**{"guard_patience": None, **plain, "taps": taps, "images": images, **lists})

    def to_yaml(self) -> str:
        """The settings as a recipe: what `recipe=` reads back into an equal config."""
        flat: dict[str, Any] = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("loss_options", "images", "chosen")
        }
        # Gains beside balance= would contradict it.
        flat["losses"] = (dict(self.losses) if self.balance is None else ",".join(self.losses)) or "none"
        flat["balance"] = self.balance or "off"
        flat["guard"] = "off" if self.guard_patience is None else "on"
        flat["taps"] = ",".join(f"{s}:{t}" for s, t in self.taps)
        flat |= {key: list(flat[key]) or None for key in _LISTS}
        flat["class_map"] = dict(self.class_map) or None
        flat |= self.images.flat()
        for name, options in self.loss_options.items():
            flat |= {f"{name}.{option}": value for option, value in options.items()}
        return yaml.safe_dump({k: v for k, v in flat.items() if v not in (None, "")}, sort_keys=False)


def build_config(ours: Mapping[str, Any]) -> DistillConfig:
    """Validate yolokd's keys, as `split_keys` gives them.

    Raises:
        UserError: names every problem at once.
    """
    problems = Problems()
    losses = asked_losses(ours, problems)
    options = asked_options(ours, losses, problems)
    close, refine = count(ours, "kd_close", problems), count(ours, "refine_epochs", problems)
    if close and refine:
        problems.add("kd_close and refine_epochs both end distillation early", "Keep one of the two.")
    teacher = _teacher(ours, losses, problems)
    precision = choice(ours, "teacher_precision", "precision", PRECISIONS, problems)
    if teacher in ("self", "self:levels") and precision != "auto":
        problems.add(f"teacher={teacher} computes as the student does", "Leave out teacher_precision.")
    config = DistillConfig(
        teacher=teacher,
        losses=losses,
        loss_options=options,
        schedule=choice(ours, "schedule", "schedule", SCHEDULES, problems),
        kd_close=close,
        refine_epochs=refine,
        balance=balance_share(ours, losses, problems),
        guard_patience=guard_patience(ours, problems),
        taps=tapped_layers(ours.get("taps"), losses, problems),
        teacher_precision=precision,
        teacher_weights=teacher_weights(ours, len(teacher.split(",")), problems),
        teacher_imgsz=count(ours, "teacher_imgsz", problems, "pixels", 1) or None,
        teacher_cache=folder(ours, "teacher_cache", problems),
        teacher_every=count(ours, "teacher_every", problems, "steps", 1) or 1,
        teacher_device=teacher_device(ours, problems),
        teacher_compile=switch(ours, "teacher_compile", problems),
        teacher_names=exported_only("teacher_names", ours, teacher, problems),
        teacher_boxes="".join(exported_only("teacher_boxes", ours, teacher, problems)),
        kd_start=count(ours, "kd_start", problems),
        class_map=class_names(ours.get("class_map"), problems),
        trust=switch(ours, "trust", problems),
        images=image_config(ours, teacher, losses, problems),
        chosen="losses" in ours,
    )
    problems.raise_if_any()
    return config


def check_against_epochs(config: DistillConfig, epochs: int, hours: float | None = None, warmup: float = 0) -> None:
    """Refuse a schedule that distils in no epoch at all, or none in which the gains could be balanced.

    Args:
        config: the validated settings.
        epochs: of the training.
        hours: Ultralytics' ``time=``, instead of epochs.
        warmup: epochs of the ramp.

    Raises:
        UserError: epochs are counted where ``time=`` decides; ``kd_close`` or ``refine_epochs`` covers the whole
            training, so every gain is zero; or all of it after the ramp, so that ``balance=`` never measures.
    """
    if not config.losses and not config.refine_epochs:
        return  # a plain run closes nothing early
    key = "refine_epochs" if config.refine_epochs else "kd_close"
    counted = (key, config.closing) if config.closing else ("kd_start", config.kd_start)
    if hours and counted[1]:
        raise UserError(
            f"{counted[0]}={counted[1]} counts epochs, and with time={hours} nobody knows how many there will be.",
            f"Give epochs= instead of time=, or leave out {counted[0]}.",
        )
    if config.closing >= epochs:
        nothing = "every gain is zero throughout" if config.losses else "nothing comes before the refinement"
        raise UserError(
            f"{key}={config.closing} with epochs={epochs}: {nothing}.",
            f"{key} must be below {epochs}" + ("; without distillation say losses=none." if config.losses else "."),
        )
    if config.losses and config.kd_start + config.closing >= epochs:
        raise UserError(
            f"kd_start={config.kd_start} of {epochs} epochs leaves none with distillation.",
            f"kd_start must be below {epochs - config.closing}.",
        )
    begun = Schedule(config.schedule, epochs, warmup, start=config.kd_start).begun
    if config.balance is not None and epochs - config.closing <= begun:
        raise UserError(
            f"balance= measures after the warm-up of {begun:g} epochs, and {key}={config.closing} of {epochs} epochs "
            "leaves nothing there.",
            f"Take a smaller {key}, a smaller warmup_epochs, or balance=off.",
        )


def _teacher(ours: Mapping[str, Any], losses: Mapping[str, float], problems: Problems) -> str:
    """``teacher=`` as one text, its places checked."""
    value = ours.get("teacher") or ""
    text = ",".join(str(one) for one in value) if isinstance(value, (list, tuple)) else str(value)
    if losses and not text:
        problems.add("teacher= is missing", "Name a teacher, e.g. teacher=yolo11x.pt, or train plainly: losses=none.")
    try:
        return ",".join(str(spec) for spec in read_teachers(text)) if text else ""
    except ValueError as error:
        problems.add(str(error), "Write teacher=A.pt, teacher=A.pt,B.pt, teacher=A.pt:person+car,B.pt:dog or self.")
        return text
