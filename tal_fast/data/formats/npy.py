# SPDX-License-Identifier: Apache-2.0
"""``.npy`` files, their headers read by NumPy."""

from __future__ import annotations

import functools
import io
import os

import numpy as np
from numpy.lib import format as npy_format

from tal_fast.data.extents import Extent, Layout, checked_extent
from tal_fast.errors import DataError

__all__ = ["npy_extent"]


# Videos of equal length have equal headers, and NumPy takes 25 us to read one.
@functools.lru_cache(maxsize=4096)
def _parse_header(start: bytes) -> tuple[int, tuple[int, ...], bool, np.dtype[np.generic]]:
    """Returns (offset of the data, shape, whether it is Fortran-ordered, dtype)."""
    head = io.BytesIO(start)
    version = npy_format.read_magic(head)
    if version == (1, 0):
        shape, fortran_order, dtype = npy_format.read_array_header_1_0(head)
    elif version == (2, 0):
        shape, fortran_order, dtype = npy_format.read_array_header_2_0(head)
    else:
        raise ValueError(f"version {version[0]}.{version[1]} of the format")
    return head.tell(), shape, fortran_order, dtype


# Enough for the magic string, the header length and any header NumPy writes for a 2-D array.
_HEADER_BYTES = 512
_LONGEST_HEADER = 1 << 16  # NumPy itself refuses 10,000 and more


def npy_extent(path: str | os.PathLike[str], layout: Layout = "TC") -> Extent:
    """Reads the header of a ``.npy`` file and checks it against the file's size.

    Raises:
        DataError: if the file is missing, empty, no ``.npy`` file, not a 2-D little-endian array of
            float16, float32 or float64, without rows or columns, or of another size than its
            header says.
    """
    name = os.fspath(path)
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
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise DataError(f"{name}: expected a .npy file, got an empty file")
    try:
        offset, shape, fortran_order, dtype = _parse_header(start[:head])
    except Exception as error:  # NumPy parses Python: a broken header fails in any way it likes
        raise DataError(f"{name}: expected a .npy file, got one with a bad header: {error}") from (
            error
        )
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise DataError(f"{name}: expected dtype float16, float32 or float64, got {dtype}")
    if dtype.byteorder == ">":
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
