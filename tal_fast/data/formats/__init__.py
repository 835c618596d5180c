# SPDX-License-Identifier: Apache-2.0
"""File formats of features, one module each; headers are parsed by the formats' own libraries.

A format gives the extents of its arrays when they lie in the file as they are (``.npy``,
safetensors, contiguous HDF5 datasets), and otherwise only arrays, which ``tal-fast pack`` converts
once (``.npz``, torch's files, pickles, CSV, HDF5 that is stored in any other way).
"""

from __future__ import annotations

import os
from typing import Literal

from tal_fast.errors import DataError, os_reason

__all__ = [
    "IN_PLACE",
    "KEYED",
    "SUFFIXES",
    "Kind",
    "kind_of_content",
    "kind_of_name",
    "needs_packing",
]

Kind = Literal["npy", "safetensors", "hdf5", "npz", "torch", "pickle", "csv"]

SUFFIXES: dict[str, Kind] = {
    ".npy": "npy",
    ".safetensors": "safetensors",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".he5": "hdf5",
    ".hdf": "hdf5",
    ".npz": "npz",
    ".pt": "torch",
    ".pth": "torch",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".csv": "csv",
}
# Formats whose arrays may be read where they lie.
IN_PLACE: frozenset[Kind] = frozenset({"npy", "safetensors", "hdf5"})
# Formats whose files may hold an array per video.
KEYED: frozenset[Kind] = frozenset({"safetensors", "hdf5", "npz", "torch", "pickle"})

_NAMES: dict[str, str] = {
    "npz": ".npz files",
    "torch": "torch files",
    "pickle": "pickles",
    "csv": "CSV files",
}


def kind_of_name(name: str) -> Kind | None:
    """Returns the format that a file name's ending tells, or None."""
    return SUFFIXES.get(os.path.splitext(name)[1].lower())


def kind_of_content(path: str) -> Kind:
    """Returns the format that a file's first bytes tell (torch saves without an ending, too).

    Raises:
        DataError: if they tell none, or the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise DataError(f"{path}: no such feature file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {os_reason(error)}") from error
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith(b"PK\x03\x04"):
        # Both are zip archives. The members of torch's all lie in one folder.
        length = int.from_bytes(head[26:28], "little")
        return "torch" if b"/" in head[30 : 30 + length] else "npz"
    if head[:2] == b"\x80\x02" and b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head:
        return "torch"  # the number that torch's files before 1.6 begin with
    if head[:1] == b"\x80":
        return "pickle"
    if len(head) > 9 and head[8:9] == b"{":
        return "safetensors"
    if not head:
        raise DataError(f"{path}: expected a feature file, got an empty file")
    known = ", ".join(SUFFIXES)
    raise DataError(f"{path}: neither its name nor its first bytes tell a format (known: {known})")


def needs_packing(where: str, what: Kind | str) -> DataError:
    """Returns the error for features that cannot be read where they lie.

    Args:
        where: file and array.
        what: their format, or what arrays stored like these are called.
    """
    return DataError(
        f"{where}: {_NAMES.get(what, what)} cannot be read in place; convert them once: "
        "tal-fast pack --features <folder or file> --out <store>"
    )
