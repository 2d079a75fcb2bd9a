"""Training in steps: through teacher assistants (``via=``), or born again (``teacher=born-again``).

Sources: Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020,
https://arxiv.org/abs/1902.03393: between a large teacher and a small student stands a model of a size in between,
distilled first and teaching then. Furlanello et al., "Born-Again Neural Networks", ICML 2018,
https://arxiv.org/abs/1805.04770: a finished student teaches a fresh one of its own kind, each generation with another
random seed. Departures: which losses teach is what ``losses=`` says; a generation that is not better on the validation
split is put aside (the next one has the best so far as its teacher), and there is no ensemble of generations. The
validation split chooses among them, so the chosen one's number is a little flattered.

Every step is a training in a folder of its own. ``chain.yaml`` in the folder around them says what was asked and how
far it has come. Written before the first step and renewed as each begins and ends, it can be resumed after a kill.
"""

from __future__ import annotations

import functools
import gc
import shutil
import tempfile
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils import LOGGER

from yolokd.compat.checkpoint import build_student, sha256
from yolokd.compat.files import atomic_replace, begin_folder, recover
from yolokd.config import build_config
from yolokd.errors import UserError
from yolokd.image_config import in_steps_too
from yolokd.keys import BORN_AGAIN, MANIFEST, STEP_KEYS, split_keys
from yolokd.learning import data_of
from yolokd.resume import locate
from yolokd.runs import Run, finished_run, train
from yolokd.settings import settle
from yolokd.steps import FINISHED, RUNNING, WAITING, Chain, Step, common, refuse_changes, whole, written
from yolokd.teachers.opening import find_teacher, fingerprint
from yolokd.teachers.spec import read_teachers
from yolokd.trainer import RECIPE

GENERATIONS = 1  # each costs a whole training
# What may be said anew when a chain is resumed: where and how it runs, not what it trains.
_CHANGEABLE = "trust data device batch workers cache plots save_period teacher_precision teacher_device"
CHANGEABLE = frozenset(_CHANGEABLE.split())


def in_steps(asked: Mapping[str, Any]) -> bool:
    """Do these keys ask for a training in steps?

    Args:
        asked: what was written, with the recipe read.
    """
    return asked.get("teacher") == BORN_AGAIN or any(asked.get(key) is not None for key in STEP_KEYS)


def chain_of(resume: str | Path | bool) -> Path | None:
    """The folder of the chain that ``resume=`` means; None where it is a training of its own.

    Args:
        resume: the chain's folder or that of one of its steps, a ``last.pt`` in them, or True for the latest run.

    Raises:
        UserError: True, and there is no run.
    """
    path = (locate(True) if str(resume).lower() == "true" else Path(str(resume))).resolve()
    folder = path if path.is_dir() else path.parent.parent
    if (folder / MANIFEST).is_file():
        return folder
    if (folder.parent / MANIFEST).is_file():
        names = [step.name for step in Chain.load(folder.parent).steps]
        return folder.parent if folder.name in names else None
    return None


def begin_chain(asked: Mapping[str, Any]) -> Run:
    """Train in steps.

    Args:
        asked: what was written, with the recipe read.

    Returns:
        the whole: the folder around the steps, whose ``weights/`` hold the student.

    Raises:
        UserError: something in the settings, or a pair of the chain cannot work; nothing has been written then.
    """
    chain = _planned(dict(asked))
    _refuse_what_cannot_work(chain)
    files = {step.student for step in chain.steps if Path(step.student).is_file()}
    teachers = {spec.path for spec in read_teachers(chain.steps[0].teacher)} if not chain.born_again else set()
    open_folder(chain, files, teachers)
    return _go(chain)


def open_folder(chain: Chain, files: Set[str], read: Set[str] = frozenset()) -> None:
    """Write the first file of a training in several parts.

    Args:
        chain: as planned.
        files: those that are to be the same ones when it is resumed.
        read: others that are read while it runs.

    Raises:
        UserError: a file lies where the parts are to be written.
    """
    if inside := [name for name in sorted(files | read) if chain.folder in Path(name).parents]:
        problem = f"{inside[0]} lies in {chain.folder}, which this run would begin anew."
        raise UserError(problem, "Give the run another name=, or move the file.")
    chain.files |= {name: sha256(name) for name in sorted(files)}
    begin_folder(chain.folder, MANIFEST, chain.text())


def resume_chain(folder: Path, given: Mapping[str, Any]) -> Run:
    """Go on with a chain: finished steps stay as they are, the one that was cut off is resumed, the others follow.

    Args:
        folder: from `chain_of`.
        given: what was written beside ``resume=``; the teacher's file may have moved, but not changed.

    Raises:
        UserError: the chain cannot be read, or a file that it still needs is missing or is another one now.
    """
    recover(folder / "weights")
    chain = Chain.load(folder)
    changes = {key: value for key, value in given.items() if key in CHANGEABLE}
    ignored = set(given) - CHANGEABLE - {"resume"}
    first = chain.steps[0]
    if "teacher" in given and not chain.born_again and first.state != FINISHED:
        ignored.discard("teacher")
        moved = _found(build_config({"teacher": given["teacher"]}).teacher)
        chain.files[moved], first.teacher = chain.files.pop(first.teacher, ""), moved
    if ignored:
        keys = ", ".join(sorted(ignored))
        LOGGER.warning(f"Resume ignores {keys}: the chain goes on with the settings it began with.")
    refuse_changes(changes)
    chain.settings |= written(changes)
    refuse_other_files(chain)
    if changes or "teacher" in given:
        chain.save()
    return _go(chain, changes)


def _planned(asked: dict[str, Any]) -> Chain:
    """The steps that are asked for; what can be seen without loading a model is refused here."""
    teacher, via, rounds = asked.pop("teacher", None), asked.pop("via", None), asked.pop("generations", None)
    born_again = teacher == BORN_AGAIN
    _refuse_contradictions(teacher, via, rounds)
    ours, theirs = split_keys(asked)
    config = build_config({**ours, "teacher": teacher})
    if not config.losses:
        key = "teacher=born-again" if born_again else "via="
        raise UserError(f"{key} with losses=none: no step would teach.", f"Name losses, or leave out {key}.")
    if theirs.get("save") is False:
        raise UserError("save=False keeps no best.pt, which is to teach the next step.", "Leave out save=.")
    if config.teacher_cache:
        raise UserError(
            "teacher_cache= stores one teacher's answers, and the steps of a chain have a teacher each.",
            "Leave out teacher_cache=.",
        )
    if not theirs.get("model"):
        raise UserError("student= is missing.", "Name a checkpoint or a model YAML, e.g. student=yolo11n.pt.")
    student = whole(theirs.pop("model"), "student")
    if born_again:
        steps = [Step(str(i), student) for i in range(1 + (rounds or GENERATIONS))]
        steps[1].teacher = steps[0].name  # the later ones get theirs when they begin
    else:
        first, models = _found(config.teacher), [*(whole(name, "via") for name in _names(via)), student]
        if twice := [name for name in models if [first, *models].count(name) > 1]:
            raise UserError(f"{twice[0]} stands twice in the chain.", "Name each of teacher=, via=, student= once.")
        steps = [Step(f"{i}-{Path(model).stem}", model) for i, model in enumerate(models, 1)]
        for step, teaches in zip(steps, [first, *(step.name for step in steps)], strict=False):
            step.teacher = teaches
    folder, settings = common({**ours, **in_steps_too(config.images, ours)}, theirs)
    return Chain(folder, born_again, settings, steps)


def _refuse_contradictions(teacher: Any, via: Any, rounds: Any) -> None:
    if via is not None and teacher == BORN_AGAIN:
        raise UserError("via= leads from a teacher to the student, and teacher=born-again has none.", "Keep one.")
    if via is not None and not teacher:
        raise UserError("via= has no teacher= to begin with.", "Name the first one, e.g. teacher=yolo11x.pt.")
    if rounds is not None and teacher != BORN_AGAIN:
        raise UserError(f"generations={rounds} is for teacher=born-again.", "Write that, or leave out generations=.")
    if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1):
        raise UserError(f"generations={rounds} is not a number of rounds.", "Write generations=1, 2, 3, ...")


def _names(via: Any) -> list[str]:
    """``via=`` as a list; a program may give one."""
    words = via if isinstance(via, (list, tuple)) else str(via).split(",")
    names = [str(name).strip() for name in words]
    if not all(names):
        raise UserError(f"via={via} has an empty name.", "Write via=yolo11m.pt,yolo11s.pt, the largest first.")
    return names


def _refuse_what_cannot_work(chain: Chain) -> None:
    """Ask of every pair what a training asks of one, before the first begins.

    The teacher of a later step is not trained yet. A model of its kind with the classes of the data stands in.
    """
    trust = bool(chain.settings.get("trust"))
    ours, theirs = split_keys({**chain.keys(chain.steps[-1]), "teacher": "any.pt"})
    data = data_of(build_config(ours), theirs)
    names = {0: "item"} if chain.settings.get("single_cls") else dict(data["names"])
    with tempfile.TemporaryDirectory() as place:
        stand_in = Path(place).resolve() / "best.pt"
        for index, step in enumerate(chain.steps[:2] if chain.born_again else chain.steps):
            title = chain.title(step)
            LOGGER.info(f"looking at {title}")
            teacher = {"teacher": str(stand_in)} if index else chain.teacher(step)
            try:
                _, sidecar, _ = settle({**chain.keys(step), **teacher}, worker=False)
            except UserError as error:
                named = error.problem.replace(str(stand_in), Path(chain.steps[index - 1].student).name)
                raise UserError(f"{title[0].upper()}{title[1:]}: {named}", error.remedy) from None
            if not index and step.teacher:
                chain.files[step.teacher] = sidecar.teacher_sha256
            model = build_student(step.student, names=names, channels=int(data["channels"]), trust=trust)
            torch.save({"model": model}, stand_in)


def refuse_other_files(chain: Chain) -> None:
    """Refuse to go on with another file under the name of one that is still to be read."""
    first = chain.steps[0]
    for step in chain.steps:
        if step.state == FINISHED or begun(chain.folder / step.name, step):
            continue  # what this step began with stands in its own files
        for name in [step.student, *([step.teacher] if step is first else [])]:
            if name not in chain.files:
                continue  # no file: a model YAML of Ultralytics
            if step.student == name and not Path(name).is_file():
                raise UserError(f"{name} is not there any more.", "Put the file back, or start a new run.")
            if chain.files[name] != (sha256(name) if step.student == name else _fingerprints(name)):
                problem = f"{name} is not the file that this chain began with (its SHA-256 differs)."
                raise UserError(problem, "Put that file back, or start a new run.")


def _found(teachers: str) -> str:
    """``teacher=`` with the whole paths of its files."""
    return ",".join(str(find_teacher(spec)) for spec in read_teachers(teachers))


def _fingerprints(teachers: str) -> str:
    return ",".join(fingerprint(find_teacher(spec)) for spec in read_teachers(teachers))


def _go(chain: Chain, changes: Mapping[str, Any] | None = None) -> Run:
    """Train what is left to train, then put the student where a run has it."""
    over = all(step.state == FINISHED for step in chain.steps)
    if chain.steps[0].state == WAITING:
        forget(chain.folder)
    for step in chain.steps:
        if step.state != FINISHED:
            _train(chain, step, changes or {})
            gc.collect()  # the trainer holds itself by circles, and on a GPU two models
    weights, source = chain.folder / "weights", chain.folder / chain.best.name / "weights"
    weights.mkdir(exist_ok=True)
    for name in ("best.pt", "last.pt"):
        if not (weights / name).is_file() or sha256(weights / name) != sha256(source / name):
            atomic_replace(weights / name, functools.partial(shutil.copyfile, source / name))
            over = False
    end = "is finished, nothing to resume" if over else "is finished"
    which = f" (generation {chain.best.name})" if chain.born_again else ""
    LOGGER.info(f"{chain.folder} {end}. Its student is {weights / 'best.pt'}{which}.")
    return finished_run(chain.folder, bool(chain.settings.get("trust")))


def _train(chain: Chain, step: Step, changes: Mapping[str, Any]) -> None:
    """Begin a step, or resume the one that was cut off."""
    folder = chain.folder / step.name
    if begun(folder, step):
        LOGGER.info(f"\nresuming {chain.title(step)}")
        run = train({**changes, **chain.teacher(step), "resume": str(folder)})
    else:
        forget(folder)
        chain.begin(step)
        LOGGER.info(f"\n{chain.title(step)}")
        run = train({**chain.keys(step), **chain.teacher(step), "save_dir": str(folder)})
    before = chain.best if step is not chain.steps[0] else None
    step.state, step.fitness = FINISHED, run.metrics.get("fitness", 0.0)
    chain.save()
    if chain.born_again and before:
        verdict = "kept, better than" if chain.best is step else "put aside, not better than"
        marks = f"(fitness {step.fitness:.4f}, {before.fitness:.4f})"
        LOGGER.info(f"generation {step.name}: {verdict} generation {before.name} {marks}")


def begun(folder: Path, step: Step) -> bool:
    """Is there something of this step to resume?"""
    return step.state == RUNNING and (folder / RECIPE).is_file()


def forget(folder: Path) -> None:
    """Take away what a resume would go on with: of an earlier run in the same folder (``exist_ok=True``)."""
    recover(folder / "weights", forward=False)
    for name in (RECIPE, "weights/last.pt", "weights/best.pt"):
        (folder / name).unlink(missing_ok=True)
