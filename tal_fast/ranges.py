# SPDX-License-Identifier: Apache-2.0
"""Named ranges of a program, for whoever looks: Nsight Systems, torch's profiler, a recorder.

A leaf module: every layer may name its phases without importing the profiling layer. What looks at
ranges is a :class:`Sink`; there is none unless ``TAL_FAST_NVTX=1``, :func:`enable_ranges` or
:func:`add_sink` asks for one. Without a sink :func:`range` returns one shared do-nothing context,
so a range in a hot loop costs a function call.
"""

from __future__ import annotations

import contextlib
import os
import threading
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = [
    "NVTXSink",
    "ProfilerSink",
    "Sink",
    "add_sink",
    "enable_ranges",
    "range",
    "remove_sink",
]


class Sink(Protocol):
    """What is told of every range; calls come from any thread."""

    def push(self, name: str) -> None:
        """A range begins, within those of its thread that have not ended."""

    def pop(self, name: str) -> None:
        """The range of this name, which began last in its thread, ends."""


class NVTXSink:
    """Marks ranges for Nsight Systems and other NVTX readers, in the domain ``tal_fast``."""

    def __init__(self) -> None:
        import nvtx

        self._domain = nvtx.get_domain("tal_fast")
        # Made once per name: that is most of what a range costs.
        self._attributes: dict[str, Any] = {}

    def push(self, name: str) -> None:
        """Begins a range."""
        attributes = self._attributes.get(name)
        if attributes is None:
            attributes = self._domain.get_event_attributes(message=name)
            self._attributes[name] = attributes
        self._domain.push_range(attributes)

    def pop(self, name: str) -> None:
        """Ends a range."""
        self._domain.pop_range()


class ProfilerSink:
    """Marks ranges in the traces of ``torch.profiler``, while one runs."""

    def __init__(self) -> None:
        import torch
        from torch.autograd import profiler

        self._profiler: Any = profiler
        # Private, and 0.4 instead of 10 microseconds.
        self._make: Any = getattr(
            torch._C._profiler, "_RecordFunctionFast", torch.profiler.record_function
        )
        self._threads = threading.local()

    def push(self, name: str) -> None:
        """Begins a range, if a profiler runs."""
        made = self._make(name) if self._profiler._is_profiler_enabled else _OFF
        made.__enter__()
        self._open().append(made)

    def pop(self, name: str) -> None:
        """Ends a range."""
        opened = self._open()
        if opened:
            opened.pop().__exit__(None, None, None)

    def _open(self) -> list[Any]:
        try:
            found: list[Any] = self._threads.open
        except AttributeError:
            found = self._threads.open = []
        return found


_OFF: AbstractContextManager[None] = contextlib.nullcontext()
_sinks: tuple[Sink, ...] = ()
_nvtx: NVTXSink | None = None


class _Range:
    """Tells the sinks that there were when it began, also if they change meanwhile."""

    __slots__ = ("_name", "_told")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._told = _sinks
        for sink in self._told:
            sink.push(self._name)

    def __exit__(self, *error: object) -> None:
        for sink in reversed(self._told):
            sink.pop(self._name)


def range(name: str) -> AbstractContextManager[Any]:
    """Returns a context manager that marks its block as a range.

    Args:
        name: what is shown, for example ``"tal_fast.forward"``.
    """
    return _Range(name) if _sinks else _OFF


def add_sink(sink: Sink) -> None:
    """Has a sink told of every range that begins from now on."""
    global _sinks
    _sinks = (*_sinks, sink)


def remove_sink(sink: Sink) -> None:
    """Has a sink no longer told; of ranges that it saw begin it is told that they end."""
    global _sinks
    _sinks = tuple(other for other in _sinks if other is not sink)


def enable_ranges(on: bool = True) -> None:
    """Turns NVTX ranges on or off for this process."""
    global _nvtx
    if _nvtx is not None:
        remove_sink(_nvtx)
    _nvtx = NVTXSink() if on else None
    if _nvtx is not None:
        add_sink(_nvtx)


if os.environ.get("TAL_FAST_NVTX", "0") not in ("", "0"):
    enable_ranges()
