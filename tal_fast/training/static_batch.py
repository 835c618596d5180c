# SPDX-License-Identifier: Apache-2.0
"""Batches of one fixed shape, in memory of their own: what a step that is recorded once reads."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tal_fast.data.batches import Batch, to_device
from tal_fast.models.base import Detector, Targets

__all__ = ["BatchShape", "StaticBatch", "shape_of"]


class BatchShape(NamedTuple):
    """What decides the shapes of all that a step computes.

    Attributes:
        clips: B.
        rows: of each, padding included.
        instances: that each clip has room for.
    """

    clips: int
    rows: int
    instances: int


def shape_of(model: Detector, batch: Batch) -> BatchShape | str:
    """Returns the shape that a batch is padded to, or the reason why it cannot be."""
    sizes = model.static_sizes(batch.padded, max(batch.counts, default=0))
    return sizes if isinstance(sizes, str) else BatchShape(len(batch), *sizes)


class StaticBatch:
    """Buffers that batches are copied into, one after the other.

    Args:
        shape: of all of them.
        like: one of them, for channels and dtype.
        device: where they are.
    """

    def __init__(self, shape: BatchShape, like: Batch, device: torch.device) -> None:
        clips, rows, room = shape
        self.shape = shape
        self.features = torch.zeros(
            clips, rows, like.features.shape[2], dtype=like.features.dtype, device=device
        )
        self.mask = torch.ones(clips, rows, dtype=torch.bool, device=device)
        self.targets = Targets(
            labels=torch.zeros(clips * room, dtype=torch.int64, device=device),
            edges=torch.zeros(clips * room, 2, dtype=torch.float64, device=device),
            counts=[room] * clips,
            length=rows,
            real=torch.zeros(clips * room, dtype=torch.bool, device=device),
        )

    def fill(self, batch: Batch) -> None:
        """Copies a batch in; nothing waits for it."""
        device, rows = self.features.device, batch.padded
        self.features[:, :rows].copy_(to_device(batch.features, device), non_blocking=True)
        self.mask[:, :rows].copy_(to_device(batch.mask, device), non_blocking=True)
        if rows < self.shape.rows:
            self.features[:, rows:].zero_()
            self.mask[:, rows:].fill_(True)
        room = self.shape.instances
        places = [clip * room + i for clip, n in enumerate(batch.counts) for i in range(n)]
        place = to_device(torch.tensor(places, dtype=torch.int64, device="cpu"), device)
        targets = self.targets
        assert targets.real is not None
        targets.labels.zero_().index_copy_(0, place, to_device(batch.labels, device))
        # Far from every row, of length zero: no point has it within reach.
        targets.edges.fill_(_NOWHERE).index_copy_(0, place, to_device(batch.edges, device))
        targets.real.zero_().index_fill_(0, place, True)


_NOWHERE = -1e6  # rows
