"""How much of a model's AP is left when images are corrupted, or made to fool it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.utils import LOGGER

from yolokd.compat.checkpoint import find_checkpoint, sha256
from yolokd.compat.corrupted import Image, validate_changed
from yolokd.compat.files import atomic_replace
from yolokd.errors import UserError
from yolokd.evaluation.annotations import from_labels
from yolokd.evaluation.coco import coco_scores
from yolokd.evaluation.corruptions import STRENGTHS, corrupt

EPSILON = 4 / 255  # of the FGSM attack, for pixels from 0 to 1
CLEAN, FGSM = "clean", "fgsm"


def robustness(
    models: Mapping[str, Path],
    data: str | Path,
    *,
    store: Path,
    split: str,
    seed: int = 0,
    trust: bool = False,
    machine: Mapping[str, Any] | None = None,
    **judging: Any,
) -> dict[str, Any]:
    """Measure the AP of models on a split as it is, under 18 corruptions (`corruptions`) and under FGSM.

    Twenty validations a model. Every number is written down as soon as it is there: a call that was killed goes on
    where it stopped. Relative robustness is the mean AP under the 18 corruptions over the clean AP, as Michaelis et
    al. define it ("Benchmarking Robustness in Object Detection", https://arxiv.org/abs/1907.07484, over theirs): a
    model that is better everywhere is not more robust for it. FGSM has a number of its own.

    Args:
        models: checkpoints by the name of their run: ``ARM/seedN``, or ``ARM`` alone.
        data: data YAML.
        store: folder for what is measured, a file a model; it is made where it is missing.
        split: the split to judge on.
        seed: of what is random in the corruptions.
        trust: load a checkpoint that references unknown globals.
        machine: Ultralytics' ``device`` and ``workers``; a number measured with others is not measured again.
        judging: Ultralytics' other validation arguments; corruptions are applied at ``imgsz``.

    Returns:
        ``arms``: for each arm ``clean``, ``corruptions`` (for each kind the AP at strength 1, 2, 3), ``fgsm``, ``mean``
        (of the 18), all averaged over its seeds, and ``relative`` (mean over clean, None where clean is 0);
        ``seeds``; ``strengths``: what strength 1, 2, 3 of each kind are, and the step of FGSM.

    Raises:
        UserError: a model or the data cannot be read; there is no object to find; the images are not RGB.
    """
    how = {**judging, "data": str(data), "split": split, "trust": trust}
    arms: dict[str, list[dict[str, float]]] = defaultdict(list)
    seeds = set()
    for run, model in models.items():
        arm, _, number = run.partition("/seed")
        seeds |= {int(number)} if number else set()
        file = store / f"robustness-{run.replace('/', '-')}.json"
        LOGGER.info(f"robustness of {run}: {len(_conditions(seed))} validations")
        arms[arm].append(_measured(find_checkpoint(model, role="model"), file, how, machine or {}, seed))
    summaries = {arm: _summary(runs) for arm, runs in arms.items()}
    return {"arms": summaries, "seeds": sorted(seeds), "strengths": _strengths()}


def _strengths() -> dict[str, Any]:
    return {**{kind: list(values) for kind, values in STRENGTHS.items()}, FGSM: EPSILON}


def _conditions(seed: int) -> dict[str, dict[str, Any]]:
    """Return what is done to the images, by a name."""
    corruptions = {
        _key(kind, strength): {"corrupt": partial(_corrupted, kind=kind, strength=strength, seed=seed)}
        for kind in STRENGTHS
        for strength in (1, 2, 3)
    }
    return {CLEAN: {}, FGSM: {"epsilon": EPSILON}, **corruptions}


def _key(kind: str, strength: int) -> str:
    return f"{kind} {strength}"


def _corrupted(image: Image, name: str, *, kind: str, strength: int, seed: int) -> Image:
    return corrupt(image, kind, strength, name=name, seed=seed)


def _measured(
    model: Path, file: Path, how: Mapping[str, Any], machine: Mapping[str, Any], seed: int
) -> dict[str, float]:
    """Return the AP of a model in every condition; what the file knows is not measured again."""
    known = {"settings": {**how, "seed": seed, "model": sha256(model), "strengths": _strengths()}, "ap": {}}
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        known = stored if stored["settings"] == known["settings"] else known
    done: dict[str, float] = known["ap"]
    for key, change in _conditions(seed).items():
        if key not in done:
            judged = validate_changed(model, **how, **machine, **change)
            ap = coco_scores(from_labels(judged.images, judged.names)).ap
            if ap is None:
                raise UserError(f"split={how['split']} holds no object to find.", "Choose another eval_split.")
            done[key] = ap
            atomic_replace(file, partial(_write, content=known))
    return done


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _summary(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Average an arm's runs."""

    def mean(key: str) -> float:
        return float(np.mean([run[key] for run in runs]))

    corruptions = {kind: [mean(_key(kind, strength)) for strength in (1, 2, 3)] for kind in STRENGTHS}
    clean, corrupted = mean(CLEAN), float(np.mean(list(corruptions.values())))
    relative = corrupted / clean if clean else None
    return {CLEAN: clean, "corruptions": corruptions, FGSM: mean(FGSM), "mean": corrupted, "relative": relative}
