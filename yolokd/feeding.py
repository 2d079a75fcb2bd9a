"""The images of a training: with labels and without, for the student and for its teacher."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader
from ultralytics.data import build_yolo_dataset
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.patches import override_configs

from yolokd.calibrating import UNKNOWN, described, judge, only, thresholds
from yolokd.classes import ClassMap
from yolokd.compat.checkpoint import head_info
from yolokd.compat.dataset import all_images, image_files, used_files
from yolokd.compat.joined import JoinedDataset, spread, unlabelled_dataset
from yolokd.compat.larger import image_side, reduced, resized
from yolokd.compat.open_data import OWN_NAMES, complete_yaml, in_students_classes, of_the_labels
from yolokd.compat.student_validator import StudentValidator
from yolokd.compat.training import unwrap_model
from yolokd.compat.views import TEACHER_VIEW, Views, attach_views, stacked
from yolokd.data.paired import find_partners
from yolokd.learning import data_of
from yolokd.pseudo import NEVER, PseudoLabels
from yolokd.replaying import fill_cache
from yolokd.saving import SavingTrainer
from yolokd.teachers.elsewhere import bare
from yolokd.teachers.live import LARGER, channels_of
from yolokd.teachers.panel import Panel
from yolokd.unlabelled import FRAMES, LABELLED, collect, read_list, write_list

_JUDGED = ("val/", "metr")  # how the columns of a validation begin
DATA = "data.yaml"  # in the run folder, where the data set that was asked for lacks a part
_MOST = 1000  # images that the thresholds are found on; a large teacher takes a while for 5,000


class FeedingTrainer(SavingTrainer):
    """The part of `DistillationTrainer` that says which images there are, and what the teacher sees of them."""

    panel: Panel | None
    data: Any
    _without: list[str]  # images without labels
    _judged: Any = None  # the data set that the thresholds of pseudo-boxes are found on

    # Data -------------------------------------------------------------------------------------------------------

    def get_dataset(self) -> Any:
        """Ultralytics' own, where labelled images or the validation split may be missing as far as we make up for it.

        The images without labels are looked through here, and listed in the run folder.
        """
        images = self.config.images
        self._without = []
        if not images.unlabelled and not images.student_classes:
            return super().get_dataset()
        data = data_of(self.config, vars(self.args))
        if images.unlabelled:
            # A resumed run goes on with the images that it began with.
            known = read_list(self.save_dir) if self.resume else None
            if known is None:  # workers each look for them, and find the same
                found = collect(images, data, self.save_dir / FRAMES, self.args.fraction)
                if any(Path(file).is_relative_to(self.save_dir / FRAMES) for file in found.files):
                    for line in found.lines:  # the preflight did not know the frames of videos yet
                        LOGGER.info(line)
                known = list(found.files)
                if RANK in {-1, 0}:
                    found.write(self.save_dir)
            self._without = known
            if not self.ddp:  # the folder of a parent goes before its workers come: they read what was asked for
                self.args.data = str(complete_yaml(data, self.args.split, self.save_dir / DATA))
        return data

    @property
    def _validates(self) -> bool:
        """There are images to validate on."""
        return bool(self.data.get(self.args.split))

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Ultralytics' own, with the images without labels beside it, and with what the teacher sees of each.

        Images to train on are loaded and augmented at the teacher's size, where that is larger.
        """
        stride = max(int(max(head_info(unwrap_model(self.model)).strides)), 32)
        if mode != "train":
            if not self._validates:  # never looked at
                return unlabelled_dataset(self._without[:1], self.args, self.data, batch or 1, stride)
            return self._seen_by_the_student(self._labelled(img_path, mode, batch))
        with image_side(self.args, self._larger):
            labelled = self._labelled(img_path, mode, batch) if self.data["train"] else None
            others = (
                unlabelled_dataset(self._without, self.args, self.data, batch or 16, stride) if self._without else None
            )
        parts = [part for part in (labelled, others) if part is not None]
        for part in parts:
            self._seen_by_the_student(part)
        if self._without and self._validates and self._pseudo and self.criterion is None:  # not after an OOM retry
            self._judged = self._to_judge_on(stride)
        if self.panel is not None and self.config.teacher_cache:
            self._replay(self.panel, parts)
        return labelled if others is None else JoinedDataset(labelled, others, self.config.images.unlabelled_ratio)

    def _labelled(self, img_path: str, mode: str, batch: int | None) -> Any:
        """Ultralytics' own data set, its labels brought into the student's classes."""
        data: dict[str, Any] = self.data
        self.data = of_the_labels(data)
        whole: dict[str, Any] = {}
        if mode == "train" and self._without and (left := self._left_of(data)) is not None:
            img_path, whole = str(left), {"fraction": 1.0}
        try:
            with override_configs(self.args, whole):
                return in_students_classes(super().build_dataset(img_path, mode, batch), data)
        finally:
            self.data = data

    def _left_of(self, data: dict[str, Any]) -> Path | None:
        """A list of the labelled images, where some of ``train:`` are learnt from without labels; else None."""
        used = used_files(image_files(data, "train"), self.args.fraction)
        without = {os.path.realpath(file) for file in self._without}
        left = [file for file in used if os.path.realpath(file) not in without]
        if len(left) == len(used):
            return None
        return write_list(left, self.save_dir / LABELLED)

    def _replay(self, panel: Panel, parts: list[Any]) -> None:
        """Let the data sets bring along what the cache holds of all of them."""
        parts = parts if self._judged is None else [*parts, self._judged]
        files = [file for part in parts for file in part.im_files]  # now: Ultralytics mends damaged images first
        filled = fill_cache(self.config, files, self.args.imgsz, self.data["channels"], vars(self.args))
        for part in parts:
            panel.replay(part, *filled)

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Ultralytics' own; each batch has its share of images without labels."""
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        return spread(loader) if isinstance(loader.dataset, JoinedDataset) else loader

    # What the teacher sees ----------------------------------------------------------------------------------------

    @property
    def _larger(self) -> int | None:
        """Side of the images that a teacher sees beside this training, where it is not the student's."""
        return None if self.panel is None or self.config.teacher_cache else self.config.teacher_imgsz

    @property
    def _teachers_channels(self) -> int:
        return 3 if self.panel is None else channels_of(bare(self.panel.views[0].teacher))

    def _partners(self, files: list[str]) -> dict[str, str]:
        among = [*all_images(self.data), *self._without]
        return find_partners(files, self.config.images.teacher_images, self._teachers_channels, among)

    def _seen_by_the_student(self, dataset: Any) -> Any:
        """The data set with the student's view of its images, and the teacher's beside it while training."""
        images = self.config.images
        teacher = dataset.augment and self.panel is not None
        if not (images.paired and (teacher or images.student_view)):
            return dataset
        partners = self._partners(dataset.im_files) if images.teacher_images and teacher else {}
        channels = self._teachers_channels
        attach_views(dataset, Views(partners, images.student_view, images.domain == "adapt", channels))
        return dataset

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Ultralytics' own; beside the student's images stand those that the teacher sees, where they are others."""
        other = stacked(batch)
        if self._larger is None and other is None:
            return dict(super().preprocess_batch(batch))
        if other is not None:
            batch = super().preprocess_batch({k: v for k, v in batch.items() if k != TEACHER_VIEW})
            # multi_scale has perhaps changed the student's size
            return {**batch, LARGER: resized(other.to(self.device), batch["img"].shape[-2:])}
        larger = batch["img"].to(self.device, non_blocking=True)  # there it is reduced faster
        ratio = self._larger / self.args.imgsz
        batch = super().preprocess_batch({**batch, "img": reduced(larger, ratio)})
        side = [round(size * ratio) for size in batch["img"].shape[-2:]]
        return {**batch, LARGER: resized(larger, side)}

    # Pseudo-boxes -------------------------------------------------------------------------------------------------

    @property
    def _pseudo(self) -> float | None:
        return self.config.images.pseudo_precision

    def _to_judge_on(self, stride: int) -> Any:
        """At most a thousand validation images, spread over all, as the teacher sees them: square, with labels."""
        channels = self._teachers_channels if self.config.images.paired else int(self.data["channels"])
        # Not kept in memory: it is looked at once, and perhaps through other files.
        with image_side(self.args, self._larger), override_configs(self.args, {"cache": False, "fraction": 1.0}):
            dataset = build_yolo_dataset(
                *(self.args, self.data[self.args.split], 16, {**of_the_labels(self.data), "channels": channels}),
                mode="val",
                rect=False,
                stride=stride,
            )
        every = -(-len(dataset.im_files) // _MOST)
        for part in ("im_files", "labels", "npy_files", "ims", "im_hw0", "im_hw"):
            setattr(dataset, part, getattr(dataset, part)[::every])
        dataset.ni = len(dataset.im_files)
        if self.config.images.teacher_images:
            partners = self._partners(dataset.im_files)
            dataset.im_files = [partners[file] for file in dataset.im_files]
            dataset.npy_files = [Path(file) / "none.npy" for file in dataset.im_files]  # never exists
        return in_students_classes(dataset, self.data)

    def _judging_batches(self) -> Iterator[dict[str, Any]]:
        """Batches of the images to judge on."""
        dataset = self._judged
        scale, self.args.multi_scale = self.args.multi_scale, 0.0
        try:
            for batch in DataLoader(dataset, batch_size=16, collate_fn=dataset.collate_fn):
                yield self.preprocess_batch(batch)
        finally:
            self.args.multi_scale = scale

    def pseudo_labels(self) -> PseudoLabels | None:
        """What becomes of the images without labels: from which probability on a detection is a target."""
        if not self._without:
            return None
        assert self.panel is not None
        info, names, precision = head_info(unwrap_model(self.model)), self.data["names"], self._pseudo
        refine = self.config.refine_epochs
        until = {"until": float(self.epochs - refine)} if refine else {}
        taught = torch.tensor([any(i in view.class_map.pairs for view in self.panel.views) for i in range(len(names))])
        if precision is None:
            return PseudoLabels(torch.full((len(names),), NEVER), taught, **until)
        if self._judged is None:
            LOGGER.info(f"pseudo-boxes from a probability of {UNKNOWN:g}: there are no labels to choose it on")
            return PseudoLabels(torch.full((len(names),), UNKNOWN), taught, **until)
        labelled = ClassMap.by_name(self.data.get(OWN_NAMES, names), names).pairs
        judged = only(judge(self.panel, self._judging_batches(), info), list(labelled))
        found = thresholds(judged, len(names), precision)
        found[[i for i in names if i not in labelled]] = UNKNOWN  # no label could say that they are right
        self._judged = None
        LOGGER.info(described(found, names, precision, self.args.split))
        return PseudoLabels(found, taught, **until)

    def plot_training_labels(self) -> None:
        """Ultralytics' own, of the labels that there are."""
        if any(len(label["cls"]) for label in self.train_loader.dataset.labels):
            super().plot_training_labels()

    def plot_training_samples(self, batch: dict[str, Any], ni: int) -> None:
        """Ultralytics' own, with the pseudo-boxes that the batch was taught."""
        super().plot_training_samples({**batch, **({} if self.criterion is None else self.criterion.taught)}, ni)

    # Validation ---------------------------------------------------------------------------------------------------

    def get_validator(self) -> Any:
        """Ultralytics' own; of a student with classes of its own it is none of COCO's, whatever the images."""
        validator = super().get_validator()
        if self.config.images.student_classes:
            validator.__class__ = StudentValidator
            validator.student_view, validator.own_names = "", self.data[OWN_NAMES]
        return validator

    def validate(self) -> Any:
        """Ultralytics' own; where there is nothing to validate on, every epoch is the best so far."""
        if self._validates:
            return super().validate()
        self.best_fitness = 0.0
        return {}, 0.0

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Ultralytics' own, without columns for what is never measured, which would say 0."""
        measured = metrics.items() if self._validates else ((k, v) for k, v in metrics.items() if k[:4] not in _JUDGED)
        super().save_metrics(dict(measured))

    def final_eval(self) -> None:
        """Ultralytics' own; where there is nothing to validate on, the checkpoints are stripped and that is all."""
        if not self._validates:
            self.validator = _Nothing()
        super().final_eval()


class _Nothing:
    """A validator that has no images."""

    def __init__(self) -> None:
        self.args = SimpleNamespace()

    def __call__(self, **_: Any) -> dict[str, float]:
        return {}
