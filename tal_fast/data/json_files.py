# SPDX-License-Identifier: Apache-2.0
"""JSON files that people may write: one reader, which lets no part of a file vanish.

JSON lets an object hold a key twice, and parsers keep the last. In merged files of annotations or
results that is a whole video lost, and in a record that somebody edited it is a setting, so a
repeated key is an error here that says where it stands.
"""

from __future__ import annotations

import gc
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tal_fast.data.text_files import not_utf8
from tal_fast.data.unpacked import gunzip
from tal_fast.errors import DataError, os_reason, others
from tal_fast.typing import FilePath

__all__ = [
    "RepeatedKey",
    "parse_json",
    "parse_with_repeats",
    "read_bytes",
    "read_json",
    "repeated_keys",
    "without_collector",
]

_GZIP = b"\x1f\x8b"
# Keys of the objects whose own keys are videos.
_VIDEOS = ("database", "results")


@dataclass(frozen=True)
class RepeatedKey:
    """A key that an object of a JSON text holds more than once.

    Attributes:
        key: the key.
        path: keys and positions that lead from the top to the object.
        video: the key is that of a video.
    """

    key: str
    path: tuple[str | int, ...]
    video: bool

    def __str__(self) -> str:
        if self.video:
            return f"video {self.key!r} is listed more than once"
        steps = list(self.path)
        place = []
        if len(steps) >= 2 and steps[0] in _VIDEOS:
            item = "annotation" if steps[0] == "database" else "prediction"
            place, steps = [f"video {steps[1]!r}"], steps[2:]
            if steps[:1] == ["annotations"]:
                steps = steps[1:]
            if steps and isinstance(steps[0], int):
                place, steps = [*place, f"{item} {steps[0]}"], steps[1:]
        place += [repr(step) for step in steps]
        where = ", ".join(place) + ": " if place else ""
        return f"{where}key {self.key!r} is there more than once"


def read_bytes(source: object, what: str) -> tuple[str, bytes]:
    """Returns (name for messages, content) of a file, unpacked if it is gzipped.

    Raises:
        DataError: if the file is missing, unreadable or truncated, unpacks to more than
            :mod:`~tal_fast.data.unpacked` allows, or ``source`` is no path.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"{what}: expected a path or a mapping, got {type(source).__name__}")
    origin = os.fspath(source)
    try:
        raw = Path(source).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{origin}: no such file ({what})") from None
    # ValueError: a name with a NUL character.
    except (OSError, ValueError) as error:
        why = os_reason(error) if isinstance(error, OSError) else error
        raise DataError(f"{origin}: cannot be read: {why}") from error
    if raw[:2] == _GZIP:
        try:
            raw = gunzip(origin, raw)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{origin}: not a whole gzip file: {error}") from error
    return origin, raw


def parse_json(origin: str, text: bytes, *, bare: bool = False) -> Any:
    """Returns the content of a JSON text.

    Args:
        origin: the file, for messages.
        text: its content.
        bare: as of :func:`parse_with_repeats`.

    Raises:
        DataError: it is none, and the message says where it stops being one; or an object holds a
            key twice.
    """
    parsed, repeated = parse_with_repeats(origin, text, bare=bare)
    if repeated:
        raise repeated_keys(origin, repeated)
    return parsed


def repeated_keys(origin: str, repeated: Sequence[RepeatedKey]) -> DataError:
    """Returns the error to raise for keys of which only the last would count."""
    return DataError(f"{origin}: {repeated[0]}{others(len(repeated))}; only the last would count")


def parse_with_repeats(
    origin: str, text: bytes, *, bare: bool = True
) -> tuple[Any, tuple[RepeatedKey, ...]]:
    """Returns the content of a JSON text, and the keys of which only the last counts.

    Args:
        origin: the file, for messages.
        text: its content.
        bare: the file may be an object of videos without another around it (BMN's form).

    Raises:
        DataError: it is no JSON.
    """
    lost = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal lost
        items_by_key = dict(items)
        if len(items_by_key) < len(items):
            lost = True
            items_by_key = _Repeating(items)
        return items_by_key

    try:
        with without_collector():
            content = json.loads(text, object_pairs_hook=pairs)
            return content, tuple(_repeats(content, (), bare)) if lost else ()
    except UnicodeDecodeError as error:
        raise DataError(not_utf8(origin, "JSON", text)) from error
    except json.JSONDecodeError as error:
        rest = error.doc[error.pos :].strip()
        # An unterminated string is reported at its start, not at the end of the file.
        cut = not rest or error.msg.startswith("Unterminated string")
        raise DataError(
            f"{origin}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
            + ("; the file is empty" if not text.strip() else "; is it truncated?" if cut else "")
        ) from error
    except ValueError as error:  # Python converts no integer of over 4,300 digits
        raise DataError(f"{origin}: holds a number that nobody can read: {error}") from error
    except RecursionError as error:
        raise DataError(f"{origin}: not valid JSON: nested too deeply") from error


@contextmanager
def without_collector() -> Iterator[None]:
    """Keeps the garbage collector away from what makes many small objects.

    It would look at all of them again and again, and find nothing: without it parsing JSON takes
    0.6 of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def read_json(source: FilePath | Mapping[str, Any], what: str) -> tuple[str, Any]:
    """Returns (name for messages, content) of a JSON file, plain or gzipped, or of a mapping.

    Args:
        source: path, or the content itself.
        what: what the file is, for messages: ``"predictions"``.

    Raises:
        DataError: if the file is missing, unreadable or not JSON, an object of it holds a key
            twice, or ``source`` is of another type.
    """
    if isinstance(source, Mapping):
        return what, source
    origin, raw = read_bytes(source, what)
    return origin, parse_json(origin, raw, bare=True)


class _Repeating(dict[str, Any]):
    """An object that holds a key twice; it remembers what the last of them hides."""

    def __init__(self, items: list[tuple[str, Any]]) -> None:
        super().__init__(items)
        seen: set[str] = set()
        self.repeated = [key for key, _ in items if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        self.hidden = [(key, value) for key, value in items if value is not self[key]]


def _repeats(parsed: Any, path: tuple[str | int, ...], bare_file: bool) -> Iterator[RepeatedKey]:
    if isinstance(parsed, dict):
        members: Any = list(parsed.items())
        if isinstance(parsed, _Repeating):
            for key in dict.fromkeys(parsed.repeated):
                # A bare file has its videos at the top.
                bare = bare_file and path == () and not set(_VIDEOS) & set(parsed)
                bare = bare and isinstance(parsed[key], dict)
                yield RepeatedKey(key, path, bare or (len(path) == 1 and path[0] in _VIDEOS))
            members += parsed.hidden
    elif isinstance(parsed, list):
        members = enumerate(parsed)
    else:
        return
    for key, value in members:
        if isinstance(value, (dict, list)):
            yield from _repeats(value, (*path, key), bare_file)
