# SPDX-License-Identifier: Apache-2.0
"""``.npy`` files, their headers read by NumPy."""

from __future__ import annotations

import functools
import io
import math
import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from tal_fast.data.extents import Extent, Layout, checked_extent
from tal_fast.data.formats.rows import check_dtype
from tal_fast.errors import DataError, os_reason
from tal_fast.typing import FilePath

__all__ = ["npy_array", "npy_extent"]


# Videos of equal length have equal headers, and NumPy takes 25 us to read one.
@functools.lru_cache(maxsize=4096)
def _parse_header(start: bytes) -> tuple[int, tuple[int, ...], bool, np.dtype[np.generic]]:
    """Returns (offset of the data, shape, whether it is Fortran-ordered, dtype)."""
    head = io.BytesIO(start)
    version = npy_format.read_magic(head)
    if version == (1, 0):
        shape, fortran_order, dtype = npy_format.read_array_header_1_0(head)
    elif version in ((2, 0), (3, 0)):  # they differ in the letters of field names alone
        shape, fortran_order, dtype = npy_format.read_array_header_2_0(head)
    else:
        raise ValueError(f"version {version[0]}.{version[1]} of the format")
    return head.tell(), shape, fortran_order, dtype


# Enough for the magic string, the header length and any header NumPy writes for a 2-D array.
_HEADER_BYTES = 512
_LONGEST_HEADER = 1 << 16  # NumPy itself refuses 10,000 and more


class _Header(NamedTuple):
    offset: int
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    size: int  # of the file


def _read_header(name: str) -> _Header:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            start = os.read(descriptor, _HEADER_BYTES)
            # The length of the header's text is in bytes 8 and 9, from version 2 on in 8 to 11.
            field = 2 if start[6:7] == b"\x01" else 4
            head = 8 + field + int.from_bytes(start[8 : 8 + field], "little")
            if _HEADER_BYTES < head < _LONGEST_HEADER:
                start += os.read(descriptor, head - len(start))
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise DataError(f"{name}: no such feature file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {os_reason(error)}") from error
    if size == 0:
        raise DataError(f"{name}: expected a .npy file, got an empty file")
    try:
        return _Header(*_parse_header(start[:head]), size)
    except Exception as error:  # NumPy parses Python: a broken header fails in any way it likes
        raise DataError(f"{name}: expected a .npy file, got one with a bad header: {error}") from (
            error
        )


def npy_extent(path: FilePath, layout: Layout = "TC") -> Extent:
    """Reads the header of a ``.npy`` file and checks it against the file's size.

    Raises:
        DataError: if the file is missing, empty, no ``.npy`` file, not a little-endian array of
            float16, float32 or float64 with two axes besides those of length 1, without rows or
            columns, or of another size than its header says.
    """
    name = os.fspath(path)
    offset, shape, fortran_order, dtype, size = _read_header(name)
    if dtype.kind == "f" and dtype.byteorder == ">":
        raise DataError(
            f"{name}: expected little-endian numbers, got {dtype.str} (tal-fast pack converts them)"
        )
    return checked_extent(
        name,
        name,
        size,
        offset,
        shape,
        dtype.name,
        layout,
        fortran_order=fortran_order,
        last=True,
    )


def npy_array(path: FilePath) -> npt.NDArray[Any]:
    """Reads a ``.npy`` file of floating numbers or integers of any byte order and shape.

    Raises:
        DataError: if the file is missing, faulty, of another size than its header says, or holds
            anything else.
    """
    name = os.fspath(path)
    offset, shape, fortran_order, dtype, size = _read_header(name)
    check_dtype(name, dtype)
    count = math.prod(shape)
    if size != (end := offset + count * dtype.itemsize):
        raise DataError(
            f"{name}: expected {end} bytes for shape {list(shape)} of {dtype}, got {size}"
        )
    try:
        values = np.fromfile(name, dtype, count, offset=offset)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {os_reason(error)}") from error
    if len(values) != count:
        raise DataError(f"{name}: became shorter while it was read")
    return values.reshape(shape, order="F" if fortran_order else "C")
