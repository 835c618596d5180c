# SPDX-License-Identifier: Apache-2.0
"""Directories that one process at a time may write, and the proof that one can be written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tal_fast.data.files import write_error, write_text_atomically
from tal_fast.errors import TalFastError

__all__ = ["check_writable", "locked_directory"]


def check_writable(directory: Path) -> None:
    """Creates ``directory`` and proves that files can be written in it.

    Raises:
        DataError: it cannot be created or written, or the disk is full.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(directory, error) from error
    # Some content: an empty file fits on a full disk.
    probe = write_text_atomically(directory / ".writable", "x" * 4096)
    probe.unlink()


@contextlib.contextmanager
def locked_directory(directory: Path, *, wait: float, busy: str) -> Iterator[None]:
    """Creates a directory and holds an exclusive lock on it.

    The lock belongs to the open directory, so it survives a rename of it and the kernel drops it
    when its holder dies, however it dies. File systems without locks are taken as unlocked.

    Args:
        directory: the directory to lock.
        wait: seconds to wait for another holder.
        busy: message of the error when the other holder stays.

    Raises:
        TalFastError: another process still holds the lock after ``wait`` seconds.
        OSError: the directory cannot be created.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    break
                if time.monotonic() >= end:
                    raise TalFastError(busy) from None
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
