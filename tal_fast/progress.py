# SPDX-License-Identifier: Apache-2.0
"""How far long work is, for people who watch."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["bar", "duration", "start_bars"]

# Seconds between two lines without a terminal: the log of a night stays short, short work quiet.
LINE_EVERY = 30.0


def duration(seconds: float) -> str:
    """Returns a length of time as people say it: ``48 s``, ``12 min 05 s``, ``3 h 20 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Lines:
    """Says how far work is in lines, for logs and pipes."""

    def __init__(self, description: str, stream: TextIO) -> None:
        self._description = description
        self._stream = stream
        self._began = self._last = time.monotonic()
        self._first: int | None = None  # what was done before, of work that goes on

    def update(self, done: int, total: int, note: str = "") -> None:
        """Takes in how much is done, and says it if the last line is old."""
        if self._first is None:
            self._first = done
        now = time.monotonic()
        if now - self._last < LINE_EVERY or done >= total:
            return
        self._last = now
        words = [f"{self._description}: {done:g} of {total:g}", *([note] if note else [])]
        if done > self._first:
            left = (now - self._began) * (total - done) / (done - self._first)
            words.append(f"{duration(left)} left")
        print(", ".join(words), file=self._stream, flush=True)


def start_bars(progress: Progress) -> None:
    """Starts rich's bars, which a thread draws; without more threads, nothing is drawn."""
    try:
        progress.start()
    except RuntimeError:
        progress.stop()
        progress.disable = True


@contextlib.contextmanager
def bar(description: str, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Shows progress on standard error: a bar on a terminal or in a notebook, else a rare line.

    Args:
        description: what is done, as in ``"training"``.
        shown: whether to show it at all.

    Yields:
        ``update(done, total, note)``.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield _Lines(description, sys.stderr).update if shown else lambda *_: None
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:g}/{task.total:g}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not shown,
    )
    start_bars(progress)
    try:
        task = progress.add_task(description, total=1, note="")

        def update(done: int, total: int, note: str = "") -> None:
            progress.update(task, completed=done, total=max(1, total), note=note)

        yield update
    finally:
        progress.stop()
