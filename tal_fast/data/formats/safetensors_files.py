# SPDX-License-Identifier: Apache-2.0
"""safetensors files: checked by their own library, whose header tells where each tensor lies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from tal_fast.data.extents import Extent, Layout, checked_extent, from_bfloat16
from tal_fast.data.json_files import parse_json, read_json
from tal_fast.errors import DataError, os_reason
from tal_fast.typing import FilePath

__all__ = ["INDEX_SUFFIX", "SafetensorsFile", "read_store_index", "store_index"]

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
# What NumPy reads them as, for packing.
_STORED = {
    **{"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"},
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}
# A sharded store has one file of this ending that says which tensor lies in which shard.
INDEX_SUFFIX = ".safetensors.index.json"


class SafetensorsFile:
    """The tensors of one safetensors file.

    The library opens the file first: it refuses one that is truncated, too long, or whose tensors
    overlap or leave holes. Where they lie it does not tell, so the header, which it has checked, is
    read once more.

    Attributes:
        path: the file.
    """

    def __init__(self, path: FilePath) -> None:
        """Reads the header.

        Raises:
            DataError: if the file is missing, empty, no safetensors file, or of another size than
                its header says.
        """
        self.path = os.fspath(path)
        try:
            with open(self.path, "rb") as file:
                self._size = os.fstat(file.fileno()).st_size
                if self._size == 0:
                    raise DataError(f"{self.path}: expected a safetensors file, got an empty file")
                with safetensors.safe_open(self.path, "numpy"):
                    pass
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, dict[str, Any]] = parse_json(self.path, file.read(length))
        except FileNotFoundError:
            raise DataError(f"{self.path}: no such feature file") from None
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {os_reason(error)}") from error
        except safetensors.SafetensorError as error:
            raise DataError(
                f"{self.path}: expected a whole safetensors file, got one that its library "
                f"refuses: {error}"
            ) from error
        header.pop("__metadata__", None)
        self._header = header
        self._data = 8 + length

    def names(self) -> list[str]:
        """Returns the names of the tensors."""
        return list(self._header)

    def holds(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._header

    def extent(self, name: str, layout: Layout = "TC") -> Extent:
        """Returns where a tensor lies.

        Raises:
            DataError: if it is not a 2-D tensor of a floating type with rows and channels.
            KeyError: if there is no such tensor.
        """
        entry = self._header[name]
        kind = str(entry["dtype"])
        return checked_extent(
            f"{self.path}: tensor {name!r}",
            self.path,
            self._size,
            self._data + entry["data_offsets"][0],
            entry["shape"],
            _DTYPES.get(kind, kind),
            layout,
        )

    def array(self, name: str) -> npt.NDArray[Any]:
        """Reads a tensor of floating numbers or integers; bfloat16 as the float32 of equal value.

        Raises:
            DataError: if it is of another type, or the file cannot be read.
            KeyError: if there is no such tensor.
        """
        entry = self._header[name]
        kind, (start, end) = str(entry["dtype"]), entry["data_offsets"]
        where = f"{self.path}: tensor {name!r}"
        if kind not in _STORED:
            known = ", ".join(_STORED)
            raise DataError(f"{where}: expected a dtype among {known}, got {kind}")
        stored = np.dtype(_STORED[kind])
        count = (end - start) // stored.itemsize
        try:
            values = np.fromfile(self.path, stored, count, offset=self._data + start)
        except OSError as error:
            raise DataError(f"{where}: cannot be read: {os_reason(error)}") from error
        if len(values) != count:
            raise DataError(f"{where}: the file became shorter while it was read")
        return (from_bfloat16(values) if kind == "BF16" else values).reshape(entry["shape"])


def store_index(folder: str) -> str | None:
    """Returns the path of a folder's ``*.safetensors.index.json``, or None.

    Raises:
        DataError: if there are several, or the folder cannot be read.
    """
    try:
        indices = sorted(n for n in os.listdir(folder) if n.endswith(INDEX_SUFFIX) and n[0] != ".")
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {os_reason(error)}") from error
    if len(indices) > 1:
        raise DataError(f"{folder}: expected one index of shards, got {', '.join(indices)}")
    return os.path.join(folder, indices[0]) if indices else None


def read_store_index(path: str) -> dict[str, str]:
    """Returns tensor name -> path of its shard.

    Raises:
        DataError: if the index cannot be read or is not such an index.
    """
    _, index = read_json(path, "index of shards")
    shards = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(shards, Mapping) or not all(
        isinstance(file, str) and os.path.basename(file) == file and "\0" not in file
        for file in shards.values()
    ):
        raise DataError(
            f"{path}: expected an object 'weight_map' of tensor name -> file beside the index"
        )
    folder = os.path.dirname(path)
    return {str(name): os.path.join(folder, file) for name, file in shards.items()}
