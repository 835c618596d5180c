# SPDX-License-Identifier: Apache-2.0
"""``compute_average_precision_detection``: the AP of one class, row by row in pandas.

ActivityNet's, and in every codebase after it. Detections are ranked by the original's own
``argsort()[::-1]``, so that equal scores are in its order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tal_fast.compat.options import Options
from tal_fast.compat.proof import Proof, arguments_of, first_that_agrees
from tal_fast.compat.replaced.frames import (
    RULES,
    columns,
    evaluated,
    made_tables,
    matching_rules,
    require_plain_index,
)

__all__ = ["prove"]

_THRESHOLDS = [0.1, 0.3, 0.5, 0.75]


def prove(original: Callable[..., Any], options: Options) -> Proof:
    """Finds the rules of matching under which ours gives the original's AP, within 1e-12."""
    truth, found = made_tables()

    def run(function: Callable[..., Any]) -> Any:
        return np.asarray(function(truth.copy(), found.copy(), np.array(_THRESHOLDS)))

    candidates = {name: _make(original, name) for name in RULES}
    name, off = first_that_agrees(
        partial(run, original),
        [(name, partial(run, ours)) for name, ours in candidates.items()],
        largest_difference,
        1e-12,
    )
    return Proof(candidates[name], f"matches as {name}; differs by {off:.0e}")


def largest_difference(expected: Any, actual: Any) -> float:
    """Returns the largest difference of two arrays, infinity for different shapes."""
    if expected.shape != actual.shape or np.isnan(expected).any():
        return float("inf")
    return float(np.abs(expected - actual).max(initial=0.0))


def _make(original: Callable[..., Any], dialect: str) -> Callable[..., Any]:
    bind = arguments_of(original)

    def compute_average_precision_detection(*args: Any, **kwargs: Any) -> Any:
        given = bind(*args, **kwargs)
        tables = given["ground_truth"], given["prediction"]
        both = columns(*tables)
        require_plain_index(*tables)
        order = both.scores.argsort()[::-1]
        rules = matching_rules(dialect, "stable")
        return np.array(evaluated(both, order, given["tiou_thresholds"], rules).ap[0])

    return compute_average_precision_detection
