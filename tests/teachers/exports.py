"""Exported models that a test makes up: a graph that always says the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = (64, 96)
NAMES = {0: "red", 1: "green", 2: "blue"}
META = {"author": "Ultralytics", "task": "detect", "names": str(NAMES)}


def stub(
    path: Path,
    outputs: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    shape: tuple[Any, ...] = (1, 3, *SIZE),
    dtype: str = "FLOAT",
    inputs: tuple[str, ...] = ("images",),
) -> Path:
    """An ONNX file that says always the same."""
    helper = onnx.helper
    values = {key: np.asarray(value) for key, value in outputs.items()}
    values = {key: v.astype(np.float32) if v.dtype == np.float64 else v for key, v in values.items()}
    nodes = [helper.make_node("Constant", [], [k], value=onnx.numpy_helper.from_array(v)) for k, v in values.items()]
    kinds = [helper.make_tensor_value_info(n, getattr(onnx.TensorProto, dtype), shape) for n in inputs]
    given = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in values.items()
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", kinds, given), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    helper.set_model_props(model, dict(metadata or {}))
    onnx.save(model, str(path))
    return path


def photographs(count: int = 3) -> torch.Tensor:
    """Images whose channels differ, so that RGB is not BGR."""
    noise = torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return noise * torch.tensor([0.2, 0.6, 1.0])[:, None, None]
