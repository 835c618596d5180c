# SPDX-License-Identifier: Apache-2.0
"""Directories that one process at a time writes: studies, trials, trainings."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tal_fast.errors import TalFastError

__all__ = ["LOCK_FILE", "BusyError", "locked_directory"]

LOCK_FILE = ".lock"
_BUSY = (errno.EAGAIN, errno.EACCES, errno.ESTALE)


class BusyError(TalFastError):
    """Another process holds the lock."""


def _is_lock(file: int, opened: int, name: str) -> bool:
    """Whether an open file still is the lock file of an open directory."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=opened), os.fstat(file))
    except OSError:
        return False


def _lock(directory: Path, name: str, files: contextlib.ExitStack) -> tuple[int, int] | None:
    """Tries once; returns the open directory and its locked file, None when it is busy."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if directory.exists() and not directory.is_dir():
            raise
        return None  # its holder renamed it between the two looks that mkdir takes
    with contextlib.ExitStack() as closing:
        try:
            opened = os.open(directory, os.O_RDONLY)
            closing.callback(os.close, opened)
            file = os.open(name, os.O_RDWR | os.O_CREAT, 0o666, dir_fd=opened)
            closing.callback(os.close, file)
        except FileNotFoundError:
            return None  # its holder renames or removes it right now
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(directory / name)) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                return None
        # The former holder may have renamed the directory, or removed the file, since it was
        # opened here: then this lock is on something that nobody else will look at.
        try:
            there = os.path.samestat(os.stat(directory), os.fstat(opened))
        except FileNotFoundError:
            there = False
        if not (there and _is_lock(file, opened, name)):
            return None
        files.push(closing.pop_all())
        return opened, file


@contextlib.contextmanager
def locked_directory(
    directory: Path, *, wait: float, busy: str, name: str = LOCK_FILE
) -> Iterator[None]:
    """Creates a directory and holds an exclusive lock on it.

    What is locked is a file in the directory, because network file systems share the locks of files
    between machines, and those of directories not. So the lock survives a rename of the directory,
    and ends with its holder, however that dies (on NFS 4, when the server gives up a machine that
    died). File systems without locks are taken as unlocked.

    Args:
        directory: the directory to lock.
        wait: seconds to wait for another holder.
        busy: message of the error when the other holder stays.
        name: of the lock file; locks of different names know nothing of each other.

    Raises:
        BusyError: another process still holds the lock after ``wait`` seconds.
        OSError: the directory or the file cannot be created.
    """
    end = time.monotonic() + wait
    with contextlib.ExitStack() as files:
        while (held := _lock(directory, name, files)) is None:
            if time.monotonic() >= end:
                raise BusyError(busy)
            time.sleep(0.05)
        try:
            yield
        finally:
            # By the open directory: it may have another name by now.
            opened, file = held
            if _is_lock(file, opened, name):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=opened)
