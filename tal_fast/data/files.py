# SPDX-License-Identifier: Apache-2.0
"""Files and directories that appear whole or not at all, with errors that say what failed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tal_fast.errors import DataError, argument, os_reason
from tal_fast.typing import FilePath

__all__ = [
    "check_writable",
    "directory_in_one_step",
    "file_in_one_step",
    "refuse_existing",
    "remove_unfinished",
    "sync_directory",
    "write_bytes_atomically",
    "write_error",
    "write_text_atomically",
]

_UNFINISHED, _REPLACED = ".tmp", ".old"
_BUSY = (errno.EAGAIN, errno.EACCES)


def write_error(path: FilePath, error: OSError) -> DataError:
    """Returns the error to raise when writing ``path`` failed."""
    return DataError(f"{os.fspath(path)}: cannot be written: {os_reason(error)}")


def _take(descriptor: int) -> bool:
    """Locks an unfinished file or directory; returns whether it is this process's.

    Whoever holds the lock writes it, or removes what a killed process has left. A file system
    without locks gives every one to its writer, and none to those who would remove it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _BUSY
    return os.fstat(descriptor).st_nlink > 0  # else it was removed before it was locked


@contextlib.contextmanager
def _held_if_left(path: str, *, folder: bool) -> Iterator[bool]:
    """Tells whether an unfinished file or directory is of a process that is gone.

    Until the block ends its lock is held, so that nobody who has just made it takes it for theirs.
    """
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = True
        except OSError:
            left = False
        yield left
    finally:
        os.close(descriptor)


def _left_beside(target: Path, ending: str) -> Iterator[os.DirEntry[str]]:
    """Yields what killed processes left of writing ``target``, each while its lock is held."""
    try:
        with os.scandir(target.parent) as scanned:
            entries = list(scanned)
    except OSError:
        return
    # No dot between: of `.data.v2.1f.old` is left `data.v2`, not `data`.
    name = re.compile(rf"\.{re.escape(target.name)}\.\w+{re.escape(ending)}")
    for entry in entries:
        if name.fullmatch(entry.name):
            folder = entry.is_dir(follow_symlinks=False)
            with _held_if_left(entry.path, folder=folder) as left:
                if left:
                    yield entry


def remove_unfinished(path: FilePath) -> None:
    """Removes what processes that were killed while they wrote ``path`` have left beside it.

    Everything here that writes a file or directory in one step does so first. On a file system
    without locks nobody can tell what is left from what is being written, and it stays.
    """
    for entry in _left_beside(Path(path), _UNFINISHED):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def _create_beside(target: Path) -> tuple[Path, int]:
    """Makes an unfinished file that nobody else takes for left; returns it and its descriptor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    while True:
        name = f".{target.name}.{secrets.token_hex(4)}{_UNFINISHED}"
        temporary = target.with_name(name)
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except FileExistsError:
            continue
        if _take(descriptor):
            return temporary, descriptor
        os.close(descriptor)


@contextlib.contextmanager
def file_in_one_step(path: FilePath, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Gives a temporary file beside ``path`` that takes its place when the block ends.

    Any error, Ctrl-C included, removes it and leaves ``path`` as it was. A process that is killed
    leaves it, until the next one writes ``path``.

    Args:
        path: file to write.
        sync: have it on the disk before it takes its place, for what has to outlive a power cut.

    Yields:
        The file to write into.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(path)
    remove_unfinished(target)
    temporary, held = _create_beside(target)
    try:
        try:
            # Two descriptors: closing one tells whether all was written, the other holds the lock.
            with os.fdopen(os.dup(held), "wb") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)
            raise
        if sync:
            sync_directory(target.parent)
    finally:
        os.close(held)


def sync_directory(directory: FilePath) -> None:
    """Has the names in a directory on the disk, where the file system knows how to.

    Raises:
        OSError: they cannot be written.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of some network file systems, for every directory
            raise
    finally:
        os.close(descriptor)


def write_text_atomically(path: FilePath, text: str, *, sync: bool = False) -> Path:
    """Writes ``text``, in UTF-8, beside ``path`` and renames it into place.

    See :func:`write_bytes_atomically`.
    """
    return write_bytes_atomically(path, text.encode(), sync=sync)


def write_bytes_atomically(path: FilePath, content: bytes, *, sync: bool = False) -> Path:
    """Writes ``content`` beside ``path`` and renames it into place.

    A pipe or device (``/dev/stdout``) is written to, since a rename would replace it by a file.

    Args:
        path: file to write.
        content: all of it.
        sync: as of :func:`file_in_one_step`.

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
        with file_in_one_step(target, sync=sync) as file:
            file.write(content)
    except OSError as error:
        raise write_error(path, error) from error
    return target


def refuse_existing(path: Path) -> None:
    """Refuses to replace what is there: work is replaced only if that is asked for.

    Work is a data directory, a store, a training, a study, or predictions. What is made of these in
    a moment (numbers, tables, pictures, pages) is replaced without a word.

    Raises:
        DataError: a file is there; a device or a pipe is written to.
    """
    if path.is_file():
        raise DataError(f"{path}: already exists; {argument('overwrite', True)} replaces it")


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
    if not os.path.lexists(target):
        for left in _left_beside(target, _REPLACED):  # killed between the two renames below
            with contextlib.suppress(OSError):
                os.rename(left.path, target)
    if os.path.lexists(target):
        if not target.is_dir():
            raise DataError(f"{target}: expected a directory to write, got a file")
        filled = any(target.iterdir())
        if filled and not overwrite:
            raise DataError(f"{target}: already exists; {argument('overwrite', True)} replaces it")
        # A slip of the keyboard must not remove somebody's home directory.
        if filled and not (target / marker).is_file():
            raise DataError(f"{target}: has no {marker}, so it is not replaced; choose another")
    remove_unfinished(target)
    for left in _left_beside(target, _REPLACED):
        shutil.rmtree(left.path, ignore_errors=True)
    with contextlib.ExitStack() as held:
        yield from _directory_beside(target, held)


def _make_beside(target: Path, held: contextlib.ExitStack) -> Path:
    """Makes an unfinished directory that nobody else takes for left until ``held`` ends."""
    while True:
        work = tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_UNFINISHED, dir=target.parent)
        try:
            descriptor = os.open(work, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # taken for left already
        if _take(descriptor):
            held.callback(os.close, descriptor)
            return Path(work)
        os.close(descriptor)


def _directory_beside(target: Path, held: contextlib.ExitStack) -> Iterator[Path]:
    """As :func:`directory_in_one_step`; ``held`` closes what must stay locked until the end."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = _make_beside(target, held)
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
            descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
            held.callback(os.close, descriptor)
            _take(descriptor)  # so that nobody puts it back between the two renames
            old = work.with_suffix(_REPLACED)
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
