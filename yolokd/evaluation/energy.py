"""What a computation draws from the socket, as far as the machine counts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")  # Linux: counters of Intel's and AMD's processors
_NO_NVML = 2**63  # microjoules: NVML's counter never begins again


@dataclass(frozen=True)
class Meter:
    """Energy counters that only grow, but for beginning again at 0.

    Attributes:
        read: what they say now, in microjoules.
        ranges: the most that each can say, in microjoules; after that it begins again.
        note: what is counted.
    """

    read: Callable[[], list[int]]
    ranges: Sequence[int]
    note: str

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Energy between two readings, between which no counter began again twice.

        Args:
            before: the first reading.
            after: the second.
        """
        counted = zip(before, after, self.ranges, strict=True)
        return sum((now - was) % (most + 1) for was, now, most in counted) / 1e6


def find_meter(gpu: bool, powercap: Path = POWERCAP) -> tuple[Meter | None, str]:
    """Find the counters of the processor that computes.

    Args:
        gpu: it is the GPU, whose driver counts (NVML); else the processor (RAPL).
        powercap: folder of the processor's counters.

    Returns:
        the counters and what they count, or None and why there are none.
    """
    return _nvml() if gpu else _rapl(powercap)


def _rapl(powercap: Path) -> tuple[Meter | None, str]:
    """The counters of whole processor packages: their parts (cores, uncore) and ``psys`` would count things twice."""
    zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _text(zone / "name").startswith("package")]
    if not zones:
        return None, "this machine does not say what its processor draws (no RAPL)"
    counters = [zone / "energy_uj" for zone in zones]

    def read() -> list[int]:
        return [int(counter.read_text()) for counter in counters]

    try:
        read()
        ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
    except (OSError, ValueError):
        return None, f"{counters[0]} is not readable; root may read it"
    note = "of the whole processor (RAPL), with its idle power and whatever else it did meanwhile; no memory, no fans"
    return Meter(read, ranges, note), note


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _nvml() -> tuple[Meter | None, str]:
    """The counter of the GPU that torch calls 0; it is renewed some ten times a second."""
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")

        def read() -> list[int]:
            return [1000 * int(nvml.nvmlDeviceGetTotalEnergyConsumption(gpu))]  # it counts millijoules

        read()
    except Exception as error:  # no pynvml, an old torch, and whatever a driver says
        return None, f"the GPU does not say what it draws (NVML: {type(error).__name__})"
    note = (
        "of the whole GPU (NVML), with its idle power and whatever else it did meanwhile; not the rest of the machine"
    )
    return Meter(read, [_NO_NVML], note), note
