"""The steps of a training that has several, and ``chain.yaml``, which says how far it has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg, get_save_dir

from yolokd.compat.checkpoint import find_checkpoint
from yolokd.compat.dataset import check_data
from yolokd.compat.files import atomic_replace
from yolokd.config import build_config
from yolokd.keys import MANIFEST, OUR_KEYS, split_keys
from yolokd.manifest import manifest_text, read_manifest

VERSION = 1
WAITING, RUNNING, FINISHED = "waiting", "running", "finished"
# Of yolokd's keys, what generation 0 follows too: it is to differ from the next ones by its teacher alone.
_PLAIN = ("student", "trust", "refine_epochs", "student_classes")
_PLACE = ("name", "save_dir", "exist_ok")  # they say where the whole lies
# They say something about the teacher that was named; the later ones are trained here, on images of imgsz.
_OF_THE_FIRST = ("class_map", "teacher_weights", "teacher_names", "teacher_boxes", "teacher_imgsz", "teacher_images")


@dataclass
class Step:
    """One training of a chain.

    Attributes:
        name: of its folder.
        student: what is trained: a file by its whole path, or a model YAML of Ultralytics.
        teacher: a file, or the name of the step whose ``best.pt`` teaches; empty: none, or not known yet.
        state: ``waiting``, ``running`` or ``finished``.
        fitness: of ``best.pt`` on the validation split (Ultralytics' number), once finished.
    """

    name: str
    student: str
    teacher: str = ""
    state: str = WAITING
    fitness: float | None = None


@dataclass
class Chain:
    """Trainings that build on one another.

    Attributes:
        folder: around the folders of the steps.
        born_again: the steps are generations of one student.
        settings: yolokd's and Ultralytics' keys, the same for every step.
        steps: in their order.
        files: path to SHA-256, of the files that the chain began with.
        together: the steps are no steps but peers, which train at the same time under each other (`yolokd.peers`).
    """

    folder: Path
    born_again: bool
    settings: dict[str, Any]
    steps: list[Step]
    files: dict[str, str] = field(default_factory=dict)
    together: bool = False

    @classmethod
    def load(cls, folder: Path) -> Chain:
        """Read ``chain.yaml``.

        Raises:
            UserError: it was damaged, or written by another version.
        """

        def make(content: dict[str, Any]) -> Chain:
            return cls(folder=folder, steps=[Step(**step) for step in content.pop("steps")], **content)

        return read_manifest(folder / MANIFEST, VERSION, make, again="start a new run")

    def text(self) -> str:
        """What stands in ``chain.yaml``.

        Raises:
            UserError: a setting that YAML cannot hold.
        """
        return manifest_text(asdict(self), VERSION)

    def save(self) -> None:
        """Write ``chain.yaml``, whole or not at all."""
        atomic_replace(self.folder / MANIFEST, lambda partial: partial.write_text(self.text(), encoding="utf-8"))

    @property
    def best(self) -> Step:
        """The finished step that counts: the newest, or the best generation, the earlier one of two that are equal."""
        done = [step for step in self.steps if step.state == FINISHED]
        return max(done, key=lambda step: step.fitness or 0) if self.born_again else done[-1]

    def begin(self, step: Step) -> None:
        """Note that a step begins; a generation gets the best one so far as its teacher."""
        if self.born_again and step is not self.steps[0]:
            step.teacher = self.best.name
        step.state = RUNNING
        self.save()

    def keys(self, step: Step) -> dict[str, Any]:
        """What a step is trained with, but for its teacher."""
        index, keys = self.steps.index(step), {**self.settings, "student": step.student}
        if self.together:
            return keys
        if self.born_again:
            # As in the paper; also, a generation after one that was put aside would else repeat it to the bit.
            keys["seed"] = int(keys.get("seed") or 0) + index
            return keys if index else _plain(keys)
        if index:  # from here on there is one teacher, with the classes of the data
            keys = {key: value for key, value in keys.items() if key not in _OF_THE_FIRST}
        if step is not self.steps[-1] and isinstance(keys.get("pretrained"), str):
            del keys["pretrained"]  # weights for the student at the end
        return keys

    def teacher(self, step: Step) -> dict[str, str]:
        """``teacher=`` of a step that has begun; nothing where it has none."""
        if step.teacher in (other.name for other in self.steps):
            return {"teacher": str(self.folder / step.teacher / "weights" / "best.pt")}
        return {"teacher": step.teacher} if step.teacher else {}

    def title(self, step: Step) -> str:
        """What the progress line says of a step."""
        index, student = self.steps.index(step), Path(step.student).stem
        if self.together:
            return f"peer {step.name}, taught by {step.teacher.replace('peer:', '').replace(',', ', ')}"
        if self.born_again:
            under = f"taught by generation {step.teacher}" if step.teacher else "without a teacher"
            return f"generation {index} of {len(self.steps) - 1}: {student}, {under}"
        named = ", ".join(Path(word).stem for word in step.teacher.split(","))
        teacher = f"{Path(self.steps[index - 1].student).stem} (distilled)" if index else named
        return f"step {index + 1} of {len(self.steps)}: {teacher} -> {student}"


def _plain(keys: Mapping[str, Any]) -> dict[str, Any]:
    theirs = {key: value for key, value in keys.items() if "." not in key and key not in OUR_KEYS}
    return {**theirs, **{key: keys[key] for key in _PLAIN if key in keys}, "losses": "none"}


def common(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The folder around several trainings, and the keys that are the same for all of them.

    Args:
        ours: yolokd's keys.
        theirs: Ultralytics' keys.
    """
    folder = get_save_dir(get_cfg(overrides={k: v for k, v in theirs.items() if k in (*_PLACE, "project")}))
    return folder, written({k: v for k, v in {**ours, **theirs}.items() if k not in (*_PLACE, "resume", "mode")})


def whole(model: Any, role: str) -> str:
    """A model by its whole path."""
    return _path(model) if Path(str(model)).suffix in (".yaml", ".yml") else str(find_checkpoint(model, role=role))


def _path(name: Any) -> str:
    """A file by its whole path, since the chain may be resumed from another folder; any other name as it is."""
    return str(Path(str(name)).resolve() if Path(str(name)).is_file() else name)


def refuse_changes(changes: Mapping[str, Any]) -> None:
    """Refuse what is said anew beside ``resume=`` before it is written down: a later step would fall over it.

    Args:
        changes: yolokd's and Ultralytics' keys.

    Raises:
        UserError: a value that no training takes, or data that is not there.
    """
    ours, theirs = split_keys(changes)
    build_config({"teacher": "any.pt", **ours})  # the losses want one; which it is does not matter here
    get_cfg(overrides=dict(theirs))
    if "data" in changes:
        check_data(changes["data"])


def written(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as ``chain.yaml`` can hold them."""
    plain = (str, int, float, bool, list, dict, type(None))
    kept = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    kept = {k: v if isinstance(v, plain) else str(v) for k, v in kept.items()}  # a Path, a torch.device
    return kept | {k: _path(kept[k]) for k in ("data", "pretrained") if isinstance(kept.get(k), str)}
