# SPDX-License-Identifier: Apache-2.0
"""The features of a video as bytes of files: what the native reader is given.

Reading them here, in NumPy, is for preparation and checks; batches come from the native reader.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tal_fast.errors import DataError, counted, os_reason

__all__ = [
    "DTYPES",
    "ITEM_SIZES",
    "Extent",
    "Layout",
    "beside",
    "checked_extent",
    "from_bfloat16",
    "read_array",
    "two_axes",
]

Layout = Literal["TC", "CT"]
# The position of a dtype is its number in csrc/reader/reader.h.
DTYPES = ("float16", "float32", "float64", "bfloat16")
# Other numbers that packing converts, by NumPy's names and those of safetensors.
_PACKED = re.compile(r"u?int\d+|float(96|128)|[IU]\d+")
ITEM_SIZES = {"float16": 2, "float32": 4, "float64": 8, "bfloat16": 2}


@dataclass(frozen=True)
class Extent:
    """The features of one video as bytes in a file, or in several files side by side.

    Attributes:
        path: file that holds them.
        offset: byte at which the first element lies.
        rows: time steps, T.
        columns: channels of this file.
        dtype: one of :data:`DTYPES`, little-endian.
        layout: order of the elements in the file: ``"TC"`` ([T, C], a row's channels adjacent) or
            ``"CT"``.
        beside: extents of as many rows whose channels follow those of this one, in order (two
            streams in two folders). They have none beside themselves.
    """

    path: str
    offset: int
    rows: int
    columns: int
    dtype: str
    layout: Layout
    beside: tuple[Extent, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes that the features occupy in :attr:`path`."""
        return self.rows * self.columns * ITEM_SIZES[self.dtype]

    @property
    def parts(self) -> tuple[Extent, ...]:
        """This extent alone and those beside it: their columns make up a row."""
        return (replace(self, beside=()), *self.beside) if self.beside else (self,)

    @property
    def width(self) -> int:
        """Channels of a row over all parts, C."""
        return self.columns + sum(part.columns for part in self.beside)


def beside(parts: Sequence[Extent]) -> Extent:
    """Joins the extents of one video's streams: the channels of a row follow each other.

    Args:
        parts: one extent per stream, at least one.

    Returns:
        The first of them, with the others :attr:`Extent.beside` it.

    Raises:
        DataError: if their numbers of rows differ.
    """
    first, *others = parts
    for other in others:
        if other.rows != first.rows:
            raise DataError(
                f"{other.path}: expected {counted(first.rows, 'row')} as in {first.path}, got "
                f"{other.rows}"
            )
    return replace(first, beside=tuple(others)) if others else first


def two_axes(where: str, shape: Sequence[int], layout: Layout) -> tuple[int, int]:
    """Returns the shape of features without the axes of length 1 that are no rows or channels.

    [1, T, C], [T, 1, 1, C] and [T, C, 1, 1] are [T, C]: leaving out an axis of length 1 moves no
    number. Where only one axis is longer than 1, it has to be the one that holds the channels (a
    single row); where it is not, nobody knows what it is.

    Args:
        where: file and array, for messages.
        shape: of the array, as it is stored.
        layout: what the two axes that are left mean.

    Raises:
        DataError: if they are not two, or one of them has length 0.
    """
    axes = list(shape)
    if len(axes) > 2:
        longer = [size for size in axes if size != 1]
        channels = axes[-1] if layout == "TC" else axes[0]
        if len(longer) == 2:
            axes = longer
        elif longer in ([channels], []):
            axes = [1, channels] if layout == "TC" else [channels, 1]
    if len(axes) != 2:
        crops = "; tal-fast pack --reduce takes one crop of [T, N, C], or their mean"
        raise DataError(
            f"{where}: expected a 2-D array [{', '.join(layout)}], got shape {list(shape)}"
            f"{crops if len(shape) == 3 and 1 not in shape else ''}"
        )
    if 0 in axes:
        raise DataError(f"{where}: expected at least one row and channel, got shape {list(shape)}")
    return axes[0], axes[1]


def checked_extent(
    where: str,
    path: str,
    size: int,
    offset: int,
    shape: Sequence[int],
    dtype: str,
    layout: Layout,
    *,
    fortran_order: bool = False,
    last: bool = False,
) -> Extent:
    """Makes the extent of an array in a file after checking that it can be one.

    Args:
        where: file and array, for messages.
        path: the file.
        size: its bytes.
        offset: byte of the first element.
        shape: of the array; axes of length 1 that are no rows or channels are left out.
        dtype: name of its elements' type.
        layout: what its two axes mean.
        fortran_order: the first axis is the fastest. An array of one layout has then the bytes of
            the other, so it is read as such and needs no copy.
        last: the file ends with the array.

    Raises:
        DataError: if the array is not 2-D, without rows or channels, of another type than
            :data:`DTYPES`, or does not fit into the file.
    """
    if dtype not in DTYPES:
        hint = " (tal-fast pack converts it)" if _PACKED.fullmatch(dtype) else ""
        raise DataError(
            f"{where}: expected dtype float16, bfloat16, float32 or float64, got {dtype}{hint}"
        )
    first, second = two_axes(where, shape, layout)
    rows, columns = (first, second) if layout == "TC" else (second, first)
    stored: Layout = layout if not fortran_order else ("CT" if layout == "TC" else "TC")
    extent = Extent(path, offset, rows, columns, dtype, stored)
    end = offset + extent.num_bytes
    if size < end or (last and size != end):
        what = "truncated: its header promises" if size < end else "longer than its header:"
        raise DataError(
            f"{where}: {what} {end} bytes for shape {list(shape)} of {dtype}, got {size}"
        )
    return extent


def read_array(extent: Extent) -> npt.NDArray[Any]:
    """Reads the features of a video.

    Returns:
        [T, C], the parts' channels in order, in the widest type among them; bfloat16, which NumPy
        lacks, as the float32 of equal value. Part of a file in the layout ``"CT"`` is a transposed
        view.

    Raises:
        DataError: if a file cannot be read or has become shorter.
    """
    parts = [_read_part(part) for part in extent.parts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def from_bfloat16(values: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Returns the float32 numbers that equal bfloat16 ones, given by their bits."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def _read_part(part: Extent) -> npt.NDArray[Any]:
    count = part.rows * part.columns
    stored = np.dtype("uint16" if part.dtype == "bfloat16" else part.dtype).newbyteorder("<")
    try:
        with open(part.path, "rb") as file:
            file.seek(part.offset)
            values = np.fromfile(file, stored, count)
    except OSError as error:
        raise DataError(f"{part.path}: cannot be read: {os_reason(error)}") from error
    if len(values) != count:
        raise DataError(
            f"{part.path}: expected {part.num_bytes} bytes at offset {part.offset}, got "
            f"{len(values) * stored.itemsize}: the file is shorter than when it was indexed"
        )
    if part.dtype == "bfloat16":
        values = from_bfloat16(values)
    if part.layout == "TC":
        return values.reshape(part.rows, part.columns)
    return values.reshape(part.columns, part.rows).T
