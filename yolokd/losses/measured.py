"""What each loss gained alone on our benchmark, for the table of ``yolokd losses``."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

SHARE = "0.3"  # `balance=` of these runs

# Loss to the gain of each seed (0, 1, ...) over a plain run of that seed, in points of mAP50-95; from
# examples/benchmarks/results/losses.csv and aquarium.csv, whose README says how they were made.
MEASURED: dict[str, tuple[float, ...]] = {
    "kd": (0.1, -0.6),
    "cls": (1.1, 1.3),
    "box": (1.3, -0.2),
    "iou": (0.4, 1.1),
    "crosskd": (1.0, 0.4),
    "fitnets": (-0.1, -0.2),
    "at": (1.7, 1.1),
    "cwd": (1.0, 1.3),
    "pkd": (0.7, 0.3),
    "mgd": (1.7, 1.5),
    "fgd": (-1.5, -1.4),
    "sl2": (1.5, 1.6),
    "sp": (-0.0, -1.5),
    "rkd": (0.9, -1.1),
    "graph": (1.3, 0.2),
    "crd": (0.5, 0.1),
    "adv": (-7.9, -9.3),
}

HOW = (
    "Our benchmark: Aquarium, 256 px, 20 epochs, YOLOv8s to YOLO11n, each loss alone with balance=0.3; points of",
    "mAP50-95 over a plain run of the same seed. Two plain runs differ by up to 1.4, so two seeds order few losses.",
)


def in_words(gains: Sequence[float]) -> str:
    """Gains a seed as the table prints them."""
    if not gains:
        return "not measured"
    if len(gains) == 1:
        return f"{gains[0]:+.1f} (one seed)"
    return f"{mean(gains):+.1f} ({len(gains)} seeds: {', '.join(f'{gain:+.1f}' for gain in gains)})"
