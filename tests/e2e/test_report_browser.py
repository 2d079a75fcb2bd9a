"""The report in a real browser: whole, silent, readable on a phone and on a desk, by day and by night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import CHROMIUM, Browser, browser
from tests.evaluation.report.made_up import UGLY, write_made_up
from tests.evaluation.report.test_single import rows
from yolokd.evaluation.report import write_report

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"),
]
WIDTHS = (360, 1600)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    write_made_up(folder)
    return write_report(folder)


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed, and pictures that are not there."""
    folder = tmp_path_factory.mktemp("poor")
    write_made_up(folder, seeds=1)
    for file in folder.glob("examples/*.jpg"):
        file.unlink()
    return write_report(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "results.csv").write_text("\n".join(rows(30, taught=True)))
    return write_report(folder)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("name", "images", "figures"), [("comparison", 44, 10), ("poor", 12, 10), ("run", 0, 5)])
def test_a_report(
    chromium: Browser, request: pytest.FixtureRequest, name: str, images: int, figures: int, width: int, dark: bool
) -> None:
    file: Path = request.getfixturevalue(name)
    seen = chromium.look(file, width, dark=dark)
    assert seen.errors == []
    assert seen.fetched == []
    page = seen.page
    assert page["images"] == images
    assert page["broken"] == []
    assert (page["figures"], page["flat"], page["unnamed"]) == (figures, 0, 0)
    assert page["width"] == width
    assert page["wide"] == width  # nothing sticks out to the right; wide tables scroll in their own box
    assert page["smallest"] >= 9.5  # pixels of the smallest text in a figure
    ink, paper = (sum(map(int, page[key][4:-1].split(","))) for key in ("ink", "paper"))
    assert (ink > paper) is dark
    assert len(set(page["ids"])) == len(page["ids"])
    assert file.stat().st_size < 3_000_000
    if name == "comparison":
        assert UGLY in page["text"]


def test_what_it_would_find(chromium: Browser, tmp_path: Path) -> None:
    """The looking is good for something only if it sees a page that is wrong."""
    wrong = tmp_path / "wrong.html"
    wrong.write_text(
        """<!doctype html><meta name="viewport" content="width=device-width">
        <img alt="torn" src="data:image/jpeg;base64,/9j/4AAQ"><img alt="gone" src="missing.png">
        <img src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==">
        <svg role="img" aria-label="flat" width="10" height="1"><text font-size="3">tiny</text></svg>
        <div style="width: 500px">wide</div>
        <script>console.error("said"); console.warn("warned"); fetch("https://example.invalid/x").catch(() => 0);
        setTimeout(() => { throw new Error("thrown"); });</script>"""
    )
    seen = chromium.look(wrong, 360)
    assert seen.page["broken"] == ["torn", "gone"]
    assert (seen.page["unnamed"], seen.page["flat"], seen.page["smallest"]) == (1, 1, 3)
    assert seen.page["wide"] > 360
    assert [url.rpartition("/")[2] for url in sorted(seen.fetched)] == ["missing.png", "x"]
    said = " ".join(seen.errors)
    assert all(word in said for word in ("said", "warned", "ERR_FILE_NOT_FOUND"))
    assert "Uncaught" in said
    # and what was wrong there does not stick to the next page
    fine = tmp_path / "fine.html"
    fine.write_text(
        "<!doctype html><title>fine</title><p>fine<svg role=img aria-label=a height=30><text>a</text></svg>"
    )
    seen = chromium.look(fine, 360)
    assert (seen.errors, seen.fetched, seen.page["broken"]) == ([], [], [])


def test_a_policy_stops_a_script_and_says_so(chromium: Browser, comparison: Path, tmp_path: Path) -> None:
    """Even where escaping failed, the page's own policy lets no script run and nothing be fetched."""
    html = comparison.read_text(encoding="utf-8")
    evil = tmp_path / "evil.html"
    attack = "<script>document.title='owned'</script><img alt='x' src='https://example.invalid/x.png'>"
    evil.write_text(html.replace("</main>", f"{attack}</main>"), encoding="utf-8")
    seen = chromium.look(evil, 1600)
    assert any("Content Security Policy" in error for error in seen.errors)
    assert seen.page["broken"] == ["x"]
    title = chromium.call("Runtime.evaluate", expression="document.title")["result"]["value"]
    assert title == "aquarium: was distilling worth it?"
