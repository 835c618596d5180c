# SPDX-License-Identifier: Apache-2.0
"""Windows in batches, read ahead by native threads.

Python decides the order and owns the memory; ``csrc/reader`` fills it. A batch depends on (seed,
epoch, its position) alone: any number of threads gives the same bytes in the same order.
"""

from __future__ import annotations

import collections
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tal_fast import _C  # after torch, whose libraries it needs
from tal_fast.data.feature_index import DTYPES, Extent
from tal_fast.data.windows import Window, WindowSet
from tal_fast.errors import ConfigError, DataError
from tal_fast.ranges import nvtx_range

__all__ = ["Batch", "BatchLoader", "epoch_order"]

_MAX_OPEN_FILES = 256
# csrc/reader/reader.h: enum class ReadFault.
_OPEN, _TRUNCATED, _READ, _NOT_FINITE = 1, 2, 3, 4


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


def epoch_order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Returns the shuffled order of an epoch: int64 [count], a permutation.

    Item ``i`` gets the ``i``-th 64-bit number of Philox 4x64 under the key (seed, epoch), and items
    are sorted by their numbers. NumPy guarantees the stream of a bit generator for ever, unlike
    that of ``Generator.permutation``, so an order can be repeated with another version.

    Raises:
        ConfigError: if ``seed`` or ``epoch`` is negative or wider than 64 bits.
    """
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 2**64:
            raise ConfigError(f"BatchLoader: expected 0 <= {name} < 2**64, got {value}")
    numbers = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(count)
    return np.argsort(np.asarray(numbers), kind="stable").astype(np.int64)


class BatchLoader:
    """Iterates over the windows of a :class:`WindowSet` in batches.

    ``prefetch`` batches are read ahead while the consumer works. A batch belongs to the consumer:
    its memory is used again only when no tensor refers to it any more. Leaving an iteration early
    is fine, and so are several iterations of one loader at a time.

    Example::

        with BatchLoader(windows, 16, shuffle=True, seed=1) as loader:
            for epoch in range(16):
                loader.set_epoch(epoch)
                for batch in loader:
                    ...
    """

    def __init__(
        self,
        window_set: WindowSet,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        threads: int = 1,
        prefetch: int = 2,
        check_finite: bool = True,
    ) -> None:
        """Prepares; threads start with the first iteration.

        Args:
            window_set: what to read.
            batch_size: windows of a batch.
            shuffle: a new order each epoch (:func:`epoch_order`); false keeps that of the set.
            drop_last: leave out a last batch with fewer windows.
            seed: of the order.
            threads: native threads that read; one moves about 15 GB/s from the page cache.
            prefetch: batches that are read ahead, at least 1.
            check_finite: refuse NaN and infinity in features.

        Raises:
            ConfigError: if a number is out of range.
        """
        sizes = {"batch_size": batch_size, "threads": threads, "prefetch": prefetch}
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"BatchLoader: expected {name} >= 1, got {value}")
        epoch_order(0, seed, 0)
        self.window_set = window_set
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0
        self.threads = threads
        self.prefetch = prefetch
        self.check_finite = check_finite
        used = dict.fromkeys(window.video for window in window_set.windows)
        self._videos = list(used)
        self._extents = [window_set.dataset.features[video] for video in self._videos]
        number = {video: i for i, video in enumerate(self._videos)}
        self._jobs: npt.NDArray[np.int64] = np.array(
            [(number[w.video], w.start, w.stop) for w in window_set.windows], dtype=np.int64
        )
        channels = self._extents[0].columns
        self._slots = _Slots((batch_size, window_set.length, channels), prefetch + 2)
        self._reader: _C.Reader | None = None
        self._process = -1

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        full, rest = divmod(len(self.window_set), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration; it does not change by itself.

        Raises:
            ConfigError: if ``epoch`` is negative.
        """
        epoch_order(0, self.seed, epoch)
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches of the epoch.

        Raises:
            DataError: if a file cannot be read, is shorter than it was when it was indexed, or
                holds NaN or infinity; the message names video, file, and offset or row. The batches
                before it are delivered.
        """
        count = len(self.window_set)
        order = epoch_order(count, self.seed, self.epoch) if self.shuffle else np.arange(count)
        # Sizes and order are fixed here; the generator would look at them when it is first asked.
        return self._batches([order[i * self.batch_size : (i + 1) * self.batch_size]
                              for i in range(len(self))])  # fmt: skip

    def _batches(self, parts: list[npt.NDArray[np.int64]]) -> Iterator[Batch]:
        reader = self._open()
        pending: collections.deque[tuple[int, npt.NDArray[np.int64], Any, Any]] = (
            collections.deque()
        )
        submitted = 0
        try:
            while submitted < len(parts) or pending:
                # One more than prefetch: the oldest is the one that is handed out next.
                while submitted < len(parts) and len(pending) < self.prefetch + 1:
                    indices = parts[submitted]
                    features = self._slots.take()[: len(indices)]
                    mask = np.empty(features.shape[:2], dtype=np.bool_)
                    ticket = reader.submit(features, mask, self._jobs[indices])
                    pending.append((ticket, indices, features, mask))
                    submitted += 1
                ticket, indices, features, mask = pending[0]
                with nvtx_range("tal_fast.data"):
                    fault = reader.wait(ticket)
                pending.popleft()
                if fault is not None:
                    raise self._error(fault)
                batch = self._batch(indices, features, mask)
                # Our references go before the consumer's turn, so that a batch which the consumer
                # drops is free at once.
                del features, mask
                yield batch
                del batch
        finally:
            for ticket, _, _, _ in pending:
                if reader is self._reader:
                    reader.cancel(ticket)

    def _batch(
        self,
        indices: npt.NDArray[np.int64],
        features: npt.NDArray[np.float32],
        mask: npt.NDArray[np.bool_],
    ) -> Batch:
        chosen = indices.tolist()
        targets = [self.window_set.targets(i) for i in chosen]
        sizes = [len(labels) for labels, _ in targets]
        # One copy per batch, so that a consumer may change its targets in place.
        labels = torch.from_numpy(np.concatenate([t[0] for t in targets]))
        segments = torch.from_numpy(np.concatenate([t[1] for t in targets]))
        return Batch(
            features=torch.from_numpy(features),
            mask=torch.from_numpy(mask),
            indices=chosen,
            windows=[self.window_set.windows[i] for i in chosen],
            labels=list(labels.split(sizes)),
            segments=list(segments.split(sizes)),
        )

    def _open(self) -> _C.Reader:
        """Returns the reader, a new one after close() and in a forked process."""
        if self._reader is None or self._process != os.getpid():
            self._reader = _C.Reader(
                [_native(extent) for extent in self._extents],
                self.threads,
                _MAX_OPEN_FILES,
                self.check_finite,
            )
            self._process = os.getpid()
        return self._reader

    def _error(self, fault: tuple[int, int, int, int, int, int, int, str]) -> DataError:
        kind, _, number, offset, row, column, size, reason = fault
        extent = self._extents[number]
        where = f"video {self._videos[number]!r}: {extent.path}"
        if kind == _OPEN:
            return DataError(f"{where}: cannot be opened: {reason}")
        if kind == _TRUNCATED:
            needed = extent.offset + extent.num_bytes
            return DataError(
                f"{where}: expected {needed} bytes, got {size}: {reason} (offset {offset})"
            )
        if kind == _READ:
            return DataError(f"{where}: cannot be read at offset {offset}: {reason}")
        if kind == _NOT_FINITE:
            return DataError(
                f"{where}: expected finite features, got NaN or infinity in row {row}, channel "
                f"{column} (offset {offset})"
            )
        return DataError(f"{where}: reading failed: {reason}")

    def close(self) -> None:
        """Joins the threads and closes the files; iterating again starts new ones."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def __enter__(self) -> BatchLoader:
        """Returns the loader."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the loader."""
        self.close()


def _native(extent: Extent) -> tuple[str, int, int, int, int, int]:
    if extent.beside or extent.dtype == "bfloat16":
        raise ConfigError(
            f"BatchLoader: {extent.path}: expected one stream of float16, float32 or float64"
        )
    return (
        extent.path,
        extent.offset,
        extent.rows,
        extent.columns,
        DTYPES.index(extent.dtype),
        ("TC", "CT").index(extent.layout),
    )


class _Slots:
    """Memory of batches that comes back when nobody refers to it any more.

    A new batch of 16 x 128 x 2048 floats costs 4096 page faults, more than reading it from the page
    cache does. So the memory of a batch is a view of a kept array, and returns to the list when the
    view dies: torch and NumPy keep the view alive as long as any tensor or array shares it.
    """

    def __init__(self, shape: tuple[int, int, int], keep: int) -> None:
        self._shape = shape
        self._keep = keep
        self._free: list[npt.NDArray[np.float32]] = []

    def take(self) -> npt.NDArray[np.float32]:
        """Returns an uninitialised float32 [B, L, C] that nothing else uses."""
        base = self._free.pop() if self._free else torch.empty(self._shape).numpy()
        view = base.view(_Slot)
        weakref.finalize(view, self._give_back, base).atexit = False
        return view

    def _give_back(self, base: npt.NDArray[np.float32]) -> None:
        if len(self._free) < self._keep:
            self._free.append(base)


class _Slot(np.ndarray[Any, np.dtype[np.float32]]):
    """A view whose end is noticed.

    Of its own class because NumPy lets a view of a plain view refer to the first array at once,
    which would hide that the slot is still in use; a view of another class stays in the chain.
    """
