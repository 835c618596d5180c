# SPDX-License-Identifier: Apache-2.0
"""Windows in batches as set-prediction models take them: one list of instances per window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tal_fast.data.loader import FeatureLoader
from tal_fast.data.order import epoch_order
from tal_fast.data.windows import Window, WindowSet

__all__ = ["Batch", "BatchLoader", "epoch_order"]


@dataclass
class Batch:
    """Some windows, ready for a model.

    Attributes:
        features: float32 [B, L, C], zero after the end of a window.
        mask: bool [B, L], True where there is no row (padding).
        indices: position of each window in its :class:`WindowSet`.
        windows: the windows.
        labels: int64 [n] per window.
        segments: float32 [n, 2] per window: (centre, width) in units of L.
    """

    features: torch.Tensor
    mask: torch.Tensor
    indices: list[int]
    windows: list[Window]
    labels: list[torch.Tensor]
    segments: list[torch.Tensor]


class BatchLoader(FeatureLoader):
    """Iterates over the windows of a :class:`WindowSet`; a batch is a :class:`Batch`.

    Order, memory and faults are those of :class:`FeatureLoader`.

    Example::

        with BatchLoader(windows, 16, shuffle=True, seed=1) as loader:
            for epoch in range(16):
                loader.set_epoch(epoch)
                for batch in loader:
                    ...
    """

    clips: WindowSet

    def __init__(self, window_set: WindowSet, batch_size: int, **options: Any) -> None:
        """Prepares; threads start with the first iteration.

        Args:
            window_set: what to read.
            batch_size: windows of a batch.
            options: of :class:`FeatureLoader`.

        Raises:
            ConfigError: if a number is out of range.
        """
        super().__init__(window_set, batch_size, **options)

    @property
    def window_set(self) -> WindowSet:
        """What is read."""
        return self.clips

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches of the epoch; see :meth:`FeatureLoader.__iter__`."""
        return super().__iter__()

    def _batch(self, plan: Any, features: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        batch = super()._batch(plan, features, mask)
        batch["windows"] = [Window(clip.video, clip.start, clip.stop) for clip in plan.clips]
        low, high = np.concatenate([clip.edges for clip in plan.clips]).T
        # In float64 until the end, as WindowSet.targets.
        segments = np.stack([(low + high) / 2, high - low], axis=1) / self.clips.length
        batch["segments"] = torch.from_numpy(segments.astype(np.float32))
        return batch

    def _finish(self, batch: dict[str, Any]) -> Batch:
        sizes = batch["counts"].tolist()
        return Batch(
            features=batch["features"],
            mask=batch["mask"],
            indices=batch["indices"].tolist(),
            windows=batch["windows"],
            labels=list(batch["labels"].split(sizes)),
            segments=list(batch["segments"].split(sizes)),
        )
