# SPDX-License-Identifier: Apache-2.0
"""Formats that are only read whole: ``.npz``, torch's files, pickles and CSV."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.formats import Kind
from tal_fast.data.formats.csv_files import load_csv
from tal_fast.data.formats.rows import check_dtype
from tal_fast.data.formats.torch_files import load_torch_file
from tal_fast.data.unpacked import check_archive
from tal_fast.data.unpickling import unpickle_arrays
from tal_fast.errors import ConfigError, DataError, argument, listing, os_reason

__all__ = ["array_file", "close_array_file", "pick"]


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
            f"{path}: pickles are only read with {argument('allow_pickle', True)}; a file "
            "of unknown origin may be harmful"
        )
    try:
        check_archive(path)
        if kind == "npz":
            if zipfile.is_zipfile(path):
                zipfile.ZipFile(path).close()  # what fails here leaves a file open in NumPy
            return np.load(path, allow_pickle=False)
        if kind == "torch":
            return _load_torch(path)
        if kind == "csv":
            return load_csv(path)
        arrays = unpickle_arrays(path, Path(path).read_bytes())
        return _by_name(path, arrays) if isinstance(arrays, Mapping) else arrays
    except FileNotFoundError:
        raise DataError(f"{path}: no such feature file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {os_reason(error)}") from error
    # NotImplementedError, RuntimeError: what zipfile says of later versions and of passwords.
    except (
        zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError
    ) as error:  # fmt: skip
        if isinstance(error, DataError):
            raise
        if "allow_pickle" in str(error):
            error = ValueError("it is a pickle")
        raise DataError(f"{path}: not a whole {kind} file: {error}") from error


def close_array_file(opened: Any) -> None:
    """Closes what :func:`array_file` returned, if it is a file (``.npz``)."""
    if isinstance(opened, np.lib.npyio.NpzFile):
        opened.close()


def _load_torch(path: str) -> Any:
    try:
        loaded = load_torch_file(path)
    except (OSError, DataError):
        raise
    except Exception as error:  # a broken pickle fails in any way it likes
        # torch's own words advise to load without weights_only.
        foreign = re.search(r"(?:GLOBAL|class) '?([\w.]+\.\w+)", str(error))
        reason = (
            f"it holds {foreign[1]}, only tensors and arrays are read"
            if foreign
            else "it is broken, or no file of torch.save"
        )
        raise DataError(
            f"{path}: cannot be loaded by torch as tensors and arrays alone: {reason}"
        ) from error
    if isinstance(loaded, Mapping):
        return _by_name(path, {k: _as_array(path, value) for k, value in loaded.items()})
    return _as_array(path, loaded)


def _by_name(path: str, arrays: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns a mapping with the names that templates find: those of ids that are numbers, too."""
    named = {str(name): value for name, value in arrays.items()}
    if len(named) != len(arrays):
        raise DataError(f"{path}: two arrays of one name (a number and the same as text)")
    return named


def _as_array(path: str, value: Any) -> Any:
    """Returns a tensor as an array; bfloat16, which NumPy lacks, as the float32 of equal value."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if value.is_sparse or value.layout != torch.strided:
        raise DataError(f"{path}: expected a dense tensor, got layout {value.layout}")
    try:
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    except (TypeError, RuntimeError) as error:  # quantized, float8, without data
        raise DataError(f"{path}: expected a tensor of numbers, got {value.dtype}") from error


def pick(where: str, arrays: Any, key: str | None) -> npt.NDArray[Any]:
    """Returns the array of a file that holds one, or the one that ``key`` names.

    Raises:
        DataError: if there is no such array, or several and no key.
    """
    if not isinstance(arrays, Mapping):
        if key is not None:
            raise DataError(f"{where}: expected arrays by name, of which {key!r}, got one array")
        return _array(where, arrays)
    names = [str(name) for name in arrays]
    if key is None:
        if len(names) != 1:
            raise DataError(
                f"{where}: expected one array, got {len(names)} ({listing(names, between=', ')}); "
                f"name one with {argument('key')}"
            )
        key = names[0]
    if key not in names:
        raise DataError(
            f"{where}: no array {key!r} among {len(names)} ({listing(names, between=', ')})"
        )
    try:
        value = arrays[key]
    except Exception as error:  # a member of an .npz file is read here, and fails in any way
        if "allow_pickle" in str(error):  # NumPy's advice is not ours
            check_dtype(f"{where}: {key!r}", np.dtype(object))
        raise DataError(f"{where}: {key!r}: cannot be read: {error}") from error
    return _array(f"{where}: {key!r}", value)


def _array(where: str, value: Any) -> npt.NDArray[Any]:
    if not isinstance(value, np.ndarray):
        raise DataError(f"{where}: expected an array, got {type(value).__name__}")
    return value
