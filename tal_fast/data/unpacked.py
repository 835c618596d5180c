# SPDX-License-Identifier: Apache-2.0
"""How much compressed files may unpack to: a small file must not take all the memory there is."""

from __future__ import annotations

import gzip
import io
import os
import zipfile

from tal_fast.errors import DataError

__all__ = ["FREE_BYTES", "TIMES", "check_archive", "gunzip"]

#: What any file may unpack to, in bytes, ...
FREE_BYTES = 1 << 30
#: ... and how many times its size beyond that. Annotations shrink to a tenth, features to a half.
TIMES = 100


def _most(size: int) -> int:
    return max(FREE_BYTES, TIMES * size)


def _refusal(origin: str, size: int) -> DataError:
    return DataError(
        f"{origin}: {size:,} bytes that unpack to more than {_most(size):,}; expected at most "
        f"{TIMES} times the file, or {FREE_BYTES >> 20:,} MiB: unpack it by other means if it is "
        "what it says"
    )


def gunzip(origin: str, packed: bytes) -> bytes:
    """Returns what a gzipped content holds.

    Raises:
        DataError: it is more than :data:`FREE_BYTES` and :data:`TIMES` times the content.
        EOFError, OSError, zlib.error: it is damaged.
    """
    most = _most(len(packed))
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise _refusal(origin, len(packed))
    return found


def check_archive(path: str | os.PathLike[str]) -> None:
    """Checks how much the members of a zip archive say that they hold; others are no archive.

    Raises:
        DataError: it is more than :data:`FREE_BYTES` and :data:`TIMES` times the file.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return  # whoever reads it says what is wrong with it
    size = os.stat(path).st_size
    if held > _most(size):
        raise _refusal(os.fspath(path), size)
