# SPDX-License-Identifier: Apache-2.0
"""Signals to end that wait for the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["deferred_interrupt"]


@contextmanager
def deferred_interrupt(*also: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Holds back the first Ctrl-C, so that state is saved between two steps and not within one.

    Args:
        also: signals to take as Ctrl-C.

    Yields:
        A function that tells whether Ctrl-C was pressed. A second Ctrl-C interrupts at once.
        Outside the main thread, where Python delivers no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, *also)}

    def restore() -> None:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    def remember(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        restore()

    for signum in previous:
        signal.signal(signum, remember)
    try:
        yield lambda: pressed
    finally:
        restore()
