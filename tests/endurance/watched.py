# SPDX-License-Identifier: Apache-2.0
"""Counts what happens to the files below a folder, as it happens (inotify)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

_CREATE, _MODIFY, _MOVED_FROM, _MOVED_TO, _DELETE = 0x100, 0x2, 0x40, 0x80, 0x200
_IS_DIRECTORY = 0x40000000
_NEVER_WAIT = os.O_NONBLOCK | os.O_CLOEXEC
_HEAD = struct.Struct("iIII")


class Watched:
    """A folder, whose events are counted.

    Args:
        folder: with all folders below it, those that appear later included. What happens in a new
            one before it is watched is not counted.
    """

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(_NEVER_WAIT)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._paths: dict[int, Path] = {}
        self.events = 0
        self._add(folder)

    def close(self) -> None:
        """Ends it."""
        os.close(self._descriptor)

    def _add(self, folder: Path) -> None:
        mask = _CREATE | _MODIFY | _MOVED_FROM | _MOVED_TO | _DELETE
        watch = self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask)
        if watch < 0:
            return  # gone again
        self._paths[watch] = folder
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    self._add(Path(entry.path))

    def wait(self, seconds: float) -> None:
        """Waits for events, and takes in those that are there."""
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return
        data = os.read(self._descriptor, 1 << 16)
        at = 0
        while at < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, at)
            name = data[at + _HEAD.size : at + _HEAD.size + length].rstrip(b"\0")
            at += _HEAD.size + length
            self.events += 1
            if mask & _IS_DIRECTORY and mask & (_CREATE | _MOVED_TO) and watch in self._paths:
                self._add(self._paths[watch] / os.fsdecode(name))


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[Watched]:
    """Watches a folder for as long as the block runs."""
    watched = Watched(folder)
    try:
        yield watched
    finally:
        watched.close()
