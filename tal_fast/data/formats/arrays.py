# SPDX-License-Identifier: Apache-2.0
"""Formats that are only read whole: ``.npz``, torch's files, pickles and CSV."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.formats import Kind
from tal_fast.data.unpickling import unpickle_arrays
from tal_fast.errors import ConfigError, DataError

__all__ = ["array_file", "load_csv", "pick"]


def array_file(path: str, kind: Kind, *, allow_pickle: bool = False) -> Mapping[str, Any] | Any:
    """Opens a file that holds one array, or a mapping of names to arrays.

    Args:
        path: the file.
        kind: ``"npz"``, ``"torch"``, ``"pickle"`` or ``"csv"``.
        allow_pickle: read pickles at all; even then only arrays and plain values.

    Returns:
        An array, or a mapping (of an ``.npz`` file: one that reads a member when it is asked for).

    Raises:
        DataError: if the file is missing, broken, or holds something else.
        ConfigError: if it is a pickle and ``allow_pickle`` is false.
    """
    if kind == "pickle" and not allow_pickle:
        raise ConfigError(
            f"{path}: pickles are only read with --allow-pickle (allow_pickle=True); a file of "
            "unknown origin may be harmful"
        )
    try:
        if kind == "npz":
            return np.load(path, allow_pickle=False)
        if kind == "torch":
            return _load_torch(path)
        if kind == "csv":
            return load_csv(path)
        return unpickle_arrays(path, Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such feature file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a whole {kind} file: {error}") from error


def _load_torch(path: str) -> Any:
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise DataError(
            f"{path}: cannot be loaded by torch as tensors alone (weights_only): {reason}"
        ) from error
    if isinstance(content, Mapping):
        return {str(name): _as_array(path, value) for name, value in content.items()}
    return _as_array(path, content)


def _as_array(path: str, value: Any) -> Any:
    """Returns a tensor as an array; bfloat16, which NumPy lacks, as the float32 of equal value."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if value.is_sparse or value.layout != torch.strided:
        raise DataError(f"{path}: expected a dense tensor, got layout {value.layout}")
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def load_csv(path: str) -> npt.NDArray[np.float32]:
    """Reads a CSV file as OpenTAD and mmaction2 do: a line of column names, then a line per row.

    Raises:
        DataError: if it is empty, ragged, not numeric, or its first line may be numbers and not
            names, in which case nobody knows whether it is a row.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        names = file.readline().strip().split(",")
        if names == [""]:
            raise DataError(f"{path}: expected a CSV file, got an empty file")
        numbers = [_number(name) for name in names]
        # pandas writes 0, 1, 2, ... when columns have no names.
        if None not in numbers and numbers != list(range(len(names))):
            raise DataError(
                f"{path}: expected a first line of column names, got numbers ({names[0]}, ...)"
            )
        try:
            return np.loadtxt(file, dtype=np.float32, delimiter=",", ndmin=2)
        except ValueError as error:
            raise DataError(f"{path}: expected rows of numbers: {error}") from error


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def pick(where: str, content: Any, key: str | None) -> npt.NDArray[Any]:
    """Returns the array of a file that holds one, or the one that ``key`` names.

    Raises:
        DataError: if there is no such array, or several and no key.
    """
    if not isinstance(content, Mapping):
        if key is not None:
            raise DataError(f"{where}: expected arrays by name, of which {key!r}, got one array")
        if not isinstance(content, np.ndarray):
            raise DataError(f"{where}: expected an array, got {type(content).__name__}")
        return content
    names = [str(name) for name in content]
    if key is None:
        if len(names) != 1:
            shown = ", ".join(names[:5])
            raise DataError(
                f"{where}: expected one array, got {len(names)} ({shown}); name one with key"
            )
        key = names[0]
    if key not in names:
        raise DataError(f"{where}: no array {key!r} among {len(names)} ({', '.join(names[:5])})")
    value = content[key]
    if not isinstance(value, np.ndarray):
        raise DataError(f"{where}: {key!r}: expected an array, got {type(value).__name__}")
    return value
