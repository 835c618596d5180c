# SPDX-License-Identifier: Apache-2.0
"""Text that people write: UTF-8, with or without a byte order mark, and what a file is else.

Spreadsheets save tables as UTF-16 and Windows-1252, too. Reading these by a guess could spoil names
without a word, so they are refused, with the command that converts them.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tal_fast.errors import DataError, printable
from tal_fast.typing import FilePath

__all__ = ["not_utf8", "open_table"]

_LOOKED_AT = 1 << 24  # bytes of a file, at most, to tell its encoding by
_HEAD = 4096
# In the order in which they are tried: the mark of UTF-32 begins with one of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
# A letter of a western language stands alone among ASCII; those of others come in rows.
_ALONE = re.compile(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # of Windows-1252
_SHOWN = 40


@contextmanager
def open_table(path: FilePath, what: str = "CSV") -> Iterator[TextIO]:
    """Opens a table of text, as :mod:`csv` wants it.

    Args:
        path: the file.
        what: it should be, for messages.

    Raises:
        DataError: it is not UTF-8, be it where it is opened or within the block.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as raw:
            if b"\0" in raw.peek(_HEAD)[:_HEAD]:  # UTF-16 without a mark may be UTF-8, too
                raise DataError(not_utf8(path, what))
            # utf-8-sig: Excel and PowerShell begin with a byte order mark.
            with io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
                yield file
    except UnicodeDecodeError as error:
        raise DataError(not_utf8(path, what)) from error


def not_utf8(path: FilePath, what: str, content: bytes | None = None) -> str:
    """Says what a file that is not UTF-8 looks like, and how to convert it.

    Args:
        path: the file.
        what: it should be: ``"CSV"``.
        content: its content, where it is another one than that of the file (unpacked).
    """
    origin = os.fspath(path)
    if content is None:
        with open(path, "rb") as file:
            content = file.read(_LOOKED_AT)
    encoding, found = _told(content)
    advice = ""
    if encoding and not origin.lower().endswith(".gz"):
        base, ending = os.path.splitext(origin)
        names = (shlex.quote(name) for name in (origin, f"{base}-utf8{ending}"))
        advice = "; convert it: iconv -f {} -t UTF-8 {} > {}".format(encoding, *names)
        if ending.lower() in (".csv", ".tsv", ".txt"):
            advice += ", or save it as 'CSV UTF-8' where it was made"
    return f"{origin}: expected {what} in UTF-8, got {found}{advice}"


def _told(content: bytes) -> tuple[str, str]:
    """Returns the encoding that a text looks like, as iconv calls it, and what to say of it.

    Without a name where nothing tells.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return encoding, f"{encoding}, which its first bytes say"
    zeros = content.count(b"\0")
    if 4 * zeros > len(content):
        encoding = "UTF-16LE" if content[1::2].count(b"\0") > zeros // 2 else "UTF-16BE"
        return encoding, f"what looks like {encoding}: every other byte is 0"
    if zeros:
        return "", f"a byte 0 in line {_line(content, content.index(0))}: no text"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        at = error.start
    else:
        return "", f"other bytes after {len(content):,}"
    where = f"in line {_line(content, at)}"
    byte = f"byte 0x{content[at]:02x} {where}"
    if _NOT_ASCII.search(content, 0, at):
        return "", f"{byte}, although it is UTF-8 before: is the file damaged?"
    if _UNDEFINED.search(content) or (
        2 * len(_ALONE.findall(content)) < len(_NOT_ASCII.findall(content))
    ):
        return "", f"another encoding, which its bytes do not tell ({byte})"
    begin = content.rfind(b"\n", 0, at) + 1
    shown = printable(content[max(begin, at - _SHOWN // 2) :].decode("cp1252").splitlines()[0])
    return "WINDOWS-1252", (
        f"what looks like Windows-1252 or Latin-1 ({byte}: would that be {shown[:_SHOWN]!r}?)"
    )


def _line(content: bytes, at: int) -> int:
    return content.count(b"\n", 0, at) + 1
