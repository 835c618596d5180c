# SPDX-License-Identifier: Apache-2.0
"""Clips in batches, in an order that depends on (seed, epoch) alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from tal_fast.data.batches import Batch, to_device
from tal_fast.data.clips import Clip, ClipSet
from tal_fast.data.device_copies import CudaCopies, copied_ahead
from tal_fast.data.order import batches_of_like_length, epoch_order, item_numbers, shard
from tal_fast.data.reading import SLOT_DTYPES, FeatureReader, Request
from tal_fast.data.resident import ResidentStore
from tal_fast.errors import ConfigError
from tal_fast.typing import Ints

__all__ = ["FeatureLoader"]

# Purposes of random numbers (order.item_numbers); clips.py and windows.py have 0 and 1.
_DROPOUT, _BATCHES = 2, 3


class _Plan(NamedTuple):
    """A batch that is to be read."""

    indices: Ints
    clips: list[Clip]
    epoch: int


class FeatureLoader:
    """Iterates over a set of clips; each batch is a :class:`~tal_fast.data.batches.Batch`.

    A batch belongs to the consumer: its memory is used again only when no tensor refers to it any
    more. Leaving an iteration early is fine, and so are several iterations of one loader at a time.
    Order, crops and noise come from (seed, epoch, index): any number of threads, processes or
    prefetched batches gives the same bytes.

    With a CUDA ``device``, slots are pinned and every batch is copied on a stream of its own, one
    ahead of the consumer (:mod:`tal_fast.data.device_copies`, not yet run on a GPU).

    Example::

        clips = CropSet(data, data.splits["train"], max_length=2304)
        with FeatureLoader(clips, 2, shuffle=True, seed=1, layout="CT") as loader:
            for epoch in range(35):
                loader.set_epoch(epoch)
                for batch in loader:
                    model(batch.features, batch.mask)
    """

    def __init__(
        self,
        clips: ClipSet,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        dtype: str = "float32",
        layout: str = "TC",
        bucket: int = 0,
        feature_dropout: float = 0.0,
        threads: int = 1,
        prefetch: int = 2,
        check_finite: bool = True,
        device: str | torch.device = "cpu",
        resident_bytes: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Prepares; threads start with the first iteration.

        Args:
            clips: what to read, for example a :class:`WindowSet`.
            batch_size: clips of a batch.
            shuffle: a new order each epoch (:func:`epoch_order`); false keeps that of the set.
            drop_last: leave out batches with fewer clips.
            seed: of order, crops and noise.
            dtype: of the features, ``"float32"``, ``"float16"`` or ``"bfloat16"``. Numbers beyond
                its range are an error.
            layout: ``"TC"`` for [B, L, C], ``"CT"`` for [B, C, L].
            bucket: clips of this many batches in a row are sorted by length before they are cut
                into batches, so that a batch has little padding; 0 leaves the order alone.
            feature_dropout: probability with which a channel of a clip is zero in all its rows; the
                others are divided by one minus it. In [0, 1).
            threads: native threads that read; one moves about 15 GB/s from the page cache.
            prefetch: batches that are read ahead, at least 1.
            check_finite: refuse NaN and infinity in features.
            device: where batches go.
            resident_bytes: when all videos of the set fit into so many bytes of the device's memory
                (:attr:`resident_size`), they are read once and stay there. Processes share no
                such copy: each has its own.
            rank: number of this process among ``world_size``; None asks torch.distributed.
            world_size: processes that share an epoch. Under ``shuffle`` all of them get the same
                number of clips, and up to ``world_size - 1`` clips are left out, others in each
                epoch; else every clip goes to exactly one process.

        Raises:
            ConfigError: if an argument is out of range.
            DataError: if the videos' numbers of channels differ.
        """
        name = type(self).__name__
        if batch_size < 1:
            raise ConfigError(f"{name}: expected batch_size >= 1, got {batch_size}")
        if bucket < 0 or resident_bytes < 0:
            raise ConfigError(
                f"{name}: expected bucket and resident_bytes >= 0, got {bucket} and "
                f"{resident_bytes}"
            )
        if not 0 <= feature_dropout < 1:
            raise ConfigError(f"{name}: expected feature_dropout in [0, 1), got {feature_dropout}")
        epoch_order(0, seed, 0, where=name)
        self.clips = clips
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0
        self.bucket = bucket
        self.feature_dropout = feature_dropout
        self.device = torch.device(device)
        self.rank, self.world_size = _place(name, rank, world_size)
        self._number = {video: i for i, video in enumerate(dict.fromkeys(clips.videos))}
        arguments: dict[str, Any] = {
            "dtype": dtype,
            "threads": threads,
            "prefetch": prefetch,
            "check_finite": check_finite,
            "pinned": self.device.type == "cuda",
            "where": name,
        }
        self._reader = FeatureReader(
            clips.dataset.features, list(self._number), layout=layout, **arguments
        )
        self._resident: ResidentStore | None = None
        rows = dict(zip(clips.videos, clips.grid_rows.tolist(), strict=True))
        self._grid_rows = np.array([rows[video] for video in self._number], dtype=np.int64)
        #: Bytes that all videos of the set take in ``dtype``.
        self.resident_size = (
            int(self._grid_rows.sum()) * self._reader.channels * SLOT_DTYPES[dtype][0].itemsize
        )
        #: Whether the features stay on the device.
        self.resident = 0 < self.resident_size <= resident_bytes
        self._first = 0  # batch that the next iteration begins with
        self._done = 0  # batches that the last iteration delivered, those before its first included

    # ---- order ------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of batches of an epoch, for this process."""
        count = len(self.clips)
        if self.shuffle:
            count = count // self.world_size
        else:
            count = len(range(self.rank, count, self.world_size))
        full, rest = divmod(count, self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses order, crops and noise of the next iteration; nothing changes by itself.

        An epoch other than the one that :meth:`load_state_dict` resumes begins with its first
        batch.

        Raises:
            ConfigError: if ``epoch`` is negative.
        """
        epoch_order(0, self.seed, epoch, where=type(self).__name__)
        if epoch != self.epoch:
            self._first = self._done = 0
        self.epoch = epoch

    def _batches_of_epoch(self) -> list[Ints]:
        count = len(self.clips)
        order = epoch_order(count, self.seed, self.epoch) if self.shuffle else np.arange(count)
        order = shard(order, self.rank, self.world_size, equal=self.shuffle)
        if self.bucket:
            numbers = None
            if self.shuffle:
                numbers = item_numbers(self.seed, self.epoch, self.rank, _BATCHES, len(order))
            return batches_of_like_length(
                order, self.clips.lengths, self.batch_size, self.bucket, self.drop_last, numbers
            )
        return [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]

    # ---- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns where the loader is: the epoch and the batches delivered of it.

        A batch counts when the consumer has it. Taken during an iteration or after it.
        """
        return {"epoch": self.epoch, "batch": self._done, "identity": self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another loader of the same set was: nothing is read twice.

        The next iteration delivers the remaining batches of the epoch, none if it was complete.

        Raises:
            ConfigError: if the state is of a loader whose order is another one.
        """
        mine = self._identity()
        for key, value in mine.items():
            if state["identity"].get(key) != value:
                raise ConfigError(
                    f"{type(self).__name__}: the state is of a loader with {key} "
                    f"{state['identity'].get(key)!r}, this one has {value!r}"
                )
        self.resume(int(state["epoch"]), int(state["batch"]))

    def resume(self, epoch: int, batch: int) -> None:
        """Has the next iteration begin within an epoch; what lies before is not read.

        Args:
            epoch: number of the epoch.
            batch: batches of it that are done.

        Raises:
            ConfigError: if the epoch is negative or has no such batch.
        """
        self.set_epoch(epoch)
        if not 0 <= batch <= len(self):
            raise ConfigError(
                f"{type(self).__name__}: expected a batch in [0, {len(self)}] to resume, "
                f"got {batch}"
            )
        self._first = self._done = batch

    def _identity(self) -> dict[str, Any]:
        return {
            "clips": len(self.clips),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "seed": self.seed,
            "bucket": self.bucket,
            "rank": self.rank,
            "world_size": self.world_size,
        }

    # ---- batches ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches of the epoch, or what is left of it after :meth:`load_state_dict`.

        Raises:
            DataError: if a file cannot be read, is shorter than it was when it was indexed, has
                been replaced, or holds NaN or infinity; the message names video, file, and offset
                or row. The batches before it are delivered.
        """
        # Order and place are fixed here; the generator would look at them when it is first asked.
        first, self._first = self._first, 0
        self._done = first
        plans = self._plans(self._batches_of_epoch()[first:], self.epoch)
        return self._delivered(first, plans)

    def _plans(self, parts: Iterable[Ints], epoch: int) -> Iterator[_Plan]:
        for indices in parts:
            clips = [self.clips.clip(i, self.seed, epoch) for i in indices.tolist()]
            yield _Plan(indices, clips, epoch)

    def _delivered(self, first: int, plans: Iterable[_Plan]) -> Iterator[Batch]:
        batches = self._resident_batches(plans) if self.resident else self._read_batches(plans)
        if self.device.type == "cuda" and not self.resident:
            batches = copied_ahead(batches, CudaCopies(self.device))
        for number in itertools.count(first + 1):
            # No name for the batch here: a batch that the consumer drops must be free at once.
            batch = next(batches, None)
            if batch is None:
                return
            self._done = number
            yield batch
            del batch

    def _request(self, plan: _Plan) -> Request[_Plan]:
        rows = np.array(
            [(self._number[c.video], c.start, c.stop, c.rows) for c in plan.clips], dtype=np.int64
        )
        longest = int((rows[:, 2] - rows[:, 1]).max())
        return Request(rows, self.clips.slot_length(longest), plan)

    def _read_batches(self, plans: Iterable[_Plan]) -> Iterator[Batch]:
        results = self._reader.read(map(self._request, plans))
        try:
            for plan, features, mask in results:
                yield self._batch(plan, features, mask)
                del plan, features, mask
        finally:
            results.close()  # type: ignore[attr-defined]

    def _resident_batches(self, plans: Iterable[_Plan]) -> Iterator[Batch]:
        if self._resident is None:
            own = self._reader
            reader = FeatureReader(
                self.clips.dataset.features,
                own.videos,
                dtype=own.dtype,
                threads=own.threads,
                check_finite=own.check_finite,
                where=type(self).__name__,
            )
            try:
                self._resident = ResidentStore(reader, self._grid_rows, self.device)
            finally:
                reader.close()
        channels_first = self._reader.layout == "CT"
        for plan in plans:
            request = self._request(plan)
            features, mask = self._resident.batch(
                request.rows, request.length, channels_first=channels_first
            )
            yield self._batch(plan, features, mask).moved(
                lambda tensor: to_device(tensor, self.device)
            )

    def _batch(self, plan: _Plan, features: torch.Tensor, mask: torch.Tensor) -> Batch:
        clips = plan.clips
        if self.feature_dropout:
            self._drop_channels(plan, features)
        return Batch(
            features=features,
            mask=mask,
            # Copies, so that a consumer may change its targets in place.
            labels=torch.from_numpy(np.concatenate([clip.labels for clip in clips])),
            edges=torch.from_numpy(np.concatenate([clip.edges for clip in clips])),
            counts=[len(clip.labels) for clip in clips],
            lengths=[clip.stop - clip.start for clip in clips],
            indices=plan.indices.tolist(),
            starts=[clip.start for clip in clips],
            rows=[clip.rows for clip in clips],
            videos=[clip.video for clip in clips],
        )

    def _drop_channels(self, plan: _Plan, features: torch.Tensor) -> None:
        channels = self._reader.channels
        limit = np.uint64(self.feature_dropout * 2**64)
        kept = np.stack(
            [
                item_numbers(self.seed, plan.epoch, index, _DROPOUT, channels) >= limit
                for index in plan.indices.tolist()
            ]
        )
        scale = torch.from_numpy(kept / (1 - self.feature_dropout)).to(features)
        features *= scale[:, :, None] if self._reader.layout == "CT" else scale[:, None, :]

    # ---- end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Joins the threads and closes the files; iterating again starts new ones."""
        self._reader.close()

    def __enter__(self) -> FeatureLoader:
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


def _place(name: str, rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Returns rank and number of processes, from torch.distributed where they are not given."""
    if (rank is None) != (world_size is None):
        raise ConfigError(f"{name}: expected rank and world_size together, or neither")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return 0, 1
        rank, world_size = distributed.get_rank(), distributed.get_world_size()
    if not 0 <= rank < world_size:
        raise ConfigError(f"{name}: expected 0 <= rank < world_size, got {rank} of {world_size}")
    return rank, world_size
