"""Tools that compute COCO's AP, fed with the same data."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from yolokd.errors import UserError
from yolokd.evaluation.annotations import CocoData

# Name of the tool: where its COCO and its COCOeval are.
BACKENDS = {
    "pycocotools": ("pycocotools.coco", "COCO", "pycocotools.cocoeval", "COCOeval"),
    "faster-coco-eval": ("faster_coco_eval", "COCO", "faster_coco_eval", "COCOeval_faster"),
}


def coco_tool(backend: str) -> tuple[Any, Any]:
    """Return a tool's ``COCO`` and ``COCOeval``.

    Args:
        backend: ``pycocotools`` or ``faster-coco-eval``.

    Raises:
        UserError: there is no such tool, or it is not installed.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend={backend} is not known.", f"Use one of {', '.join(BACKENDS)}.")
    module, coco, eval_module, coco_eval = BACKENDS[backend]
    try:
        return getattr(import_module(module), coco), getattr(import_module(eval_module), coco_eval)
    except ImportError as error:
        raise UserError(
            f"backend={backend} cannot be loaded: {error}", f"pip install {backend}, or leave backend= out."
        ) from error


def evaluator(data: CocoData, backend: str = "pycocotools") -> Any:
    """Return COCO's evaluation of boxes, fed but not yet run.

    faster-coco-eval gives the same numbers, computed in C++ (checked by our tests); it keeps no matches that Python
    can read. pycocotools prints what it does.

    Args:
        data: ground truth and detections.
        backend: ``pycocotools`` or ``faster-coco-eval``.

    Returns:
        a ``COCOeval``: set its ``params``, then call ``evaluate()`` and ``accumulate()``.

    Raises:
        UserError: there is no such tool, or it is not installed.
    """
    make, judge = coco_tool(backend)
    truth, found = make(), make()
    truth.dataset = data.truth
    found.dataset = {**data.truth, "annotations": data.detections}
    truth.createIndex()
    found.createIndex()
    return judge(truth, found, iouType="bbox")
