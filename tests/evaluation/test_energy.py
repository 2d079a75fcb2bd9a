"""Energy counters: made-up folders of Linux' powercap, a made-up NVML."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolokd.evaluation.energy import find_meter


def zone(root: Path, place: str, name: str, energy: int, most: int = 999_999) -> Path:
    folder = root / place
    folder.mkdir(parents=True)
    for file, content in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{content}\n")
    return folder


def test_whole_packages_are_counted_once(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 200)
    zone(tmp_path, "intel-rapl:0:0", "core", 7)
    zone(tmp_path, "intel-rapl:0:1", "dram", 7)
    zone(tmp_path, "intel-rapl:2", "psys", 7)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 100)
    (tmp_path / "intel-rapl").mkdir()
    meter, note = find_meter(False, tmp_path)
    assert meter is not None
    assert "whole processor (RAPL)" in note
    before = meter.read()
    assert before == [100, 200]
    (first / "energy_uj").write_text("300100")
    (second / "energy_uj").write_text("500200")
    assert meter.joules(before, meter.read()) == pytest.approx(0.8)


def test_a_counter_that_begins_again(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0, most=999_999)
    zone(tmp_path, "intel-rapl:1", "package-1", 0, most=99_999)
    meter, _ = find_meter(False, tmp_path)
    assert meter is not None
    assert meter.joules([999_000, 50_000], [1_000, 60_000]) == pytest.approx(0.012)  # 2 mJ over the end, and 10 mJ


def test_no_counters(tmp_path: Path) -> None:
    assert find_meter(False, tmp_path / "none") == (
        None,
        "this machine does not say what its processor draws (no RAPL)",
    )
    (tmp_path / "intel-rapl:0").mkdir()  # without even a name
    assert find_meter(False, tmp_path)[0] is None


@pytest.mark.parametrize("file", ["energy_uj", "max_energy_range_uj"])
@pytest.mark.parametrize("content", [None, "", "unknown"])
def test_counters_that_cannot_be_read(tmp_path: Path, file: str, content: str | None) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    meter, note = find_meter(False, tmp_path)
    assert meter is None
    assert note.endswith("is not readable; root may read it")


def test_the_gpu_counts_for_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    asked: list[Any] = []
    millijoules = iter([5, 1000, 3500])
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(millijoules),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="12-34"))
    meter, note = find_meter(True, tmp_path)
    assert meter is not None
    assert "whole GPU (NVML)" in note
    assert meter.joules(meter.read(), meter.read()) == pytest.approx(2.5)
    assert asked == ["GPU-12-34"]


def test_a_gpu_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_meter(True) == (None, "the GPU does not say what it draws (NVML: ModuleNotFoundError)")
