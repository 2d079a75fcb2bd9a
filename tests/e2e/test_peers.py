"""Real trainings of peers on the toy set: what each learned from, and what every end leaves."""

from __future__ import annotations

import hashlib
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.utils import ROOT

from tests.test_resume import said  # noqa: F401
from tests.test_trainer import FAST, rows
from yolokd.api import distill
from yolokd.compat.checkpoint import read_checkpoint
from yolokd.peer import Peer
from yolokd.runs import Run
from yolokd.sidecar import load_sidecar
from yolokd.steps import Chain
from yolokd.trainer import DistillationTrainer

pytestmark = pytest.mark.e2e
KEYS: dict[str, Any] = {**FAST, "epochs": 2, "warmup_epochs": 0, "losses": "cls,cwd", "close_mosaic": 0}
EXAMPLES = Path(__file__).parents[2] / "examples"
Log = dict[str, list[str]]


class Killed(BaseException):
    """Stands for a SIGKILL."""


def narrow(name: str, place: Path) -> Path:
    """A model YAML of Ultralytics, narrower."""
    described = yaml.safe_load((ROOT / "cfg" / "models" / name.removeprefix("yolo") / f"{name}.yaml").read_text())
    described["scales"] = {"n": [0.33, 0.125, 256]}
    file = place / f"{'old' if name == 'yolov8' else 'new'}.yaml"
    file.write_text(yaml.safe_dump(described))
    return file


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("models")
    return [narrow("yolo11", place), narrow("yolov8", place)]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What each training saw: the images of each batch; under ``order``, who made which step of which epoch."""
    seen: Log = {"order": []}
    preprocess = DistillationTrainer.preprocess_batch

    def watched(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
        digest = hashlib.sha256(batch["img"].numpy().tobytes() + batch["bboxes"].numpy().tobytes()).hexdigest()
        if trainer.model.training:
            seen.setdefault(trainer.args.name, []).append(digest)
            seen["order"].append(f"{trainer.args.name[0]}:{trainer.epoch}")
        return preprocess(trainer, batch)

    monkeypatch.setattr(DistillationTrainer, "preprocess_batch", watched)
    return seen


def numbers(folder: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "time"} for row in rows(folder)]


def test_peers(
    models: list[Path],
    toy_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: Log,
    said: list[str],  # noqa: F811
) -> None:
    trainers: list[Peer] = []
    beside = Peer.beside
    monkeypatch.setattr(Peer, "beside", lambda peer, others: (trainers.append(peer), beside(peer, others)))
    run = distill(peers=models, data=toy_data, project=tmp_path, name="p", **KEYS)
    alone = distill(models[0], data=toy_data, project=tmp_path, name="alone", **{**KEYS, "losses": "none"})
    # Both saw what one by itself sees, in turn.
    assert log["1-new"] == log["2-old"] == log["alone"]
    assert len(set(log["alone"])) == 4
    assert log["order"][:8] == ["1:0", "2:0"] * 2 + ["1:1", "2:1"] * 2
    one, two = (numbers(folder.save_dir) for folder in run.peers)
    for name in ("cls", "cwd"):
        values = [[float(row[f"train/kd_{name}_loss"]) for row in table] for table in (one, two)]
        assert min(map(min, values)) > 0
        assert values[0] != values[1]
    for this, other in (trainers, trainers[::-1]):
        assert this.panel is not None
        assert this.panel.views[0].teacher.model is other.network() is other.model  # type: ignore[attr-defined]
    # Each is a plain run of its own.
    for folder, model in zip(run.peers, models, strict=True):
        checkpoint = read_checkpoint(folder.last)
        assert checkpoint["model"].yaml["yaml_file"] == str(model)
        assert checkpoint["train_args"]["name"] == folder.save_dir.name
        assert b"yolokd" not in folder.best.read_bytes().replace(str(tmp_path).encode(), b"")
        assert load_sidecar(folder.save_dir / "weights").config["teacher"].startswith("peer:")
        assert (folder.save_dir / "distill.yaml").is_file()
        assert YOLO(folder.best).names == {0: "red", 1: "green", 2: "blue"}
    assert run.best in [peer.best for peer in run.peers]
    assert [step.state for step in Chain.load(run.save_dir).steps] == ["finished"] * 2
    assert not torch.are_deterministic_algorithms_enabled()
    told = [line for line in said if "mAP50-95 " in line]
    assert [line.split()[0] for line in told[-2:]] == ["1-new", "2-old"]
    # Nothing is left to do.
    steps = len(log["order"])
    assert distill(resume=run.save_dir) == distill(resume=run.peers[1].last) == run
    assert len(log["order"]) == steps
    assert alone.peers == ()


def killed(monkeypatch: pytest.MonkeyPatch, moment: str, peer: str, epoch: int) -> None:
    """Die where that peer calls a method in that epoch: before it begins, or, for ``after_...``, when it is done."""
    name = moment.removeprefix("after_")
    method: Callable[..., Any] = getattr(DistillationTrainer, name)

    def dying(trainer: Any, *args: Any) -> Any:
        here = trainer.args.name[0] == peer and trainer.epoch == epoch and trainer.model.training
        if here and name == moment:
            raise Killed
        result = method(trainer, *args)
        if here:
            raise Killed
        return result

    monkeypatch.setattr(DistillationTrainer, name, dying)


@pytest.mark.parametrize(
    ("moment", "peer", "epoch", "order"),
    [
        ("preprocess_batch", "1", 1, "11 22"),
        ("preprocess_batch", "2", 1, "11 22"),
        ("after_save_model", "1", 0, "2 2 11 22"),  # peer 2 has not saved its first epoch: it catches up
    ],
)
def test_killed_and_resumed(
    models: list[Path],
    toy_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    peer: str,
    epoch: int,
    order: str,
) -> None:
    with monkeypatch.context() as death:
        killed(death, moment, peer, epoch)
        with pytest.raises(Killed):
            distill(peers=[models[0], models[0]], data=toy_data, project=tmp_path, name="p", **KEYS)
    folder = tmp_path / "p"
    first, second = folder / "1-new", folder / "2-new"
    assert read_checkpoint(first / "weights" / "last.pt")["epoch"] == 0
    assert (second / "weights" / "last.pt").exists() == (moment != "after_save_model")
    steps: list[str] = []
    preprocess = DistillationTrainer.preprocess_batch

    def watched(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
        steps.extend(trainer.args.name[0] if trainer.model.training else "")
        return preprocess(trainer, batch)

    monkeypatch.setattr(DistillationTrainer, "preprocess_batch", watched)
    run = distill(resume=second / "weights" / "last.pt" if moment == "preprocess_batch" else folder)
    expected = {"11 22": "1212", "2 2 11 22": "221212"}[order]
    assert "".join(steps) == expected
    for each in run.peers:
        table = rows(each.save_dir)
        assert [row["epoch"] for row in table] == ["1", "2"]
        assert min(float(row["train/kd_cls_loss"]) for row in table) > 0
    weights = [read_checkpoint(each.last)["model"].state_dict() for each in run.peers]
    assert not torch.equal(weights[0]["model.0.conv.weight"], weights[1]["model.0.conv.weight"])  # one YAML twice


def test_one_that_has_ended_teaches_on_and_after_a_resume_too(
    models: list[Path], toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    callbacks = Peer.run_callbacks

    def stopping(trainer: Any, event: str) -> None:
        callbacks(trainer, event)
        if event == "on_fit_epoch_end" and trainer.args.name == "1-new":
            trainer.stop = True  # as early stopping does

    monkeypatch.setattr(Peer, "run_callbacks", stopping)
    with monkeypatch.context() as death:
        killed(death, "save_model", "2", 1)
        with pytest.raises(Killed):
            distill(peers=models, data=toy_data, project=tmp_path, name="p", **KEYS)
    folder = tmp_path / "p"
    assert [step.state for step in Chain.load(folder).steps] == ["finished", "running"]
    # The second epoch was trained and written down under the one that had ended, but not saved.
    assert log["order"][-2:] == ["2:1", "2:1"]
    under_the_living = numbers(folder / "2-old")[1]
    assert float(under_the_living["train/kd_cls_loss"]) > 0
    before = (folder / "1-new" / "weights" / "best.pt").read_bytes()
    run: Run = distill(resume=folder)
    assert (folder / "1-new" / "weights" / "best.pt").read_bytes() == before
    assert len(rows(folder / "1-new")) == 1
    assert [row["epoch"] for row in rows(folder / "2-old")] == ["1", "2"]
    assert float(rows(folder / "2-old")[1]["train/kd_cls_loss"]) > 0
    assert len(run.peers) == 2


def test_the_example(
    models: list[Path], toy_data: Path, runs_here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolokd.distill", lambda *args, **keys: distill(*args, **keys, plots=False), raising=False)
    main = runpy.run_path(str(EXAMPLES / "peers.py"))["main"]
    main(",".join(map(str, models)), str(toy_data), "1", "64")
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[0] for line in lines] == ["1-new", "2-old"]


def test_a_step_that_breaks_one_peer_leaves_both_whole(
    models: list[Path], toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one is taken up again from its checkpoint, by Ultralytics; the other has not listened to it meanwhile."""
    steps: list[str] = []
    preprocess = DistillationTrainer.preprocess_batch

    def breaking(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
        if trainer.model.training:
            steps.append(f"{trainer.args.name[0]}:{trainer.epoch}")
            if steps.count("1:1") == len(steps[4:]) == 1:  # its first step of the second epoch
                with torch.no_grad():
                    next(trainer.model.parameters())[:] = float("nan")
        return preprocess(trainer, batch)

    monkeypatch.setattr(DistillationTrainer, "preprocess_batch", breaking)
    run = distill(peers=models, data=toy_data, project=tmp_path, name="p", **{**KEYS, "losses": "cls,box"})
    assert steps == ["1:0", "2:0"] * 2 + ["1:1", "2:1"] * 2 + ["1:1"] * 2
    for peer in run.peers:
        assert all(torch.isfinite(value).all() for value in read_checkpoint(peer.last)["model"].state_dict().values())
        table = rows(peer.save_dir)
        assert [row["epoch"] for row in table] == ["1", "2"]
        assert all(math.isfinite(float(value)) for row in table for value in row.values())
    assert float(rows(run.peers[1].save_dir)[1]["train/kd_cls_loss"]) == 0  # it was broken in both steps
    assert float(rows(run.peers[0].save_dir)[1]["train/kd_cls_loss"]) > 0  # begun again, it was taught
