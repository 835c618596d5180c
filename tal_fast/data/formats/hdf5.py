# SPDX-License-Identifier: Apache-2.0
"""HDF5 files by h5py, the extra ``hdf5``: contiguous datasets as extents, all others as arrays."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.extents import Extent, Layout, checked_extent, two_axes
from tal_fast.data.formats import needs_packing
from tal_fast.data.formats.hdf5_storage import (
    check_numbers,
    file_of,
    h5py_module,
    in_place_dtype,
    other_files,
    storage_words,
)
from tal_fast.data.formats.hdf5_trust import require_whole
from tal_fast.errors import DataError, os_reason
from tal_fast.typing import FilePath

__all__ = ["Hdf5File"]

# Groups may have several names, and the number of paths may grow with a power of two.
_MOST_AGAIN = 1000

# What h5py makes of the errors of HDF5: which of them it is depends on where a file is damaged.
_ERRORS = (KeyError, OSError, RuntimeError, TypeError, ValueError)


class Hdf5File:
    """The datasets of one HDF5 file, by their path in it (``video`` or ``video/feats``).

    A path may lead over links, also into other files: the bytes are then those of the other file.

    Attributes:
        path: the file.
    """

    def __init__(self, path: FilePath) -> None:
        """Opens the file.

        Raises:
            DataError: if it is missing, no HDF5 file, shorter than it says, or so damaged that
                HDF5's own library crashes on it.
            MissingExtraError: if h5py is not installed.
        """
        h5py = h5py_module()
        self.path = os.fspath(path)
        try:
            about = os.stat(self.path)
            self._size = about.st_size
            require_whole(os.path.abspath(self.path), about)
            # The driver whose addresses are bytes of the file, whatever the environment asks for.
            self._file = h5py.File(os.path.abspath(self.path), "r", driver="sec2")
        except FileNotFoundError:
            raise DataError(f"{self.path}: no such feature file") from None
        except OSError as error:
            reason = os_reason(error)
            raise DataError(f"{self.path}: cannot be read as HDF5: {reason}") from error
        self._h5py = h5py
        self._name = h5py.h5f.get_name(self._file.id)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def names(self) -> list[str]:
        """Returns the paths of all datasets, and of links that lead nowhere.

        These belong to the list because whoever made the file wanted a dataset there: opening one
        says what is wrong with it.

        Raises:
            DataError: if the file is damaged.
        """
        with _damage(self.path):
            return list(self._walk())

    def holds(self, name: str) -> bool:
        """Whether there is a dataset of this name, be it readable or not."""
        try:
            self._open(name)
        except KeyError:
            return False
        except DataError:
            pass  # what is wrong with it is extent's or array's to say
        return True

    def _walk(self) -> Iterator[str]:
        h5py, h5o = self._h5py, self._h5py.h5o
        root = h5py.h5o.get_info(self._file.id)
        first = (root.fileno, root.addr)
        seen, again = {first}, 0
        waiting: list[tuple[str, Any, tuple[Any, ...]]] = [("", self._file, (first,))]
        while waiting:
            above, group, parents = waiting.pop()
            inner: list[tuple[str, Any, tuple[Any, ...]]] = []
            for key in group:
                # h5py gives the bytes of a name that is no UTF-8; here it is as a file's would be.
                name = key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key
                try:
                    about = h5o.get_info(group.id, _encoded(name))
                except _ERRORS:
                    yield above + name
                    continue
                here = (about.fileno, about.addr)
                if about.type == h5o.TYPE_DATASET:
                    yield above + name
                elif about.type == h5o.TYPE_GROUP and here not in parents:  # links may go round
                    again += here in seen
                    if again > _MOST_AGAIN:
                        raise DataError(
                            f"{self.path}: its groups link one another: groups were met more than "
                            f"{_MOST_AGAIN} times by other names"
                        )
                    seen.add(here)
                    inner.append((f"{above}{name}/", group[key], (*parents, here)))
            waiting += reversed(inner)

    def extent(self, name: str, layout: Layout = "TC") -> Extent:
        """Returns where a contiguous dataset lies; behind an external link, in another file.

        Raises:
            DataError: if it is no 2-D dataset of little-endian floating numbers with rows and
                channels, or is not stored in one piece (the message names ``tal-fast pack``), or a
                link to it leads nowhere.
            KeyError: if there is no such dataset.
        """
        where, dataset = self._where(name), self._open(name)
        with _damage(where):
            return self._extent(where, dataset, layout)

    def _extent(self, where: str, dataset: Any, layout: Layout) -> Extent:
        dtype = in_place_dtype(where, dataset)
        offset = dataset.get_offset()
        if offset is None:  # it is not in one piece of an HDF5 file
            words = storage_words(dataset)
            if words is not None:
                raise needs_packing(where, words)
            two_axes(where, self._shape(where, dataset), layout)
            other_files(where, dataset)
        path, size = self.path, self._size
        if self._h5py.h5f.get_name(dataset) != self._name:
            path = file_of(dataset)
            size = os.stat(path).st_size
            where = f"{where} (in {path})"
        shape = self._shape(where, dataset)
        return checked_extent(where, path, size, offset, shape, dtype, layout)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Reads a dataset, however it is stored.

        Raises:
            DataError: if it holds no numbers or only some were ever written, if a file that it
                lies in is missing, or if it cannot be read (a filter that is not installed, broken
                chunks).
            KeyError: if there is no such dataset.
        """
        where, dataset = self._where(name), self._open(name)
        with _damage(where):
            check_numbers(where, dataset)
            self._shape(where, dataset)
            other_files(where, dataset)
            return np.asarray(self._h5py.Dataset(dataset)[()])

    def files(self, name: str) -> list[str]:
        """Returns the files that a dataset's numbers come from, beside :attr:`path`.

        Raises:
            DataError: if one of them is missing.
            KeyError: if there is no such dataset.
        """
        where, dataset = self._where(name), self._open(name)
        with _damage(where):
            paths = {file_of(dataset), *other_files(where, dataset)}
        this_file = os.path.realpath(self.path)
        return sorted(path for path in paths if os.path.realpath(path) != this_file)

    def _where(self, name: str) -> str:
        return f"{self.path}: dataset {name!r}"

    def _shape(self, where: str, dataset: Any) -> tuple[int, ...]:
        shape: tuple[int, ...] | None = dataset.shape
        if shape is None:
            raise DataError(f"{where}: expected numbers, got an empty dataspace")
        return shape

    def _open(self, name: str) -> Any:
        # The low-level call: a third of the time of self._file[name], which matters for 20,000.
        try:
            return self._h5py.h5d.open(self._file.id, _encoded(name))
        except _ERRORS as error:
            self._refuse_broken_link(name, error)
            if isinstance(error, (OSError, RuntimeError)):
                raise _unreadable(self._where(name), error) from error
            raise KeyError(name) from None

    def _refuse_broken_link(self, name: str, error: Exception) -> None:
        """Says so if a link on the way to a dataset is there, and what it points to is not.

        What a damaged file no longer gives is there as well: it must not be taken for missing.
        """
        h5py = self._h5py
        parts = name.strip("/").split("/")
        for end in range(1, len(parts) + 1):
            try:
                above = _encoded("/".join(parts[:end]))
                links = self._file.id.links
                if not links.exists(above):
                    return
                kind = links.get_info(above).type
                hard = kind not in (h5py.h5l.TYPE_SOFT, h5py.h5l.TYPE_EXTERNAL)
                target = () if hard else links.get_val(above)
            except _ERRORS:
                return
            try:
                h5py.h5o.open(self._file.id, above)
            except _ERRORS as damage:
                if hard:
                    raise _unreadable(self._where(name), damage) from damage
                names = target if isinstance(target, tuple) else [target]
                shown = ": ".join(map(os.fsdecode, names))
                what = "external" if kind == h5py.h5l.TYPE_EXTERNAL else "soft"
                # HDF5 says "Unable to synchronously open dataset (can't open file)".
                text = str(error.args[0] if error.args else error)
                reason = text[text.find("(") + 1 :].removesuffix(")")
                raise DataError(
                    f"{self._where(name)}: its {what} link leads nowhere, expected a dataset at "
                    f"{shown}: {reason}"
                ) from error


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # as names() decoded it


def _unreadable(where: str, error: Exception) -> DataError:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return DataError(f"{where}: cannot be read: {text}")


@contextlib.contextmanager
def _damage(where: str) -> Iterator[None]:
    """Turns what h5py raises for a damaged file into an error that names it."""
    try:
        yield
    except DataError:
        raise
    except _ERRORS as error:
        raise _unreadable(where, error) from error
