# SPDX-License-Identifier: Apache-2.0
"""Sliding windows over feature sequences and the targets that lie in them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tal_fast.data.dataset import TALDataset
from tal_fast.errors import ConfigError, DataError, nearest

__all__ = ["Window", "WindowSet", "sliding_windows"]

_COVERS = ("tail",)


@dataclass(frozen=True)
class Window:
    """Rows [start, stop) of a video's features."""

    video: str
    start: int
    stop: int


def sliding_windows(
    rows: int, length: int, overlap: float, cover: str = "tail"
) -> list[tuple[int, int]]:
    """Returns windows [start, stop) of ``length`` rows that cover a sequence.

    Windows start at ``floor(i * length * (1 - overlap))`` as in TadTR (Liu et al. 2022).

    Args:
        rows: length T of the sequence; one of at most ``length`` rows gives one window [0, T].
        length: rows of a window.
        overlap: part of a window that the next one repeats, in [0, 1).
        cover: rule for the end. ``"tail"``: a last window is shifted left to end at T, so every row
            is in a window and every window of a longer sequence is full (TadTR's training rule).

    Raises:
        ConfigError: if an argument is out of range.
    """
    if rows < 1:
        raise ConfigError(f"sliding_windows: expected rows >= 1, got {rows}")
    if length < 1:
        raise ConfigError(f"sliding_windows: expected length >= 1, got {length}")
    if not 0 <= overlap < 1 or length * (1 - overlap) < 1 - 1e-9:
        raise ConfigError(
            f"sliding_windows: expected overlap in [0, 1) that leaves a step of at least one row "
            f"of {length}, got {overlap}"
        )
    if cover not in _COVERS:
        raise ConfigError(f"sliding_windows: expected cover among {_COVERS}, got {cover!r}")
    if rows <= length:
        return [(0, rows)]
    step = length * (1 - overlap)
    # 1e-9: 10 * (1 - 0.9) is 0.9999…; a start must not fall one row short of a whole number.
    count = math.floor((rows - length) / step + 1e-9) + 1
    starts = [math.floor(i * step + 1e-9) for i in range(count)]
    if starts[-1] + length < rows:
        starts.append(rows - length)
    return [(start, start + length) for start in starts]


class WindowSet:
    """The windows of some videos with their targets, as TadTR cuts them for training.

    An instance belongs to a window when at least ``min_inside`` of its length lies in it; it is
    clipped to the window then.

    Attributes:
        dataset: where features and annotations come from.
        length: rows of a window.
        windows: all windows, by video in the given order, then by start.
        dropped: windows left out for want of an instance.
    """

    def __init__(
        self,
        dataset: TALDataset,
        videos: Iterable[str],
        *,
        length: int = 128,
        overlap: float = 0.75,
        min_inside: float = 0.75,
        drop_empty: bool = True,
    ) -> None:
        """Cuts the windows; reads no features.

        Args:
            dataset: an open data set.
            videos: names of the videos to cut.
            length: rows of a window.
            overlap: part of a window that the next one repeats, in [0, 1).
            min_inside: least part of an instance inside a window for it to be a target, in (0, 1].
            drop_empty: leave out windows without a target (training); false keeps all (prediction).

        Raises:
            DataError: if a video is unknown, none is given, or no window is left.
            ConfigError: if a number is out of range.
        """
        if not 0 < min_inside <= 1:
            raise ConfigError(f"WindowSet: expected min_inside in (0, 1], got {min_inside}")
        self.dataset = dataset
        self.length = int(length)
        self.windows: list[Window] = []
        self.dropped = 0
        self._labels: list[npt.NDArray[np.int64]] = []
        self._segments: list[npt.NDArray[np.float32]] = []
        names = list(videos)
        if not names:
            raise DataError("WindowSet: expected at least one video, got none")
        for name in names:
            if name not in dataset.features:
                raise DataError(
                    f"WindowSet: no video {name!r} in data set {dataset.name!r}"
                    f"{nearest(name, dataset.features)}"
                )
            self._cut(name, overlap, min_inside, drop_empty)
        if not self.windows:
            raise DataError(
                f"WindowSet: none of the {self.dropped} windows of {len(names)} videos holds "
                f"{min_inside:.0%} of an instance (length {self.length})"
            )

    def _cut(self, name: str, overlap: float, min_inside: float, drop_empty: bool) -> None:
        video = self.dataset.annotations.videos[name]
        spans = sliding_windows(self.dataset.features[name].rows, self.length, overlap)
        edges = self.dataset.grid(name).to_grid(video.segments)  # [N, 2]
        bounds = np.asarray(spans, dtype=np.float64)  # [W, 2]
        starts = np.maximum(edges[None, :, 0], bounds[:, None, 0])  # [W, N]
        ends = np.minimum(edges[None, :, 1], bounds[:, None, 1])
        inside = (ends - starts) / (edges[:, 1] - edges[:, 0])
        # 1e-9: an instance of which exactly min_inside lies inside must not be lost to rounding.
        chosen = inside >= min_inside - 1e-9
        for w, (start, stop) in enumerate(spans):
            mine = np.flatnonzero(chosen[w])
            if drop_empty and not len(mine):
                self.dropped += 1
                continue
            low, high = starts[w, mine] - start, ends[w, mine] - start
            segments = np.stack([(low + high) / 2, high - low], axis=1) / self.length
            self.windows.append(Window(name, start, stop))
            self._labels.append(video.labels[mine])
            self._segments.append(segments.astype(np.float32))

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def targets(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Returns the instances of a window.

        Args:
            index: position in :attr:`windows`.

        Returns:
            labels int64 [n], and segments float32 [n, 2] as (centre, width) in units of the window
            length: an instance that spans a full window is (0.5, 1). A window shorter than
            ``length`` is measured in the same unit.
        """
        return self._labels[index], self._segments[index]
