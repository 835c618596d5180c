# SPDX-License-Identifier: Apache-2.0
"""Memory of batches that comes back when nobody refers to it any more.

A new batch of 16 x 128 x 2048 floats costs 4096 page faults, more than reading it from the page
cache does. So the memory of a batch is a view of a kept array, and returns to the list when the
view dies: torch and NumPy keep the view alive as long as any tensor or array shares it.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Slots"]

Bytes = npt.NDArray[np.uint8]


class Slots:
    """Hands out arrays of one type, and uses their memory again."""

    def __init__(self, dtype: npt.DTypeLike, keep: int, *, pinned: bool = False) -> None:
        """Prepares; memory is taken when it is first asked for.

        Args:
            dtype: of the arrays.
            keep: free pieces of memory that are kept.
            pinned: page-locked memory, which a GPU copies from without a detour.
        """
        self._dtype = np.dtype(dtype)
        self._keep = keep
        self._pinned = pinned
        self._largest = 0
        self._free: list[Bytes] = []

    def take(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Returns an uninitialised array that nothing else uses."""
        size = math.prod(shape) * self._dtype.itemsize
        # All pieces as large as the largest so far: then each fits every later batch but a larger.
        self._largest = max(self._largest, size)
        base = None
        while self._free and base is None:
            base = self._free.pop()
            if base.size < size:
                base = None
        if base is None:
            memory = torch.empty(
                self._largest, dtype=torch.uint8, device="cpu", pin_memory=self._pinned
            )
            base = memory.numpy()
        view = base[:size].view(_Slot)
        weakref.finalize(view, self._give_back, base).atexit = False
        return view.view(self._dtype).reshape(shape)

    def _give_back(self, base: Bytes) -> None:
        if len(self._free) < self._keep:
            self._free.append(base)


class _Slot(np.ndarray[Any, np.dtype[Any]]):
    """A view whose end is noticed.

    Of its own class because NumPy lets a view of a plain view refer to the first array at once,
    which would hide that the slot is still in use; a view of another class stays in the chain.
    """
