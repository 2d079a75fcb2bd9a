"""Ultralytics' validator of a student that knows other classes than the labels, or sees its images in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultralytics.models.yolo.detect import DetectionValidator

from yolokd.compat.open_data import OWN_NAMES, in_students_classes
from yolokd.compat.views import Views, attach_views


class StudentValidator(DetectionValidator):  # type: ignore[misc]  # Ultralytics is untyped
    """Ultralytics' detection validator for a student of ``student_classes=`` or ``student_view=``.

    In training it is handed a loader that is right already. Where it makes its own (after a kill in the final
    evaluation), the labels are brought into the model's classes, and the images are seen as the student sees them.

    Args:
        student_view: ``gray``, ``dark`` or ``half``; or empty.
        own_names: the classes that the labels speak of; None: those of the data YAML that it reads.
        args: as Ultralytics passes them; so are the others.
    """

    def __init__(
        self, *args: Any, student_view: str = "", own_names: Mapping[int, str] | None = None, **kw: Any
    ) -> None:
        super().__init__(*args, **kw)
        self.student_view, self.own_names = student_view, own_names

    def build_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """Ultralytics' own, for this student."""
        dataset = super().build_dataset(*args, **kwargs)
        own = dict(self.data["names"])
        self.own_names = own
        in_students_classes(dataset, {OWN_NAMES: own, "names": dict(self.names)})
        if self.student_view:
            attach_views(dataset, Views(student_view=self.student_view))
        return dataset

    def init_metrics(self, model: Any) -> None:
        """Ultralytics' own; not as COCO's 80 classes where the student has others, which would be misnumbered."""
        asked = self.args.save_json
        super().init_metrics(model)
        if self.own_names is not None and dict(self.own_names) != dict(model.names):
            self.is_coco = self.is_lvis = False
            self.args.save_json = asked
