from pathlib import Path

import pytest
import torch
from torch import nn

from yolokd.errors import UserError
from yolokd.sidecar import NAME, Sidecar, complete_rows, load_sidecar


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    losses = nn.ModuleDict({"cwd": nn.Conv2d(2, 3, 1, bias=False)})
    optimizer = torch.optim.AdamW(losses.parameters(), lr=0.1)
    for _ in range(steps):
        losses["cwd"](torch.ones(1, 2, 1, 1)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses, optimizer


def test_round_trip_continues_exactly(tmp_path: Path) -> None:
    losses, optimizer = trained(3)
    Sidecar({"teacher": "t.pt"}, "abc").with_epoch(4, losses, optimizer).save(tmp_path)
    expected, expected_optimizer = trained(3)
    fresh, fresh_optimizer = trained(0)
    sidecar = load_sidecar(tmp_path)
    assert (sidecar.config, sidecar.teacher_sha256) == ({"teacher": "t.pt"}, "abc")
    sidecar.restore(4, fresh, fresh_optimizer)
    for model, opt in ((fresh, fresh_optimizer), (expected, expected_optimizer)):
        model["cwd"](torch.ones(1, 2, 1, 1)).sum().backward()  # type: ignore[index, operator]
        opt.step()
    assert torch.equal(fresh["cwd"].weight, expected["cwd"].weight)  # type: ignore[index]


def test_the_course_survives(tmp_path: Path) -> None:
    course = {
        "balance": {"gains": {"cwd": 2.5}, "measured": {"cwd": [0.1, -0.5]}, "warned": [["cwd", "vanishes"]]},
        "guard": {"best": None, "best_epoch": 3, "at_best": {"cwd": 0.25}, "fading_from": None},
    }
    losses, optimizer = trained(1)
    sidecar = Sidecar({}, "").with_epoch(0, losses, optimizer, {"guard": "of another epoch"})
    sidecar.with_epoch(1, losses, optimizer, course).save(tmp_path)
    loaded = load_sidecar(tmp_path)
    assert loaded.restore(1, *trained(0)) == course
    assert loaded.restore(0, *trained(0)) == {"guard": "of another epoch"}


def test_a_course_is_not_the_callers_own() -> None:
    course = {"guard": 1}
    sidecar = Sidecar({}, "").with_epoch(0, *trained(1), course)
    course["guard"] = 2
    assert sidecar.records[0]["course"] == {"guard": 1}


def test_a_record_without_a_course_gives_an_empty_one(tmp_path: Path) -> None:
    losses, optimizer = trained(1)
    sidecar = Sidecar({}, "").with_epoch(0, losses, optimizer)
    assert sidecar.restore(0, *trained(0)) == {}
    old = {key: value for key, value in sidecar.records[0].items() if key != "course"}  # as yolokd 0.1 wrote it
    Sidecar({}, "", {0: old}).save(tmp_path)
    fresh, fresh_optimizer = trained(0)
    assert load_sidecar(tmp_path).restore(0, fresh, fresh_optimizer) == {}
    assert torch.equal(fresh["cwd"].weight, losses["cwd"].weight)  # type: ignore[index]


def test_two_epochs_are_kept_and_a_repeated_one_replaces_the_later(tmp_path: Path) -> None:
    losses, optimizer = trained(1)
    sidecar = Sidecar({}, "")
    for epoch in (0, 1, 2):
        sidecar = sidecar.with_epoch(epoch, losses, optimizer)
    assert list(sidecar.records) == [1, 2]
    assert list(sidecar.with_epoch(2, losses, optimizer).records) == [1, 2]
    assert list(sidecar.with_epoch(1, losses, optimizer).records) == [1]


def test_an_epoch_that_is_not_there_is_refused() -> None:
    losses, optimizer = trained(1)
    with pytest.raises(UserError, match=r"adapters of epoch 3, but last\.pt is of epoch 7"):
        Sidecar({}, "").with_epoch(2, losses, optimizer).restore(6, losses, optimizer)


@pytest.mark.parametrize(("fused", "device"), [(True, "meta"), (False, "cpu")])
def test_a_fused_optimizer_gets_its_step_counter_on_the_device(fused: bool, device: str) -> None:
    losses, optimizer = trained(1)
    sidecar = Sidecar({}, "").with_epoch(0, losses, optimizer)
    there = nn.ModuleDict({"cwd": nn.Conv2d(2, 3, 1, bias=False, device="meta")})
    other = torch.optim.AdamW(there.parameters(), lr=0.1)
    other.param_groups[0]["fused"] = fused
    sidecar.restore(0, there, other)
    state = other.state[there["cwd"].weight]  # type: ignore[index]
    assert state["exp_avg"].device.type == "meta"
    assert state["step"].device.type == device


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        load_sidecar(tmp_path)
    (tmp_path / NAME).write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        load_sidecar(tmp_path)
    torch.save({"version": 99, "config": {}, "teacher_sha256": "", "records": {}}, tmp_path / NAME)
    with pytest.raises(UserError, match="another version of yolokd"):
        load_sidecar(tmp_path)


def test_nothing_partial_is_left(tmp_path: Path) -> None:
    Sidecar({}, "").save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


HEADER = "epoch,time,loss"


@pytest.mark.parametrize(
    ("rows", "epochs", "kept"),
    [
        (["1,2,3", "2,3,4", "3,4,5"], 2, ["1,2,3", "2,3,4"]),  # a row too many
        (["1,2,3", "2,3"], 2, ["1,2,3"]),  # torn
        (["1,2,3", "2,3,4", "2,9,9"], 2, ["1,2,3", "2,9,9"]),  # twice: the later one counts
        (["1,2,3"], 0, []),
        ([], 3, []),
    ],
)
def test_rows(rows: list[str], epochs: int, kept: list[str]) -> None:
    assert complete_rows("\n".join([HEADER, *rows]) + "\n", epochs).split() == [HEADER, *kept]


def test_an_empty_file_stays_empty() -> None:
    assert complete_rows("", 3) == ""
