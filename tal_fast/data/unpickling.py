# SPDX-License-Identifier: Apache-2.0
"""Pickles of arrays, read without running what else a pickle may ask for."""

from __future__ import annotations

import io
import pickle
from typing import Any

from tal_fast.errors import DataError

__all__ = ["unpickle_arrays"]

# What the pickle of a NumPy array or number names, in NumPy 1 and 2, in old protocols and new.
_MODULES = (
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
)
_NAMES = ("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer")


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        bytes_of_old = (module, name) == ("_codecs", "encode")
        if bytes_of_old or (module in _MODULES and name in _NAMES):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, only arrays are read")


def unpickle_arrays(origin: str, content: bytes) -> Any:
    """Returns what a pickle of plain values and NumPy arrays holds.

    Raises:
        DataError: it is truncated, no pickle, or holds anything else.
    """
    try:
        return _ArraysOnly(io.BytesIO(content)).load()
    except Exception as error:  # a broken pickle fails in any way it likes
        raise DataError(f"{origin}: cannot be unpickled: {error}") from error
