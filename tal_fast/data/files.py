# SPDX-License-Identifier: Apache-2.0
"""Files and directories that appear whole or not at all, with errors that say what failed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tal_fast.errors import DataError, argument
from tal_fast.typing import FilePath

__all__ = [
    "check_writable",
    "directory_in_one_step",
    "write_bytes_atomically",
    "write_error",
    "write_text_atomically",
]


def write_error(path: FilePath, error: OSError) -> DataError:
    """Returns the error to raise when writing ``path`` failed."""
    return DataError(f"{os.fspath(path)}: cannot be written: {error.strerror or error}")


def write_text_atomically(path: FilePath, text: str) -> Path:
    """Writes ``text``, in UTF-8, beside ``path`` and renames it into place.

    See :func:`write_bytes_atomically`.
    """
    return write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: FilePath, content: bytes) -> Path:
    """Writes ``content`` beside ``path`` and renames it into place.

    A pipe or device (``/dev/stdout``) is written to, since a rename would replace it by a file.

    Raises:
        DataError: if it cannot be written; nothing is left behind then.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not target.is_file():
            target.write_bytes(content)
            return target
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    return target


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
def directory_in_one_step(
    out: FilePath, *, overwrite: bool, marker: str = "dataset.yaml"
) -> Iterator[Path]:
    """Gives a temporary directory that becomes ``out`` when the block ends without an error.

    The temporary directory lies beside ``out``, so that the last step is a rename. Any error,
    Ctrl-C included, removes it and leaves ``out`` as it was.

    Args:
        out: directory to make.
        overwrite: replace an existing ``out``; it is removed only once the new one is complete.
        marker: file that tells that an existing ``out`` is one of ours; no other is replaced.

    Yields:
        The directory to write into.

    Raises:
        DataError: if ``out`` exists and ``overwrite`` is false, or cannot be written (a full disk
            included).
    """
    target = Path(out)
    if os.path.lexists(target):
        if not target.is_dir():
            raise DataError(f"{target}: expected a directory to write, got a file")
        filled = any(target.iterdir())
        if filled and not overwrite:
            raise DataError(f"{target}: already exists; {argument('overwrite', True)} replaces it")
        # A slip of the keyboard must not remove somebody's home directory.
        if filled and not (target / marker).is_file():
            raise DataError(f"{target}: has no {marker}, so it is not replaced; choose another")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise write_error(target, error) from error
    old: Path | None = None
    try:
        # mkdtemp makes a private directory; the result should be as readable as mkdir's.
        umask = os.umask(0)
        os.umask(umask)
        work.chmod(0o777 & ~umask)
        yield work
        if target.exists():
            old = work.with_suffix(".old")
            os.rename(target, old)
        os.rename(work, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        if old is not None and not target.exists():
            os.rename(old, target)
        for leftover in (work, old):
            if leftover is not None:
                shutil.rmtree(leftover, ignore_errors=True)
