# SPDX-License-Identifier: Apache-2.0
"""One training in several processes: one per GPU, or one per few cores of a CPU.

``torchrun`` starts them, on one machine or on several::

    torchrun --nproc-per-node 2 -m tal_fast train --data data/hapt --model tadtr --out runs/large

What comes out is the training of one process, but for rounding and for dropout:

* ``training.batch_size`` is the batch of all processes together. Each takes an equal share of the
  windows that a single process would have in that very batch, so that steps, schedule and learning
  rate stay as they are.
* The loss is that of the whole batch: its sums are divided by the instances of all processes, and
  gradients are added up before they are clipped. ``log.csv`` shows the numbers of the whole batch.
* Every process draws its own dropout masks, so they are others than in a single process. A resumed
  training goes on with the masks of each process, and needs as many processes as before.

The first process alone writes files, rates held-out videos, detects, evaluates and shows progress.
Ctrl-C at torchrun, or SIGTERM to it or to any process, has all of them stop after the same step;
the state is saved (torchrun allows 30 s for it), and the same command goes on from there. The same
signals do the same to a single process.

GPUs are those of ``LOCAL_RANK`` and talk through NCCL, CPUs through gloo. A process that fails
gives its own message, and the others end as soon as they notice: at once when its connection is
closed, else when they have waited for ``TAL_FAST_PEER_TIMEOUT`` seconds (1800). Rating held-out
videos and the evaluation of an experiment may take no longer, since the others wait for them.

In a script, :func:`tal_fast.training.train` and :func:`~tal_fast.training.run_experiment` do all of
this by themselves, and take part in a process group that is already there. In a single process
everything here does nothing.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from tal_fast.errors import ConfigError, TrainingError, counted
from tal_fast.models.base import Targets, Whole

__all__ = [
    "Place",
    "WholeBatch",
    "add_up_gradients",
    "from_first",
    "gathered",
    "is_first",
    "joined",
    "launched",
    "own_gpu",
    "rank",
    "require_same",
    "same_weights",
    "seed_apart",
    "share_of_batch",
    "total",
    "total_later",
    "world_size",
]

_T = TypeVar("_T")
_TIMEOUT = "TAL_FAST_PEER_TIMEOUT"
_meetings = itertools.count()
_numbers = itertools.count()
_pending: dict[int, Any] = {}  # collectives under way; each keeps the connections open


class Place(NamedTuple):
    """Which of several processes this one is, as torchrun tells.

    Attributes:
        rank: number of the process among all.
        world_size: number of all processes.
        local_rank: number of the process among those of this machine.
    """

    rank: int
    world_size: int
    local_rank: int


def launched() -> Place | None:
    """Returns this process's place among those that torchrun started; None for a single one.

    Raises:
        ConfigError: the environment names several processes, but not this one's place.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or "RANK" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"the environment has RANK and WORLD_SIZE, but not {', '.join(missing)}; start several "
            "processes with torchrun"
        )
    try:
        return Place(*(int(os.environ[name]) for name in names))
    except ValueError as error:
        raise ConfigError(
            f"the environment's RANK, WORLD_SIZE, LOCAL_RANK: expected whole numbers, {error}"
        ) from None


def own_gpu() -> int | None:
    """Returns the number of this process's GPU; None for a single process, which takes any.

    Raises:
        ConfigError: there are fewer GPUs than processes on this machine.
    """
    place = launched()
    if place is None:
        return None
    if place.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {place.local_rank} of this machine needs a GPU of its own, torch sees "
            f"{torch.cuda.device_count()}: lower torchrun's --nproc-per-node"
        )
    return place.local_rank


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Meets the processes that torchrun started, and parts from them at the end.

    Does nothing in a single process, and within a group that is already there.

    Args:
        device: where the model is.

    Raises:
        ConfigError: the environment is incomplete, or torch lacks what the processes need.
        TrainingError: another process has ended, or did not answer in time.
    """
    place = launched()
    if not dist.is_available() or dist.is_initialized() or place is None:
        if place is not None and not dist.is_available():
            raise ConfigError("several processes: this torch was built without torch.distributed")
        yield
        return
    seconds = _timeout()
    if device.type == "cuda":
        if not dist.is_nccl_available():
            raise ConfigError("several processes on GPUs: this torch was built without NCCL")
        torch.cuda.set_device(device)
    # Gradients stay on their device; counts, random states and settings never leave the host.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            store=_meeting_place(timedelta(seconds=seconds)),
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=seconds),
        )
        yield
    except RuntimeError as error:
        if not _is_about_others(error):
            raise
        raise TrainingError(
            "another process of this training has ended, which its own message explains, or it "
            f"did not answer for {seconds:g} s ({_TIMEOUT}); seen here: {_first_line(error)}"
        ) from error
    finally:
        # Closes the connections, so that the others notice when this one fails.
        _pending.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def _meeting_place(timeout: timedelta) -> Any:
    """Returns where the processes exchange their addresses, for one group.

    A second training in the same processes must not find the addresses of the first.
    """
    return dist.PrefixStore(  # type: ignore[attr-defined]
        f"tal_fast/{next(_meetings)}", _store(timeout)
    )


@functools.cache
def _store(timeout: timedelta) -> Any:
    rendezvous = dist.rendezvous("env://", timeout=timeout)  # type: ignore[attr-defined]
    store, _, _ = next(iter(rendezvous))
    return store


def _timeout() -> float:
    given = os.environ.get(_TIMEOUT, "1800")
    try:
        seconds = float(given)
        timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        seconds = -1.0
    if not seconds > 0:
        raise ConfigError(f"{_TIMEOUT}: expected seconds above 0, got {given!r}")
    return seconds


def _is_about_others(error: RuntimeError) -> bool:
    """Tells whether a collective failed; gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0]


def rank() -> int:
    """Returns the number of this process in the group; 0 without one."""
    return dist.get_rank() if _in_group() else 0


def world_size() -> int:
    """Returns the number of processes in the group; 1 without one."""
    return dist.get_world_size() if _in_group() else 1


def is_first() -> bool:
    """Tells whether this process is the one that writes and shows."""
    return rank() == 0


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def share_of_batch(batch_size: int, windows: int) -> int:
    """Returns how many windows of each batch this process takes.

    Raises:
        ConfigError: the processes cannot have equal shares, or one would have no window.
    """
    size = world_size()
    if batch_size % size:
        raise ConfigError(
            f"training.batch_size is that of all processes together: expected a multiple of {size} "
            f"(processes), got {batch_size}"
        )
    if windows < size:
        raise ConfigError(
            f"expected at least one training window per process, got {windows} for "
            f"{counted(size, 'process')}"
        )
    return batch_size // size


def total_later(values: Sequence[float]) -> Callable[[], list[float]]:
    """Starts to add up numbers over all processes; the returned function waits for the sums."""
    if world_size() == 1:
        return lambda: list(values)
    sums = torch.tensor(values, dtype=torch.float64, device="cpu")
    number = next(_numbers)
    _pending[number] = dist.all_reduce(sums, async_op=True)

    def wait() -> list[float]:
        _pending.pop(number).wait()
        return sums.tolist()

    return wait


def total(values: Sequence[float]) -> list[float]:
    """Returns the sums of numbers over all processes."""
    return total_later(values)()


class WholeBatch(Whole):
    """The batch of all processes, for the loss of one; numbers are right after :meth:`wait`."""

    def __init__(self, targets: Targets) -> None:
        super().__init__(targets)
        self._sizes = total_later([self.clips, sum(targets.counts)])

    def wait(self) -> None:
        """Waits for the numbers of the other processes."""
        self.clips, self.instances = map(int, self._sizes())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the sums over all processes."""
        if world_size() == 1:
            return values
        sums = values.detach().clone()
        dist.all_reduce(sums)
        return sums

    def targets(self) -> Targets:
        """Returns the targets of all processes, in the order of their ranks."""
        if world_size() == 1:
            return self._targets
        parts = gathered(self._targets)
        return Targets(
            torch.cat([part.labels for part in parts]),
            torch.cat([part.edges for part in parts]),
            [count for part in parts for count in part.counts],
            self._targets.length,
        )


def gathered(item: _T) -> list[_T]:
    """Returns what every process gave, in the order of their ranks."""
    items: list[Any] = [item]
    if world_size() > 1:
        items *= world_size()
        dist.all_gather_object(items, item)
    return items


def from_first(function: Callable[[], _T]) -> _T:
    """Has the first process alone call a function, and returns its result in all of them.

    Raises:
        TrainingError: in the others, when the function failed in the first.
    """
    if world_size() == 1:
        return function()
    told: list[Any] = [None]
    if is_first():
        try:
            told[0] = (function(),)
        except BaseException:
            with suppress(RuntimeError):  # they may be gone as well
                dist.broadcast_object_list(told)
            raise
    dist.broadcast_object_list(told)
    if told[0] is None:
        raise TrainingError("the first process of this training has failed; see its message")
    return told[0][0]


def require_same(what: str, value: Any) -> None:
    """Refuses to go on where processes differ in something that all must have in common.

    Raises:
        TrainingError: another process has another value.
    """
    if any(other != value for other in gathered(value)):
        raise TrainingError(
            f"the processes of this training differ in {what}: give all the same command and data"
        )


def seed_apart(seed: int) -> None:
    """Gives every process but the first random numbers of its own, for dropout."""
    if rank() > 0:
        numbers = np.random.SeedSequence((seed, rank())).generate_state(1, np.uint64)
        torch.manual_seed(int(numbers[0]))


def same_weights(model: nn.Module) -> None:
    """Gives the weights of the first process to the others."""
    if world_size() > 1:
        with torch.no_grad():
            for weight in model.state_dict().values():
                dist.broadcast(weight, 0)


def add_up_gradients(model: nn.Module) -> None:
    """Replaces every gradient by its sum over all processes.

    A sum, not a mean: each process divides its part of the loss by what the whole batch holds.
    """
    # By hand: DistributedDataParallel keeps the connections open beyond the end of the group, so
    # that the others would not notice a process that fails. All gradients in one piece take a few
    # milliseconds; models here are small.
    if world_size() == 1:
        return
    pairs = [(p, p.grad) for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for _, gradient in pairs])
    dist.all_reduce(flat)
    sums = flat.split([gradient.numel() for _, gradient in pairs])
    for (parameter, _), part in zip(pairs, sums, strict=True):
        parameter.grad = part.view_as(parameter)
