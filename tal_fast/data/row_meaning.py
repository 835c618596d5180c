# SPDX-License-Identifier: Apache-2.0
"""What a row of features stands for, beyond its numbers: when, how much of it, of which streams.

No feature file says so; ``dataset.yaml`` does. A model has learned it, so a checkpoint keeps it, to
be compared with other data that the model is to look at: a model of 5 rows per second gives
detections on 10 rows per second as well, and they are wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from tal_fast.data.annotation_values import finite_or_none
from tal_fast.data.clips import ClipSet
from tal_fast.data.dataset import TALDataset
from tal_fast.errors import DataError, counted

__all__ = ["RowMeaning", "row_meaning"]

# Two numbers that differ by less are one number: 29.97 frames per second are called 30.
_SAME = 0.01

Span = tuple[float, float]


@dataclass(frozen=True)
class RowMeaning:
    """What the rows that a model looks at stand for.

    Of numbers that each video has its own of, the least and the greatest.

    Attributes:
        rate: rows per second, on the grid of the clips.
        seen: seconds of the video that a row is computed from.
        rows: number of rows of every video on the clips' grid; None where they differ.
        stretched: whether videos are brought to one number of rows, however long they last. How
            many rows a second has then says nothing.
        streams: name and channels of each stream, in order.
    """

    rate: Span
    seen: Span
    rows: int | None
    stretched: bool
    streams: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        """Says it in words."""
        return f"{_shown(self.rate)} rows per second, each seeing {_shown(self.seen)} s"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, as a checkpoint holds them."""
        lists = {"rate": list(self.rate), "seen": list(self.seen)}
        return {**asdict(self), **lists, "streams": [list(stream) for stream in self.streams]}

    @classmethod
    def from_dict(cls, values: Any) -> RowMeaning:
        """Reads what :meth:`to_dict` gave.

        Raises:
            DataError: the values are others.
        """
        try:
            rate, seen = (_span(values[key]) for key in ("rate", "seen"))
            rows, stretched, streams = (values[key] for key in ("rows", "stretched", "streams"))
            streams = tuple((name, channels) for name, channels in streams)
            texts = all(isinstance(name, str) for name, _ in streams)
            counts = [count for _, count in streams] + ([] if rows is None else [rows])
            if texts and isinstance(stretched, bool) and all(type(n) is int for n in counts):
                return cls(rate, seen, rows, stretched, streams)
        except (KeyError, TypeError, ValueError):
            pass
        raise DataError(f"expected what the rows stand for under 'rows', got {values!r:.60}")

    def difference(self, data: RowMeaning) -> str | None:
        """Says in what the rows of other data differ from these; None if in nothing that counts.

        Args:
            data: that of the other data.

        Returns:
            Such as ``"5 rows per second, there are 10"``.
        """
        names, others = ([name for name, _ in each.streams] for each in (self, data))
        if len(names) == len(others):
            widths = ([count for _, count in each.streams] for each in (self, data))
            # Names alone say nothing: a folder may be moved. The same in another order do.
            swapped = names != others and sorted(names) == sorted(others)
            if swapped or len({tuple(each) for each in widths}) > 1:
                return f"the streams {_streams(self)}, in this order, there are {_streams(data)}"
        if self.stretched:
            if self.rows is None or self.rows == data.rows or _meet(self.rate, data.rate):
                return None
            return f"videos of {counted(self.rows, 'row')} each, there are {_length(data)}"
        if not _meet(self.rate, data.rate):
            return f"{_shown(self.rate)} rows per second, there are {_shown(data.rate)}"
        if not _meet(self.seen, data.seen):
            return f"rows that see {_shown(self.seen)} s each, there they see {_shown(data.seen)} s"
        return None

    def beyond(self, data: RowMeaning) -> str | None:
        """Says how far the rates of some videos of other data lie outside of these; None: nowhere.

        Args:
            data: that of the other data, without a :meth:`difference`.
        """
        (least, greatest), (lower, upper) = self.rate, data.rate
        if self.stretched or (least <= lower * (1 + _SAME) and upper <= greatest * (1 + _SAME)):
            return None
        return f"{_shown(self.rate)} rows per second, there are {_shown(data.rate)}"


def row_meaning(clips: ClipSet) -> RowMeaning:
    """Returns what the rows of clips stand for.

    Of all videos of the data set, not only of those of the clips: where each has its own frames per
    second, a training must not take videos of another split for those of other features. Only
    where clips resample videos is it theirs alone.

    Args:
        clips: of the data set, as a model looks at it.
    """
    data = clips.dataset
    grid_rows = dict(zip(clips.videos, clips.grid_rows.tolist(), strict=True))
    scale = {video: rows / data.features[video].rows for video, rows in grid_rows.items()}
    resampled = any(factor != 1.0 for factor in scale.values())
    videos = list(scale) if resampled else list(data.features)
    grids = [data.grid(video) for video in videos]
    rate = _least_and_greatest(
        scale.get(video, 1.0) * grid.fps / grid.stride
        for video, grid in zip(videos, grids, strict=True)
    )
    numbers = {grid_rows.get(video, data.features[video].rows) for video in videos}
    rows = numbers.pop() if len(numbers) == 1 else None
    return RowMeaning(
        rate=rate,
        seen=_least_and_greatest(grid.frames / grid.fps for grid in grids),
        rows=rows,
        stretched=rows is not None and (resampled or rate[1] > rate[0] * (1 + _SAME)),
        streams=_streams_of(data),
    )


def _streams_of(data: TALDataset) -> tuple[tuple[str, int], ...]:
    parts = next(iter(data.features.values())).parts
    streams = data.spec.streams(data.path / "dataset.yaml")
    names = [PurePath(stream.path).name for stream in streams]
    if len(set(names)) < len(names):  # several in one folder
        names = [f"{stream.template or ''}{stream.key or ''}" for stream in streams]
    return tuple((name, part.columns) for name, part in zip(names, parts, strict=True))


def _least_and_greatest(values: Iterable[float]) -> Span:
    found = list(values)
    return min(found), max(found)


def _meet(one: Span, other: Span) -> bool:
    return one[0] <= other[1] * (1 + _SAME) and other[0] <= one[1] * (1 + _SAME)


def _span(value: Any) -> Span:
    least, greatest = (finite_or_none(item) for item in value)
    if least is None or greatest is None or not 0 < least <= greatest:
        raise ValueError
    return least, greatest


def _shown(span: Span) -> str:
    least, greatest = (f"{value:.4g}" for value in span)
    return least if least == greatest else f"{least} to {greatest}"


def _length(meaning: RowMeaning) -> str:
    if meaning.rows is not None:
        return f"videos of {counted(meaning.rows, 'row')} each"
    return f"videos of other lengths, {_shown(meaning.rate)} rows per second"


def _streams(meaning: RowMeaning) -> str:
    return ", ".join(f"{name} ({channels})" for name, channels in meaning.streams)
