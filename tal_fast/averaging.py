# SPDX-License-Identifier: Apache-2.0
"""What a plain moving average keeps of the random start, and when that is worth a word."""

from __future__ import annotations

__all__ = ["NOTED_START", "start_kept"]

NOTED_START = 0.05
"""Share of the start that is worth a word: 3 % cost nothing, a third 17 points and more
(docs/data-efficiency.md)."""


def start_kept(decay: float, steps: float) -> float:
    """Returns the weight of the random start in a plain average after so many steps, in 0..1.

    Such an average begins at the random initialisation and forgets it by ``decay`` per step.

    Args:
        decay: of the average per step, in 0..1.
        steps: optimiser steps.
    """
    return float(decay**steps)
