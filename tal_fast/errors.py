# SPDX-License-Identifier: Apache-2.0
"""Exceptions that tal_fast raises on purpose, and the phrases that their messages share.

Everything a user can cause (a bad file, a misspelt setting, a missing extra) is a
:class:`TalFastError`, so that the command line can print the message without a traceback while
real bugs keep theirs.
"""

import difflib
import errno
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = [
    "ConfigError",
    "DataError",
    "MissingExtraError",
    "NativeLibraryError",
    "TalFastError",
    "TrainingError",
    "argument",
    "both_ways",
    "counted",
    "differences",
    "install",
    "listing",
    "nearest",
    "os_reason",
    "others",
    "printable",
    "same_to_the_eye",
]


class TalFastError(Exception):
    """Base of all errors that tal_fast raises for bad input."""


class DataError(TalFastError, ValueError):
    """An annotation, feature or prediction file is missing, malformed or inconsistent."""


class ConfigError(TalFastError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class TrainingError(TalFastError, RuntimeError):
    """A training cannot go on: the loss is not finite, or a checkpoint does not fit."""


class MissingExtraError(TalFastError, ImportError):
    """An optional dependency is needed and not installed.

    Args:
        package: the distribution that is missing.
        extra: the extra of tal_fast that brings it.
        purpose: what needs it, as in ``"the curve picture"``.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: {install(extra)}")


class NativeLibraryError(TalFastError, ImportError):
    """The native library or torch, without which nothing works, cannot be loaded."""


def install(extra: str) -> str:
    """Returns the command that installs what an extra of tal_fast brings.

    By the names of its packages: that holds for an editable clone and for an installed wheel alike,
    where ``tal_fast[extra]`` would ask an index for tal_fast itself.
    """
    from importlib import metadata

    try:
        asked = metadata.requires("tal_fast") or []
    except metadata.PackageNotFoundError:  # a tree on the path that was never installed
        return f"pip install the packages of the extra {extra!r} in pyproject.toml"
    marker = re.compile(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""")
    named = [line.partition(";")[0].strip() for line in asked if marker.search(line)]
    return f"pip install {shlex.join(named)}"


def argument(name: str, value: Any = None, *, option: str | None = None) -> str:
    """Returns how to give an argument, on the command line and in Python.

    The one way in which a message names an argument that is not spelt alike in both, or a value for
    one: whoever meets it came by a command or by a call.

    Args:
        name: of the argument in Python.
        value: to give it, if a certain one is meant; each item of a mapping or list is an option.
        option: of the command; ``name`` with hyphens by default.

    Example:
        >>> argument("overwrite", True)
        '--overwrite (overwrite=True)'
        >>> argument("resume", False)
        '--no-resume (resume=False)'
        >>> argument("rows", "shortest")
        "--rows shortest (rows='shortest')"
        >>> argument("columns", {"label": "class"}, option="--column")
        "--column label=class (columns={'label': 'class'})"
        >>> argument("exclude", ["a", "b c"])
        "--exclude a --exclude 'b c' (exclude=['a', 'b c'])"
        >>> argument("test_share")
        '--test-share (test_share)'
    """
    option = option or f"--{name.replace('_', '-')}"
    if value is None:
        return both_ways(option, name)
    python = f"{name}={value!r}"
    if value is True:
        return both_ways(option, python)
    if value is False:
        return both_ways(f"--no-{option.removeprefix('--')}", python)
    if isinstance(value, Mapping):
        words = [
            f"{option} {shlex.quote(f'{key}={item}')}"
            for key, items in value.items()
            for item in ([items] if isinstance(items, str) else items)
        ]
        return both_ways(" ".join(words), python)
    if isinstance(value, (list, tuple)):
        return both_ways(" ".join(f"{option} {shlex.quote(str(item))}" for item in value), python)
    return both_ways(f"{option} {value}", python)


def both_ways(command: str, python: str) -> str:
    """Returns what to write on the command line, and in brackets what in Python.

    Where the two are more than an argument of one name: see :func:`argument`.
    """
    return f"{command} ({python})"


def counted(count: int, noun: str, verb: str = "") -> str:
    """Returns a number of things; noun and verb are in the singular where there is one of them.

    Args:
        count: how many.
        noun: in the singular.
        verb: what follows, in the plural.

    Example:
        >>> counted(1, "epoch"), counted(0, "class"), counted(1, "video", "have")
        ('1 epoch', '0 classes', '1 video has')
    """
    words = [str(count), noun if count == 1 else _plural(noun)]
    if verb:
        words.append(_plural(verb) if count == 1 else verb)
    return " ".join(words)


# Verbs in the plural and the singular, and nouns the other way round.
_IRREGULAR = {"are": "is", "have": "has", "were": "was", "person": "people", "epoch": "epochs"}


def _plural(noun: str) -> str:
    """Returns the plural of a noun, which is also how a verb becomes singular."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("y") and noun[-2] not in "aeou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def nearest(word: str, known: Iterable[str], *, numbered: bool = False) -> str:
    """Returns ``"; did you mean 'x'?"`` for the closest known word, or an empty string.

    Args:
        word: that is not known.
        known: words that are.
        numbered: of names that are counted, such as those of videos, where another number is
            another thing and no slip: nobody who writes ``vid10`` means ``vid09``. ``vid010`` may
            be meant.

    Example:
        >>> nearest("float23", ["float32"]), nearest("vid10", ["vid09"], numbered=True)
        ("; did you mean 'float32'?", '')
        >>> nearest("VID10", ["vid09", "vid10"], numbered=True)
        "; did you mean 'vid10'?"
    """
    words = list(known)
    near = words
    if numbered:
        text, numbers = _apart(word)
        apart = [(other, *_apart(other)) for other in words]
        near = [other for other, its, counts in apart if its != text or counts == numbers]
    close = [other for other in words if other.casefold() == word.casefold()]
    close = close or difflib.get_close_matches(word, near, n=1, cutoff=0.6)
    return same_to_the_eye(word, words) or (f"; did you mean {close[0]!r}?" if close else "")


def _apart(word: str) -> tuple[str, list[int]]:
    """Returns a word without its numbers, and these."""
    return _DIGITS.sub("0", word), [int(digits[:_LONG]) for digits in _DIGITS.findall(word)]


_DIGITS = re.compile(r"[0-9]+")
_LONG = 1000  # digits that Python makes a number of


def listing(items: Sequence[object], shown: int = 5, between: str = "; ") -> str:
    """Returns the first few items in a row, and how many there are besides.

    Args:
        items: what to list.
        shown: how many at most.
        between: what stands between two of them.

    Example:
        >>> listing(["a", "b", "c", "d"], shown=2)
        'a; b; and 2 more'
    """
    words = [str(item) for item in items[:shown]]
    if len(items) > shown:
        words.append(f"and {len(items) - shown} more")
    return between.join(words)


def differences(there: Mapping[str, Any], here: Mapping[str, Any], shown: int = 5) -> str:
    """Says in which values two nested mappings differ, by dotted key; nothing where they do not.

    Args:
        there: what was found.
        here: what was asked for.
        shown: differences to name at most.

    Example:
        >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
        'a.b is 1 there and 2 here'
    """
    first, second = dict(_flat(there)), dict(_flat(here))
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    words = [f"{key} is {first.get(key)!r} there and {second.get(key)!r} here" for key in keys]
    return listing(words, shown)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


# What a terminal obeys instead of showing: control characters but for those that lay text out, and
# the marks that turn the direction of what follows.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Returns a text with what a terminal would obey written out: names in files are anybody's."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def others(count: int) -> str:
    """Returns ``" (and 3 more)"`` behind the first of four faults; nothing behind the only one."""
    return f" (and {count - 1} more)" if count > 1 else ""


def os_reason(error: Exception) -> str:
    """Says why a path cannot be used, behind words that name it.

    What the system says; where a file is in the place of a directory, or the reverse, that, and
    which file it is if it lies further up. Of an error that is not the system's, its own words.

    Example:
        >>> os_reason(IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), "features"))
        'expected a file, found a directory'
    """
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.EISDIR:
        return "expected a file, found a directory"
    name = error.filename if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    if error.errno == errno.EEXIST and os.path.isdir(name):
        return "a directory is there already"
    if error.errno == errno.EEXIST and os.path.lexists(name):
        # Of a directory that was to be made: files are written under names that nothing has. It
        # may be one above the path that the words before name.
        return f"expected a directory, found a file: {os.fsdecode(name)}"
    if error.errno == errno.ENOTDIR:
        path = given = os.fsdecode(name)
        while path and not os.path.lexists(path):
            path = os.path.dirname(path)
        above = f": {path}" if path and path != given else ""
        return f"expected a directory, found a file{above}"
    return error.strerror or str(error)


def same_to_the_eye(word: str, known: Iterable[str]) -> str:
    """Returns a hint at a known word that only differs in its Unicode form, or an empty string."""
    if word.isascii():
        return ""
    form = unicodedata.normalize("NFC", word)
    twin = next((k for k in known if k != word and unicodedata.normalize("NFC", k) == form), None)
    if twin is None:
        return ""
    return (
        f"; did you mean {twin!r}? It looks the same, but is in another Unicode form: "
        f"{twin!a}, not {word!a}"
    )
