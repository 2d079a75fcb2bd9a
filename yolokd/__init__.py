"""yolokd: distil a nano Ultralytics YOLO detector under a large one.

The public names are loaded when they are first used, so that ``import yolokd`` does not import torch.
"""

from __future__ import annotations

from typing import Any

# No `export` among them: once the module yolokd.export is imported, the package's attribute of that name is the module.
__version__ = "0.1.0"
_HOMES = {
    "DistillationTrainer": "yolokd.trainer",
    "DistillConfig": "yolokd.config",
    "LOSSES": "yolokd.losses.base",
    "Run": "yolokd.api",
    "UserError": "yolokd.errors",
    "check": "yolokd.api",
    "compare": "yolokd.api",
    "distill": "yolokd.api",
    "evaluate": "yolokd.api",
    "report": "yolokd.api",
}
__all__ = [
    "LOSSES",
    "DistillConfig",
    "DistillationTrainer",
    "Run",
    "UserError",
    "check",
    "compare",
    "distill",
    "evaluate",
    "report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'yolokd' has no attribute {name!r}")
