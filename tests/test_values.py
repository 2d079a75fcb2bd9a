from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from yolokd.errors import UserError
from yolokd.values import (
    GUARD_PATIENCE,
    Problems,
    balance_share,
    class_names,
    count,
    guard_patience,
    like,
    tapped_layers,
)

GAINS = {"cls": 3.0, "cwd": 3.0}


def accepted(read: Callable[[Problems], Any]) -> Any:
    """The value that is read, where nothing is wrong with it."""
    problems = Problems()
    value = read(problems)
    problems.raise_if_any()
    return value


def refusal(read: Callable[[Problems], Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        accepted(read)
    assert "\n" not in caught.value.problem + caught.value.remedy
    return caught.value


def test_problems_are_told_together_and_a_remedy_once() -> None:
    problems = Problems()
    problems.raise_if_any()
    problems.add("a is wrong.", "Write a=1.")
    problems.add("b is wrong", "Write a=1.")
    with pytest.raises(UserError) as caught:
        problems.raise_if_any()
    assert caught.value.problem == "a is wrong; b is wrong."
    assert caught.value.remedy == "Write a=1."


@pytest.mark.parametrize(("ours", "epochs"), [({}, 0), ({"kd_close": 0}, 0), ({"kd_close": 7}, 7)])
def test_a_count_of_epochs(ours: dict[str, Any], epochs: int) -> None:
    assert accepted(lambda problems: count(ours, "kd_close", problems)) == epochs


@pytest.mark.parametrize("value", [-1, 1.5, True, "3", None])
def test_what_counts_no_epochs(value: Any) -> None:
    error = refusal(lambda problems: count({"refine_epochs": value}, "refine_epochs", problems))
    assert error.problem == f"refine_epochs={value} is not a number of epochs."
    assert error.remedy == "refine_epochs counts epochs: 0, 1, 2, ..."


@pytest.mark.parametrize(
    ("ours", "share"),
    [
        ({}, None),
        ({"balance": 0.1}, 0.1),
        ({"balance": 1}, 1.0),
        ({"balance": "off"}, None),
        ({"balance": "OFF"}, None),
        ({"balance": "none"}, None),
        ({"balance": False}, None),  # YAML's reading of a bare off
        ({"balance": None}, None),
        ({"balance": 0}, None),
        ({"balance": 0.1, "losses": "cls,cwd"}, 0.1),
        ({"balance": 0.1, "losses": {"cls": None, "cwd": None}}, 0.1),
        ({"balance": "off", "losses": "cls:1"}, None),
    ],
)
def test_the_share_of_balance(ours: dict[str, Any], share: float | None) -> None:
    read = accepted(lambda problems: balance_share(ours, GAINS, problems))
    assert read == share
    assert read is None or isinstance(read, float)


@pytest.mark.parametrize("value", [2, 1.01, -0.1, "x", "0.1", True, float("nan"), float("inf"), [0.1]])
def test_what_is_no_share(value: Any) -> None:
    error = refusal(lambda problems: balance_share({"balance": value}, GAINS, problems))
    assert error.problem == f"balance={value} is not a share."
    assert "above 0 and at most 1, e.g. balance=0.1, or off" in error.remedy


@pytest.mark.parametrize("losses", ["cls:0.5,cwd", ["cls", "cwd:2"], {"cls": 0.5, "cwd": None}])
def test_balance_beside_gains_is_refused(losses: Any) -> None:
    error = refusal(lambda problems: balance_share({"balance": 0.1, "losses": losses}, GAINS, problems))
    assert error.problem == "balance= sets the gains, and losses= sets them too."
    assert error.remedy == "Write losses=cls,cwd, or balance=off."


def test_balance_without_losses_is_refused() -> None:
    error = refusal(lambda problems: balance_share({"balance": 0.1, "losses": "none"}, {}, problems))
    assert error.problem == "balance is set, but there are no losses."


def test_losses_that_cannot_be_read_are_no_gains() -> None:
    assert accepted(lambda problems: balance_share({"balance": 0.1, "losses": "cls,,cwd"}, GAINS, problems)) == 0.1


@pytest.mark.parametrize(
    ("ours", "patience"),
    [
        ({}, GUARD_PATIENCE),
        ({"guard": "on"}, GUARD_PATIENCE),
        ({"guard": True}, GUARD_PATIENCE),
        ({"guard": "off"}, None),
        ({"guard": "Off"}, None),
        ({"guard": False}, None),
        ({"guard": None}, None),
        ({"guard_patience": 1}, 1),
        ({"guard_patience": None}, GUARD_PATIENCE),
        ({"guard": "on", "guard_patience": 5}, 5),
        ({"guard": "off", "guard_patience": 5}, None),
    ],
)
def test_the_guard_and_its_patience(ours: dict[str, Any], patience: int | None) -> None:
    assert accepted(lambda problems: guard_patience(ours, problems)) == patience


@pytest.mark.parametrize("value", ["maybe", "", 1, 3.5])
def test_a_guard_that_is_neither_on_nor_off(value: Any) -> None:
    error = refusal(lambda problems: guard_patience({"guard": value}, problems))
    assert error.problem == f"guard={value} is neither on nor off."
    assert "guard=off" in error.remedy


@pytest.mark.parametrize("value", [0, -2, True, False, "x", 2.5])
@pytest.mark.parametrize("guard", ["on", "off"])
def test_what_is_no_patience(guard: str, value: Any) -> None:
    error = refusal(lambda problems: guard_patience({"guard": guard, "guard_patience": value}, problems))
    assert error.problem == f"guard_patience={value} is not a number of epochs."
    assert error.remedy == "guard_patience is 1, 2, 3, ..."


@pytest.mark.parametrize(
    ("written", "layers"),
    [
        ("4,6,10", ((4, 4), (6, 6), (10, 10))),
        ((4, 6, 10), ((4, 4), (6, 6), (10, 10))),  # Ultralytics' grammar reads 4,6,10 so
        ([4, 6], ((4, 4), (6, 6))),
        (4, ((4, 4),)),
        (0, ((0, 0),)),
        ("4:4,6:6,10:9", ((4, 4), (6, 6), (10, 9))),
        (" 4 , 10 : 9 ", ((4, 4), (10, 9))),
        (["4:4", "10:9"], ((4, 4), (10, 9))),
    ],
)
def test_layers_as_number_text_and_list(written: Any, layers: tuple[tuple[int, int], ...]) -> None:
    assert accepted(lambda problems: tapped_layers(written, GAINS, problems)) == layers


@pytest.mark.parametrize("written", [None, "", (), [], "off", "none", "None", False])
@pytest.mark.parametrize("losses", [GAINS, {}, {"cls": 1.0}])
def test_no_layers(written: Any, losses: dict[str, float]) -> None:
    assert accepted(lambda problems: tapped_layers(written, losses, problems)) == ()


@pytest.mark.parametrize(
    "written", ["a", "4:", ":4", "4:a", "4,,6", "4:4:4", "-1", "4.5", 4.0, True, (4, -6), "²", {4: 4}]
)
def test_what_is_no_list_of_layers(written: Any) -> None:
    error = refusal(lambda problems: tapped_layers(written, GAINS, problems))
    assert error.problem == f"taps={written} is not a list of layers."
    assert error.remedy == "Write taps=4,6,10, or taps=STUDENT:TEACHER,..."


@pytest.mark.parametrize("losses", [{}, {"cls": 1.0}, {"cls": 1.0, "crosskd": 1.0, "box": 1.0}])
def test_layers_that_no_loss_looks_at_are_refused(losses: dict[str, float]) -> None:
    error = refusal(lambda problems: tapped_layers("4,6", losses, problems))
    assert error.problem == "taps= is set, but no loss looks at layers."
    assert error.remedy.startswith("Losses that do: ")
    assert "cwd" in error.remedy
    assert "crosskd" not in error.remedy


def test_one_loss_that_looks_at_layers_is_enough_and_a_mistyped_one_is_not_blamed_twice() -> None:
    for losses in ({"cls": 1.0, "mgd": 1.0}, {"cwdd": 1.0}):
        assert accepted(lambda problems, losses=losses: tapped_layers(4, losses, problems)) == ((4, 4),)


@pytest.mark.parametrize(
    ("default", "value", "read"),
    [
        (1.0, 4, 4.0),
        (1.0, 0.5, 0.5),
        (3, 4, 4),
        (True, False, False),
        ("mean", "sum", "sum"),
        (None, "anything", "anything"),
    ],
)
def test_a_value_takes_the_type_of_the_default(default: Any, value: Any, read: Any) -> None:
    found = like(default, value)
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("default", "value"),
    [(1.0, "hot"), (1.0, True), (1.0, float("nan")), (1.0, float("inf")), (3, 4.0), (3, True), (True, 1), ("mean", 3)],
)
def test_a_value_of_another_type(default: Any, value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the caller words it
        like(default, value)


def test_class_names_as_text_and_mapping() -> None:
    wanted = {"motorbike": "motorcycle", "traffic light": "lamp"}
    for written in ("motorbike:motorcycle, traffic light:lamp", wanted):
        assert accepted(lambda problems, written=written: class_names(written, problems)) == wanted
    assert accepted(lambda problems: class_names(None, problems)) == {}


@pytest.mark.parametrize("written", ["motorbike", "a:", ":b", "a:b,a:c", "a:b,", 3])
def test_what_is_no_map_of_class_names(written: Any) -> None:
    error = refusal(lambda problems: class_names(written, problems))
    assert error.problem == f"class_map={written} is not a map of class names."
    assert "TEACHER:STUDENT" in error.remedy


def test_what_yaml_made_of_a_pair_of_layers_is_explained() -> None:
    error = refusal(lambda problems: tapped_layers(yaml.safe_load("4:6"), {"cwd": 1.0}, problems))
    assert error.problem == "taps=246: no model has a layer 246."
    assert "quote a pair" in error.remedy
    assert accepted(lambda problems: tapped_layers("0", {"cwd": 1.0}, problems)) == ((0, 0),)  # a layer, not "off"
