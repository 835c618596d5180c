# SPDX-License-Identifier: Apache-2.0
"""What the fields of a file of plain values must be, checked before anybody works with them.

Files that this library writes can be edited, merged and damaged like all others; a value of another
type would else be found where it is used, without the name of its file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tal_fast.data.annotation_values import number
from tal_fast.errors import DataError, printable

__all__ = [
    "FINITE",
    "LINE",
    "MAPPING",
    "MAPPINGS",
    "NUMBER",
    "SHARE",
    "TEXT",
    "TEXTS",
    "WHOLE",
    "FieldKind",
    "check_fields",
]

#: What a value should be, in words, and whether it is.
FieldKind = tuple[str, Callable[[Any], bool]]

_MISSING = object()


def _is_number(value: Any) -> bool:
    return number(value) is not None and isinstance(value, (int, float))


TEXT: FieldKind = "text", lambda value: isinstance(value, str)
LINE: FieldKind = (
    "text without control characters",
    lambda value: isinstance(value, str) and printable(value) == value and "\n" not in value,
)
TEXTS: FieldKind = (
    "a list of text",
    lambda value: isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value),
)
WHOLE: FieldKind = (
    "a whole number of at least 0",
    lambda value: type(value) is int and 0 <= value < 2**64,
)
NUMBER: FieldKind = "a number", _is_number
FINITE: FieldKind = (
    "a finite number",
    lambda value: _is_number(value) and math.isfinite(value),
)
SHARE: FieldKind = "a number in (0, 1]", lambda value: _is_number(value) and 0 < value <= 1
MAPPING: FieldKind = "an object", lambda value: isinstance(value, Mapping)
MAPPINGS: FieldKind = (
    "a list of objects",
    lambda value: (
        isinstance(value, (list, tuple)) and all(isinstance(one, Mapping) for one in value)
    ),
)


def check_fields(
    where: str,
    fields: Mapping[str, Any],
    kinds: Mapping[str, FieldKind],
    *,
    within: str = "",
    optional: Collection[str] = (),
) -> None:
    """Checks that a mapping has fields, each of its kind.

    Args:
        where: the file, for messages.
        fields: the mapping.
        kinds: of the fields, by key.
        within: what of the file the mapping is, with a dot behind it: ``"sample."``.
        optional: keys that may be missing, or null.

    Raises:
        DataError: a field is missing or of another kind; the message names both.
    """
    for key, (words, fits) in kinds.items():
        value = fields.get(key, _MISSING)
        if key in optional and (value is _MISSING or value is None):
            continue
        if value is _MISSING:
            raise DataError(f"{where}: expected {within}{key}, found none")
        if not fits(value):
            raise DataError(f"{where}: expected {within}{key} as {words}, got {value!r:.60}")
