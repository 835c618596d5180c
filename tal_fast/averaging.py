# SPDX-License-Identifier: Apache-2.0
"""What trainings and studies both say of averaged weights.

How well the weights of each mode of averaging detect, what a plain moving average keeps of the
random start, and when that is worth a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["NOTED_START", "Scores", "start_kept"]


@dataclass(frozen=True)
class Scores:
    """How well the weights of one mode of averaging detect in the test videos.

    Attributes:
        average_map: mean over the thresholds of mAP, 0..1.
        map_per_threshold: mAP by tIoU threshold (``"0.3"``), 0..1.
        held_out: average mAP in the held-out training videos, 0..1; None where none were kept back.
    """

    average_map: float
    map_per_threshold: Mapping[str, float]
    held_out: float | None = None


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
