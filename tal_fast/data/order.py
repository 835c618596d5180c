# SPDX-License-Identifier: Apache-2.0
"""Which item comes when, and the random numbers of an item: functions of (seed, epoch, index).

NumPy guarantees the stream of a bit generator for ever, unlike that of ``Generator``'s methods, so
everything here draws raw 64-bit numbers of Philox 4x64 under the key (seed, epoch). The order of an
epoch takes the counters from 0 on; an item has a block of counters of its own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tal_fast.errors import ConfigError
from tal_fast.typing import Ints

__all__ = ["batches_of_like_length", "below", "epoch_order", "item_numbers", "shard"]


def _check(seed: int, epoch: int, where: str) -> None:
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 2**64:
            raise ConfigError(f"{where}: expected 0 <= {name} < 2**64, got {value}")


def epoch_order(count: int, seed: int, epoch: int, *, where: str = "FeatureLoader") -> Ints:
    """Returns the shuffled order of an epoch: int64 [count], a permutation.

    Item ``i`` gets the ``i``-th number of the epoch, and items are sorted by their numbers.

    Raises:
        ConfigError: if ``seed`` or ``epoch`` is negative or wider than 64 bits.
    """
    _check(seed, epoch, where)
    numbers = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(count)
    return np.argsort(np.asarray(numbers), kind="stable").astype(np.int64)


def item_numbers(
    seed: int, epoch: int, index: int, purpose: int, count: int
) -> npt.NDArray[np.uint64]:
    """Returns uint64 [count], random numbers that belong to one item of one epoch.

    Args:
        seed: of the loader.
        epoch: number of the epoch.
        index: position of the item in its set.
        purpose: tells draws for different things apart, >= 0.
        count: how many.
    """
    counter = np.array([0, index + 1, purpose, 0], dtype=np.uint64)
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.asarray(np.random.Philox(key=key, counter=counter).random_raw(count))


def below(number: int | np.uint64, bound: int) -> int:
    """Maps a random 64-bit number to [0, bound)."""
    return int(number) * bound >> 64


def shard(order: Ints, rank: int, world_size: int, *, equal: bool) -> Ints:
    """Returns the part of an order that one of several processes takes: every ``world_size``-th.

    Args:
        order: int64 [n].
        rank: of the process.
        world_size: number of processes.
        equal: leave out the last ``n % world_size`` items, so that all parts have one size (a
            training step waits for all processes). False gives every item to one of them.
    """
    if equal:
        order = order[: len(order) // world_size * world_size]
    return order[rank::world_size]


def batches_of_like_length(
    order: Ints,
    lengths: Ints,
    batch_size: int,
    span: int,
    drop_last: bool,
    numbers: npt.NDArray[np.uint64] | None,
) -> list[Ints]:
    """Splits an order into batches whose items are of similar length.

    Of every ``span`` batches' worth of items in a row, the items are sorted by length and cut into
    batches; the batches then come in the order of ``numbers``.

    Args:
        order: int64 [n].
        lengths: int64 [all items], rows of an item.
        batch_size: items of a batch; the last of a group may be smaller.
        span: batches sorted together.
        drop_last: leave out batches that are not full.
        numbers: uint64, one per batch at least; None keeps groups and lengths in order.
    """
    batches = []
    for first in range(0, len(order), batch_size * span):
        group = order[first : first + batch_size * span]
        group = group[np.argsort(lengths[group], kind="stable")]
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    if drop_last:
        batches = [batch for batch in batches if len(batch) == batch_size]
    if numbers is not None:
        batches = [batches[i] for i in np.argsort(numbers[: len(batches)], kind="stable")]
    return batches
