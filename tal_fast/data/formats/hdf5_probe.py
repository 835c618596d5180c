# SPDX-License-Identifier: Apache-2.0
"""A process that touches the structure of HDF5 files before another one does: it may crash.

It runs alone (``hdf5_trust`` starts it) and imports nothing of ours: with torch, its start would
take ten times as long. Standard input has a path per line, as JSON; each gets a line in answer.
What HDF5 reports as an error is none here: whoever opens the file meets it again, and tells it.
"""

import sys

# A program's own folder comes first there, and holds modules called like others.
sys.path[:] = sys.argv[1:]

import json  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any  # noqa: E402

from h5py import h5d, h5f, h5g, h5l, h5o, h5p, h5t  # noqa: E402

__all__ = ["touch"]

_ERRORS = (KeyError, OSError, RuntimeError, TypeError, ValueError, MemoryError)
_ACCESS = h5p.create(h5p.FILE_ACCESS)
_ACCESS.set_fapl_sec2()


def touch(path: str) -> None:
    """Opens a file, walks over its groups, and asks each dataset what a reader asks it.

    All by low-level calls: the classes above them take twice the time.
    """
    try:
        file = h5f.open(os.fsencode(path), h5f.ACC_RDONLY, _ACCESS)
    except _ERRORS:
        return
    try:
        waiting: list[tuple[bytes, tuple[Any, ...]]] = [(b"/", ())]
        while waiting:
            name, above = waiting.pop()
            try:
                waiting += _group(file, name, above)
            except _ERRORS:
                continue
    finally:
        file.close()


def _group(file: Any, name: bytes, above: tuple[Any, ...]) -> Iterator[tuple[bytes, Any]]:
    group = h5g.open(file, name)
    for inner in list(group):
        try:
            about = h5o.get_info(group, inner)
            if about.type == h5o.TYPE_DATASET:
                _dataset(h5d.open(group, inner))
            here = (about.fileno, about.addr)
            if about.type == h5o.TYPE_GROUP and here not in above:  # links may go round
                yield name + b"/" + inner, (*above, here)
        except _ERRORS:
            _broken(group, inner)


def _broken(group: Any, name: bytes) -> None:
    """What is asked of a link that leads to nothing readable."""
    try:
        if group.links.get_info(name).type != h5l.TYPE_HARD:
            group.links.get_val(name)
    except _ERRORS:
        return


def _dataset(dataset: Any) -> None:
    stored = dataset.get_type()
    if stored.get_class() == h5t.ARRAY:
        stored.get_super()
    stored.equal(h5t.IEEE_F32LE)
    dataset.shape  # noqa: B018  (reads it)
    dataset.get_offset()
    dataset.get_storage_size()
    properties = dataset.get_create_plist()
    layout = properties.get_layout()
    if layout == h5d.CHUNKED:
        properties.get_chunk()
        properties.fill_value_defined()
        dataset.get_num_chunks()
    elif layout == h5d.VIRTUAL:
        for number in range(properties.get_virtual_count()):
            properties.get_virtual_vspace(number).get_select_npoints()
    elif layout == h5d.CONTIGUOUS:
        for number in range(properties.get_external_count()):
            properties.get_external(number)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        touch(json.loads(line))
        print("whole", flush=True)
