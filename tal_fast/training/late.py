# SPDX-License-Identifier: Apache-2.0
"""Numbers of training steps, read some steps later, so that no step waits for a GPU.

:class:`LateNumbers` is plain Python and tested with a stand-in. :class:`CudaReads`, the dozen lines
that touch CUDA, **has not run on a GPU yet**.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["CudaReads", "LateNumbers", "Read", "Reads"]

_T = TypeVar("_T")
# Steps that a GPU may be behind the host. The numbers of step s are asked for when step s + 2 has
# been handed over: the GPU then has work for two steps, and has long been done with s.
_BEHIND = 2


class Read(NamedTuple, Generic[_T]):
    """The numbers of a step.

    Attributes:
        numbers: by name.
        note: what was handed over with them.
    """

    numbers: dict[str, float]
    note: _T


class Reads(Protocol):
    """Starts to read tensors of a device and waits for what it has started."""

    def start(self, values: Tensor) -> Any:
        """Starts to read ``Tensor[N]`` and returns a token for :meth:`finish`."""

    def finish(self, token: Any) -> list[float]:
        """Returns the numbers; waits for the device only if it is not there yet."""


class CudaReads:
    """Copies into pinned memory, with an event after each copy."""

    def start(self, values: Tensor) -> tuple[torch.cuda.Event, Tensor]:
        """Starts to copy; the tensor may change as soon as the stream has gone on."""
        host = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(values.device))
        return event, host

    def finish(self, token: tuple[torch.cuda.Event, Tensor]) -> list[float]:
        """Waits for the copy and returns its numbers."""
        event, host = token
        event.synchronize()
        return host.tolist()


class _HostReads:
    """Reads at once: on a CPU nothing is gained by waiting."""

    def start(self, values: Tensor) -> list[float]:
        return values.tolist()

    def finish(self, token: list[float]) -> list[float]:
        return token


class LateNumbers(Generic[_T]):
    """Takes in the numbers of every step and gives them back, in order, when they are there.

    How many steps later is fixed, not a matter of the device's speed: several processes of one
    training then have the numbers of the same step at the same time.

    Args:
        device: of the tensors. On a CPU numbers are there at once.
        reads: how they are read; as the device needs it when None.
        behind: steps that they are late; as the device needs it when None.
    """

    def __init__(
        self, device: torch.device, *, reads: Reads | None = None, behind: int | None = None
    ) -> None:
        on_gpu = device.type == "cuda"
        self._reads: Reads = reads or (CudaReads() if on_gpu else _HostReads())
        self._behind = (_BEHIND if on_gpu else 0) if behind is None else behind
        self._waiting: collections.deque[tuple[list[str], Any, _T]] = collections.deque()

    def put(self, numbers: Mapping[str, Tensor], note: _T) -> None:
        """Takes in the numbers of a step.

        Args:
            numbers: scalars by name, all of one device.
            note: comes back with them.
        """
        # One copy for all numbers of the step.
        token = self._reads.start(torch.stack(list(numbers.values())))
        self._waiting.append((list(numbers), token, note))

    def ready(self) -> list[Read[_T]]:
        """Returns the numbers of the steps that are far enough behind, the oldest first."""
        return self._take(self._behind)

    def drain(self) -> list[Read[_T]]:
        """Returns all that are left, the oldest first; waits for the device."""
        return self._take(0)

    def _take(self, left: int) -> list[Read[_T]]:
        read = []
        while len(self._waiting) > left:
            names, token, note = self._waiting.popleft()
            read.append(Read(dict(zip(names, self._reads.finish(token), strict=True)), note))
        return read
