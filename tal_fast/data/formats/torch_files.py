# SPDX-License-Identifier: Apache-2.0
"""Files of ``torch.save``, and their damage that torch takes: its numbers are then in no file.

A pickle in the file says how long a storage is; its numbers stand elsewhere. Where these are not
listed, or not where the archive says, ``torch.load`` leaves what the memory happened to hold.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from tal_fast.data.unpickling import torch_globals
from tal_fast.errors import DataError

__all__ = ["load_torch_file"]

_ARCHIVE = b"PK\x03\x04"  # by which torch tells its archives
_HEADERS = 3  # pickles before that of the tensors, in files before torch 1.6


def load_torch_file(path: str | Path) -> Any:
    """Returns the tensors, plain values and NumPy arrays that torch has saved, on the CPU.

    Raises:
        DataError: numbers of its tensors are not where the file says.
        Exception: of torch, which knows many for what it cannot read.
    """
    import torch

    with torch.serialization.safe_globals(torch_globals()):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    missing = _missing_numbers(path)
    if missing is not None:
        raise DataError(f"{path}: expected a whole file of torch.save: {missing}")
    return loaded


def _missing_numbers(path: str | Path) -> str | None:
    """Returns what is wrong with a file that torch has taken; None if nothing is."""
    with open(path, "rb") as file:
        if file.read(len(_ARCHIVE)) == _ARCHIVE:
            return _missing_records(file)
        file.seek(0)
        return _missing_keys(file)


def _missing_records(file: BinaryIO) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            for item in archive.infolist():
                file.seek(item.header_offset + 26)  # lengths of name and extra field
                length, extra = struct.unpack("<HH", file.read(4))
                name = file.read(length).decode("utf-8", "replace")
                end = file.tell() + extra + item.compress_size
                if name != item.orig_filename or end > archive.start_dir:
                    return f"its record {item.filename!r} is not where its directory says"
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        return f"its archive is broken ({error})"
    return None


def _missing_keys(file: BinaryIO) -> str | None:
    """Looks at a file of torch before 1.6: pickles, of which the last lists the storages."""
    try:
        for _ in range(_HEADERS):
            _Skeleton(file).load()
        tensors = _Skeleton(file)
        tensors.load()
        kept = {str(key) for key in _Skeleton(file).load()}
    except Exception as error:  # a broken pickle fails in any way it likes
        return f"its pickles are broken ({type(error).__name__})"
    lost = sorted(tensors.keys - kept)
    return f"the numbers of storage {lost[0]} are not in it" if lost else None


class _Any:
    """Stands for every class and object of a pickle, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Any:
        return super().__new__(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> _Any:
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...


class _Skeleton(pickle._Unpickler):
    """Follows a pickle without making anything of it, and notes the keys of its storages.

    The one in Python, as torch's: that in C makes room for as many values as a pickle numbers.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.keys: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        return _Any

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 2 and pid[0] in ("storage", b"storage"):
            self.keys.add(str(pid[2]))
        return _Any()
