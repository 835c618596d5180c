# SPDX-License-Identifier: Apache-2.0
"""How threads wait for each other, decided before torch is loaded."""

from __future__ import annotations

import os
import sys

__all__ = ["wait_briefly"]

_SPINS = "10000"


def wait_briefly() -> None:
    """Has OpenMP's threads spin for some tenths of a millisecond before they sleep.

    Left alone, GNU's library spins thirty times as long. On cores that others use, too, a thread
    then often spins for one that has no core: a step of ``tadtr-small`` on two busy cores took 15
    times as long, on quiet ones the same (docs/results/profiling). Processes that are started
    inherit it. ``OMP_WAIT_POLICY`` and ``GOMP_SPINCOUNT`` of the user's stay; once torch is loaded,
    nothing is done, since it would come too late.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
