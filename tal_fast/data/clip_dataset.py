# SPDX-License-Identifier: Apache-2.0
"""Clips one by one, for those who want torch's own DataLoader."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from tal_fast.data.clips import ClipSet
from tal_fast.data.order import epoch_order
from tal_fast.data.reading import FeatureReader, Request

__all__ = ["ClipDataset"]


class ClipDataset(Dataset[dict[str, Any]]):
    """A set of clips as a map-style ``torch.utils.data.Dataset``.

    An item is a dict: ``features`` [L, C] or [C, L] of the clip's own length, ``labels`` int64 [n],
    ``edges`` float64 [n, 2] (start and end in rows of the clip), ``index``, ``start``, ``rows``
    and ``video``. It is what :class:`FeatureLoader` puts into a batch under the same seed and
    epoch, feature dropout aside. Reading happens in the process that asks, so it may be handed to
    forked and spawned workers. :class:`FeatureLoader` is several times faster.

    Example::

        dataset = ClipDataset(VideoSet(data, data.splits["test"]), layout="CT")
        loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    """

    def __init__(
        self,
        clips: ClipSet,
        *,
        seed: int = 0,
        dtype: str = "float32",
        layout: str = "TC",
        check_finite: bool = True,
    ) -> None:
        """Prepares; opens no file.

        Args:
            clips: what to read.
            seed: of the crops.
            dtype: of the features, ``"float32"``, ``"float16"`` or ``"bfloat16"``.
            layout: ``"TC"`` for [L, C], ``"CT"`` for [C, L].
            check_finite: refuse NaN and infinity in features.

        Raises:
            ConfigError: if an argument is out of range.
            DataError: if the videos' numbers of channels differ.
        """
        epoch_order(0, seed, 0, where="ClipDataset")
        self.clips = clips
        self.seed = seed
        self.epoch = 0
        videos = list(dict.fromkeys(clips.videos))
        self._number = {video: i for i, video in enumerate(videos)}
        self._reader = FeatureReader(
            clips.dataset.features,
            videos,
            dtype=dtype,
            layout=layout,
            check_finite=check_finite,
            where="ClipDataset",
        )

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the crops; workers that live on from an earlier epoch do not hear of it.

        Raises:
            ConfigError: if ``epoch`` is negative.
        """
        epoch_order(0, self.seed, epoch, where="ClipDataset")
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads a clip.

        Raises:
            DataError: see :meth:`FeatureReader.read`.
            IndexError: if there is no such clip.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"ClipDataset: no clip {index} among {len(self)}")
        clip = self.clips.clip(index, self.seed, self.epoch)
        rows = np.array([[self._number[clip.video], clip.start, clip.stop, clip.rows]])
        ((_, features, _),) = self._reader.read([Request(rows, clip.stop - clip.start, None)])
        return {
            "features": features[0],
            "labels": torch.from_numpy(clip.labels.copy()),
            "edges": torch.from_numpy(clip.edges.copy()),
            "index": index,
            "start": clip.start,
            "rows": clip.rows,
            "video": clip.video,
        }

    def close(self) -> None:
        """Joins the thread and closes the files; reading again starts anew."""
        self._reader.close()
