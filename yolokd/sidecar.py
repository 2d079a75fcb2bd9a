"""``distill.pt``, beside ``last.pt``: what a resumed run needs and a plain checkpoint must not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolokd.compat.files import atomic_replace
from yolokd.errors import UserError

NAME = "distill.pt"
VERSION = 1
# A kill between distill.pt and last.pt leaves last.pt an epoch behind, so the epoch before is kept as well.
KEPT_EPOCHS = 2


@dataclass(frozen=True)
class Sidecar:
    """What stands in ``distill.pt``.

    Attributes:
        config: ``DistillConfig.to_dict()``.
        teacher_sha256: hash of the teacher's file.
        records: epoch (as in ``last.pt``, from 0) to the losses' parameters, their optimizer state and the course.
    """

    config: Mapping[str, Any]
    teacher_sha256: str
    records: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def with_epoch(
        self, epoch: int, losses: nn.Module, optimizer: torch.optim.Optimizer, course: Mapping[str, Any] | None = None
    ) -> Sidecar:
        """The same with one more epoch, and only the newest kept.

        Args:
            epoch: the epoch that ``last.pt`` will carry.
            losses: the losses with their adapters.
            optimizer: the student's, with the adapters' group.
            course: what the criterion must know to go on (its balance and guard), plain types.
        """
        record = {
            "course": dict(course or {}),
            "losses": {k: v.detach().cpu().clone() for k, v in losses.state_dict().items()},
            "optimizer": [_to_cpu(optimizer.state.get(p, {})) for p in losses.parameters()],
        }
        before = {e: r for e, r in self.records.items() if e < epoch}  # a resumed run repeats epochs
        kept = dict(sorted((before | {epoch: record}).items())[-KEPT_EPOCHS:])
        return Sidecar(self.config, self.teacher_sha256, kept)

    def restore(self, epoch: int, losses: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
        """Bring adapters and their optimizer state back to the end of an epoch.

        Returns:
            the ``course`` of that epoch; empty in a file that was written before there was one.

        Raises:
            UserError: that epoch is not there.
        """
        if epoch not in self.records:
            held = ", ".join(str(e + 1) for e in self.records) or "none"
            raise UserError(
                f"{NAME} holds the adapters of epoch {held}, but last.pt is of epoch {epoch + 1}.",
                "Resume with the two files that one run wrote, or start a new run.",
            )
        record = self.records[epoch]
        losses.load_state_dict(record["losses"])
        # A fused optimizer (Ultralytics' choice for AdamW on CUDA) wants its step counter on the device as well.
        fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        for parameter, state in zip(losses.parameters(), record["optimizer"], strict=True):
            optimizer.state[parameter] = {
                k: v.to(parameter.device) if isinstance(v, Tensor) and (fused or v.dim()) else v
                for k, v in state.items()
            }
        course: Mapping[str, Any] = record.get("course", {})
        return course

    def save(self, folder: Path) -> None:
        """Write ``distill.pt`` into a folder of weights, whole or not at all."""
        content = {
            "version": VERSION,
            "config": dict(self.config),
            "teacher_sha256": self.teacher_sha256,
            "records": dict(self.records),
        }
        folder.mkdir(parents=True, exist_ok=True)
        atomic_replace(folder / NAME, lambda partial: torch.save(content, partial))


def load_sidecar(folder: Path) -> Sidecar:
    """Read ``distill.pt`` from a folder of weights; nothing in it is executed.

    Raises:
        UserError: it is not there, or not one of ours.
    """
    path = folder / NAME
    if not path.is_file():
        raise UserError(
            f"{path} is missing, so the distillation of this run cannot be continued.",
            f"Put {NAME} beside last.pt, or resume the student alone with `yolo train resume model=PATH/last.pt`.",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["version"]
        sidecar = Sidecar(content["config"], content["teacher_sha256"], content["records"])
    except Exception as error:  # torch.load raises half a dozen types for a damaged file
        raise UserError(
            f"{path} cannot be read: {str(error).splitlines()[0]}",
            "Resume the student alone with `yolo train resume model=PATH/last.pt`, or start a new run.",
        ) from error
    if version != VERSION:
        raise UserError(
            f"{path} was written by another version of yolokd (format {version}, here {VERSION}).",
            "Resume with that version, or start a new run.",
        )
    return sidecar


def _to_cpu(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.detach().cpu().clone() if isinstance(v, Tensor) else v for k, v in state.items()}


def complete_rows(text: str, epochs: int) -> str:
    """Trim a results.csv to the epochs that a checkpoint knows.

    A kill between the row and ``last.pt`` leaves a row too many, a kill while the row is written leaves a torn one.

    Args:
        text: the file.
        epochs: epochs done, by the checkpoint; the rows' ``epoch`` counts from 1.

    Returns:
        the header and one complete row for each of those epochs, the last one where an epoch stands twice.
    """
    lines = text.splitlines()
    if not lines:
        return ""
    columns = lines[0].count(",")
    rows: dict[int, str] = {}
    for line in lines[1:]:
        first = line.split(",", 1)[0].strip()
        if line.count(",") == columns and first.isdigit() and int(first) <= epochs:
            rows[int(first)] = line
    return "\n".join([lines[0], *_ordered(rows)]) + "\n"


def _ordered(rows: Mapping[int, str]) -> Sequence[str]:
    return [rows[epoch] for epoch in sorted(rows)]
