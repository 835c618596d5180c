# SPDX-License-Identifier: Apache-2.0
"""Batches on their way to a GPU, one ahead of the consumer.

:func:`copied_ahead` is plain Python and tested with a stand-in. :class:`CudaCopies`, the two dozen
lines that touch CUDA, **has not run on a GPU yet**.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch

from tal_fast.data.batches import Batch, to_device

__all__ = ["Copies", "CudaCopies", "copied_ahead"]


class Copies(Protocol):
    """Starts copies and waits for them."""

    def start(self, batch: Batch) -> Any:
        """Starts to copy a batch and returns a token for :meth:`finish`."""

    def finish(self, token: Any) -> Batch:
        """Returns the batch on the device, ready for what the caller runs next."""


def copied_ahead(batches: Iterable[Batch], copies: Copies) -> Iterator[Batch]:
    """Yields the batches on the device; the copy of the next one runs while one is in use."""
    waiting = None
    for batch in batches:
        started = copies.start(batch)
        del batch
        if waiting is not None:
            yield copies.finish(waiting)
        waiting = started
    if waiting is not None:
        yield copies.finish(waiting)


class CudaCopies:
    """Copies from pinned memory on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        # Host memory of copies that may still run; it must not be used again before they end.
        self._held: collections.deque[tuple[torch.cuda.Event, Batch]] = collections.deque()

    def start(self, batch: Batch) -> tuple[torch.cuda.Event, Batch]:
        """Starts to copy all tensors of a batch."""
        while self._held and self._held[0][0].query():
            self._held.popleft()
        with torch.cuda.stream(self._stream):
            moved = batch.moved(lambda tensor: to_device(tensor, self._device))
            event = self._stream.record_event()
        self._held.append((event, batch))
        return event, moved

    def finish(self, token: tuple[torch.cuda.Event, Batch]) -> Batch:
        """Makes the caller's stream wait for the copy."""
        event, moved = token
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        for tensor in (moved.features, moved.mask, moved.labels, moved.edges):
            tensor.record_stream(current)
        return moved
