# SPDX-License-Identifier: Apache-2.0
"""What a file is that was given as a checkpoint and is none."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tal_fast.errors import listing

__all__ = ["foreign_file"]

_HEAD = 512
_POINTER = b"version https://git-lfs"
_OLD_FORM = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # torch's number before the pickle, until torch 1.6
# The first bytes of formats that checkpoints are taken for, or come packed in.
_MAGIC = {
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"BZh": "a bzip2 archive: unpack it first",
    b"\xfd7zXZ": "an xz archive: unpack it first",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
}


def foreign_file(path: Path) -> str | None:
    """Says what a file is, as far as its first bytes tell; None for what torch may be able to read.

    Args:
        path: of a file.

    Returns:
        Words that complete "it is".

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir():
        return f"a directory, give the file in it ({path / 'checkpoint.pt'})"
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "an empty file"
    if head.startswith(_POINTER):
        return "a Git LFS pointer, which stands for a file that was not fetched (git lfs pull)"
    if head.startswith(b"PK"):
        return _zip(path)
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return what
    if head.startswith(b"\x80") and _OLD_FORM not in head[:16]:
        return "a pickle that torch.save did not write"
    if len(head) > 8 and head[8:9] == b"{" and head[5:8] == b"\0\0\0":
        return "a safetensors file"
    return _text(head)


def _zip(path: Path) -> str | None:
    if not zipfile.is_zipfile(path):
        return f"a truncated archive of {path.stat().st_size:,} bytes: copy or download it again"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "a damaged archive: copy or download it again"
    files = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in files:
        return "a TorchScript archive" if "constants.pkl" in files else None
    return f"a zip archive of other things ({listing(names, 3, ', ') or 'nothing'})"


def _text(head: bytes) -> str | None:
    try:
        decoded = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else it is cut within a character
            return None
        decoded = head[: error.start].decode()
    if not all(character.isprintable() or character.isspace() for character in decoded):
        return None
    start = " ".join(decoded.split())[:40]
    if start.lower().startswith(("<!doctype html", "<html")):
        return "an HTML page, as a download that needs another address or a login gives"
    return f"a text file that begins {start!r}"
