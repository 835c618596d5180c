# SPDX-License-Identifier: Apache-2.0
"""What was provided, replaced, mended and left, with calls and seconds; shown at the end."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tal_fast import __version__

__all__ = ["KINDS", "Entry", "Report", "counted", "uncounted"]

#: In the order of the table, and what each says.
KINDS = {
    "provided": "a compiled module that is ours now",
    "replaced": "a function that was proved equal",
    "in line": "a pool of workers that is a loop now",
    "mended": "what old code misses in new libraries",
    "fell back": "calls that the original has answered",
    "left": "recognised, and as it was",
}

#: Where launchers of several processes say which one this is.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")

_here = threading.local()
_lock = threading.Lock()


@dataclass
class Entry:
    """A line of the report.

    Attributes:
        kind: one of :data:`KINDS`.
        name: of the function, module or library.
        detail: by which rules, where, or why.
        calls: how often it was called.
        seconds: wall time in these calls.
    """

    kind: str
    name: str
    detail: str = ""
    calls: int = 0
    seconds: float = 0.0

    def count(self, seconds: float = 0.0) -> None:
        """Counts a call, unless it belongs to a proof."""
        if not getattr(_here, "uncounted", False):
            with _lock:
                self.calls += 1
                self.seconds += seconds


class Report:
    """Entries in the order in which they came; the same one is there once.

    It belongs to the process that made it: copies in forked workers show nothing.
    """

    def __init__(self, file: str | None = None, *, quiet: bool = False) -> None:
        """Starts empty.

        Args:
            file: where :meth:`finish` writes JSON; None: nowhere.
            quiet: :meth:`finish` prints nothing.
        """
        # A program may work in another folder at its end.
        self.file = None if file is None else os.path.abspath(file)
        self.quiet = quiet
        self.hint = ""
        self._entries: dict[tuple[str, str, str], Entry] = {}
        self._process = os.getpid()

    def add(self, kind: str, name: str, detail: str = "") -> Entry:
        """Returns the entry of that kind, name and detail, a new one if there is none.

        What a proof adds is kept nowhere.
        """
        if getattr(_here, "uncounted", False):
            return Entry(kind, name, detail)
        with _lock:
            return self._entries.setdefault((kind, name, detail), Entry(kind, name, detail))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, by kind."""
        order = list(KINDS)
        with _lock:
            entries = list(self._entries.values())
        return tuple(sorted(entries, key=lambda entry: order.index(entry.kind)))

    def names(self, kind: str) -> set[str]:
        """Returns the names of one kind."""
        return {entry.name for entry in self.entries if entry.kind == kind}

    def text(self) -> str:
        """Returns the table."""
        rows = [("kind", "name", "calls", "seconds", "detail")]
        for e in self.entries:
            called = e.calls > 0
            rows.append(
                (
                    e.kind,
                    e.name,
                    str(e.calls) if called else "",
                    f"{e.seconds:.3f}" if called and e.kind != "mended" else "",
                    e.detail,
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  "
            f"{row[3]:>{widths[3]}}  {row[4]}".rstrip()
            for row in rows
        ]
        return "\n".join(["tal_fast.compat:", *lines])

    def to_dict(self) -> dict[str, Any]:
        """Returns entries and versions, as the JSON has them."""
        versions = {"tal_fast": __version__, "python": platform.python_version()}
        for name in ("torch", "numpy", "pandas"):
            version = getattr(sys.modules.get(name), "__version__", None)
            if version is not None:
                versions[name] = str(version)
        return {
            "program": sys.argv,
            "versions": versions,
            "entries": [vars(entry) for entry in self.entries],
        }

    def finish(self) -> None:
        """Prints the table and writes the file; in the first process and rank alone."""
        if os.getpid() != self._process or any(os.environ.get(r, "0") != "0" for r in _RANKS):
            return
        if self.file is not None:
            try:
                Path(self.file).write_text(json.dumps(self.to_dict(), indent=1) + "\n")
            except OSError as error:
                print(f"tal_fast.compat: the report was not written: {error}", file=sys.stderr)
        if not self.quiet and self.entries:
            with contextlib.suppress(OSError, ValueError):  # its reader has gone
                print(self.text(), file=sys.stderr)


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Counts nothing that this thread calls in the block."""
    before = getattr(_here, "uncounted", False)
    _here.uncounted = True
    try:
        yield
    finally:
        _here.uncounted = before


def counted(entry: Entry, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with its calls and seconds counted."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            entry.count(time.perf_counter() - begin)

    return call
