# SPDX-License-Identifier: Apache-2.0
"""Sliding windows over feature sequences and the targets that lie in them."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tal_fast.data.clips import Clip, ClipSet, known_videos, owned_instances
from tal_fast.data.dataset import TALDataset
from tal_fast.data.order import below, item_numbers
from tal_fast.data.unheld import count_unheld
from tal_fast.errors import ConfigError, DataError, counted, nearest
from tal_fast.typing import Floats, Ints, Mask

__all__ = ["Window", "WindowRule", "WindowSet", "sliding_windows", "windows_of"]

_COVERS = ("tail", "tadtr-train", "tadtr-test", "opentad")
_JITTER = 1  # purpose of random numbers (order.item_numbers)


@dataclass(frozen=True)
class Window:
    """Rows [start, stop) of a video's features."""

    video: str
    start: int
    stop: int


def sliding_windows(
    rows: int, length: int, overlap: float, cover: str = "tail"
) -> list[tuple[int, int]]:
    """Returns windows [start, stop) of ``length`` rows over a sequence.

    Windows start at ``floor(i * length * (1 - overlap))`` as in TadTR (Liu et al. 2022). A sequence
    of at most ``length`` rows is one window [0, T]. ``cover`` says what happens at the end of a
    longer one:

    - ``"tail"``: when rows are left after the last full window, one more is added, shifted left to
      end at T. So every row is in a window, and every window is full.
    - ``"tadtr-train"``: TadTR's training rule, the same windows.
    - ``"tadtr-test"``: TadTR's test rule. The last window keeps its regular start and is short.
    - ``"opentad"``: OpenTAD's ``SlidingWindowDataset``. Its step is
      ``int(length * (1 - overlap))``; of ``max(1, T // step)`` regular windows the first that would
      pass T is shifted left to end there and is the last. The regular windows can run out before
      T: **rows at the end are then in no window**. With windows of 256 rows that happens to most
      lengths at overlap 0, to many at 0.25 (up to 127 rows), and to none at 0.5 and 0.75.
      A video that the regular windows cover exactly has its last window **twice** there, since
      another regular one would begin within it.

    Args:
        rows: length T of the sequence.
        length: rows of a window.
        overlap: part of a window that the next one repeats, in [0, 1).
        cover: the rule.

    Returns:
        The windows, by start.

    Raises:
        ConfigError: if an argument is out of range.

    Example::

        >>> sliding_windows(200, 128, 0.25)
        [(0, 128), (72, 200)]
        >>> sliding_windows(200, 128, 0.25, "tadtr-test")
        [(0, 128), (96, 200)]
        >>> sliding_windows(200, 128, 0.25, "opentad")
        [(0, 128), (72, 200)]
        >>> sliding_windows(160, 128, 0.25, "opentad")  # 32 rows are lost
        [(0, 128)]
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
        raise ConfigError(
            f"sliding_windows: expected cover among {_COVERS}, got {cover!r}"
            f"{nearest(cover, _COVERS)}"
        )
    if cover == "opentad":
        return _opentad_windows(rows, length, overlap)
    if rows <= length:
        return [(0, rows)]
    step = length * (1 - overlap)
    # 1e-9: 10 * (1 - 0.9) is 0.9999…; a start must not fall one row short of a whole number.
    count = math.floor((rows - length) / step + 1e-9) + 1
    starts = [math.floor(i * step + 1e-9) for i in range(count)]
    if starts[-1] + length < rows:
        if cover == "tadtr-test":
            last = math.floor(count * step + 1e-9)
            return [*((start, start + length) for start in starts), (last, rows)]
        starts.append(rows - length)
    return [(start, start + length) for start in starts]


def _opentad_windows(rows: int, length: int, overlap: float) -> list[tuple[int, int]]:
    step = int(length * (1 - overlap))
    windows = []
    for start in range(0, max(1, rows // step) * step, step):
        if start + length > rows:
            windows.append((max(0, rows - length), rows))
            break
        windows.append((start, start + length))
    return windows


@dataclass(frozen=True)
class WindowRule:
    """How videos are cut into windows and which instances a window owns; TadTR's by default.

    Attributes:
        length: rows of a window.
        overlap: part of a window that the next one repeats, in [0, 1).
        min_inside: least part of an instance inside a window for it to be a target, in (0, 1].
        cover: what happens at the end of a video (:func:`sliding_windows`).
    """

    length: int = 128
    overlap: float = 0.75
    min_inside: float = 0.75
    cover: str = "tail"

    def __post_init__(self) -> None:
        """Checks that the numbers are in range.

        Raises:
            ConfigError: if one is not.
        """
        if not 0 < self.min_inside <= 1:
            raise ConfigError(f"WindowRule: expected min_inside in (0, 1], got {self.min_inside}")
        self.windows(1)

    def windows(self, rows: int) -> list[tuple[int, int]]:
        """Returns the windows [start, stop) of a video of so many rows."""
        return sliding_windows(rows, self.length, self.overlap, self.cover)

    def owned(self, edges: Floats, windows: Sequence[tuple[int, int]]) -> Mask:
        """Returns which windows own which instances: bool [W, N].

        Args:
            edges: float64 [N, 2], start and end of each instance in rows of the video.
            windows: [start, stop) of each window.
        """
        bounds = np.asarray(windows, dtype=np.float64)  # [W, 2]
        return owned_instances(edges, bounds[:, :1], bounds[:, 1:], self.min_inside)


class WindowSet:
    """The windows of some videos with their targets, as TadTR cuts them for training.

    An instance belongs to a window when at least ``min_inside`` of its length lies in it; it is
    clipped to the window then. (OpenTAD asks for strictly more, and measures between the first
    frames of a window's first and last row.)

    Attributes:
        dataset: where features and annotations come from.
        length: rows of a window.
        windows: all windows, by video in the given order, then by start.
        dropped: windows left out for want of an instance when the videos were cut.
        videos: names of the videos that have a window.
        grid_rows: int64, rows of each of them.
        lengths: int64, rows of each window.
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
        cover: str = "tail",
        jitter: int = 0,
    ) -> None:
        """Cuts the windows; reads no features.

        Args:
            dataset: an open data set.
            videos: names of the videos to cut.
            length: rows of a window.
            overlap: part of a window that the next one repeats, in [0, 1).
            min_inside: least part of an instance inside a window for it to be a target, in (0, 1].
            drop_empty: leave out windows without a target (training); false keeps all (prediction).
            cover: what happens at the end of a video (:func:`sliding_windows`).
            jitter: in each epoch a window moves by up to so many rows either way, within its video,
                and its targets are cut anew. A move that would leave it without a target is not
                made under ``drop_empty``.

        Raises:
            DataError: if a video is unknown, none is given, or no window is left.
            ConfigError: if a number is out of range.
        """
        self._rule = WindowRule(int(length), overlap, min_inside, cover)
        if jitter < 0:
            raise ConfigError(f"WindowSet: expected jitter >= 0, got {jitter}")
        self.dataset = dataset
        self.length = int(length)
        self.windows: list[Window] = []
        self.dropped = 0
        self._held: dict[str, Mask] = {}
        self._drop_empty = drop_empty
        self._jitter = int(jitter)
        self._labels: list[Ints] = []
        self._edges: list[Floats] = []
        self._instances: list[Ints] = []
        names = known_videos(dataset, videos, "WindowSet")
        for name in names:
            self._cut(name, self._rule.windows(dataset.features[name].rows))
        if not self.windows:
            raise DataError(
                f"WindowSet: none of the {counted(self.dropped, 'window')} of "
                f"{counted(len(names), 'video')} holds "
                f"{min_inside:.0%} of an instance (length {self.length})"
            )
        self._summarise()

    def _summarise(self) -> None:
        self.videos = list(dict.fromkeys(window.video for window in self.windows))
        self.grid_rows: Ints = np.array(
            [self.dataset.features[name].rows for name in self.videos], dtype=np.int64
        )
        self.lengths: Ints = np.array(
            [window.stop - window.start for window in self.windows], dtype=np.int64
        )

    def _cut(self, name: str, spans: list[tuple[int, int]]) -> None:
        video = self.dataset.annotations.videos[name]
        edges = self.dataset.grid(name).to_grid(video.segments)  # [N, 2]
        owned = self._rule.owned(edges, spans)
        self._held[name] = np.any(owned, axis=0)
        for w, (start, stop) in enumerate(spans):
            mine = np.flatnonzero(owned[w])
            if self._drop_empty and not len(mine):
                self.dropped += 1
                continue
            self.windows.append(Window(name, start, stop))
            self._instances.append(mine)
            self._labels.append(video.labels[mine])
            self._edges.append(np.clip(edges[mine], start, stop) - start)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows)

    @property
    def unit(self) -> str:
        """``window of 128 rows``."""
        return f"window of {counted(self.length, 'row')}"

    @functools.cached_property
    def unheld(self) -> dict[str, tuple[int, int]]:
        """Class -> how many of its instances no window owns, of how many; see :class:`ClipSet`.

        Counted before any jitter, and kept by :meth:`subset`.
        """
        return count_unheld(self.dataset, self._held)

    def subset(self, positions: Sequence[int] | Ints) -> WindowSet:
        """Returns the same set with only some of its windows.

        Nothing is read or cut anew: targets are shared, and settings such as the jitter are kept.
        Its random numbers go by the position in the new set, so a window that stays moves
        differently there unless all stay. :attr:`dropped` stays that of the whole set.

        Args:
            positions: of the windows in :attr:`windows`, in any order; they are kept in rising
                order, that is, by video and start as here.

        Raises:
            ConfigError: if a position is no whole number, out of range or given twice, or if none
                is given.
        """
        given = np.asarray(positions)
        if given.ndim != 1 or not given.size:
            raise ConfigError(
                "WindowSet.subset: expected a sequence of at least one position, "
                f"got {'none' if not given.size else f'shape {given.shape}'}"
            )
        if not np.issubdtype(given.dtype, np.integer):
            raise ConfigError(f"WindowSet.subset: expected whole numbers, got {given.dtype}")
        chosen = np.sort(given)
        for position in (chosen[0], chosen[-1]):
            if not 0 <= position < len(self):
                raise ConfigError(
                    f"WindowSet.subset: expected positions in [0, {len(self)}), got {position}"
                )
        twice = chosen[1:][chosen[1:] == chosen[:-1]]
        if len(twice):
            raise ConfigError(
                f"WindowSet.subset: expected each position once, got {twice[0]} more than once"
            )
        part = copy.copy(self)
        kept = chosen.tolist()
        part.windows = [self.windows[i] for i in kept]
        part._labels = [self._labels[i] for i in kept]
        part._edges = [self._edges[i] for i in kept]
        part._instances = [self._instances[i] for i in kept]
        part._summarise()
        return part

    def instances(self, index: int) -> Ints:
        """Returns which instances of its video are targets of a window, before any jitter.

        Args:
            index: position in :attr:`windows`.

        Returns:
            int64 [n], rising: rows of the video's ``segments`` and ``labels``.
        """
        return self._instances[index]

    def slot_length(self, rows: int) -> int:
        """Returns :attr:`length`, however long the windows of a batch are."""
        return self.length

    def clip(self, index: int, seed: int, epoch: int) -> Clip:
        """Returns a window of an epoch, moved by the jitter.

        Args:
            index: position in :attr:`windows`.
            seed: of the loader.
            epoch: number of the epoch.
        """
        window = self.windows[index]
        rows = self.dataset.features[window.video].rows
        labels, edges = self._labels[index], self._edges[index]
        start = window.start
        if self._jitter:
            draw = item_numbers(seed, epoch, index, _JITTER, 1)[0]
            size = window.stop - window.start
            moved = start - self._jitter + below(draw, 2 * self._jitter + 1)
            moved = min(max(moved, 0), rows - size)
            inside = self._inside(window.video, moved, moved + size)
            if len(inside[0]) or not self._drop_empty:
                start, labels, edges = moved, *inside
        return Clip(window.video, start, start + window.stop - window.start, rows, labels, edges)

    def _inside(self, name: str, start: int, stop: int) -> tuple[Ints, Floats]:
        """Returns labels and edges of the instances of a window."""
        video = self.dataset.annotations.videos[name]
        edges = self.dataset.grid(name).to_grid(video.segments)
        mine = self._rule.owned(edges, [(start, stop)])[0]
        return video.labels[mine], np.clip(edges[mine], start, stop) - start


def windows_of(clips: ClipSet) -> WindowSet:
    """Returns a set of clips that is known to be one of windows.

    Raises:
        ConfigError: it holds other clips, of which none can be chosen one by one.
    """
    if not isinstance(clips, WindowSet):
        raise ConfigError(
            "windows: expected a model that learns from sliding windows, this one learns from a "
            f"{clips.unit}; sample videos instead"
        )
    return clips
