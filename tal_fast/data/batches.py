# SPDX-License-Identifier: Apache-2.0
"""What a loader gives: clips of one length with their instances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

__all__ = ["Batch", "to_device"]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies to a device; to a GPU from pinned memory, so that nothing waits for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass
class Batch:
    """Some clips, ready for a model; B of them in L rows, with N instances in all.

    Numbers that decide shapes are on the host, wherever the tensors are: nothing waits for a device
    to learn them. ``batch.labels.split(batch.counts)`` is one tensor per clip.

    Attributes:
        features: ``Tensor[B, L, C]`` (layout ``"TC"``) or ``Tensor[B, C, L]`` (``"CT"``) of the
            loader's type, zero after the end of a clip.
        mask: ``BoolTensor[B, L]``, True where there is no row (padding).
        labels: ``LongTensor[N]``, classes of all clips' instances, clip after clip.
        edges: ``Tensor[N, 2]`` float64, their start and end in rows of the clip: row i covers
            [i, i + 1) (:class:`~tal_fast.data.grid.Grid`).
        counts: instances of each clip; they sum up to N.
        lengths: rows of each clip.
        indices: position of each clip in its set.
        starts: first row of each clip.
        rows: rows of each clip's video on the grid of the clips. Edge ``e`` of a clip is edge
            ``(starts + e) * T / rows`` of a video of T rows; the two are equal unless it was
            resized. :meth:`TALDataset.grid` turns that into seconds.
        videos: name of each clip's video.
    """

    features: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    edges: torch.Tensor
    counts: list[int]
    lengths: list[int]
    indices: list[int]
    starts: list[int]
    rows: list[int]
    videos: list[str]

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.videos)

    @property
    def padded(self) -> int:
        """Rows L, padding included."""
        return self.mask.shape[1]

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Returns the batch with every tensor as ``move`` gives it."""
        return replace(
            self,
            features=move(self.features),
            mask=move(self.mask),
            labels=move(self.labels),
            edges=move(self.edges),
        )
