# SPDX-License-Identifier: Apache-2.0
"""Datasets whose items are those of ActionFormer and of OpenTAD, read by our reader.

For trainings of those codebases: each is a map-style ``torch.utils.data.Dataset`` over clips of a
prepared data directory (``tal_fast.data``), with the keys, shapes, dtypes and coordinates that
their models and collate functions expect. Crops come from (seed, epoch, index), not from the state
of a process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from tal_fast.data.clip_dataset import ClipDataset
from tal_fast.data.clips import ClipSet
from tal_fast.errors import ConfigError

__all__ = ["ActionFormerItems", "OpenTADItems"]


class _Items(Dataset[dict[str, Any]]):
    """What both have: clips, read channels first."""

    def __init__(self, clips: ClipSet, *, seed: int = 0, check_finite: bool = True) -> None:
        """Prepares; opens no file.

        Args:
            clips: what to read: ``VideoSet`` for testing, ``CropSet`` for training as ActionFormer
                (``margin="actionformer"``) and OpenTAD (``margin="opentad"``) cut crops. Videos
                that they resize (ActivityNet) are ``VideoSet(…, resize=…)``.
            seed: of the crops.
            check_finite: refuse NaN and infinity in features.

        Raises:
            ConfigError: the seed is negative.
            DataError: the videos' numbers of channels differ.
        """
        self.clips = clips
        self._items = ClipDataset(clips, seed=seed, layout="CT", check_finite=check_finite)

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._items)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the crops; call it before each epoch, as with a ``DistributedSampler``.

        Raises:
            ConfigError: ``epoch`` is negative.
        """
        self._items.set_epoch(epoch)

    def close(self) -> None:
        """Joins the thread and closes the files; reading again starts anew."""
        self._items.close()

    def _read(self, index: int) -> tuple[dict[str, Any], torch.Tensor]:
        """Returns an item of the clips, and its instances with the row index as centre."""
        item = self._items[index]
        return item, (item["edges"] - 0.5).float()

    def _spacing(self, item: dict[str, Any]) -> tuple[float, float]:
        """Returns the stride of the item's rows, and frames such that both give seconds.

        A row at g is centred at (g * stride + 0.5 * frames) / fps, also where a video was resized
        and its rows are farther apart or nearer.
        """
        grid = self.clips.dataset.grid(item["video"])
        stride = grid.stride * self.clips.dataset.features[item["video"]].rows / item["rows"]
        return stride, grid.frames - grid.stride + stride


class ActionFormerItems(_Items):
    """Items of ``libs.datasets``: what a ``PtTransformer`` is given a list of.

    An item is a dict:

    =================  =============================================================================
    ``video_id``       name of the video
    ``feats``          float32 Tensor[C, T]
    ``segments``       float32 Tensor[N, 2]: start and end on the grid, where a row's index is its
                       centre; None for a video without instances
    ``labels``         int64 Tensor[N], or None
    ``fps``            frames per second
    ``duration``       seconds
    ``feat_stride``    frames between two rows
    ``feat_num_frames``  frames that a row sees
    =================  =============================================================================

    Their loaders take it with ``collate_fn=list`` (``trivial_batch_collator``). Detections of a
    crop are as far off as in theirs: ``feat_stride`` and ``feat_num_frames`` know nothing of where
    it begins. For a resized video the stride is that of the grid that it is on.

    Example::

        data = tal_fast.data.open_dataset("data/thumos14")
        train = ActionFormerItems(CropSet(data, data.splits["train"], max_length=2304))
        test = ActionFormerItems(VideoSet(data, data.splits["test"]))
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads an item.

        Raises:
            DataError: a file cannot be read, or holds what is no number.
            IndexError: there is no such item.
        """
        item, segments = self._read(index)
        name = item["video"]
        data = self.clips.dataset
        grid = data.grid(name)
        stride, frames = self._spacing(item)
        empty = len(segments) == 0
        return {
            "video_id": name,
            "feats": item["features"],
            "segments": None if empty else segments,
            "labels": None if empty else item["labels"],
            "fps": grid.fps,
            "duration": data.annotations.videos[name].duration,
            "feat_stride": stride,
            "feat_num_frames": frames,
        }


class OpenTADItems(_Items):
    """Items of OpenTAD's feature pipelines, as ``Collect`` leaves them and ``collate`` takes them.

    An item is a dict: ``inputs`` float32 Tensor[C, L], zero behind the end of the clip; ``masks``
    bool Tensor[L], True on its rows; ``gt_segments`` float32 Tensor[N, 2] with a row's index as its
    centre; ``gt_labels`` int64 Tensor[N]; and ``metas``, a dict with ``video_name``, ``fps``,
    ``duration``, ``snippet_stride``, ``offset_frames`` and, for a crop, ``window_start_frame``.

    Their ``collate`` stacks inputs and masks, so all items of a batch need one length.

    Example::

        train = OpenTADItems(CropSet(data, data.splits["train"], margin="opentad"), length=2304)
        loader = torch.utils.data.DataLoader(train, batch_size=2, collate_fn=collate)
    """

    def __init__(
        self,
        clips: ClipSet,
        *,
        length: int | None = None,
        seed: int = 0,
        check_finite: bool = True,
    ) -> None:
        """Prepares; opens no file.

        Args:
            clips: what to read, see :class:`ActionFormerItems`.
            length: L, to which every clip is padded; None: as long as each is.
            seed: of the crops.
            check_finite: refuse NaN and infinity in features.

        Raises:
            ConfigError: the seed is negative, or a clip may be longer than ``length``.
            DataError: the videos' numbers of channels differ.
        """
        super().__init__(clips, seed=seed, check_finite=check_finite)
        longest = int(clips.lengths.max())
        if length is not None and length < longest:
            raise ConfigError(
                f"OpenTADItems: expected length >= {longest}, the rows of the longest "
                f"{clips.unit}, got {length}"
            )
        self._length = length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads an item.

        Raises:
            DataError: a file cannot be read, or holds what is no number.
            IndexError: there is no such item.
        """
        item, segments = self._read(index)
        name = item["video"]
        data = self.clips.dataset
        grid = data.grid(name)
        features: torch.Tensor = item["features"]
        rows = features.shape[1]
        length = rows if self._length is None else self._length
        inputs = features.new_zeros(features.shape[0], length)
        inputs[:, :rows] = features
        stride, frames = self._spacing(item)
        metas: dict[str, Any] = {
            "video_name": name,
            "fps": grid.fps,
            "duration": data.annotations.videos[name].duration,
            "snippet_stride": stride,
            "offset_frames": frames / 2,
        }
        if item["start"]:
            metas["window_start_frame"] = item["start"] * stride
        return {
            "inputs": inputs,
            "masks": torch.arange(length, device="cpu") < rows,
            "gt_segments": segments,
            "gt_labels": item["labels"],
            "metas": metas,
        }
