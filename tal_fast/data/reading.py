# SPDX-License-Identifier: Apache-2.0
"""Rows of features from files into memory, read ahead by native threads.

Python decides the order and owns the memory; ``csrc/reader`` fills it.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from tal_fast import (
    _C,  # after torch, whose libraries it needs
    ranges,
)
from tal_fast.data.feature_index import DTYPES, Extent
from tal_fast.data.slots import Slots
from tal_fast.errors import ConfigError, DataError, counted, nearest
from tal_fast.threads import no_thread
from tal_fast.typing import Ints

__all__ = ["LAYOUTS", "SLOT_DTYPES", "FeatureReader", "Request"]

_MAX_OPEN_FILES = 256
# csrc/reader/reader.h: enum class ReadFault.
_OPEN, _TRUNCATED, _READ, _NOT_FINITE, _OUT_OF_RANGE, _REPLACED = 1, 2, 3, 4, 6, 7
LAYOUTS = ("TC", "CT")
#: What batches may hold: torch type, NumPy type of the same size (it has no bfloat16), number in
#: csrc/reader/reader.h.
SLOT_DTYPES: dict[str, tuple[torch.dtype, Any, int]] = {
    "float32": (torch.float32, np.float32, 1),
    "float16": (torch.float16, np.float16, 0),
    "bfloat16": (torch.bfloat16, np.int16, 3),
}
Token = TypeVar("Token")


@dataclass(frozen=True)
class Request(Generic[Token]):
    """A batch to read.

    Attributes:
        rows: int64 [B, 4]: number of the video (position in the reader's), first row, row after the
            last, and the rows that the video is resampled to (its own number: as it is).
        length: rows of a slot.
        token: comes back with the result.
    """

    rows: Ints
    length: int
    token: Token


class FeatureReader:
    """Reads batches of windows of some videos; owns the threads and the memory.

    Any number of threads gives the same bytes in the same order. Threads start with the first
    reading, a forked process starts its own.
    """

    def __init__(
        self,
        features: Mapping[str, Extent],
        videos: Sequence[str],
        *,
        dtype: str = "float32",
        layout: str = "TC",
        threads: int = 1,
        prefetch: int = 2,
        check_finite: bool = True,
        pinned: bool = False,
        where: str = "FeatureReader",
    ) -> None:
        """Prepares; opens no file.

        Args:
            features: extents by video.
            videos: the videos to read, all of one number of channels.
            dtype: of the slots, ``"float32"``, ``"float16"`` or ``"bfloat16"``.
            layout: ``"TC"`` for slots [B, L, C], ``"CT"`` for [B, C, L].
            threads: native threads that read; one moves about 15 GB/s from the page cache.
            prefetch: batches that are read ahead, at least 1.
            check_finite: refuse NaN and infinity.
            pinned: page-locked slots.
            where: who is asked, for messages.

        Raises:
            ConfigError: if an argument is out of range.
            DataError: if the videos' numbers of channels differ.
        """
        for name, value in {"threads": threads, "prefetch": prefetch}.items():
            if value < 1:
                raise ConfigError(f"{where}: expected {name} >= 1, got {value}")
        if dtype not in SLOT_DTYPES:
            raise ConfigError(
                f"{where}: expected dtype among {', '.join(SLOT_DTYPES)}, got {dtype!r}"
                f"{nearest(dtype, SLOT_DTYPES)}"
            )
        if layout not in LAYOUTS:
            raise ConfigError(f"{where}: expected layout 'TC' or 'CT', got {layout!r}")
        self.videos = list(videos)
        self.dtype = dtype
        self.layout = layout
        self.threads = threads
        self.prefetch = prefetch
        self.check_finite = check_finite
        self._where = where
        extents = [features[video] for video in self.videos]
        self.channels = extents[0].width
        self._parts: list[Extent] = []
        self._owner: list[int] = []  # video of a part
        table = []  # first part, number of parts, rows of a video
        columns = []  # of the slot at which a part begins
        for number, extent in enumerate(extents):
            parts = extent.parts
            table.append((len(self._parts), len(parts), extent.rows))
            column = 0
            for part in parts:
                columns.append(column)
                column += part.columns
                self._parts.append(part)
                self._owner.append(number)
            if column != self.channels:
                raise DataError(
                    f"{where}: expected {counted(self.channels, 'channel')} as in video "
                    f"{self.videos[0]!r}, "
                    f"got {column} in video {self.videos[number]!r}: {extent.path}"
                )
        self._table = np.array(table, dtype=np.int64).reshape(-1, 3)
        self._columns = np.array(columns, dtype=np.int64)
        self._slots = Slots(SLOT_DTYPES[dtype][1], prefetch + 2, pinned=pinned)
        self._masks = Slots(np.bool_, prefetch + 2, pinned=pinned)
        self._reader: _C.Reader | None = None
        self._process = -1

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the threads, so that another process can be given the reader."""
        return {**self.__dict__, "_reader": None, "_process": -1}

    @property
    def rows(self) -> Ints:
        """Rows of each video: int64 [videos]."""
        return self._table[:, 2]

    def read(
        self, requests: Iterable[Request[Token]]
    ) -> Iterator[tuple[Token, torch.Tensor, torch.Tensor]]:
        """Yields token, features and mask of each request, in order.

        ``prefetch`` further requests are being read while the consumer works. A batch belongs to
        the consumer: its memory is used again only when no tensor refers to it any more.

        Features are [B, L, C] or [B, C, L], zero after the end of a window; the mask is bool [B, L]
        and True there.

        Raises:
            DataError: if a file cannot be read, is shorter than it was when it was indexed, has
                been replaced, or holds NaN, infinity, or a number beyond the slots' type; the
                message names video, file, and offset or row. The batches before it are delivered.
        """
        reader = self._open()
        pending: collections.deque[tuple[int, Token, Any, Any]] = collections.deque()
        source = iter(requests)
        exhausted = False
        torch_dtype, _, dtype_number = SLOT_DTYPES[self.dtype]
        channels_first = self.layout == "CT"
        try:
            while True:
                # One more than prefetch: the oldest is the one that is handed out next.
                while not exhausted and len(pending) < self.prefetch + 1:
                    request = next(source, None)
                    if request is None:
                        exhausted = True
                        break
                    count, length = len(request.rows), request.length
                    shape = (length, self.channels)
                    features = self._slots.take(
                        (count, *(shape[::-1] if channels_first else shape))
                    )
                    mask = self._masks.take((count, length))
                    jobs = self._jobs(request.rows)
                    ticket = reader.submit(features, mask, jobs, dtype_number, int(channels_first))
                    pending.append((ticket, request.token, features, mask))
                    del request, features, mask
                if not pending:
                    return
                with ranges.range("tal_fast.data"):
                    fault = reader.wait(pending[0][0])
                _, token, slot, padding = pending.popleft()
                if fault is not None:
                    raise self._error(fault)
                result = (token, torch.from_numpy(slot).view(torch_dtype),
                          torch.from_numpy(padding))  # fmt: skip
                # Our references go before the consumer's turn, so that a batch which the consumer
                # drops is free at once.
                del token, slot, padding
                yield result
                del result
        finally:
            for ticket, _, _, _ in pending:
                if reader is self._reader:
                    reader.cancel(ticket)

    def _jobs(self, rows: Ints) -> Ints:
        """Returns the native reader's jobs: one per part of each window."""
        first, parts, own_rows = self._table[rows[:, 0]].T
        slot = np.repeat(np.arange(len(rows)), parts)
        # 0, 1, … within each window.
        part = np.arange(len(slot)) - np.repeat(np.cumsum(parts) - parts, parts) + first[slot]
        jobs = np.empty((len(slot), 6), dtype=np.int64)
        jobs[:, 0] = slot
        jobs[:, 1] = part
        jobs[:, 2] = self._columns[part]
        jobs[:, 3:5] = rows[slot, 1:3]
        jobs[:, 5] = np.where(rows[:, 3] == own_rows, 0, rows[:, 3])[slot]
        return jobs

    def _open(self) -> _C.Reader:
        """Returns the native reader, a new one after close() and in a forked process."""
        if self._reader is None or self._process != os.getpid():
            extents = [
                (
                    part.path,
                    part.offset,
                    part.rows,
                    part.columns,
                    DTYPES.index(part.dtype),
                    LAYOUTS.index(part.layout),
                )
                for part in self._parts
            ]
            try:
                self._reader = _C.Reader(extents, self.threads, _MAX_OPEN_FILES, self.check_finite)
            except RuntimeError:  # the only one that it has: std::system_error
                error = no_thread(f"{self._where}: threads={self.threads}")
                raise error from error.__cause__
            self._process = os.getpid()
        return self._reader

    def _error(self, fault: tuple[int, int, int, int, int, int, int, float, str]) -> DataError:
        kind, _, part, offset, row, column, size, number, reason = fault
        extent = self._parts[part]
        where = f"video {self.videos[self._owner[part]]!r}: {extent.path}"
        if kind == _OPEN:
            return DataError(f"{where}: cannot be opened: {reason}")
        if kind == _TRUNCATED:
            needed = extent.offset + extent.num_bytes
            return DataError(
                f"{where}: expected {needed} bytes, got {size}: {reason} (offset {offset})"
            )
        if kind == _READ:
            return DataError(f"{where}: cannot be read at offset {offset}: {reason}")
        if kind == _REPLACED:
            return DataError(f"{where}: {reason} since it was first read; open the data set anew")
        if kind == _NOT_FINITE:
            return DataError(
                f"{where}: expected finite features, got NaN or infinity in row {row}, channel "
                f"{column} (offset {offset})"
            )
        if kind == _OUT_OF_RANGE:
            return DataError(
                f"{where}: expected numbers within the range of {self.dtype}, got {number:g} in "
                f"row {row}, channel {column} (offset {offset})"
            )
        return DataError(f"{where}: reading failed: {reason}")

    def close(self) -> None:
        """Joins the threads and closes the files; reading again starts new ones."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
