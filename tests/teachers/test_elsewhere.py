"""A teacher on another device, on a machine that has a CPU only: on GPUs that are not there, and from CPU to CPU."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

from tests.helpers import head, panel, predictions
from tests.test_criterion import batch, detector, make
from yolokd import preflight, seating
from yolokd.config import build_config
from yolokd.errors import UserError
from yolokd.predictions import Hidden, Predictions, SoftDetections
from yolokd.schedule import Schedule
from yolokd.teachers import live
from yolokd.teachers.elsewhere import Elsewhere, bare, is_there, moved, same_device
from yolokd.teachers.live import LARGER, LiveTeacher
from yolokd.trainer import DistillationTrainer

CPU, ALSO_CPU = torch.device("cpu"), torch.device("cpu", 0)  # two names, one device: all that this machine has
GPU, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


class Says:
    """A teacher that notes what it was asked and says the mean of it, so that an answer tells its question."""

    name = "told"

    def __init__(self) -> None:
        self.info = head()
        self.asked: list[dict[str, Any]] = []

    def __call__(self, batch: Any) -> Predictions:
        self.asked.append(dict(batch))
        return replace(predictions(), scores=batch["img"].mean().expand(2, 2, 20).clone())


def images(value: float) -> dict[str, Tensor]:
    return {"img": torch.full((2, 3, 32, 32), value)}


def said(answer: Predictions) -> float:
    assert answer.scores is not None
    return float(answer.scores[0, 0, 0])


# Where things go ------------------------------------------------------------------------------------------------


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, (Predictions, SoftDetections)):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def test_everything_of_an_answer_is_moved() -> None:
    """All fields are filled, so that one which is added later and forgotten is seen here."""
    some = (torch.zeros(1), torch.ones(1, dtype=torch.long))
    found = SoftDetections(*(torch.zeros(1) for _ in fields(SoftDetections)))
    whole = Predictions(
        *some, some, *some[:1], some, (some, some), len, torch.ones(1).bool(), found, (Predictions(*some, some),)
    )
    assert all(getattr(whole, field.name) is not None for field in fields(whole))
    gone = moved(whole, torch.device("meta"))
    before, after = list(tensors(whole)), list(tensors(gone))
    assert len(after) == len(before) == 23
    assert {x.device.type for x in after} == {"meta"}
    assert [x.dtype for x in after] == [x.dtype for x in before]
    assert gone.reenter is len
    assert moved(Predictions(None, None, None), CPU) == Predictions(None, None, None)


class Sent(torch.Tensor):
    """Notes how it is sent."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Any:  # type: ignore[override]
        return device.type, non_blocking


@pytest.mark.parametrize(("device", "waits"), [(CPU, True), (GPU, False), (SECOND, False), (torch.device("mps"), True)])
def test_what_goes_to_a_cpu_is_waited_for(device: torch.device, waits: bool) -> None:
    """PyTorch does not: a tensor that is copied there without waiting holds rubbish for a while."""
    assert moved(torch.zeros(1).as_subclass(Sent), device) == (device.type, not waits)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors without numbers, which know where they are; operations on two devices at once fail as on real ones."""
    module = pytest.importorskip("torch._subclasses.fake_tensor")
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    with module.FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.fixture
def network() -> LiveTeacher:
    teacher = LiveTeacher(detector("yolov8n.yaml", 1), CPU, "fp32")
    teacher.open([4], 1)
    return teacher


def hidden(teacher: LiveTeacher, make: Callable[..., Tensor]) -> Hidden:
    """Features for inside its head, as it has them of one image of 64 pixels."""
    boxes, scores = (
        tuple(make(1, width, size, size) for width, size in zip(widths, (8, 4, 2), strict=True))
        for widths in teacher.info.hidden[0]
    )
    return boxes, scores


def test_on_two_gpus(network: LiveTeacher, gpus: None) -> None:
    network.model.to(SECOND, torch.float16)
    network.dtype = torch.float16
    student = replace(network.info, widths=(8, 16, 24))
    them = panel(Elsewhere(network, SECOND), student)
    them._checked = True  # looking at numbers, of which there are none
    data = {"img": torch.empty(2, 3, 64, 64, device=GPU)}
    with pytest.raises(RuntimeError, match="same device"):  # so this test would see a mixture
        network(data)
    grid = torch.empty(84, 2, device=GPU), torch.empty(84, device=GPU)
    them.begin(data)
    begun = them.views[0].teacher._begun  # type: ignore[attr-defined]
    assert {x.device for x in tensors(begun[1])} == {SECOND}
    counted = them.beside(data["img"])  # for AutoBatch: what lies where the student is
    assert len(counted) == 1
    for answer in (them(data, begun[1], *grid), them(data, begun[1], *grid), *counted):
        found = list(tensors(answer))
        assert {x.device for x in found} == {GPU}
        assert len(found) == 6
        assert {x.dtype for x in found} == {torch.float16}
        inside = hidden(network, lambda *size: torch.empty(*size, device=GPU))
        assert answer.reenter is not None
        assert {x.device for x in tensors(answer.reenter(inside))} == {GPU}
    with pytest.raises(RuntimeError, match="same device"):
        network._reenter(inside)


def test_larger_images_on_two_gpus(network: LiveTeacher, gpus: None) -> None:
    network.model.to(SECOND)
    them = panel(Elsewhere(network, SECOND), network.info, ratio=2.0)
    them._checked = True
    data = {"img": torch.empty(2, 3, 64, 64, device=GPU), LARGER: torch.empty(2, 3, 128, 128, device=GPU)}
    them.begin(data)
    answer = them(data, Predictions(torch.empty(2, 3, 84), None, None), torch.empty(84, 2), torch.empty(84))
    assert answer.scores is not None
    assert answer.scores.shape[-1] == 84
    assert {x.device for x in tensors(answer)} == {GPU}


@pytest.mark.parametrize("more", [{}, {LARGER: torch.zeros(2, 3, 64, 64)}])
def test_only_what_the_teacher_looks_at_is_sent(more: dict[str, Tensor]) -> None:
    teacher = Says()
    Elsewhere(teacher, torch.device("meta")).begin({**images(1.0), "cls": torch.zeros(3), **more})
    (asked,) = teacher.asked
    assert list(asked) == ["img"]
    assert asked["img"].device.type == "meta"
    assert asked["img"].shape[-1] == (64 if more else 32)


# The answer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
def test_it_says_what_the_teacher_says(network: LiveTeacher, begun: bool) -> None:
    data = batch()
    plain, there = network(data), Elsewhere(network, ALSO_CPU)
    if begun:
        there.begin(data)
    answer = there(data)
    for one, other in zip(tensors(plain), tensors(answer), strict=True):
        assert torch.equal(one, other)
    assert len(list(tensors(answer))) == 6  # scores, boxes, three levels, a tapped layer
    assert not any(x.requires_grad for x in tensors(answer))


def test_a_begun_answer_is_taken_once() -> None:
    teacher, first = Says(), images(0.25)
    there = Elsewhere(teacher, ALSO_CPU)
    there.begin(first)
    assert len(teacher.asked) == 1
    assert said(there({**first, "student": None})) == 0.25  # the batch may be another dict
    assert len(teacher.asked) == 1
    assert there._begun is None  # images and answer are let go
    assert said(there(first)) == 0.25
    assert len(teacher.asked) == 2


def test_an_answer_that_nobody_fetched_is_never_given_to_another_batch() -> None:
    teacher = Says()
    there = Elsewhere(teacher, ALSO_CPU)
    first, second, alike = images(0.25), images(0.5), images(0.25)
    there.begin(first)
    assert said(there(second)) == 0.5
    assert there._begun is None
    there.begin(first)
    there.begin(second)  # a calibration, or a batch that memory did not suffice for
    assert said(there(second)) == 0.5
    there.begin(first)
    there(alike)  # the same numbers by chance, another tensor
    assert len(teacher.asked) == 6


def test_what_fails_on_the_way_leaves_nothing_behind() -> None:
    class Fails(Says):
        def __call__(self, batch: Any) -> Predictions:
            if batch["img"].mean() > 0.4:
                raise RuntimeError("out of memory")
            return super().__call__(batch)

    there = Elsewhere(Fails(), ALSO_CPU)
    there.begin(images(0.25))
    with pytest.raises(RuntimeError, match="out of memory"):
        there.begin(images(0.5))
    assert there._begun is None


def test_a_gradient_goes_through_the_door_and_back(network: LiveTeacher) -> None:
    """As through the teacher's own, and none stays in the teacher."""

    def gradients(teacher: Any) -> list[Tensor]:
        g = torch.Generator().manual_seed(3)
        inside = hidden(network, lambda *size: torch.randn(*size, generator=g).requires_grad_())
        answer = teacher({"img": torch.zeros(1, 3, 64, 64)}).reenter(inside)
        (answer.scores.square().sum() + answer.boxes.square().sum()).backward()
        return [x.grad for x in tensors(inside) if x.grad is not None]

    plain, there = gradients(network), gradients(Elsewhere(network, ALSO_CPU))
    assert len(plain) == len(there) == 6
    assert all(torch.equal(a, b) and bool(a.any()) for a, b in zip(plain, there, strict=True))
    assert all(p.grad is None for p in network.model.parameters())


def test_what_the_teacher_can_beside_answering(network: LiveTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Elsewhere(network, ALSO_CPU)
    assert (there.info, there.name, there.model) == (network.info, network.name, network.model)
    them = panel(there, network.info)
    them.to_precision(torch.bfloat16)
    assert there.dtype == network.dtype == torch.bfloat16
    monkeypatch.setattr(torch, "compile", lambda module: ("compiled", module))
    them.compile()
    assert network._run == ("compiled", network.model)
    there.open()
    assert network._tap is None
    assert not hasattr(there, "forward")  # it would answer where the student does not see it
    less = Elsewhere(Says(), ALSO_CPU)
    assert not any(hasattr(less, name) for name in ("model", "open", "to_precision", "fixed"))
    assert bare(there) is network
    assert bare(network) is network


def test_which_devices_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert [is_there(d) for d in (CPU, GPU, torch.device("cuda"), SECOND, torch.device("mps"))] == [
        *(True, True, True),
        *(False, False),
    ]
    assert same_device(torch.device("cuda"), GPU)
    assert same_device(CPU, ALSO_CPU)
    assert not same_device(GPU, SECOND)
    assert not same_device(CPU, GPU)


# When it is asked -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> Any:
    """A student, its criterion, and what it said of a batch."""
    model, criterion = make(gains={"cls": 1.0})
    return model, criterion, model(batch()["img"])


@pytest.mark.parametrize(
    ("every", "schedule"),
    [(1, {}), (3, {}), (1, {"start": 1}), (1, {"close": 9}), (2, {"warmup": 2}), (2, {"start": 1, "close": 8})],
)
def test_the_criterion_knows_in_advance_whether_it_will_ask(
    made: Any, every: int, schedule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, criterion, preds = made
    criterion.every, criterion.watch = every, False
    answered: list[str] = []

    def distil(*args: Any) -> dict[str, Tensor]:
        answered.append("asked")
        return {"cls": torch.ones(())}

    monkeypatch.setattr(criterion, "_distil", distil)
    plan, seen = Schedule(**{"kind": "constant", "epochs": 10, "warmup": 0, **schedule}), []
    for epoch in range(3):
        criterion.begin_epoch(epoch, 3, plan)
        for _ in range(3):
            foretold, before = criterion.asks, len(answered)
            assert criterion.asks is foretold  # to look changes nothing
            criterion(preds, batch())
            assert foretold is (len(answered) > before)
            seen.append(foretold)
    assert any(seen)
    assert all(seen) is (every == 1 and not schedule)


def test_the_faded_guard_lets_it_rest(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, criterion, _ = made
    criterion.every = 1
    criterion.begin_epoch(9, 1, Schedule("constant", 10, 0))
    assert criterion.asks
    monkeypatch.setattr(criterion.guard, "_fading_from", 0)
    assert not criterion.asks


def test_a_batch_is_begun_only_where_the_criterion_will_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(DetectionTrainer, "preprocess_batch", lambda self, batch: {**batch, "ready": True})
    itself = DistillationTrainer.__new__(DistillationTrainer)
    itself.config, itself.panel, itself.criterion = build_config({"teacher": "t.pt"}), None, None
    assert itself.preprocess_batch({"img": 1}) == {"img": 1, "ready": True}  # a plain run
    itself.panel = SimpleNamespace(begin=begun.append)  # type: ignore[assignment]
    itself.preprocess_batch({"img": 1})  # calibration, before there is a criterion
    itself.criterion = SimpleNamespace(asks=False)  # type: ignore[assignment]
    itself.preprocess_batch({"img": 1})
    assert begun == []
    itself.criterion.asks = True  # type: ignore[misc, union-attr]
    itself.preprocess_batch({"img": 2})
    assert begun == [{"img": 2, "ready": True}]


# A whole training -----------------------------------------------------------------------------------------------


def train(toy_data: Path, student: Path, teacher: Path, project: Path, **more: Any) -> DistillationTrainer:
    fast = {"epochs": 1, "imgsz": 64, "batch": 2, "nbs": 2, "device": "cpu", "plots": False, "workers": 0, "val": False}
    files = {"data": str(toy_data), "model": str(student), "project": str(project), "teacher": str(teacher)}
    this = DistillationTrainer(overrides={**fast, **files, "warmup_epochs": 0, "mode": "train", **more})
    this.train()
    return this


def last_row(folder: Path) -> dict[str, str]:
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {key.strip(): value for key, value in rows[-1].items() if key.strip() != "time"}


def test_in_a_training_it_begins_before_the_student(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that is learned depends on it: the same numbers as with the teacher where the student is."""
    monkeypatch.setattr(DetectionTrainer, "validate", lambda self: ({}, 0.0))  # no teacher is asked in either
    monkeypatch.setattr(DetectionTrainer, "final_eval", lambda self: None)
    keys = {"losses": "cls,cwd", "teacher_every": 2, "teacher_imgsz": 96, "fraction": 0.75}
    plain = train(toy_data, toy_student, toy_teacher, tmp_path / "plain", teacher_device="cpu", **keys)
    assert plain.panel is not None
    assert isinstance(plain.panel.views[0].teacher, LiveTeacher)  # the student's own device
    events: list[str] = []

    def noted(owner: Any, name: str, word: str) -> None:
        real = getattr(owner, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not (word == "student" and not (self.training and isinstance(args[0], dict))):
                events.append(word)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    monkeypatch.setattr(seating, "teachers_device", lambda config, device: ALSO_CPU)
    for owner, name, word in (
        (DetectionModel, "forward", "student"),
        (Elsewhere, "begin", "begin"),
        (Elsewhere, "__call__", "fetch"),
        (LiveTeacher, "forward", "teacher"),
    ):
        noted(owner, name, word)
    there = train(toy_data, toy_student, toy_teacher, tmp_path / "there", **keys)
    assert there.panel is not None
    teacher = there.panel.views[0].teacher
    assert isinstance(teacher, Elsewhere)
    training = events[events.index("begin") :]  # before it, the preflight has asked
    asked = ["begin", "teacher", "student", "fetch"]
    assert training == [*asked, "student", *asked]
    assert teacher._begun is None
    assert last_row(there.save_dir) == last_row(plain.save_dir)


def test_the_preflight_asks_it_too(
    toy_data: Path, toy_student: Path, toy_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (seating, preflight):
        monkeypatch.setattr(module, "teachers_device", lambda config, device: ALSO_CPU)
    theirs = {"model": str(toy_student), "data": str(toy_data), "imgsz": 64, "device": "cpu"}
    report = preflight.preflight(build_config({"teacher": str(toy_teacher), "losses": "cls,crosskd"}), theirs)
    assert report.lines[4].startswith("a step takes at most about")
    assert report.judged == [str(toy_teacher)]  # its mAP is measured as that of any other
    assert "the teacher's weights take" in report.memory


# Its arithmetic, and where it is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "dtype"), [("", torch.bfloat16), ("cuda:1", torch.float32)])
def test_the_precision_is_that_of_its_own_device(
    asked: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student on a CPU that multiplies in bfloat16, without AMP."""
    monkeypatch.setattr(live, "_cpu_multiplies_bf16", lambda: True)
    config, lowered = build_config({"teacher": "t.pt", "teacher_device": asked}), []
    this = SimpleNamespace(
        panel=SimpleNamespace(to_precision=lowered.append),
        config=config,
        device=CPU,
        amp=False,
        args=SimpleNamespace(amp=True),
    )
    DistillationTrainer._lower_teacher(this)  # type: ignore[arg-type]
    assert lowered == [dtype]
    assert preflight._arithmetic(config, {"device": "cpu"})[:2] == (CPU, dtype)


def test_a_resumed_run_on_several_gpus_is_refused_before_workers_begin() -> None:
    """Which devices a checkpoint names is known to Ultralytics only."""
    config = build_config({"teacher": "t.pt", "teacher_device": "cpu"})
    this = SimpleNamespace(ddp=True, config=config, args=SimpleNamespace(device="0,1"))
    with pytest.raises(UserError, match="teacher_device=cpu with device=0,1: each process") as caught:
        DistillationTrainer.train(this)  # type: ignore[arg-type]
    assert "name one device" in caught.value.remedy
