# SPDX-License-Identifier: Apache-2.0
"""A process that touches the structure of HDF5 files before another one does: it may crash.

It runs alone (``hdf5_trust`` starts it) and imports nothing of ours: with torch, its start would
take ten times as long. Its first argument is the number of a descriptor, the others are the path of
modules. Requests come by that descriptor, ``[number, path]`` as a line of JSON, and so do answers,
``[number, depends]``: whether the file leads to others. Standard output is anybody's.
What HDF5 reports as an error is none here: whoever opens the file meets it again, and tells it.
"""

import sys

if __name__ == "__main__":
    # A program's own folder comes first there, and holds modules called like others.
    sys.path[:] = sys.argv[2:]

import json
import os
import resource
from typing import Any

from h5py import h5d, h5f, h5g, h5l, h5o, h5p, h5t

__all__ = ["touch"]

_ERRORS = (KeyError, OSError, RuntimeError, TypeError, ValueError, MemoryError)
_ACCESS = h5p.create(h5p.FILE_ACCESS)
_ACCESS.set_fapl_sec2()


def touch(path: str) -> bool:
    """Opens a file, walks over its groups, and asks each dataset what a reader asks it.

    All by low-level calls: the classes above them take twice the time. Each object once: there may
    be more paths than anybody can walk.

    Returns:
        Whether the file leads to others: that it is whole may change with them.
    """
    depends = False
    try:
        file = h5f.open(os.fsencode(path), h5f.ACC_RDONLY, _ACCESS)
    except _ERRORS:
        return False
    try:
        seen = set()
        waiting = [b"/"]
        while waiting:
            name = waiting.pop()
            try:
                group = h5g.open(file, name)
                inner = list(group)
            except _ERRORS:
                continue
            for link in inner:
                try:
                    depends |= group.links.get_info(link).type == h5l.TYPE_EXTERNAL
                    about = h5o.get_info(group, link)
                    here = (about.fileno, about.addr)
                    if here in seen:
                        continue
                    seen.add(here)
                    if about.type == h5o.TYPE_DATASET:
                        depends |= _dataset(h5d.open(group, link))
                    elif about.type == h5o.TYPE_GROUP:
                        waiting.append(name + b"/" + link)
                except _ERRORS:
                    _broken(group, link)
    finally:
        file.close()
    return depends


def _broken(group: Any, name: bytes) -> None:
    """What is asked of a link that leads to nothing readable."""
    try:
        if group.links.get_info(name).type != h5l.TYPE_HARD:
            group.links.get_val(name)
    except _ERRORS:
        return


def _dataset(dataset: Any) -> bool:
    """Returns whether its numbers are those of other files."""
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
        return False
    if layout == h5d.VIRTUAL:
        for number in range(properties.get_virtual_count()):
            properties.get_virtual_vspace(number).get_select_npoints()
        return True
    if layout == h5d.CONTIGUOUS:
        for number in range(properties.get_external_count()):
            properties.get_external(number)
        return bool(properties.get_external_count())
    return False


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(int(sys.argv[1]), "r+b", buffering=0) as channel:
        waiting = b""
        while received := channel.read(65536):
            *lines, waiting = (waiting + received).split(b"\n")
            for line in lines:
                number, path = json.loads(line)
                channel.write(json.dumps([number, touch(path)]).encode() + b"\n")
