# SPDX-License-Identifier: Apache-2.0
"""Features that stay on the device: a batch is then one gather, and nothing is read."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from tal_fast import ops
from tal_fast.data.reading import SLOT_DTYPES, FeatureReader, Request
from tal_fast.typing import Ints

__all__ = ["ResidentStore"]

# Rows that are read at once while the store is filled.
_CHUNK_BYTES = 16 * 2**20


class ResidentStore:
    """All rows of some videos in one tensor on a device."""

    def __init__(self, reader: FeatureReader, rows: Ints, device: torch.device):
        """Reads every video.

        Args:
            reader: of slots [B, L, C]; it decides videos and type.
            rows: int64 [videos], rows that each is resampled to (its own number: as it is).
            device: where the rows go.

        Raises:
            DataError: see :meth:`FeatureReader.read`.
        """
        self._first = np.concatenate([[0], np.cumsum(rows)[:-1]])
        dtype = SLOT_DTYPES[reader.dtype][0]
        size = (int(rows.sum()), reader.channels)
        self._store = torch.empty(size, dtype=dtype, device=device)
        for (start, stop), features, _ in reader.read(self._requests(reader, rows)):
            self._store[start:stop].copy_(features[0, : stop - start])

    def _requests(self, reader: FeatureReader, rows: Ints) -> Iterable[Request[tuple[int, int]]]:
        step = max(1, _CHUNK_BYTES // (reader.channels * SLOT_DTYPES[reader.dtype][0].itemsize))
        for video, (first, count) in enumerate(zip(self._first.tolist(), rows.tolist(),
                                                   strict=True)):  # fmt: skip
            for start in range(0, count, step):
                stop = min(start + step, count)
                window = np.array([[video, start, stop, count]], dtype=np.int64)
                yield Request(window, stop - start, (first + start, first + stop))

    def batch(
        self, windows: Ints, length: int, *, channels_first: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns features and mask of some windows, on the device.

        Args:
            windows: int64 [B, 4] as in :class:`Request`.
            length: rows of a slot.
            channels_first: [B, C, L] instead of [B, L, C].
        """
        first = torch.from_numpy(self._first[windows[:, 0]] + windows[:, 1])
        lengths = torch.from_numpy(windows[:, 2] - windows[:, 1])
        device = self._store.device
        return ops.gather_windows(
            self._store,
            first.to(device),
            lengths.to(device),
            length,
            channels_first=channels_first,
        )
