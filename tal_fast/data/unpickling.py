# SPDX-License-Identifier: Apache-2.0
"""Pickles of arrays, read without running what else a pickle may ask for."""

from __future__ import annotations

import functools
import importlib
import io
import pickle
import pickletools
import re
import warnings
from typing import Any

import numpy as np

from tal_fast.errors import DataError

__all__ = ["array_globals", "torch_globals", "unpickle_arrays"]

# What the pickle of a NumPy array or number names, in NumPy 1 and 2, in old protocols and new.
_MODULES = (
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
)
_NAMES = ("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer")


# What a pickle of a numeric array makes its dtype of.
_DTYPE_CLASSES = sorted({type(np.dtype(code)) for code in "?bhilqBHILQefdg"}, key=str)


@functools.cache
def array_globals() -> dict[str, Any]:
    """Returns what a pickle of NumPy arrays may name: full name -> object, nothing else."""
    functions: dict[str, Any] = {"_codecs.encode": importlib.import_module("_codecs").encode}
    for module in _MODULES:
        # The old module forwards to the new one with a warning, or is gone: its names stay.
        for home in (module.replace(".core.", "._core."), module):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                try:
                    home_module = importlib.import_module(home)
                    names = {n: getattr(home_module, n) for n in _NAMES if hasattr(home_module, n)}
                except ImportError:
                    continue
            functions.update({f"{module}.{name}": value for name, value in names.items()})
            break
    return functions


def torch_globals() -> list[Any]:
    """Returns what ``torch.load(weights_only=True)`` may find besides tensors and plain values.

    NumPy's arrays and numbers, by the names that its versions give them, for
    ``torch.serialization.safe_globals``.
    """
    names: list[Any] = [(value, name) for name, value in array_globals().items()]
    return names + _DTYPE_CLASSES


# What may be an opcode that keeps a value under a number of the file's choosing: LONG_BINPUT with
# four bytes, PUT with what int() reads: blanks, a sign, zeros and underscores, too. The unpickler
# makes room for as many values as the number says.
_NUMBERED = re.compile(rb"r(?=(.{4}))|p(?=\s*\+?[0_]*([\d_]+))", re.DOTALL)


def _check_memo(content: bytes) -> None:
    """Refuses numbers of kept values that would take memory far beyond the pickle's own size.

    A pickler counts its values, so that no number exceeds the number of bytes.
    """
    if any(_number(found) > len(content) for found in _NUMBERED.finditer(content)):
        # It may as well lie within the numbers of an array: only a walk over the opcodes tells.
        for code, argument, _ in pickletools.genops(content):
            if code.name in ("LONG_BINPUT", "PUT") and int(argument or 0) > len(content):
                raise pickle.UnpicklingError(
                    f"it keeps a value as number {argument} and has only {len(content)} bytes"
                )


def _number(found: re.Match[bytes]) -> int:
    if found[1] is not None:
        return int.from_bytes(found[1], "little")
    return int(found[2].replace(b"_", b"")[:20] or 0)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return array_globals()[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, only arrays are read"
            ) from None


def unpickle_arrays(origin: str, pickled: bytes) -> Any:
    """Returns what a pickle of plain values and NumPy arrays holds.

    Raises:
        DataError: it is truncated, no pickle, or holds anything else.
    """
    try:
        _check_memo(pickled)
        return _ArraysOnly(io.BytesIO(pickled)).load()
    except Exception as error:  # a broken pickle fails in any way it likes
        raise DataError(f"{origin}: cannot be unpickled: {error}") from error
