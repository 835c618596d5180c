# SPDX-License-Identifier: Apache-2.0
"""The quick way through a results JSON, if msgspec is installed and the file has no fault.

msgspec checks types while it parses and makes no dictionary per record. What it refuses, for any
reason, is read again with the standard library, whose errors can name the record.
"""

from __future__ import annotations

import functools
import importlib
import re
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Columns", "read_columns"]

_FIELDS = (b'"segment"', b'"label"', b'"score"')
# What stands before a value of an object: the brace or the comma, and the key.
_KEY = re.compile(rb'\s*[{,]\s*"(?:[^"\\]|\\.)*"\s*:\s*')
_END = re.compile(rb"\s*\{?\s*\}")


class Columns(NamedTuple):
    """The fields of :class:`tal_fast.evaluation.Detections`, in their order."""

    videos: tuple[str, ...]
    classes: tuple[str | int, ...]
    video: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]


class _Repeated(Exception):
    """A key is, or may be, in an object twice, and msgspec would keep the last."""


class _Decoders(NamedTuple):
    members: Any
    records: Any


def read_columns(text: bytes) -> Columns | None:
    """Returns the predictions, not yet checked for finite and ordered times; None if it cannot."""
    decoders = _decoders()
    if decoders is None:
        return None
    try:
        content = bytes(_members(decoders, text)["results"])
        results = _members(decoders, content)
        records: list[Any] = []
        sizes: list[int] = []
        for value in results.values():
            own = decoders.records(value)
            records += own
            sizes.append(len(own))
    except Exception:  # the slow way finds out what is wrong
        return None
    # Records that name a field twice have more of that key than there are records; so have those
    # with further texts of that name, and keys may be written with escapes: both are rare enough.
    if b"\\u00" in content or any(content.count(name) != len(records) for name in _FIELDS):
        return None
    index: dict[str | int, int] = {}
    label = [index.setdefault(record.label, len(index)) for record in records]
    segments = np.array([record.segment for record in records], dtype=np.float64).reshape(-1, 2)
    return Columns(
        videos=tuple(results),
        classes=tuple(index),
        video=np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
        label=np.array(label, dtype=np.int64),
        start=np.ascontiguousarray(segments[:, 0]),
        end=np.ascontiguousarray(segments[:, 1]),
        score=np.array([record.score for record in records], dtype=np.float64),
    )


def _members(decoders: _Decoders, text: bytes) -> dict[str, Any]:
    """Returns the values of an object as JSON texts, after checking that no key is lost.

    Raises:
        _Repeated: the members that msgspec gives are not all that the text has.
    """
    found: dict[str, Any] = decoders.members(text)
    place = 0
    for value in found.values():
        key = _KEY.match(text, place)
        if key is None or not text.startswith(bytes(value), key.end()):
            raise _Repeated
        place = key.end() + len(bytes(value))
    if _END.match(text, place) is None:
        raise _Repeated
    return found


@functools.cache
def _decoders() -> _Decoders | None:
    try:
        msgspec = importlib.import_module("msgspec")
    except ImportError:
        return None
    # gc=False: records hold no cycles, and the collector need not look at millions of them.
    record = msgspec.defstruct(
        "Record",
        [("segment", tuple[float, float]), ("label", str | int), ("score", float)],
        gc=False,
    )
    return _Decoders(
        members=msgspec.json.Decoder(dict[str, msgspec.Raw]).decode,
        records=msgspec.json.Decoder(list[record]).decode,  # type: ignore[valid-type]
    )
