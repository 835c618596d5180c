# SPDX-License-Identifier: Apache-2.0
"""Where the features of each video lie: file, byte offset, shape and dtype.

Headers are parsed here, by the format's own library, and every extent is checked against the size
of its file. The native reader that gets the extents parses nothing.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib import format as npy_format

from tal_fast.errors import ConfigError, DataError, nearest

__all__ = ["DTYPES", "Extent", "Layout", "index_features", "read_extent"]

Layout = Literal["TC", "CT"]
DTYPES = ("float16", "float32", "float64")
_SHOWN = 5
# Enough for the magic string, the header length and any header NumPy writes for a 2-D array.
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Extent:
    """The features of one video as bytes in a file.

    Attributes:
        path: file that holds them.
        offset: byte at which the first element lies.
        rows: time steps, T.
        columns: channels, C.
        dtype: ``"float16"``, ``"float32"`` or ``"float64"``, little-endian.
        layout: order of the elements in the file: ``"TC"`` ([T, C], a row's channels adjacent) or
            ``"CT"``.
    """

    path: str
    offset: int
    rows: int
    columns: int
    dtype: str
    layout: Layout

    @property
    def num_bytes(self) -> int:
        """Bytes that the features occupy."""
        return self.rows * self.columns * np.dtype(self.dtype).itemsize


def read_extent(path: str | os.PathLike[str], *, layout: Layout = "TC") -> Extent:
    """Reads the header of a ``.npy`` file and checks it against the file's size.

    Args:
        path: the file.
        layout: what its two axes mean. A Fortran-ordered array of one layout has the bytes of the
            other, so it is read as such and needs no copy.

    Raises:
        DataError: if the file is missing, empty, no ``.npy`` file, not a 2-D little-endian array of
            float16, float32 or float64, without rows or columns, or of another size than its
            header says.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb", buffering=0) as file:
            head = io.BytesIO(file.read(_HEADER_BYTES))
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise DataError(f"{name}: no such feature file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise DataError(f"{name}: expected a .npy file, got an empty file")
    try:
        version = npy_format.read_magic(head)
        if version == (1, 0):
            shape, fortran_order, dtype = npy_format.read_array_header_1_0(head)
        elif version == (2, 0):
            shape, fortran_order, dtype = npy_format.read_array_header_2_0(head)
        else:
            raise ValueError(f"version {version[0]}.{version[1]} of the format")
    except (ValueError, TypeError, SyntaxError, EOFError) as error:
        raise DataError(f"{name}: expected a .npy file, got one with a bad header: {error}") from (
            error
        )
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise DataError(f"{name}: expected dtype float16, float32 or float64, got {dtype}")
    if dtype.byteorder == ">":
        raise DataError(f"{name}: expected little-endian numbers, got {dtype.str}")
    if len(shape) != 2:
        raise DataError(
            f"{name}: expected a 2-D array [{', '.join(layout)}], got shape {list(shape)}"
        )
    if shape[0] < 1 or shape[1] < 1:
        raise DataError(f"{name}: expected at least one row and channel, got shape {list(shape)}")
    rows, columns = (shape[0], shape[1]) if layout == "TC" else (shape[1], shape[0])
    stored: Layout = layout if not fortran_order else ("CT" if layout == "TC" else "TC")
    extent = Extent(name, head.tell(), rows, columns, dtype.name, stored)
    expected = extent.offset + extent.num_bytes
    if size != expected:
        what = "truncated: its header promises" if size < expected else "longer than its header:"
        raise DataError(
            f"{name}: {what} {expected} bytes for shape {list(shape)} of {dtype.name}, got {size}"
        )
    return extent


def index_features(
    folder: str | os.PathLike[str],
    videos: Iterable[str],
    *,
    prefix: str = "",
    suffix: str = ".npy",
    layout: Layout = "TC",
    channels: int | None = None,
) -> dict[str, Extent]:
    """Finds and checks the feature file ``folder/<prefix><video><suffix>`` of every video.

    Args:
        folder: feature folder.
        videos: names of the videos.
        prefix: text before the video's name.
        suffix: text after it; a ``.npy`` file in any case.
        layout: meaning of the axes, ``"TC"`` ([T, C]) or ``"CT"``.
        channels: expected number of channels; default: that of most files.

    Returns:
        An extent per video, in the order of ``videos``.

    Raises:
        DataError: if a file is missing or faulty (see :func:`read_extent`) or has another number of
            channels. Faults are collected: the message counts them and names the first few.
        ConfigError: if ``layout`` is unknown.
    """
    if layout not in ("TC", "CT"):
        raise ConfigError(f"index_features: expected layout 'TC' or 'CT', got {layout!r}")
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such feature folder")
    extents: dict[str, Extent] = {}
    faults: list[str] = []
    missing: list[str] = []
    for video in videos:
        path = os.path.join(root, f"{prefix}{video}{suffix}")
        try:
            extents[video] = read_extent(path, layout=layout)
        except DataError as error:
            (faults if os.path.lexists(path) else missing).append(f"video {video!r}: {error}")
    if missing:
        faults.insert(0, _describe_missing(missing, root, prefix, suffix))
    if extents:
        common = channels or Counter(e.columns for e in extents.values()).most_common(1)[0][0]
        for video, extent in extents.items():
            if extent.columns != common:
                hint = " (the axes look swapped: layout)" if extent.rows == common else ""
                faults.append(
                    f"video {video!r}: {extent.path}: expected {common} channels, "
                    f"got {extent.columns}{hint}"
                )
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DataError("; ".join(faults[:_SHOWN]) + more)
    return extents


def _describe_missing(missing: list[str], root: Path, prefix: str, suffix: str) -> str:
    """Says which files are missing, and what a file that is there is called."""
    first = missing[0]
    if len(missing) == 1:
        wanted = os.path.basename(first.rsplit(": no such", 1)[0])
        return first + nearest(wanted, sorted(os.listdir(root))[:5000])
    there = next((n for n in sorted(os.listdir(root)) if not n.startswith(".")), None)
    example = f"; the folder holds, for example, {there!r}" if there else "; the folder is empty"
    return (
        f"{len(missing)} videos without a feature file {prefix}<video>{suffix}, "
        f"first {first}{example}"
    )
