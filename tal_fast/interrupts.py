# SPDX-License-Identifier: Apache-2.0
"""Signals to end: that wait for the end of a step, and that end a command like Ctrl-C does."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import FrameType

__all__ = ["TerminatedError", "deferred_interrupt", "passed_on", "sigterm_as_interrupt"]

_WITHIN: ContextVar[bool] = ContextVar("within passed_on", default=False)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came; in a training the state is written by then.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    def __reduce__(self) -> tuple[type[TerminatedError], tuple[int]]:
        return type(self), (self.signum,)


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Holds back the first Ctrl-C or SIGTERM, so that state is saved after a step, not within one.

    A signal that the process ignores goes on being ignored, and one with a handler that was not
    set from Python, which could not be set again, goes on to that handler.

    Yields:
        A function that tells whether one came. A second one does at once what it does elsewhere.
        Outside the main thread, where Python delivers no signals, nothing changes.

    Raises:
        TerminatedError: in place of the block's KeyboardInterrupt, if what came was SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    previous = {
        number: handler
        for number, handler in handlers.items()
        if handler is not None and handler != signal.SIG_IGN
    }

    def restore() -> None:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    def remember(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        restore()

    for signum in previous:
        signal.signal(signum, remember)
    try:
        yield lambda: bool(came)
    except KeyboardInterrupt:
        if came and came[0] != signal.SIGINT:
            raise TerminatedError(came[0]) from None
        raise
    finally:
        restore()


@contextmanager
def passed_on() -> Iterator[None]:
    """Lets a SIGTERM that was held back do what it does without us, when all is closed.

    By default it ends the process, whose status then says so (143 in a shell). Where the program
    has a handler of its own that returns, the exception goes on. Of nested blocks the outermost
    does it, so that what lies between, such as a bar on the terminal, is closed as well.
    """
    outermost = not _WITHIN.get()
    token = _WITHIN.set(True)
    try:
        yield
    except TerminatedError as error:
        if outermost:
            signal.raise_signal(error.signum)
        raise
    finally:
        _WITHIN.reset(token)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Has SIGTERM end the block as Ctrl-C does, and the process by the signal after it.

    What is open is closed, states are saved, and a program can say so. A second one ends the
    process at once. A handler that is set, or a signal that is ignored, is left alone.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    came: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        signal.signal(signum, signal.SIG_DFL)
        raise TerminatedError(signum)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if came:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            signal.raise_signal(came[0])
