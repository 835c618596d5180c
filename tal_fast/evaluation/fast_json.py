# SPDX-License-Identifier: Apache-2.0
"""The quick way through a results JSON, if msgspec is installed and the file has no fault.

msgspec checks types while it parses and makes no dictionary per record. What it refuses, for any
reason, is read again with the standard library, whose errors can name the record.
"""

from __future__ import annotations

import functools
import importlib
import re
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from tal_fast.typing import Floats, Ints

__all__ = ["Columns", "read_columns"]

_FIELDS = (b'"segment"', b'"label"', b'"score"')
# A letter written as an escape, which would hide a key from `_is_whole`.
_HIDDEN = re.compile(rb"\\u00[4-7]")


class Columns(NamedTuple):
    """The fields of :class:`tal_fast.evaluation.Detections`, in their order."""

    videos: tuple[str, ...]
    classes: tuple[str | int, ...]
    video: Ints
    label: Ints
    start: Floats
    end: Floats
    score: Floats


def read_columns(text: bytes) -> Columns | None:
    """Returns the predictions, not yet checked for finite and ordered times; None if it cannot."""
    decode = _decoder()
    if decode is None or not _is_utf8(text):
        return None
    try:
        results = decode(text).results
    except Exception:  # the slow way finds out what is wrong
        return None
    records = list(chain.from_iterable(results.values()))
    if not _is_whole(text, len(results), len(records)):
        return None
    sizes = [len(entries) for entries in results.values()]
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


def _is_utf8(raw: bytes) -> bool:
    """Returns whether a text is UTF-8, also in the fields that msgspec skips."""
    try:
        return raw.isascii() or bool(raw.decode())
    except UnicodeDecodeError:
        return False


def _is_whole(raw: bytes, videos: int, records: int) -> bool:
    """Returns whether a text holds no more than what was found in it.

    Of a key that an object holds twice, msgspec keeps the last. Then the text has more lists than
    one per video and one per record, or names something more often. So it may where all is well, in
    fields that nobody asked for or in names: the slow way sees the difference.
    """
    return (
        raw.count(b'"results"') == 1
        and raw.count(b"[") == videos + records
        and all(raw.count(name) == records for name in _FIELDS)
        and _HIDDEN.search(raw) is None
    )


@functools.cache
def _decoder() -> Any:
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
    content = msgspec.defstruct("Results", [("results", dict[str, list[record]])])  # type: ignore[valid-type]
    return msgspec.json.Decoder(content).decode
