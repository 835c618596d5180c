# SPDX-License-Identifier: Apache-2.0
"""What a loader reads: clips of videos with the instances in them, on one grid.

A set of clips has a number of items. An item of an epoch is a :class:`Clip`: some rows of a video,
perhaps of the video resampled to another number of rows, and its instances in rows of the clip.
What is random about it comes from (seed, epoch, index) alone.

:class:`~tal_fast.data.windows.WindowSet` holds sliding windows, :class:`CropSet` one random crop
per video, :class:`VideoSet` whole videos, padded or resized.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tal_fast.data.dataset import TALDataset
from tal_fast.data.order import below, item_numbers
from tal_fast.data.unheld import count_unheld
from tal_fast.errors import ConfigError, DataError, counted, nearest
from tal_fast.typing import Floats, Ints, Mask

__all__ = [
    "Clip",
    "ClipSet",
    "CropSet",
    "VideoSet",
    "known_videos",
    "owned_instances",
]

Edges = Floats

_CROP = 0  # purposes of random numbers (order.item_numbers)


class Clip(NamedTuple):
    """Some rows of a video and the instances in them.

    Attributes:
        video: its name.
        start: first row.
        stop: row after the last.
        rows: rows of the whole video on this grid: its own number, or what it is resampled to.
        labels: int64 [n].
        edges: float64 [n, 2], start and end of each instance in rows of the clip, in edge
            coordinates (:class:`~tal_fast.data.grid.Grid`): row i covers [i, i + 1), and 0 is the
            clip's beginning. ActionFormer's coordinate, the row index as centre, is ``edge - 0.5``.
    """

    video: str
    start: int
    stop: int
    rows: int
    labels: Ints
    edges: Edges


class ClipSet(Protocol):
    """What :class:`~tal_fast.data.loader.FeatureLoader` needs to know of a set."""

    @property
    def dataset(self) -> TALDataset:
        """Where features and annotations come from."""

    @property
    def videos(self) -> list[str]:
        """Names of the videos that items come from."""

    @property
    def grid_rows(self) -> Ints:
        """Rows of each video on the clips' grid: int64 [videos]."""

    @property
    def lengths(self) -> Ints:
        """Rows of each item, or the most it can have: int64 [n]."""

    @property
    def unit(self) -> str:
        """What an item is, for messages."""

    @property
    def unheld(self) -> dict[str, tuple[int, int]]:
        """Instances that no item can hold, so that they are never learned.

        Class -> (how many of its instances, of how many in these videos), for the classes that have
        any.
        """

    def __len__(self) -> int:
        """Number of items."""

    def clip(self, index: int, seed: int, epoch: int) -> Clip:
        """Returns an item of an epoch."""

    def slot_length(self, rows: int) -> int:
        """Returns the rows of a batch whose longest clip has ``rows`` rows, padding included."""


def known_videos(dataset: TALDataset, videos: Iterable[str], where: str) -> list[str]:
    """Returns the videos as a list.

    Raises:
        DataError: if one is unknown or none is given.
    """
    names = list(videos)
    if not names:
        raise DataError(f"{where}: expected at least one video, got none")
    for name in names:
        if name not in dataset.features:
            raise DataError(
                f"{where}: no video {name!r} in data set {dataset.name!r}"
                f"{nearest(name, dataset.features)}"
            )
    return names


def owned_instances(
    edges: Edges, start: float | Edges, stop: float | Edges, min_inside: float
) -> Mask:
    """Says which instances a clip owns: those of which enough lies in it.

    Args:
        edges: float64 [N, 2], start and end of each instance in rows of the video.
        start: where the clip begins, a number or an array that broadcasts against [N].
        stop: where it ends, likewise.
        min_inside: least part of an instance inside, in (0, 1].

    Returns:
        bool [N], or of the shape that comes out.
    """
    inside = np.minimum(edges[:, 1], stop) - np.maximum(edges[:, 0], start)
    share = inside / (edges[:, 1] - edges[:, 0])
    # 1e-9: an instance of which exactly min_inside lies inside must not be lost to rounding.
    owned: Mask = (share >= min_inside - 1e-9) & (share > 0)
    return owned


class VideoSet:
    """Whole videos, padded to a common length or resized to one.

    Targets are all instances of the video on its grid. Resized to L rows, the T rows of a video
    become the linear interpolation at ``(v + 0.5) * T / L - 0.5``, v = 0 … L - 1, held at the ends:
    ``torch.nn.functional.interpolate(x, L, mode="linear", align_corners=False)`` as ActionFormer
    and OpenTAD call it for ActivityNet. Row v then covers the edges [v, v + 1) * T / L of the
    video, so instances are scaled by L / T.

    Attributes:
        dataset: where features and annotations come from.
        videos: names, in the given order.
        lengths: int64, rows of each video on the clips' grid.
        grid_rows: the same.
    """

    def __init__(
        self,
        dataset: TALDataset,
        videos: Iterable[str],
        *,
        resize: int | None = None,
        pad_to: int = 1,
        multiple: int = 1,
        padding: Callable[[int], int] | None = None,
        max_length: int | None = None,
    ) -> None:
        """Prepares; reads no features.

        Args:
            dataset: an open data set.
            videos: names of the videos.
            resize: rows that every video is resampled to; None keeps its own.
            pad_to: least rows of a batch.
            multiple: the rows of a batch are a multiple of it, as a pyramid of strides needs.
            padding: gives the rows of a batch by those of its longest clip, in place of ``pad_to``
                and ``multiple``.
            max_length: refuse videos with more rows (after resizing); None takes any.

        Raises:
            DataError: if a video is unknown, none is given, or one is too long.
            ConfigError: if a number is out of range.
        """
        sizes = {"pad_to": pad_to, "multiple": multiple}
        sizes |= {} if resize is None else {"resize": resize}
        sizes |= {} if max_length is None else {"max_length": max_length}
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"VideoSet: expected {name} >= 1, got {value}")
        self.dataset = dataset
        self.videos = known_videos(dataset, videos, "VideoSet")
        self.resize = resize
        self._pad_to = pad_to
        self._multiple = multiple
        self._padding = padding
        features = dataset.features
        rows = [features[name].rows for name in self.videos] if resize is None else (
            [resize] * len(self.videos))  # fmt: skip
        self.lengths: Ints = np.array(rows, dtype=np.int64)
        self.grid_rows = self.lengths
        if max_length is not None and self.lengths.max() > max_length:
            longest = int(self.lengths.argmax())
            raise DataError(
                f"VideoSet: video {self.videos[longest]!r} has "
                f"{counted(self.lengths[longest], 'row')}, "
                f"expected at most max_length = {max_length}"
            )

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.videos)

    @property
    def unit(self) -> str:
        """What an item is."""
        return "whole video"

    @property
    def unheld(self) -> dict[str, tuple[int, int]]:
        """Nothing: a whole video holds all of its instances; see :class:`ClipSet`."""
        return {}

    def slot_length(self, rows: int) -> int:
        """Returns ``max(pad_to, rows)`` rounded up to the multiple, or what ``padding`` gives."""
        if self._padding is not None:
            return self._padding(rows)
        return math.ceil(max(self._pad_to, rows) / self._multiple) * self._multiple

    def clip(self, index: int, seed: int, epoch: int) -> Clip:
        """Returns a video; seed and epoch make no difference.

        Args:
            index: position in :attr:`videos`.
            seed: of the loader.
            epoch: number of the epoch.
        """
        name = self.videos[index]
        video = self.dataset.annotations.videos[name]
        rows = self.dataset.features[name].rows
        edges = self.dataset.grid(name).to_grid(video.segments)
        if self.resize is not None:
            edges = edges * (self.resize / rows)
            rows = self.resize
        return Clip(name, 0, rows, rows, video.labels, edges)


class CropSet:
    """One random crop per video and epoch, as ActionFormer's ``truncate_feats`` makes it.

    A video of more than ``max_length`` rows is cut to a window of that many rows at a random place;
    a shorter one is kept, or with ``crop_ratio`` cut to a random part of itself. An instance is a
    target of a window when at least ``min_inside`` of its length lies in the window, widened by a
    margin on both sides; targets are clipped to the widened window. Up to ``trials`` places are
    drawn, and the first that has a target is taken. When no place will do, the last one stands, and
    the crop has no instance; so does a video without instances, at the first place.

    ActionFormer measures at row centres: its window [st, ed) with ``offset`` is, in edge
    coordinates, [st + 0.5 - offset, ed + 0.5 + offset]. ``margin="actionformer"`` is exactly that,
    with offset = frames / (2 * stride); ``margin="opentad"`` is ``RandomTrunc``, where the offset
    is 0. Both let a target reach that far beyond the clip. ``margin="none"`` is the window itself,
    [st, ed] in edge coordinates.

    Differences from ActionFormer: random numbers come from (seed, epoch, index), not from a
    process's state; coordinates are float64; and instances of a video that is kept whole pass the
    same test, as ActionFormer's ActivityNet loader has it (its THUMOS14 loader keeps all of them).

    Attributes:
        dataset: where features and annotations come from.
        videos: names, in the given order.
        lengths: int64, most rows of each video's crop.
        grid_rows: int64, rows of each video on the clips' grid.
    """

    def __init__(
        self,
        dataset: TALDataset,
        videos: Iterable[str],
        *,
        max_length: int = 2304,
        crop_ratio: tuple[float, float] | None = (0.9, 1.0),
        min_inside: float = 0.5,
        margin: str = "actionformer",
        trials: int = 200,
        resize: int | None = None,
        pad_to: int | None = None,
        multiple: int = 1,
        padding: Callable[[int], int] | None = None,
    ) -> None:
        """Prepares; reads no features.

        Args:
            dataset: an open data set.
            videos: names of the videos.
            max_length: most rows of a crop.
            crop_ratio: least and greatest part of a short video that is kept; None keeps it whole.
            min_inside: least part of an instance inside a crop for it to be a target, in (0, 1].
            margin: ``"actionformer"``, ``"opentad"`` or ``"none"``.
            trials: places that are tried.
            resize: resample every video to so many rows first (:class:`VideoSet`).
            pad_to: least rows of a batch; None takes ``max_length``, as ActionFormer does.
            multiple: the rows of a batch are a multiple of it.
            padding: as in :class:`VideoSet`.

        Raises:
            DataError: if a video is unknown or none is given.
            ConfigError: if an argument is out of range.
        """
        if max_length < 1 or trials < 1:
            raise ConfigError(
                f"CropSet: expected max_length and trials >= 1, got {max_length} and {trials}"
            )
        if crop_ratio is not None and not 0 < crop_ratio[0] <= crop_ratio[1] <= 1:
            raise ConfigError(
                f"CropSet: expected crop_ratio (low, high) with 0 < low <= high <= 1, "
                f"got {crop_ratio}"
            )
        if not 0 < min_inside <= 1:
            raise ConfigError(f"CropSet: expected min_inside in (0, 1], got {min_inside}")
        if margin not in ("actionformer", "opentad", "none"):
            raise ConfigError(
                f"CropSet: expected margin 'actionformer', 'opentad' or 'none', got {margin!r}"
            )
        self._whole = VideoSet(
            dataset,
            videos,
            resize=resize,
            pad_to=max_length if pad_to is None else pad_to,
            multiple=multiple,
            padding=padding,
        )
        self.dataset = dataset
        self.videos = self._whole.videos
        self.max_length = max_length
        self.grid_rows = self._whole.lengths
        self.lengths: Ints = np.minimum(self._whole.lengths, max_length)
        self._crop_ratio = crop_ratio
        self._min_inside = min_inside
        self._margin = margin
        self._trials = trials

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.videos)

    @property
    def unit(self) -> str:
        """``crop of at most 2304 rows``."""
        return f"crop of at most {counted(self.max_length, 'row')}"

    @functools.cached_property
    def unheld(self) -> dict[str, tuple[int, int]]:
        """Class -> how many of its instances no crop can hold, of how many; see :class:`ClipSet`.

        Every place that a crop of the greatest length may take counts, however rarely it is drawn.
        """
        held = {}
        for index, name in enumerate(self.videos):
            whole = self._whole.clip(index, 0, 0)
            length = max(self._lengths(whole.rows))
            held[name] = _holds(
                whole.edges, whole.rows, length, self._reach(name), self._min_inside
            )
        return count_unheld(self.dataset, held)

    def _lengths(self, rows: int) -> tuple[int, int]:
        """Returns least and greatest length of a crop of a video of so many rows."""
        if rows > self.max_length:
            return self.max_length, self.max_length
        if self._crop_ratio is None:
            return rows, rows
        low, high = self._crop_ratio
        return max(round(low * rows), 1), min(round(high * rows), rows)

    def slot_length(self, rows: int) -> int:
        """Returns the rows of a batch whose longest crop has so many."""
        return self._whole.slot_length(rows)

    def clip(self, index: int, seed: int, epoch: int) -> Clip:
        """Returns the crop of a video in an epoch.

        Args:
            index: position in :attr:`videos`.
            seed: of the loader.
            epoch: number of the epoch.
        """
        whole = self._whole.clip(index, seed, epoch)
        rows = whole.rows
        before, after = self._reach(whole.video)
        numbers = item_numbers(seed, epoch, index, _CROP, self._trials + 1)
        low, high = self._lengths(rows)
        length = low + below(numbers[0], high - low + 1)
        places = [below(n, rows - length + 1) for n in numbers[1:]] if length < rows else [0]
        start, chosen, edges = _first_with_instance(
            whole.edges, places, length, (before, after), self._min_inside
        )
        return Clip(whole.video, start, start + length, rows, whole.labels[chosen], edges[chosen])

    def _reach(self, video: str) -> tuple[float, float]:
        """Returns how far a window reaches before its first and after its last edge, in rows."""
        if self._margin == "none":
            return 0.0, 0.0
        offset = 0.0
        if self._margin == "actionformer":
            grid = self.dataset.grid(video)
            # A resampled row is taken to see what it covers, as in ActionFormer's ActivityNet code.
            offset = 0.5 if self._whole.resize is not None else 0.5 * grid.frames / grid.stride
        return offset - 0.5, offset + 0.5


def _holds(
    edges: Floats,
    rows: int,
    length: int,
    reach: tuple[float, float],
    min_inside: float,
) -> Mask:
    """Returns which instances some place of a crop would hold: bool [N]."""
    # The part inside is concave in the place, with corners where the crop's edges meet the
    # instance's: it is greatest at a whole number beside a corner, or at the ends.
    corners = np.stack([edges[:, 0] + reach[0], edges[:, 1] - length - reach[1]])  # [2, N]
    places = np.concatenate([np.floor(corners), np.ceil(corners)])
    places = np.clip(places, 0, rows - length)  # [4, N]
    owned = owned_instances(edges, places - reach[0], places + length + reach[1], min_inside)
    held: Mask = np.any(owned, axis=0)
    return held


def _first_with_instance(
    edges: Edges,
    places: Sequence[int],
    length: int,
    reach: tuple[float, float],
    min_inside: float,
) -> tuple[int, npt.NDArray[np.intp], Edges]:
    """Returns place, targets and clipped edges of the first place with a target, else the last."""
    for start in places:
        low, high = start - reach[0], start + length + reach[1]
        chosen = np.flatnonzero(owned_instances(edges, low, high, min_inside))
        if len(chosen) or not len(edges):
            break
    return start, chosen, np.clip(edges, low, high) - start
