# SPDX-License-Identifier: Apache-2.0
"""Changes that make a sound file a hostile one: of its bytes, of its text, of what it holds.

Every change is drawn from a ``random.Random`` that the caller seeds, so that a case is repeated by
its seed. ``json_text`` writes what ``json.dumps`` cannot: objects that hold a key twice.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

__all__ = ["Pairs", "bent_bytes", "bent_content", "bent_table", "bent_text", "json_text"]

_LENGTHS = (
    0,
    1,
    2,
    7,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
)

#: Values that a field may hold where another is expected.
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 1e400, -1e400),
    *(math.nan, 2**31, 2**63, -(2**63), 2**64, 10**40, 10**400, "", " ", "0", "1", "nan", "1e5"),
    *("x", "\x00", "\x1b[2J", "\n", "\ud800", "\u202ex", "e\u0301", "a" * 5000, "../../x", "/"),
    *("/dev/zero", "<script>alert(1)</script>", "'\"&", "%s", "{0}", "train", "test", "run"),
    *([], {}, [[]], [None], [1, 2], [2, 1], [1, 2, 3], {"": 1}, {"a": {}}, [[[[[[]]]]]]),
)

_SNIPPETS = (
    *("\ufeff", "\r\n", "\r", "\x00", "\n\n", "\t", " ", ",", ";", '"', '""', "'", "#", ":", "-"),
    *("\x1b[31m", "\u2028", "\u00a0", "\u202e", "\x85", "\x0c", "x" * 70000, "\\u0000", "\\ud800"),
    *("nan", "NaN", "inf", "-Infinity", "1e999", "-1", "0x10", "1_000", "١٢", "1,5", "9" * 5000),
    *("null", "true", "[]", "{}", "[" * 3000, "{" * 3000, '{"a":' * 3000, "- " * 3000, "=1+1"),
    *("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "&a", "*a", "<<: *a"),
    *("!!binary aGk=", "!!timestamp 2024-13-01", "2024-13-01", "0o17", "1:30", "~", "? ", "%YAML"),
)


class Pairs:
    """An object of JSON that may hold a key more than once."""

    def __init__(self, items: list[tuple[Any, Any]]) -> None:
        self.items = items


def json_text(value: Any) -> str:
    """Returns the text of plain values, and of :class:`Pairs` anywhere among them."""
    if isinstance(value, (dict, Pairs)):
        items = value.items() if isinstance(value, dict) else value.items
        return "{" + ", ".join(f"{json.dumps(str(k))}: {json_text(v)}" for k, v in items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(json_text, value)) + "]"
    return json.dumps(value)


# ---- bytes ---------------------------------------------------------------------------------------


def _flip(rng: random.Random, data: bytearray, at: int) -> None:
    data[at] ^= 1 << rng.randrange(8)


def _byte(rng: random.Random, data: bytearray, at: int) -> None:
    data[at] = rng.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _length(rng: random.Random, data: bytearray, at: int) -> None:
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(_LENGTHS) % 256**size
    data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _nudge(rng: random.Random, data: bytearray, at: int) -> None:
    size = rng.choice((1, 2, 4, 8))
    value = int.from_bytes(data[at : at + size], "little") + rng.choice((-8, -2, -1, 1, 2, 8))
    data[at : at + size] = (value % 256**size).to_bytes(size, "little")


def _cut(rng: random.Random, data: bytearray, at: int) -> None:
    del data[at:]


def _remove(rng: random.Random, data: bytearray, at: int) -> None:
    del data[at : at + rng.choice((1, 2, 4, 8, 64))]


def _repeat(rng: random.Random, data: bytearray, at: int) -> None:
    size = rng.choice((1, 4, 8, 64, 512))
    data[at:at] = data[at : at + size]


def _longer(rng: random.Random, data: bytearray, at: int) -> None:
    data += rng.choice((b"\0", b"x", b"\n", bytes(64), data[:100]))


def _move(rng: random.Random, data: bytearray, at: int) -> None:
    size, other = rng.choice((1, 4, 8, 32)), rng.randrange(len(data))
    data[at : at + size] = data[other : other + size]


_OF_BYTES: tuple[Callable[[random.Random, bytearray, int], None], ...] = (
    *(_flip, _byte, _length, _length, _nudge, _cut, _remove, _repeat, _longer, _move),
)


def bent_bytes(rng: random.Random, content: bytes, places: int | None = None) -> bytes:
    """Returns a content with one to four changes of its bytes.

    Args:
        rng: draws them.
        content: what is changed.
        places: only within so many first bytes, of a header; half of the changes are anywhere.
    """
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        if not data:
            break
        end = min(places, len(data)) if places and rng.random() < 0.5 else len(data)
        rng.choice(_OF_BYTES)(rng, data, rng.randrange(end))
    return bytes(data)


# ---- text ----------------------------------------------------------------------------------------


def bent_text(rng: random.Random, text: str) -> str:
    """Returns a text with one to three changes: snippets; lines that are twice or missing."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        lines = text.split("\n")
        at, place = rng.randrange(len(lines)), rng.randrange(len(text) + 1)
        how = rng.randrange(7)
        if how == 0:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
            text = "\n".join(lines)
        elif how == 1:
            del lines[at]
            text = "\n".join(lines)
        elif how == 2:
            text = text.replace("\n", rng.choice(("\r\n", "\r", "\n\n", " ", "\u2028")))
        elif how == 3:
            text = text[:place]
        elif how == 4:
            text = rng.choice(_SNIPPETS) + text
        else:
            text = text[:place] + rng.choice(_SNIPPETS) + text[place + rng.choice((0, 0, 1, 3)) :]
    return text


def bent_table(rng: random.Random, text: str, separator: str = ",") -> str:
    """Returns a CSV with one to three changes of its cells, rows and columns."""
    rows = [line.split(separator) for line in text.rstrip("\n").split("\n")]
    for _ in range(rng.choice((1, 1, 2, 3))):
        row = rng.choice(rows)
        how = rng.randrange(9)
        if not row:
            continue
        at = rng.randrange(len(row))
        if how <= 3:
            value = rng.choice((*_SNIPPETS, *_VALUES))
            row[at] = value if isinstance(value, str) else str(value)
        elif how == 4:
            rows.insert(rng.randrange(len(rows) + 1), list(row))
        elif how == 5 and len(rows) > 1:
            rows.remove(row)
        elif how == 6:
            for other in rows:
                if at < len(other):
                    rng.choice((other.pop, lambda i, other=other: other.insert(i, other[i])))(at)
        elif how == 7:
            row.append(row[at])
        else:
            row[at] = f'"{row[at]}{rng.choice(("", chr(10), chr(34)))}"'
    between = rng.choice((separator, separator, separator, ";", "\t", ", "))
    return "\n".join(between.join(row) for row in rows) + "\n"


# ---- content -------------------------------------------------------------------------------------


def _places(content: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Returns (container, key or position) of all that a content holds."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        found.append((content, key))
        if isinstance(value, (dict, list)):
            _places(value, found)
    return found


def bent_content(rng: random.Random, content: Any, *, twice: bool = True) -> Any:
    """Changes plain values, in place, in one to three places, and returns them.

    Args:
        rng: draws the changes.
        content: a dict or list.
        twice: also make objects that hold a key twice (:class:`Pairs`), for ``json_text``.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(content, [])
        if not places:
            break
        holder, key = rng.choice(places)
        value = holder[key]
        how = rng.randrange(10)
        if how <= 4:
            holder[key] = _near(rng, value)
        elif how == 5:
            del holder[key]
        elif how == 6:
            holder[key] = rng.choice(
                ([value], {"a": value}, [value, copy.deepcopy(value)], str(value))
            )
        elif how == 7:
            other, place = rng.choice(places)
            if place in other if isinstance(other, dict) else place < len(other):
                holder[key] = json.loads(json_text(other[place]))
        elif how == 8 and isinstance(holder, dict):
            new = rng.choice((key.upper(), key + " ", "", "x", "\x1b[1m", *map(str, holder)))
            holder[new] = holder.pop(key)
        elif how == 8:
            holder.insert(key, json.loads(json_text(value)))
        elif twice and isinstance(value, dict) and value:
            items = list(value.items())
            items.insert(rng.randrange(len(items) + 1), rng.choice(items))
            holder[key] = Pairs(items)
            break  # what follows looks into dicts alone
        elif isinstance(holder, dict):
            holder[rng.choice(("extra", "format", "version", "name"))] = copy.deepcopy(
                rng.choice(_VALUES)
            )
    return content


def _near(rng: random.Random, value: Any) -> Any:
    """Returns another value: any, or one close to this."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.4:
        near = float(value) if abs(value) < 2**1000 else 1.0
        return rng.choice((-value, value + 1, value * 2, math.nextafter(near, math.inf), near))
    return copy.deepcopy(rng.choice(_VALUES))  # a later change must not change what others draw
