# SPDX-License-Identifier: Apache-2.0
"""The real training behind the door of ``fake_experiment``, watched."""

from __future__ import annotations

import os
import sys
import time

import torch  # first: with it, fake_experiment leaves the settings of this process as they are

# isort: split
import fake_experiment as fake
import psutil
from processes import HANG

from tal_fast.training import run_experiment

# Of a worker: the one that trains, the one that waits for tasks, and the reader's.
THREADS = 3


def learn_in_earnest(config, data, *, out, progress, **rest):
    """The real training, and how many threads its process had at most."""
    most, process, end = 0, psutil.Process(), None

    def watched(event):
        nonlocal most, end
        count = process.num_threads()
        # A joined thread is listed until the kernel has let it go. The process of the tests has
        # others, which stay.
        while count > THREADS and "pytest" not in sys.modules:
            end = end or time.monotonic() + HANG
            if time.monotonic() > end:
                break
            time.sleep(0.02)
            count = process.num_threads()
        most = max(most, count)
        progress(event)

    result = run_experiment(config, data, out=out, progress=watched, **rest)
    fake._log(out, first=0, pid=os.getpid(), most=most, torch=torch.get_num_threads())
    return result
