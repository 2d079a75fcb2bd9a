"""Losses that tell objects apart: each must find its own among others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.losses.features import levels_of
from yolokd.losses.objects import embed_objects, even_steps
from yolokd.predictions import Assigned, Pair, Predictions


class ContrastiveKD(nn.Module):
    """Make the student's view of an object point out the teacher's view of the same object among all others.

    Both views are vectors read off the pyramid in the ground-truth box, projected into a common space. The student
    learns what distinguishes one object from another in the teacher's eyes, which a comparison of one vector at a
    time cannot say. Others are the objects of the batch and those of the last batches, kept in a memory.

    Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020,
    https://arxiv.org/abs/1910.10699 (linear projections of student and teacher that both train, length 1, temperature
    0.07, dimension 128). The memory as a queue: He et al., "Momentum Contrast for Unsupervised Visual Representation
    Learning", CVPR 2020, https://arxiv.org/abs/1911.05722. Departures: (1) objects instead of images. (2) A queue of
    the newest teacher vectors instead of one slot for each sample of the data set: under mosaic and crops an object
    has no lasting index. They are projections of a few batches ago, the paper's of up to an epoch ago. (3) InfoNCE,
    ``-log(e_own / (e_own + sum of e_other))``, instead of the paper's NCE with ``h = e / (e + N / M)``: there is no
    data set size M, and no constant from the first batch to bring ``e`` to scale. (4) The student looks for the
    teacher; the paper's code adds the opposite direction with a second memory. The paper's weight 0.8 belongs to that
    sum, for images.

    The same box twice in an image is one object and no negative of itself. But an object that was seen in an earlier
    batch, or twice in a mosaic, is a negative of itself: rare as long as the memory is small beside the data set.

    The value depends on the batch: on how many others there are (up to the logarithm of their number). It is never
    negative and nearly 0 where the views agree and objects differ; it grows while the memory fills. With several GPUs
    each has a memory of its own, and a resumed run gives all of them that of the first.

    Args:
        student_widths: channels of each student level.
        teacher_widths: channels of each teacher level.
        strides: pixels a cell of each level.
        dim: of the common space.
        temperature: of the softmax over objects; small looks at the most similar others only.
        memory: teacher vectors kept; 0 compares within the batch only.
        limit: the most objects of a batch, taken at even steps through its list.

    Shape:
        student.feats, teacher.feats: a ``(B, C_l, H_l, W_l)`` tensor a level, each with its own widths.
        assigned.gt_boxes: ``(N, 4)`` pixels; assigned.gt_image: ``(N,)``.
        return: ``()``, nats an object, float32; 0 without objects, and for one object with an empty memory.

    Raises:
        ValueError: no features, or an option outside its range.
    """

    memory: Tensor
    written: Tensor

    def __init__(
        self,
        student_widths: tuple[int, ...],
        teacher_widths: tuple[int, ...],
        strides: tuple[int, ...],
        dim: int = 128,
        temperature: float = 0.07,
        memory: int = 1024,
        limit: int = 256,
    ) -> None:
        super().__init__()
        if dim < 2:  # a vector of one number and length 1 is only a sign
            raise ValueError(f"crd.dim is {dim}; it must be at least 2")
        if not temperature > 0:
            raise ValueError(f"crd.temperature is {temperature}; it must be above 0")
        if memory < 0:
            raise ValueError(f"crd.memory is {memory}; it must be at least 0")
        if limit < 1:
            raise ValueError(f"crd.limit is {limit}; it must be at least 1")
        self.strides = tuple(strides)
        self.limit = int(limit)
        self.temperature = float(temperature)
        self.student = nn.Linear(sum(student_widths), dim)
        self.teacher = nn.Linear(sum(teacher_widths), dim)
        self.register_buffer("memory", torch.zeros(memory, dim))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))  # since the beginning, not only those kept

    @classmethod
    def for_pair(
        cls, pair: Pair, *, dim: int = 128, temperature: float = 0.07, memory: int = 1024, limit: int = 256
    ) -> ContrastiveKD:
        """The loss of a pair, with fresh projections and an empty memory."""
        return cls(pair.student.widths, pair.teacher.widths, pair.student.strides, dim, temperature, memory, limit)

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class. Afterwards the memory holds the teacher's vectors of this batch too."""
        ours, theirs = levels_of("crd", student, teacher)
        boxes, image = even_steps(assigned.gt_boxes, assigned.gt_image, self.limit)
        s = F.normalize(self.student(embed_objects(ours, boxes, image, self.strides)), dim=1, eps=1e-6)
        t = F.normalize(self.teacher(embed_objects(theirs, boxes, image, self.strides)), dim=1, eps=1e-6)
        own = torch.arange(len(boxes), device=s.device)
        twice = (image[:, None] == image) & (boxes[:, None] == boxes).all(2) & (own[:, None] != own)  # (N, N)
        empty = torch.arange(len(self.memory), device=s.device) >= self.written
        others = (s @ self.memory.T).masked_fill(empty, -torch.inf)  # (N, memory)
        logits = torch.cat([(s @ t.T).masked_fill(twice, -torch.inf), others], 1) / self.temperature
        self._remember(t.detach())
        # Without objects the sum is 0 and joined to the graph; the mean would be NaN.
        return F.cross_entropy(logits, own, reduction="sum") / max(len(boxes), 1)

    def _remember(self, vectors: Tensor) -> None:
        """Put ``(N, dim)`` vectors in the place of the oldest.

        Out of place: the backward pass still needs the memory as the loss saw it. The place is reckoned on the
        device, since reading it would make the GPU wait.
        """
        if not len(self.memory):
            return
        vectors = vectors[-len(self.memory) :]
        place = (self.written + torch.arange(len(vectors), device=vectors.device)) % len(self.memory)
        self.memory = self.memory.index_copy(0, place, vectors)
        self.written = self.written + len(vectors)
