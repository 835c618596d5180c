# SPDX-License-Identifier: Apache-2.0
"""Video ids as file names: which file belongs to an id, and which files a folder has."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection

from tal_fast.data.formats import kind_of_name
from tal_fast.errors import DataError, os_reason

__all__ = ["feature_files", "is_file_name", "is_there", "require_file_name"]


def is_file_name(name: str) -> bool:
    """Whether the system takes a text as (part of) the name of a file, as long as it is short."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def is_there(path: str) -> bool:
    """Whether something has this name; what cannot be looked at is there, and faulty."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def require_file_name(folder: str, video: str) -> None:
    """Checks that an id names a file within its folder; ``/`` leads into a folder below it.

    Raises:
        DataError: if it leads elsewhere, or is no name that a file can have.
    """
    parts = video.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in video:
        raise DataError(
            f"{folder}: expected an id that names a file in this folder, got {video!r} (no empty "
            "part, '.' or '..' between its slashes, no zero byte)"
        )
    try:
        os.fsencode(video)
    except UnicodeEncodeError as error:
        raise DataError(f"{folder}: {video!r} cannot be the name of a file: {error}") from None


def feature_files(folder: str, beside: Collection[str] | None = None) -> list[str]:
    """Returns the files of a folder and of those below it, sorted, as paths relative to it.

    Left out are hidden folders, and hidden files of no feature format or that macOS writes beside a
    file (``._a.npy`` beside ``a.npy``). A link to a folder is followed.

    Args:
        folder: the folder.
        beside: look only into the folders that these relative paths lie in, besides the folder
            itself; None looks into all.

    Raises:
        DataError: if one of the folders cannot be read.
    """
    wanted: set[str] | None = None
    if beside is not None:
        wanted = set()
        for below in {os.path.dirname(path) for path in beside}:
            while below and below not in wanted:
                wanted.add(below)
                below = os.path.dirname(below)
    files: list[str] = []
    waiting, seen = [""], set()
    while waiting:
        below = waiting.pop()
        path = os.path.join(folder, below) if below else folder
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:  # a link back up
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                names = {entry.name: entry.is_dir() for entry in entries}
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {os_reason(error)}") from error
        for name, is_folder in names.items():
            relative = f"{below}/{name}" if below else name
            if is_folder:
                if name[0] != "." if wanted is None else relative in wanted:
                    waiting.append(relative)
            elif name[0] != "." or (
                kind_of_name(name) is not None and not (name.startswith("._") and name[2:] in names)
            ):
                files.append(relative)
    return sorted(files)
