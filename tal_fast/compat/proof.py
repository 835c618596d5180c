# SPDX-License-Identifier: Apache-2.0
"""Proofs: the original and ours on made inputs, before one takes the other's place."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tal_fast.compat.reporting import Report, uncounted

__all__ = [
    "Proof",
    "UnprovedError",
    "UnsuitableError",
    "arguments_of",
    "first_that_agrees",
    "quietly",
    "with_fallback",
]

Function = Callable[..., Any]


class UnprovedError(Exception):
    """Ours gives something else than the original; the message says how far off."""


class UnsuitableError(Exception):
    """Ours does not take this input; the message says what about it."""


@dataclass(frozen=True)
class Proof:
    """A function of ours that gives what the original gives.

    Attributes:
        function: raises :class:`UnsuitableError` for what only the original takes.
        detail: by which rules, and how near it came.
    """

    function: Function
    detail: str


class _QuietForOneThread(io.TextIOBase):
    """Standard output that swallows what one thread writes."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        """Passes on what other threads write."""
        if threading.get_ident() == self._thread:
            return len(text)
        return int(self._target.write(text))

    def flush(self) -> None:
        """Flushes the target."""
        self._target.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


# Filters of warnings and standard output belong to all threads.
_one_at_a_time = threading.RLock()
_PATIENCE = 5.0


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Shows neither warnings nor output of what a proof runs, and counts no calls.

    Of two proofs at once the second waits a while, then goes on without being quiet: it may hold an
    import that the first one waits for.
    """
    with uncounted(), contextlib.ExitStack() as stack:
        if _one_at_a_time.acquire(timeout=_PATIENCE):
            stack.callback(_one_at_a_time.release)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(contextlib.redirect_stdout(_QuietForOneThread(sys.stdout)))
        yield


def first_that_agrees(
    original: Callable[[], Any],
    candidates: Sequence[tuple[str, Callable[[], Any]]],
    difference: Callable[[Any, Any], float],
    tolerance: float,
) -> tuple[str, float]:
    """Returns the first candidate whose outcome is that of the original, and the difference.

    Raises:
        UnprovedError: none is, or the original fails on the input of the proof.
    """
    try:
        expected = original()
    except Exception as error:
        raise UnprovedError(f"the original raises {_short(error)} on the input of the proof") from (
            error
        )
    tried = []
    for name, candidate in candidates:
        try:
            off = difference(expected, candidate())
        except Exception as error:
            tried.append(f"{name}: {_short(error)}")
            continue
        if off <= tolerance:
            return name, off
        tried.append(f"{name} differs by {off:.1e}")
    raise UnprovedError("; ".join(tried))


def arguments_of(original: Function) -> Callable[..., dict[str, Any]]:
    """Returns what gives a call's arguments by name, with the defaults of the original."""
    signature = inspect.signature(original)

    def bind(*args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise UnsuitableError(str(error)) from error  # the original says it in its own words
        bound.apply_defaults()
        return bound.arguments

    return bind


def with_fallback(report: Report, name: str, original: Function, proof: Proof) -> Function:
    """Returns ours, counted, with the original for what ours does not take."""
    entry = report.add("replaced", name, proof.detail)
    ours = proof.function

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            result = ours(*args, **kwargs)
        except UnsuitableError as reason:
            begin = time.perf_counter()
            result = original(*args, **kwargs)
            report.add("fell back", name, str(reason)).count(time.perf_counter() - begin)
            return result
        entry.count(time.perf_counter() - begin)
        return result

    return call


def _short(error: Exception) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"[:120]
