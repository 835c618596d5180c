# SPDX-License-Identifier: Apache-2.0
"""HDF5 files by h5py, the extra ``hdf5``: contiguous datasets as extents, all others as arrays."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.extents import Extent, Layout, checked_extent
from tal_fast.data.formats import needs_packing
from tal_fast.errors import DataError, MissingExtraError

__all__ = ["Hdf5File"]


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "hdf5", "reading HDF5 features") from error
    return h5py


class Hdf5File:
    """The datasets of one HDF5 file, by their path in it (``video`` or ``video/feats``).

    Attributes:
        path: the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens the file.

        Raises:
            DataError: if it is missing, no HDF5 file, or shorter than it says.
            MissingExtraError: if h5py is not installed.
        """
        h5py = _h5py()
        self.path = os.fspath(path)
        try:
            self._size = os.stat(self.path).st_size
            self._file = h5py.File(self.path, "r")
        except FileNotFoundError:
            raise DataError(f"{self.path}: no such feature file") from None
        except OSError as error:
            reason = str(error.strerror or error)
            raise DataError(f"{self.path}: cannot be read as HDF5: {reason}") from error
        self._h5d = h5py.h5d

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def names(self) -> list[str]:
        """Returns the paths of all datasets."""
        h5py = _h5py()
        found: list[str] = []
        if all(self._file.get(n, getclass=True) is h5py.Dataset for n in list(self._file)[:1]):
            # The usual form, a dataset per video at the top, without a look at each of them.
            groups = [n for n in self._file if self._is_group(n)]
            if not groups:
                return list(self._file)
        self._file.visititems(
            lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
        )
        return found

    def holds(self, name: str) -> bool:
        """Whether there is a dataset of this name, be it readable or not."""
        try:
            self._open(name)
        except KeyError:
            return False
        except DataError:
            pass  # what is wrong with it is extent's or array's to say
        return True

    def _is_group(self, name: str) -> bool:
        h5py = _h5py()
        return bool(h5py.h5o.get_info(self._file.id, name.encode()).type == h5py.h5o.TYPE_GROUP)

    def is_contiguous(self, name: str) -> bool:
        """Whether a dataset is stored in one piece, of little-endian numbers, in this file.

        Raises:
            KeyError: if there is no such dataset.
        """
        h5py = _h5py()
        dataset = self._open(name)
        properties = dataset.get_create_plist()
        return bool(
            properties.get_layout() == h5py.h5d.CONTIGUOUS
            and not properties.get_external_count()
            and dataset.dtype.byteorder != ">"
        )

    def extent(self, name: str, layout: Layout = "TC") -> Extent:
        """Returns where a contiguous dataset lies.

        Raises:
            DataError: if it is no 2-D dataset of little-endian floating numbers with rows and
                channels, or is not stored in one piece: the message names ``tal-fast pack``.
            KeyError: if there is no such dataset.
        """
        h5py = _h5py()
        where = f"{self.path}: dataset {name!r}"
        dataset = self._open(name)
        properties = dataset.get_create_plist()
        offset = dataset.get_offset()
        if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_external_count():
            raise needs_packing(where, "hdf5")
        if offset is None:
            raise DataError(f"{where}: expected numbers, but none were ever written to it")
        dtype = dataset.dtype
        if dtype.byteorder == ">":
            raise DataError(
                f"{where}: expected little-endian numbers, got {dtype.str} (tal-fast pack converts "
                "them)"
            )
        return checked_extent(
            where, self.path, self._size, offset, dataset.shape, str(dtype.name), layout
        )

    def array(self, name: str) -> npt.NDArray[Any]:
        """Reads a dataset, however it is stored.

        Raises:
            DataError: if it cannot be read (a filter that is not installed, broken chunks).
            KeyError: if there is no such dataset.
        """
        self._open(name)
        try:
            return np.asarray(self._file[name][()])
        except (OSError, RuntimeError, TypeError) as error:
            raise DataError(f"{self.path}: dataset {name!r}: cannot be read: {error}") from error

    def _open(self, name: str) -> Any:
        # The low-level call: a third of the time of self._file[name], which matters for 20,000.
        try:
            return self._h5d.open(self._file.id, name.encode())
        except (KeyError, TypeError, ValueError):
            raise KeyError(name) from None
        except (OSError, RuntimeError) as error:
            raise DataError(f"{self.path}: dataset {name!r}: cannot be read: {error}") from error
