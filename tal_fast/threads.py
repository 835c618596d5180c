# SPDX-License-Identifier: Apache-2.0
"""Starting threads where the system may have no more."""

from __future__ import annotations

import errno
import os
import threading

from tal_fast.errors import TalFastError, os_reason

__all__ = ["no_thread", "start_thread"]


def no_thread(what: str) -> TalFastError:
    """Returns the error that a thread cannot be started: the system has no more.

    Its cause is an ``OSError``, as of all that the system refuses.

    Args:
        what: who wants it, and what for, as in ``study: worker 1``.
    """
    reason = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    error = TalFastError(
        f"{what}: cannot start a thread: {os_reason(reason)}; are there too many processes or "
        "threads (ulimit -u)?"
    )
    error.__cause__ = reason
    return error


def start_thread(thread: threading.Thread, what: str) -> None:
    """Starts a thread.

    Args:
        thread: one that was never started.
        what: who wants it, and what for.

    Raises:
        TalFastError: the system has no more.
    """
    try:
        thread.start()
    except RuntimeError:
        if thread.ident is not None:  # it was started before, a fault of ours
            raise
        error = no_thread(what)
        raise error from error.__cause__
