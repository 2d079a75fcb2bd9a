from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolokd.cli import main
from yolokd.losses.base import LOSSES

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["-h"]])
def test_help_lists_modes_and_keys(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    listed = "train val export checks cache losses demo teacher_precision teacher_cache kd_close class_map"
    for word in listed.split():
        assert f"  {word} " in out


@pytest.mark.parametrize("mode", ["train", "val", "export", "checks", "cache", "losses", "demo"])
def test_help_of_a_mode(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([mode, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"yolokd {mode}: ")
    assert f"  yolokd {mode}" in out
    if mode in ("train", "checks"):
        assert all(f"  {name} " in out and info.summary in out for name, info in LOSSES.items())


def test_losses_are_listed_with_gain_needs_options_and_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses"]) == 0
    out = capsys.readouterr().out
    for info in LOSSES.values():
        assert f"\n  {info.name} " in f"\n{out}"
        for piece in (info.family, info.link, info.paper, f"gain {info.gain:g}"):
            assert piece in out
    assert "cwd.temperature=1.0" in out
    needs = {block.split()[0]: block for block in out.split("\n  ") if " needs " in block}
    assert "needs class logits, 2 shared classes" in needs["kd"]
    assert "needs class logits, box logits, the teacher's head" in needs["crosskd"]
    assert "needs features, 2 images a batch" in needs["sp"]
    assert "needs features, ground truth" in needs["rkd"]


def test_help_comes_at_once(here: Path) -> None:
    code = "import sys, yolokd.cli; yolokd.cli.main(['--help']); print({'torch', 'ultralytics'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"  # importing torch takes seconds


def test_a_reader_that_has_seen_enough_ends_it_quietly() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "yolokd", "losses"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
