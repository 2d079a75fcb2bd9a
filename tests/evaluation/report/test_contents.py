"""Whatever is damaged in report.json is refused in two lines; whatever may be missing is filled in."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.report.made_up import made_up
from yolokd.errors import UserError
from yolokd.evaluation.report.contents import read_report
from yolokd.evaluation.report.markdown import comparison_markdown
from yolokd.evaluation.report.page import comparison_page

# Objects with any keys, and values that are all alike.
ALIKE = (
    "per_class",
    "by_class",
    "by_size",
    "curves",
    "loss",
    "share",
    "speed",
    "calibration",
    "fairness",
    "corruptions",
)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a content; of what is alike the first."""
    yield place
    inside = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, inner in inside[:1] if isinstance(value, list) or place[-1:] in [(key,) for key in ALIKE] else inside:
        yield from places(inner, (*place, key))


def put(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with something else at a place."""
    changed = copy.deepcopy(content)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Any], dict[str, Any]]:
    def call(content: Any) -> dict[str, Any]:
        (tmp_path / "report.json").write_text(json.dumps(content))
        return read_report(tmp_path)

    return call


def test_a_whole_report_comes_back_as_it_is(read: Callable[[Any], Any]) -> None:
    content = made_up()
    report = read(content)
    for arm, theirs in zip(report["arms"], content["arms"], strict=True):
        assert {key: arm[key] for key in arm} == {key: theirs[key] for key in arm}
    assert report["robustness"]["arms"] == content["robustness"]["arms"]
    assert report["curves"] == content["curves"]


def test_a_list_where_something_else_belongs_is_refused_everywhere(read: Callable[[Any], Any]) -> None:
    """A list fits nowhere by chance but where a list belongs, and there its element does not fit."""
    content = made_up()
    free = ("version", "settings", "keys", "strengths", "names", "runs", "seeds", "fgsm")
    accepted, said = [], []
    for place in places(content):
        if not place or any(key in free for key in place):
            continue
        try:
            read(put(content, place, [["?"]]))
            accepted.append(place)
        except UserError as error:
            said.append(str(error))
    assert accepted == []
    assert len(said) > 150
    assert all(error.count("\n") == 1 and "is damaged: " in error for error in said)


def test_the_emptiest_report_still_makes_a_page(read: Callable[[Any], Any], tmp_path: Path) -> None:
    """Null everything that may be null: what is left must be shown without stumbling."""
    content = made_up()
    for place in list(places(content))[1:]:
        try:
            emptier = put(content, place, None)
        except (KeyError, TypeError, IndexError):
            continue  # inside something that is null already
        try:
            read(emptier)
        except UserError:
            continue
        content = emptier
    assert content["teacher"] is None
    report = read(content)
    assert report["arms"][0]["ap"] == {"mean": None, "sd": None, "values": [None]}
    page = comparison_page(report, tmp_path)
    assert "No teacher was judged" in page
    assert "None" not in page
    assert comparison_markdown(report)


@pytest.mark.parametrize("key", ["verdict", "arms", "seeds", "data", "machine", "command", "date"])
def test_what_is_missing_is_named(read: Callable[[Any], Any], key: str) -> None:
    content = made_up()
    del content[key]
    with pytest.raises(UserError, match=rf"is damaged: {key}.* is missing"):
        read(content)


def test_the_place_of_the_damage_is_named(read: Callable[[Any], Any]) -> None:
    with pytest.raises(UserError, match=r"is damaged: arms\[2\]\.ap\.mean is not a number\."):
        read(put(made_up(), ("arms", 2, "ap", "mean"), "30.1"))


@pytest.mark.parametrize("text", ["", "{", "[]", '"report"', "{}", "null", '{"version": "1"}', '{"version": true}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match=r"cannot be read|is damaged") as refused:
        read_report(tmp_path)
    assert "resume=" in refused.value.remedy
    assert str(refused.value).count("\n") == 1


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_report(tmp_path)


def test_another_version_is_named(read: Callable[[Any], Any]) -> None:
    with pytest.raises(UserError, match=r"format 2, here 1"):
        read({"version": 2})


def test_numbers_that_are_not_finite_are_none(read: Callable[[Any], Any], tmp_path: Path) -> None:
    report = read(put(put(made_up(), ("arms", 0, "gflops"), float("nan")), ("arms", 1, "kept"), float("inf")))
    assert report["arms"][0]["gflops"] is None
    assert report["arms"][1]["kept"] is None


def test_a_teacher_judged_once_may_have_plain_numbers(read: Callable[[Any], Any]) -> None:
    content = made_up()
    content["teacher"] |= {"ap": 0.38, "per_class": {"fish": 0.4, "shark": None}}
    teacher = read(content)["teacher"]
    assert teacher["ap"] == {"mean": 0.38, "sd": None, "values": [0.38]}
    assert teacher["per_class"]["shark"] == {"mean": None, "sd": None, "values": [None]}


def test_the_note_on_speed_is_no_arm(read: Callable[[Any], Any]) -> None:
    content = made_up()
    content["speed"] = {"note": "no onnxruntime"}
    report = read(content)
    assert report["speed"] == {}
    assert report["speed_note"] == "no onnxruntime"


@pytest.mark.parametrize(
    ("place", "named"),
    [
        (("curves", "plain", "low"), "curves.plain"),
        (("terms", "yolokd", "share", "cls"), "terms.yolokd"),
        (("calibration", "teacher", "bins", 0), "calibration.teacher"),
    ],
)
def test_lists_of_different_length_are_refused(read: Callable[[Any], Any], place: tuple[Any, ...], named: str) -> None:
    with pytest.raises(UserError, match=f"the lists of {named} differ in length"):
        read(put(made_up(), place, [0.1, 0.2]))
