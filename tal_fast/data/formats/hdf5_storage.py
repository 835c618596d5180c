# SPDX-License-Identifier: Apache-2.0
"""How HDF5 stores a dataset: of which type, in which files, and whether anybody wrote it.

HDF5 fills what it does not find: numbers that were never written, the end of a raw file that is too
short, the missing sources of a virtual dataset. Features made of such zeros would be taken for
real ones, so all of that is an error here.
"""

from __future__ import annotations

import math
import os
from typing import Any

from tal_fast.data.formats import needs_packing
from tal_fast.data.formats.hdf5_trust import require_whole
from tal_fast.errors import DataError, MissingExtraError, os_reason

__all__ = [
    "check_numbers",
    "file_of",
    "h5py_module",
    "in_place_dtype",
    "other_files",
    "storage_words",
]


def h5py_module() -> Any:
    """Returns h5py.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "hdf5", "reading HDF5 features") from error
    return h5py


def file_of(dataset: Any) -> str:
    """Returns the path of the file that holds a dataset: behind an external link, another one.

    Args:
        dataset: h5py's low-level dataset, as everywhere here.

    Raises:
        DataError: if that path leads to another file by now.
    """
    h5py = h5py_module()
    path = os.fsdecode(h5py.h5f.get_name(dataset))
    opened = os.fstat(h5py.h5i.get_file_id(dataset).get_vfd_handle())
    try:
        there = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {os_reason(error)}") from error
    if (there.st_dev, there.st_ino) != (opened.st_dev, opened.st_ino):
        raise DataError(f"{path}: was replaced while it was read")
    return path


# ---- types -------------------------------------------------------------------------------------


def in_place_dtype(where: str, dataset: Any) -> str:
    """Returns the name of a dataset's type if its bytes are little-endian IEEE numbers.

    The size alone does not tell: a type of 4 bytes may have any exponent and bias, which HDF5
    converts when it reads.

    Raises:
        DataError: if it is of another type; of one that ``tal-fast pack`` reads, it says so.
    """
    h5t = h5py_module().h5t
    stored = dataset.get_type()
    for name, size in (("float32", "F32"), ("float16", "F16"), ("float64", "F64")):
        if stored.equal(getattr(h5t, f"IEEE_{size}LE")):
            return name
        if stored.equal(getattr(h5t, f"IEEE_{size}BE")):
            raise DataError(
                f"{where}: expected little-endian numbers, got {dataset.dtype.str} (tal-fast pack "
                "converts them)"
            )
    if stored.get_class() == h5t.FLOAT:
        raise needs_packing(where, "HDF5 numbers of a floating type that is not an IEEE one")
    return _type_words(stored)


def check_numbers(where: str, dataset: Any) -> None:
    """Checks that a dataset holds floating numbers or integers (no names, flags, references).

    Raises:
        DataError: if it does not.
    """
    h5t = h5py_module().h5t
    stored = dataset.get_type()
    base = stored.get_super() if stored.get_class() == h5t.ARRAY else stored
    if base.get_class() not in (h5t.FLOAT, h5t.INTEGER):
        raise DataError(f"{where}: expected numbers, got {_type_words(stored)}")


def _type_words(stored: Any) -> str:
    h5t = h5py_module().h5t
    names = {
        h5t.ENUM: "an HDF5 enumeration",
        h5t.BITFIELD: "an HDF5 bit field",
        h5t.REFERENCE: "HDF5 references",
        h5t.STRING: "HDF5 strings",
        h5t.COMPOUND: "HDF5 compounds",
        h5t.ARRAY: "HDF5 arrays",
    }
    if stored.get_class() in names:
        return names[stored.get_class()]
    try:
        return str(stored.dtype.name)
    except (TypeError, ValueError):
        return "an HDF5 type that NumPy lacks"


# ---- storage -----------------------------------------------------------------------------------


def storage_words(dataset: Any) -> str | None:
    """Returns what a dataset is called that is not stored in one piece, or None if it is."""
    h5d = h5py_module().h5d
    properties = dataset.get_create_plist()
    if properties.get_external_count():
        return "HDF5 datasets in raw external files"
    return {
        h5d.CHUNKED: "chunked or compressed HDF5 datasets",
        h5d.COMPACT: "compact HDF5 datasets (within their header)",
        h5d.VIRTUAL: "virtual HDF5 datasets",
    }.get(properties.get_layout())


def other_files(where: str, dataset: Any) -> list[str]:
    """Returns the files besides :func:`file_of` that a dataset's numbers come from.

    Raises:
        DataError: if numbers were never written, or one of the files is missing or too short.
    """
    return _other_files(where, dataset, frozenset())


def _other_files(where: str, dataset: Any, chain: frozenset[tuple[str, bytes]]) -> list[str]:
    h5d = h5py_module().h5d
    properties = dataset.get_create_plist()
    if properties.get_layout() == h5d.VIRTUAL:
        return _virtual_sources(where, dataset, properties, chain)
    if properties.get_external_count():
        return _raw_files(where, dataset, properties)
    unwritten = f"{where}: expected numbers, but none were ever written"
    if properties.get_layout() == h5d.CHUNKED:
        sizes = zip(dataset.shape, properties.get_chunk(), strict=True)
        chunks = math.prod(-(-size // step) for size, step in sizes)
        missing = chunks - dataset.get_num_chunks()
        # Who names a fill value wants it where nothing was written.
        if missing and properties.fill_value_defined() != h5d.FILL_VALUE_USER_DEFINED:
            raise DataError(f"{unwritten} to {missing} of its {chunks} chunks")
    elif not dataset.get_storage_size():
        raise DataError(f"{unwritten} to it")
    return []


def _raw_files(where: str, dataset: Any, properties: Any) -> list[str]:
    """HDF5 looks for them in the current directory, unless the environment says where."""
    (prefix,) = _prefixes("HDF5_EXTFILE_PREFIX", dataset)[:1] or [""]
    left = dataset.get_storage_size()
    files = []
    for number in range(properties.get_external_count()):
        name, offset, size = properties.get_external(number)
        path = os.path.join(prefix, os.fsdecode(name))
        part = min(left, size)
        try:
            there = os.stat(path).st_size
        except OSError as error:
            raise DataError(f"{where}: its raw file {path}: {os_reason(error)}") from error
        if there < offset + part:
            raise DataError(
                f"{where}: its raw file {path}: expected {offset + part} bytes, got {there}"
            )
        left -= part
        files.append(path)
    return files


def _virtual_sources(
    where: str, dataset: Any, properties: Any, chain: frozenset[tuple[str, bytes]]
) -> list[str]:
    this_file = file_of(dataset)
    total = math.prod(dataset.shape)
    covered = 0
    sources: dict[tuple[str, str], None] = {}
    for number in range(properties.get_virtual_count()):
        source = (properties.get_virtual_filename(number), properties.get_virtual_dsetname(number))
        try:
            points = properties.get_virtual_vspace(number).get_select_npoints()
        except RuntimeError:  # without an end
            points = total + 1
        if points > total or "%b" in "".join(source):
            raise DataError(
                f"{where}: virtual datasets that may grow are not read; copy it into a plain one"
            )
        covered += points
        sources[source] = None
    if covered < total:
        raise DataError(
            f"{where}: expected numbers, but {total - covered} of its {total} have no source"
        )
    paths: list[str] = []
    for name, inner in sources:
        path = this_file if name == "." else _find_source(where, name, dataset, this_file)
        key = (os.path.realpath(path), inner.encode())
        if key in chain:
            raise DataError(f"{where}: it is a source of its own ({path}: {inner!r})")
        paths += _files_of_source(f"{where}: its source {path}: {inner!r}", key, chain | {key})
    return sorted(set(paths))


def _files_of_source(
    where: str, key: tuple[str, bytes], chain: frozenset[tuple[str, bytes]]
) -> list[str]:
    h5py = h5py_module()
    try:
        require_whole(os.path.abspath(key[0]), os.stat(key[0]))
        with h5py.File(key[0], "r", driver="sec2") as file:
            source = h5py.h5d.open(file.id, key[1])
            return [key[0], file_of(source), *_other_files(where, source, chain)]
    except (KeyError, OSError, RuntimeError) as error:
        raise DataError(f"{where}: cannot be read: {error}") from error


def _find_source(where: str, name: str, dataset: Any, dataset_file: str) -> str:
    """Looks where HDF5 looks for the file of a virtual dataset's source."""
    folders = [*_prefixes("HDF5_VDS_PREFIX", dataset), os.path.dirname(dataset_file), ""]
    tried = [name] if os.path.isabs(name) else []
    tried += [os.path.join(f, os.path.basename(name) if tried else name) for f in folders]
    for path in tried:
        if os.path.exists(path):
            return path
    raise DataError(f"{where}: its source {name}: no such file")


def _prefixes(variable: str, dataset: Any) -> list[str]:
    origin = os.path.dirname(os.path.abspath(file_of(dataset)))
    folders = os.environ.get(variable, "").replace("${ORIGIN}", origin)
    return [part for part in folders.split(":") if part not in ("", ".")]
