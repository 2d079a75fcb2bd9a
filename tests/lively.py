"""Random networks that see something: teachers without grid or memory say nothing where they are sure of nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.nn.tasks import RTDETRDetectionModel

from tests.conftest import NAMES, save_detector

# RT-DETR's decoder behind five convolutions: P3, P4 and P5 of 16 channels, 30 queries.
TINY_DETR: dict[str, Any] = {
    "nc": 3,
    "backbone": [[-1, 1, "Conv", [16, 3, 2]]] * 5,
    "head": [[[2, 3, 4], 1, "RTDETRDecoder", ["nc", 32, 30, 2, 2, 1]]],
}


def save_lively(path: Path, cfg: str = "yolov8n.yaml", names: dict[int, str] | None = None, seed: int = 1) -> Path:
    """A detector with random weights whose boxes and scores differ from anchor to anchor, some surer than others."""
    save_detector(cfg, path, names or NAMES, seed)
    yolo = YOLO(path)
    head = yolo.model.model[-1]
    # Edges a stride or two away, classes neither certain nor impossible.
    for branch, std, bias in ((head.cv2, 0.1, -torch.arange(16.0).repeat(4)), (head.cv3, 0.1, torch.tensor(-1.5))):
        for level in branch:
            nn.init.normal_(level[-1].weight, std=std)
            level[-1].bias.data[:] = bias
    with torch.no_grad():  # else the activations die away, layer by layer, and every anchor says the same
        for norm in (m for m in yolo.model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = None
        yolo.model.train()(torch.rand(8, 3, 64, 64))
    yolo.save(path)
    return path


def save_tiny_detr(path: Path, seed: int = 1) -> Path:
    """An RT-DETR as Ultralytics saves it, small enough for a test, its queries of all degrees of sureness."""
    file = path.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(TINY_DETR))
    torch.manual_seed(seed)
    model = RTDETRDetectionModel(str(file), nc=3, verbose=False)
    for score in (model.model[-1].enc_score_head, *model.model[-1].dec_score_head):
        nn.init.normal_(score.weight, std=0.5)
        nn.init.constant_(score.bias, -1.0)
    model.names = dict(NAMES)
    rtdetr = RTDETR(str(file))
    rtdetr.model = model
    rtdetr.model.args = {}
    rtdetr.save(path)
    file.unlink()
    return path
