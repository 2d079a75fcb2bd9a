"""Peers before they train: what is refused, what a peer is as a teacher, and who begins with which weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import NAMES, save_detector
from tests.helpers import assignment
from yolokd import api, peers
from yolokd.compat.checkpoint import build_student, head_info
from yolokd.compat.training import branches
from yolokd.errors import UserError
from yolokd.keys import OUR_KEYS, split_keys
from yolokd.losses.logits import ClassificationKD
from yolokd.predictions import HeadInfo
from yolokd.runs import Run
from yolokd.steps import Chain
from yolokd.teachers.itself import RunningTeacher
from yolokd.teachers.opening import find_teacher, fingerprint, open_teacher
from yolokd.teachers.spec import TeacherSpec, read_teachers

Refused = Callable[..., tuple[str, str]]
BOTH = "peers=yolo11n.yaml,yolov8n.yaml"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["peers=yolo11n.yaml"], "it takes two"),
        (["peers=yolo11n.yaml,"], "it takes two"),
        ([BOTH, "teacher=a.pt"], "teacher= beside peers="),
        ([BOTH, "student=a.pt"], "student= beside peers="),
        ([BOTH, "model=a.pt", "teacher=b.pt"], "teacher= and model= beside peers="),
        ([BOTH, "via=a.pt"], "via= beside peers="),
        ([BOTH, "teacher_weights=1,2"], "teacher_weights= beside peers="),
        ([BOTH, "teacher_precision=bf16"], "teacher_precision= beside peers="),
        ([BOTH, "teacher_device=cpu"], "teacher_device= beside peers="),
        ([BOTH, "class_map=a:b"], "class_map= beside peers="),
        ([BOTH, "losses=none"], "no peer would teach"),
        ([BOTH, "device=0,1"], "device=0,1"),
        ([BOTH, "device=[0,1]"], "device=0,1: "),
        ([BOTH, "batch=-1"], "batch=-1"),
        ([BOTH, "batch=0.7"], "batch=0.7"),
        ([BOTH, "pretrained=a.pt"], "same weights"),
        (["peers=yolo11n.yaml,nowhere.pt"], "nowhere.pt: no such file"),
        ([BOTH, "lossess=cls"], "lossess"),
    ],
)
def test_refused_before_a_model_is_loaded(refused: Refused, words: list[str], said: str) -> None:
    assert said in refused("train", "data=nowhere.yaml", *words)[0]


def test_the_same_weights_twice_are_refused_under_any_name(
    refused: Refused, toy_student: Path, toy_data: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(toy_student, tmp_path / "copy.pt"))
    for other in (toy_student, copy):
        problem, remedy = refused("train", f"peers={toy_student},{other}", f"data={toy_data}", "imgsz=64")
        assert "the same weights" in problem
        assert "YAML" in remedy


def test_a_pair_that_cannot_work_is_refused_by_the_name_of_its_peer(refused: Refused, toy_data: Path) -> None:
    problem, _ = refused("train", BOTH, f"data={toy_data}", "imgsz=64", "losses=crosskd", "device=cpu")
    assert problem.startswith("Peer 1-yolo11n, taught by 2-yolov8n: ")
    assert "crosskd" in problem


def test_one_training_by_itself_has_no_peers(toy_data: Path) -> None:
    assert "peers" in OUR_KEYS
    with pytest.raises(UserError, match="peers=: these are several trainings"):
        split_keys({"peers": "a.yaml,b.yaml"})
    with pytest.raises(UserError, match="teacher=peer:2-b is trained beside this student"):
        api.distill("yolo11n.yaml", "peer:2-b", data=toy_data, imgsz=64, device="cpu")


def test_who_teaches_whom(tmp_path: Path) -> None:
    asked = {"peers": ["yolo11n.yaml", Path("yolo11n.yaml"), "yolov8n.yaml"], "project": str(tmp_path), "name": "p"}
    chain = peers._planned({**asked, "data": "d.yaml", "losses": "cls", "seed": 3})
    assert chain.folder == tmp_path / "p"
    assert [(step.name, step.teacher) for step in chain.steps] == [
        ("1-yolo11n", "peer:2-yolo11n,peer:3-yolov8n"),
        ("2-yolo11n", "peer:1-yolo11n,peer:3-yolov8n"),
        ("3-yolov8n", "peer:1-yolo11n,peer:2-yolo11n"),
    ]
    assert chain.settings == {"losses": "cls", "data": "d.yaml", "seed": 3, "project": str(tmp_path)}
    specs = read_teachers(chain.steps[0].teacher)
    assert [find_teacher(spec).kind for spec in specs] == ["peer", "peer"]
    assert [fingerprint(spec) for spec in specs] == ["", ""]
    chain.folder.mkdir()
    chain.save()
    assert Chain.load(chain.folder) == chain


def test_the_whole_run_is_that_of_the_best_peer(tmp_path: Path) -> None:
    runs = tuple(Run(tmp_path / name, {"fitness": fitness}) for name, fitness in {"1": 0.2, "2": 0.3, "3": 0.3}.items())
    whole = Run(tmp_path, {}, runs)
    assert whole.best == runs[1].best == tmp_path / "2" / "weights" / "best.pt"
    assert whole.last == runs[1].last


# A peer as a teacher ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector("yolo11n.yaml", tmp_path_factory.mktemp("peer") / "peer.pt", NAMES, seed=5)


@pytest.fixture
def network(pt: Path) -> Any:
    model = build_student(pt).train().requires_grad_(True)
    model.model[3].eval()  # as Ultralytics leaves the batch statistics of frozen layers
    return model


def opened(spec: TeacherSpec, student: HeadInfo, network: Callable[[], nn.Module]) -> Any:
    device = torch.device("cpu")
    return open_teacher(spec, device, student, network=network, peers={"2-it": network}, side=64, trust=False)


def asked_as_a_peer(network: nn.Module) -> RunningTeacher:
    (spec,) = read_teachers("peer:2-it")
    student = head_info(network)  # type: ignore[arg-type]
    teacher = opened(spec, student, lambda: network)
    assert isinstance(teacher, RunningTeacher)
    return teacher


def test_being_asked_changes_nothing_of_a_peer(network: Any) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    said = asked_as_a_peer(network)({"img": torch.rand(2, 3, 64, 64)})
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())  # BatchNorm's as well
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    outputs = [said.scores, said.boxes, *said.feats]  # type: ignore[misc]
    assert not any(output.requires_grad for output in outputs)  # type: ignore[union-attr]


def test_no_gradient_reaches_a_peer_and_the_student_learns_from_its_present_weights(network: Any, pt: Path) -> None:
    student, images = build_student(pt).train(), torch.rand(2, 3, 64, 64)
    teacher = asked_as_a_peer(network)
    with torch.no_grad():
        student.model[-1].cv3[0][-1].bias.add_(1.0)  # else they agree
    assigned = replace(assignment(), normalizer=torch.ones(()))

    def loss() -> Tensor:
        said = branches(student(images))[0]
        return ClassificationKD()(said, teacher({"img": images}), assigned)

    first = loss()
    first.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for p in network.parameters())
    with torch.no_grad():  # a step of the peer's optimizer, in place
        network.model[-1].cv3[1][-1].bias.sub_(3.0)
    assert loss().item() != pytest.approx(first.item(), rel=1e-3)


def test_a_peer_that_builds_its_network_anew_is_asked_as_it_is_then(network: Any) -> None:
    held = [network]
    student = head_info(network)
    (spec,) = read_teachers("peer:2-it")
    teacher = opened(spec, student, lambda: held[0])
    images = torch.rand(1, 3, 64, 64)
    before = teacher({"img": images}).scores
    held[0] = build_student("yolo11n.yaml", names=NAMES)
    assert not torch.equal(before, teacher({"img": images}).scores)  # type: ignore[arg-type]
