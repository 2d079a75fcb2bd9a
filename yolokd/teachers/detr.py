"""A teacher that answers with a set of boxes instead of a grid: RT-DETR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolokd.compat.detr import detr_info, encoder_levels, freeze_detr, lower_encoder, queries
from yolokd.compat.taps import LayerTap
from yolokd.layout import CONFIDENCE, gather_detections
from yolokd.predictions import Predictions
from yolokd.teachers.live import LARGER, resolve_precision


class DetrTeacher:
    """A frozen RT-DETR: its queries are soft detections, its encoder's levels the features.

    A query is a box with a probability for each class and belongs to no anchor, so ``scores`` and ``boxes`` are None
    and `layout.lay_out` brings the detections onto the student's grid. It has no bins and no head to enter halfway.
    The features are those of the encoder that enter the decoder.

    Architecture: Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", CVPR 2024,
    https://arxiv.org/abs/2304.08069, as Ultralytics builds it. An RT-DETR learns on images stretched to a square and
    sees here what the student sees, letterboxed and augmented.

    A plain class, as ``LiveTeacher``. Only what comes before the decoder is computed in the lower precision: see
    ``compat.detr.freeze_detr``.

    Args:
        model: an RTDETRDetectionModel; changed in place.
        device: where it runs.
        precision: see ``resolve_precision``; ``to_precision`` can lower it later.
        name: what messages call it.
        confidence: a query is a detection where its highest class has at least this.
        max_det: detections of an image, the surest.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        precision: str = "auto",
        name: str = "teacher",
        confidence: float = CONFIDENCE,
        max_det: int = 100,
    ) -> None:
        self.name = name
        self.info = detr_info(model)
        self._confidence, self._max_det = confidence, max_det
        self._levels = encoder_levels(model)
        self._model = freeze_detr(model).to(device).to(memory_format=torch.channels_last)
        self._tap = LayerTap(self._model, self._levels)
        self.dtype = torch.float32
        self.to_precision(resolve_precision(precision, device))

    def to_precision(self, dtype: torch.dtype) -> None:
        """Convert the weights before the decoder; the pass back to a higher precision restores nothing."""
        lower_encoder(self._model, dtype)
        self.dtype = dtype

    def open(self, layers: Sequence[int] = (), depth: int | None = None) -> None:
        """Give more than the detections and the encoder's levels from now on.

        Args:
            layers: also the features of these layers.
            depth: None; this head cannot be entered halfway.

        Raises:
            ValueError: a depth is given.
        """
        if depth is not None:
            raise ValueError("the head of an RT-DETR cannot be entered halfway")
        self._tap.remove()
        self._tap = LayerTap(self._model, [*self._levels, *layers])

    @property
    def model(self) -> nn.Module:
        """The frozen network."""
        network: nn.Module = self._model
        return network

    def __call__(self, batch: Mapping[str, Any]) -> Predictions:
        """Run the teacher on ``batch["img"]``, ``(B, 3, H, W)`` in [0, 1], or on larger images where it has some."""
        return self.forward(batch.get(LARGER, batch["img"]))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Predictions:
        """Detections and features of ``(B, 3, H, W)`` images in [0, 1]; the features in the teacher's precision.

        The detections' classes are the teacher's own.
        """
        height, width = images.shape[2:]
        images = images.to(dtype=self.dtype, memory_format=torch.channels_last)
        # Autocast would convert again what is in the wanted precision already.
        with torch.autocast(images.device.type, enabled=False):
            boxes, scores = queries(self._model(images), height, width)
        heard = self._tap.take()
        count = len(self._levels)
        return Predictions(
            None,
            None,
            heard[:count],
            taps=heard[count:] or None,
            detections=gather_detections(boxes, scores, self._confidence, self._max_det),
        )
