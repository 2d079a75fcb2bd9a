"""Several students that train together and teach one another: ``peers=``.

Source: Zhang et al., "Deep Mutual Learning", CVPR 2018, https://arxiv.org/abs/1706.00384: each peer learns from the
labels and from what the others say of the same mini-batch, and they are updated in turn, each under the others' present
weights. So it is here: the peers begin with different weights and see the same images, augmented alike, in the same
order (unless one had to halve its batch for lack of memory, or they were resumed at different epochs).

Departures: what teaches is what ``losses=`` says, responses of class and box by default, features as well; a peer is
asked in eval mode, with the running averages of its batch statistics, so that nothing of it changes; of three or more,
the mean of the others' probabilities is the one target (the paper's DML_e, which it found behind one term for each).

Every peer is a training of its own, in a folder of its own, which plain Ultralytics can resume, validate and export.
The file around them is that of a chain (`yolokd.steps`). One that has ended (early stopping) goes on teaching as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.utils import LOGGER

from yolokd.chain import CHANGEABLE, begun, forget, open_folder, refuse_other_files
from yolokd.compat.bars import side_by_side
from yolokd.compat.checkpoint import build_student, fit_to_data, load_detector
from yolokd.compat.dataset import check_data
from yolokd.compat.training import unset_deterministic
from yolokd.config import build_config
from yolokd.errors import UserError
from yolokd.keys import PEERS, STEP_KEYS, split_keys
from yolokd.peer import Peer
from yolokd.resume import resume_arguments
from yolokd.runs import Run, best_peer, finished_run
from yolokd.settings import Settled, settle
from yolokd.steps import FINISHED, Chain, Step, common, refuse_changes, whole, written
from yolokd.turns import Turns

# They speak of a teacher, or of a student; a peer is both.
_OF_OTHERS = ("student", "model", "class_map", *STEP_KEYS)
_OF_PEERS_TOO = ("teacher_every",)
_OF_A_TEACHER = {"teacher_precision", "teacher_device"}


def begin_peers(asked: Mapping[str, Any]) -> Run:
    """Train peers.

    Args:
        asked: what was written, with the recipe read; ``peers`` among it, as text or as a list.

    Returns:
        the whole, with the run of each peer.

    Raises:
        UserError: something in the settings, or a pair of the peers cannot work; nothing has been written then.
    """
    chain = _planned(dict(asked))
    networks = _networks(chain, chain.steps)
    settled = {step.name: _settled(chain, step, networks) for step in chain.steps}
    open_folder(chain, {step.student for step in chain.steps if Path(step.student).is_file()})
    LOGGER.info(
        f"{len(chain.steps)} peers take turns, batch by batch: {', '.join(networks)}. No experiment logger is told "
        "(those know one run a process): each peer's results.csv has its numbers."
    )
    return _train(chain, settled, {})


def resume_peers(folder: Path, given: Mapping[str, Any]) -> Run:
    """Go on with all peers.

    Where a kill has left one an epoch behind the others, it goes on first, under the others as they are.

    Args:
        folder: the folder around them, from `chain.chain_of`.
        given: what was written beside ``resume=``.

    Raises:
        UserError: something there cannot be read, or a file that is still needed is missing or another one now.
    """
    chain = Chain.load(folder)
    changes = {key: value for key, value in given.items() if key in CHANGEABLE - _OF_A_TEACHER}
    if ignored := sorted(set(given) - set(changes) - {"resume"}):
        LOGGER.warning(f"Resume ignores {', '.join(ignored)}: the peers go on with the settings they began with.")
    refuse_changes(changes)
    chain.settings |= written(changes)
    _refuse_where(chain.settings)
    refuse_other_files(chain)
    chain.save()
    resumed, anew = {}, []
    for step in (step for step in chain.steps if step.state != FINISHED):
        place = folder / step.name
        goes_on = resume_arguments(place / "weights" / "last.pt", _trust(chain)) if begun(place, step) else {}
        if goes_on is None:
            _finish(chain, step)
        elif "resume" in goes_on:
            resumed[step.name] = {**changes, **goes_on}
        else:
            anew.append(step)
    networks = _networks(chain, anew) if anew else {}
    return _train(chain, {step.name: _settled(chain, step, networks) for step in anew}, resumed)


def _planned(asked: dict[str, Any]) -> Chain:
    """The peers that are asked for; what can be seen without loading a model is refused here."""
    named = asked.pop(PEERS)
    models = [str(word).strip() for word in (named if isinstance(named, (list, tuple)) else str(named).split(","))]
    teaching = [key for key in asked if key.startswith("teacher") and key not in _OF_PEERS_TOO]
    if beside := [f"{key}=" for key in asked if key in (*_OF_OTHERS, *teaching)]:
        raise UserError(
            f"{' and '.join(beside)} beside peers=: each peer is a student, and its teachers are the others.",
            f"Leave out {' and '.join(beside)}, or leave out peers=.",
        )
    if len(models) < 2 or not all(models):
        raise UserError(f"peers={named}: it takes two.", "Name at least two, e.g. peers=yolo11n.yaml,yolo11s.yaml.")
    ours, theirs = split_keys(asked)
    if not build_config({**ours, "teacher": "peer:"}).losses:
        raise UserError("peers= with losses=none: no peer would teach.", "Name losses, or train each by itself.")
    if isinstance(theirs.get("pretrained"), str):
        raise UserError(
            "pretrained= beside peers=: all would begin with the same weights.", "Name each peer's .pt file in peers=."
        )
    _refuse_where(theirs)
    steps = [Step(f"{i}-{Path(model).stem}", whole(model, PEERS)) for i, model in enumerate(models, 1)]
    for step in steps:
        step.teacher = ",".join(f"peer:{other.name}" for other in steps if other is not step)
    folder, settings = common(ours, theirs)
    return Chain(folder, False, settings, steps, together=True)


def _refuse_where(theirs: Mapping[str, Any]) -> None:
    """Refuse devices and batches that peers cannot share."""
    device, batch = theirs.get("device"), theirs.get("batch")
    device = ",".join(map(str, device)) if isinstance(device, (list, tuple)) else str(device or "")
    if "," in device:
        raise UserError(f"device={device}: peers train in one process, on one device.", "Name one, e.g. device=0.")
    if isinstance(batch, (int, float)) and batch < 1:
        raise UserError(
            f"batch={batch}: what fits is measured with one training in memory, and peers are several.",
            "Give the number of images, e.g. batch=16.",
        )


def _networks(chain: Chain, anew: list[Step]) -> dict[str, Callable[[], nn.Module]]:
    """A network for each peer, as those that begin will see the others, for the preflight.

    Raises:
        UserError: a file cannot serve, or two peers are the same.
    """
    settings, trust = chain.settings, _trust(chain)
    data = check_data(settings.get("data"), "train", str(settings.get("split") or "val"))
    names = {0: "item"} if settings.get("single_cls") else dict(data["names"])
    lies = {step.name: chain.folder / step.name / "weights" / "last.pt" for step in chain.steps if step not in anew}
    models = {step.name: build_student(lies.get(step.name, step.student), trust=trust) for step in chain.steps}
    files = [step for step in anew if step.student.endswith(".pt") and settings.get("pretrained") is not False]
    for one, other in combinations(files, 2):
        if _alike(models[one.name], models[other.name]):
            raise UserError(
                f"peers={one.student},{other.student} have the same weights and see the same images: neither could "
                "teach the other anything.",
                "Name models of different sizes or trainings, or a YAML: those begin with weights of their own.",
            )
    fitted = {name: fit_to_data(model, names, int(data["channels"])) for name, model in models.items()}
    return {name: partial(_itself, model) for name, model in fitted.items()}


def _alike(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def _itself(model: nn.Module) -> nn.Module:
    return model


def _settled(chain: Chain, step: Step, networks: Mapping[str, Callable[[], nn.Module]]) -> Settled:
    """The settings of a peer that begins, once it has been tried beside the others."""
    title = chain.title(step)
    LOGGER.info(f"looking at {title}")
    keys = {**chain.keys(step), **chain.teacher(step), "save_dir": str(chain.folder / step.name), "mode": "train"}
    try:
        return settle(keys, worker=False, peers=networks)
    except UserError as error:
        raise UserError(f"P{title[1:]}: {error.problem}", error.remedy) from None


def _train(chain: Chain, settled: Mapping[str, Settled], resumed: Mapping[str, dict[str, Any]]) -> Run:
    """Train the peers that begin or go on; the others teach as they ended."""
    steps = [step for step in chain.steps if step.name in {*settled, *resumed}]
    turns = Turns([step.name for step in steps])
    try:
        peers = {step.name: _open(chain, step, turns, settled.get(step.name), resumed) for step in steps}
        networks: dict[str, Callable[[], nn.Module]] = {name: peer.network for name, peer in peers.items()}
        for step in chain.steps if peers else []:
            if step.name not in peers:
                last = chain.folder / step.name / "weights" / "last.pt"
                networks[step.name] = partial(_itself, load_detector(last, role=PEERS, trust=_trust(chain)))
        for name, peer in peers.items():
            peer.beside({other: network for other, network in networks.items() if other != name})
        with side_by_side():
            turns.run({step.name: partial(_train_one, chain, step, peers[step.name]) for step in steps})
    finally:
        unset_deterministic()
    return _whole(chain, bool(steps))


def _open(
    chain: Chain, step: Step, turns: Turns, settled: Settled | None, resumed: Mapping[str, dict[str, Any]]
) -> Peer:
    number = chain.steps.index(step)
    if settled:
        forget(chain.folder / step.name)
        chain.begin(step)
        peer = Peer(settled[2], number, turns, settled)
    else:
        peer = Peer(resumed[step.name], number, turns)
    turns.keep_streams(step.name)  # just seeded
    return peer


def _train_one(chain: Chain, step: Step, peer: Peer) -> None:
    peer.train()
    _finish(chain, step)


def _finish(chain: Chain, step: Step) -> None:
    step.state = FINISHED
    step.fitness = finished_run(chain.folder / step.name, _trust(chain)).metrics.get("fitness", 0.0)
    chain.save()


def _whole(chain: Chain, trained: bool) -> Run:
    """What all peers have come to, told as well."""
    runs = {step.name: finished_run(chain.folder / step.name, _trust(chain)) for step in chain.steps}
    width = max(map(len, runs))
    LOGGER.info(f"{chain.folder} is finished{'' if trained else ', nothing to resume'}. Its peers:")
    for name, run in runs.items():
        mark = run.metrics.get("metrics/mAP50-95(B)", 0.0)
        LOGGER.info(f"  {name:<{width}}  mAP50-95 {mark:.3f}  {run.best}")
    peers = tuple(runs.values())
    return Run(chain.folder, best_peer(peers).metrics, peers)


def _trust(chain: Chain) -> bool:
    return bool(chain.settings.get("trust"))
