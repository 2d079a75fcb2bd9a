"""A comparison that never was: a full report.json with pictures, numbers as a real one has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

UGLY = '<b>&"ray"'  # a class that would break a careless page
NAMES = ["fish", "jellyfish", "penguin", "puffin", "shark", "starfish", UGLY]
RECIPE = "strong_gains_and_replay.yaml"
SEEDS = [0, 1, 2, 3, 4]
_MEANS = {"plain": 0.281, "native": 0.286, "yolokd": 0.3014, RECIPE: 0.297, "teacher": 0.382}


def _score(rng: np.random.Generator, mean: float, seeds: int, sd: float = 0.004) -> dict[str, Any]:
    values = [float(v) for v in rng.normal(mean, sd, seeds)]
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if seeds > 1 else None,
        "values": values,
    }


def _scores(rng: np.random.Generator, mean: float, seeds: int) -> dict[str, Any]:
    factors = {"ap": 1, "ap50": 1.9, "ap75": 0.95, "small": 0.4, "medium": 0.9, "large": 1.2, "last_ap": 0.99}
    found: dict[str, Any] = {key: _score(rng, mean * factor, seeds) for key, factor in factors.items()}
    classes = np.random.default_rng(1).uniform(0.6, 1.4, len(NAMES))  # a hard class is hard for every arm
    found["per_class"] = {
        n: _score(rng, mean * c + rng.normal(0, 0.008), seeds, 0.012) for n, c in zip(NAMES, classes, strict=True)
    }
    return found


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    each = [a - b for a, b in zip(ours["ap"]["values"], theirs["ap"]["values"], strict=True)]
    mean, seeds = float(np.mean(each)), len(each)
    half = 0.006 + float(np.std(each)) if seeds > 2 else None
    word = "" if half is None else "helps" if mean > half else "hurts" if mean < -half else "no measurable difference"
    ends = {"low": None, "high": None} if half is None else {"low": mean - half, "high": mean + half}
    return {
        "mean": mean,
        **ends,
        "seeds_sd": 0.004,
        "images_sd": 0.003,
        "per_seed": each,
        "verdict": word,
        "seeds": seeds,
    }


def _arm(rng: np.random.Generator, name: str, seeds: list[int]) -> dict[str, Any]:
    seconds = {"plain": 820.0, "native": 1020.0}.get(name, 1160.0)
    return {
        "name": name,
        "kind": name if name != RECIPE else "recipe",
        "keys": {} if name == "plain" else {"teacher": "yolov8m.pt", "losses": {"cls": 3, "box": 5}},
        "seeds_done": seeds,
        **_scores(rng, _MEANS[name], len(seeds)),
        "to_plain": None,
        "to_native": None,
        "kept": None,
        "gap_closed": None,
        "parameters": 2_583_517,
        "gflops": 6.3,
        "size": 5_459_546,
        "train_seconds": _score(rng, seconds, len(seeds), 20.0),
        "peak_memory": 1_900_000_000,
        "same_start": True,
        "unlike": [],
        "runs": [f"{name}/seed{seed}" for seed in seeds],
    }


def _course(rng: np.random.Generator, end: float, epochs: int = 20) -> dict[str, Any]:
    mean = end * (1 - np.exp(-np.arange(1, epochs + 1) / 6)) + rng.normal(0, 0.003, epochs)
    band = rng.uniform(0.002, 0.01, epochs)
    lists = {"epoch": np.arange(1, epochs + 1), "mean": mean, "low": mean - band, "high": mean + band}
    return {key: values.tolist() for key, values in lists.items()}


def _terms(rng: np.random.Generator, epochs: int = 20) -> dict[str, Any]:
    fall = np.exp(-np.arange(epochs) / 12)
    loss = {"cls": 0.4, "box": 0.35, "cwd": 3.6}
    share = {"cls": 0.27, "box": 0.31, "cwd": 0.28}
    return {
        "epoch": list(range(1, epochs + 1)),
        "loss": {n: (v * fall + 0.02 * rng.random(epochs)).tolist() for n, v in loss.items()},
        "share": {n: [0.0] * 3 + (v + 0.03 * rng.normal(size=epochs - 3)).tolist() for n, v in share.items()},
    }


def _calibration(sharp: float) -> dict[str, Any]:
    middles = [0.05 + 0.1 * i for i in range(10)]
    return {"ece": 0.1 * sharp, "bins": [[c, c**sharp, int(400 * (1.05 - c))] for c in middles]}


def _repeated() -> dict[str, Any]:
    groups = {"teacher": 61, "arm": 0.59, "plain": 0.41}
    by_size = {size: {**groups, "teacher": 20 + i} for i, size in enumerate(("small", "medium", "large"))}
    return {"all": groups, "by_class": {n: {**groups, "teacher": i} for i, n in enumerate(NAMES)}, "by_size": by_size}


def _robust(clean: float) -> dict[str, Any]:
    kinds = ("noise", "blur", "brightness", "contrast", "jpeg", "haze")
    found = {kind: [clean * (0.95 - 0.04 * i) ** s for s in (1, 2, 3)] for i, kind in enumerate(kinds)}
    mean = float(np.mean(list(found.values())))
    return {"clean": clean, "corruptions": found, "fgsm": clean * 0.4, "mean": mean, "relative": mean / clean}


def write_picture(file: Path, seed: int = 0, side: int = 416) -> None:
    """A picture with texture, so that it is as large as a photograph, and a box."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(40, 160, (side // 60, side // 60, 3), dtype=np.uint8))
    picture = rough.resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 10, (picture.height, picture.width, 3))
    picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(picture).rectangle((side // 4, side // 4, side // 2, side // 2), outline=(255, 60, 0), width=3)
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, quality=90)


def made_up(folder: Path | None = None, seeds: int = 5, audited: int = 12) -> dict[str, Any]:
    """The content of a report.json.

    Args:
        folder: where its pictures are written; nowhere where None.
        seeds: of every arm.
        audited: images of the label audit.
    """
    rng, used = np.random.default_rng(0), SEEDS[:seeds]
    arms = {name: _arm(rng, name, used) for name in ("plain", "native", "yolokd", RECIPE)}
    teacher = {**_scores(rng, _MEANS["teacher"], 1), "name": "yolov8m_aquarium.pt", "imgsz": None}
    teacher |= {"parameters": 25_843_813, "gflops": 78.7, "size": 52_000_000}
    for name, arm in arms.items():
        arm["kept"] = arm["ap"]["mean"] / teacher["ap"]["mean"]
        if name != "plain":
            gap = teacher["ap"]["mean"] - arms["plain"]["ap"]["mean"]
            arm["gap_closed"] = (arm["ap"]["mean"] - arms["plain"]["ap"]["mean"]) / gap
            arm["to_plain"] = _difference(arm, arms["plain"])
        if name not in ("plain", "native"):
            arm["to_native"] = _difference(arm, arms["native"])
    ours = arms["yolokd"]["to_plain"]
    speed = {name: (11.9, 13.2) for name in arms} | {"teacher": (61.0, 66.5)}
    return {
        "version": 1,
        "date": "2026-11-21",
        "command": 'yolokd compare teacher=yolov8m.pt student=yolo11n.pt data="my data.yaml" seeds=5 eval_split=test',
        "folder": "aquarium",
        "verdict": {"arm": "yolokd", "word": ours["verdict"], "text": _sentence(ours)},
        "data": {
            "yaml": "aquarium416.yaml",
            "names": {str(i): name for i, name in enumerate(NAMES)},
            "eval_split": "test",
            "held_out": False,
            "note": "",
            "images": 63,
            "objects": 584,
        },
        "settings": {"epochs": 20, "imgsz": 256, "batch": 16, "optimizer": "auto"},
        "seeds": used,
        "machine": {
            **{"cpu": "Some Processor @ 2.1 GHz", "cores": 2, "memory_gb": 15.6, "gpu": None, "python": "3.11.2"},
            **{"torch": "2.15.0", "ultralytics": "8.4.190", "yolokd": "0.1.0"},
        },
        "files": {"yolov8m.pt": "1b0c9ed787111356" * 4, "yolo11n.pt": "e23e8081de41f514" * 4},
        "teacher": teacher,
        "arms": list(arms.values()),
        "curves": {name: _course(rng, arm["ap"]["mean"]) for name, arm in arms.items()},
        "terms": {"yolokd": _terms(rng), RECIPE: _terms(rng)},
        "speed": {
            name: {
                **{"onnx_ms_median": a, "onnx_ms_p95": b, "images_per_second": 1000 / a, "energy_j_per_image": None},
                "energy_note": "this machine does not say what it draws (no RAPL, no NVML)",
            }
            for name, (a, b) in speed.items()
        },
        "calibration": {"plain": _calibration(1.4), "yolokd": _calibration(1.1), "teacher": _calibration(0.9)},
        "fairness": {
            name: {
                "lost_classes": [{"name": UGLY, "difference": -0.021, "low": -0.035, "high": -0.007}],
                "inherited": {"false_positives": _repeated(), "misses": _repeated()},
            }
            for name in ("yolokd", RECIPE)
        },
        "robustness": {
            "arms": {name: _robust(arms[name]["ap"]["mean"]) for name in ("plain", "yolokd")},
            **{"seeds": used, "strengths": {"noise": [0.04, 0.08, 0.16]}},
        },
        **_pictures(folder, audited),
    }


def _sentence(found: dict[str, Any]) -> str:
    points = f"{100 * found['mean']:+.2f} points of AP"
    if found["low"] is None:
        return f"yolokd and plain differ by {points} on the test images: too few seeds for a verdict."
    ends = f"95 % interval {100 * found['low']:+.2f} to {100 * found['high']:+.2f}"
    return f"yolokd {found['verdict']}: {points} against plain on the test images ({ends}, {found['seeds']} seeds)."


def _pictures(folder: Path | None, audited: int) -> dict[str, Any]:
    kinds = ("truth", "plain", "yolokd", "teacher")
    reason = "shark at .93, no label there"
    found: dict[str, Any] = {
        "audit": [
            {
                "image": f"audit/{i:03}.jpg",
                "file": f"IMG_{i:04}_jpeg_jpg.rf.{'0ab1' * 8}.jpg",
                "score": 0.93,
                "reason": reason,
            }
            for i in range(audited)
        ],
        "examples": [
            {"file": f"IMG_{i}_<i>.jpg", "images": {kind: f"examples/{i}_{kind}.jpg" for kind in kinds}}
            for i in range(8)
        ],
    }
    paths = [entry["image"] for entry in found["audit"]] + [p for e in found["examples"] for p in e["images"].values()]
    for i, path in enumerate(paths if folder else ()):
        assert folder is not None
        write_picture(folder / path, i)
    return found


def write_made_up(folder: Path, **how: Any) -> dict[str, Any]:
    """Write ``report.json`` and its pictures; return its content."""
    content = made_up(folder, **how)
    (folder / "report.json").write_text(json.dumps(content), encoding="utf-8")
    return content
