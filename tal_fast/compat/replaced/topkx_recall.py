# SPDX-License-Identifier: Apache-2.0
"""``compute_topkx_recall_detection``: Recall@kx of one class, of EPIC-Kitchens and ActionFormer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tal_fast.compat.options import Options
from tal_fast.compat.proof import Proof, UnsuitableError, arguments_of, first_that_agrees
from tal_fast.compat.replaced.average_precision import largest_difference
from tal_fast.compat.replaced.frames import (
    RULES,
    columns,
    evaluated,
    made_tables,
    matching_rules,
)
from tal_fast.errors import TalFastError
from tal_fast.evaluation import recall_at_kx

__all__ = ["prove"]


def prove(original: Callable[..., Any], options: Options) -> Proof:
    """Finds the rules under which ours gives the original's recall, within 1e-12."""
    truth, found = made_tables()

    def run(function: Callable[..., Any]) -> Any:
        thresholds = np.array([0.1, 0.3, 0.5, 0.75])
        return np.asarray(function(truth.copy(), found.copy(), thresholds, (1, 3)))

    candidates = {name: _make(original, name) for name in RULES}
    name, off = first_that_agrees(
        partial(run, original),
        [(name, partial(run, ours)) for name, ours in candidates.items()],
        largest_difference,
        1e-12,
    )
    return Proof(candidates[name], f"matches as {name}; differs by {off:.0e}")


def _make(original: Callable[..., Any], dialect: str) -> Callable[..., Any]:
    bind = arguments_of(original)

    def compute_topkx_recall_detection(*args: Any, **kwargs: Any) -> Any:
        given = bind(*args, **kwargs)
        both = columns(given["ground_truth"], given["prediction"])
        # The original ranks within a video; ours does so in float64.
        if both.scores.dtype != np.float64:
            raise UnsuitableError(f"scores are of dtype {both.scores.dtype}")
        rules = matching_rules(dialect, "numpy")
        result = evaluated(both, None, given["tiou_thresholds"], rules)
        try:
            return recall_at_kx(result, tuple(given["top_k"]))
        except TalFastError as error:
            raise UnsuitableError(str(error)) from error

    return compute_topkx_recall_detection
