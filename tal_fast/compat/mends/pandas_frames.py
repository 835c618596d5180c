# SPDX-License-Identifier: Apache-2.0
"""Two habits of pandas that old evaluators rely on, for the user's files only.

``frame.drop(labels, 1)`` had its axis by position until pandas 2. ``replace`` of names by numbers
gave columns of numbers until 2.2; now they stay objects, and later arithmetic fails or is slow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tal_fast.compat.reporting import Report
from tal_fast.compat.user_code import caller, place

__all__ = ["mend"]

_BEHIND_LABELS = ("axis", "index", "columns", "level", "inplace", "errors")


def mend(pandas: ModuleType, report: Report) -> Callable[[], None]:
    """Wraps ``drop`` and ``replace``, and returns what undoes that."""
    undoes = [
        _wrap(pandas.DataFrame, "drop", functools.partial(_drop, report)),
        _wrap(pandas.DataFrame, "replace", functools.partial(_replace, report)),
        _wrap(pandas.Series, "replace", functools.partial(_replace, report)),
    ]

    def undo() -> None:
        for step in undoes:
            step()

    return undo


def _wrap(owner: type, name: str, mended: Callable[..., Any]) -> Callable[[], None]:
    before = owner.__dict__.get(name)
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return mended(original, self, *args, **kwargs)

    setattr(owner, name, method)

    def undo() -> None:
        if owner.__dict__.get(name) is method:
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

    return undo


def _drop(
    report: Report, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    frame = caller(2) if len(args) > 1 else None
    if frame is not None:
        named = dict(zip(_BEHIND_LABELS, args[1:], strict=False))
        if not named.keys() & kwargs.keys():
            try:
                return original(self, *args, **kwargs)
            except TypeError:
                report.add("mended", "pandas.DataFrame.drop", place(frame)).count()
                args, kwargs = args[:1], {**named, **kwargs}
    return original(self, *args, **kwargs)


def _replace(
    report: Report, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    found = original(self, *args, **kwargs)
    frame = caller(2) if found is not None and found is not self else None
    if frame is None:
        return found
    inferred = found.infer_objects()
    if str(inferred.dtypes) == str(found.dtypes):
        return found
    report.add("mended", f"pandas.{type(self).__name__}.replace", place(frame)).count()
    return inferred
