# SPDX-License-Identifier: Apache-2.0
"""``average_recall_vs_avg_nr_proposals``: AR@AN of ActivityNet's proposals, in pandas."""

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
from tal_fast.evaluation import average_recall

__all__ = ["prove"]

#: Shares of the proposals at which recall is taken: always a hundred, or as many as proposals.
_CUT_OFFS = {"100 cut-offs": 100, "a cut-off per proposal": None}


def prove(original: Callable[..., Any], options: Options) -> Proof:
    """Finds the cut-offs and rules under which ours gives the original's recall."""
    truth, found = made_tables()
    found = found.sort_values("video-id", kind="stable").reset_index(drop=True)

    def run(function: Callable[..., Any]) -> Any:
        given = function(truth.copy(), found.copy(), 6, np.array([0.3, 0.5, 0.75]))
        return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in given])

    candidates = {
        f"{words}, matches as {name}": _make(original, name, most)
        for name in RULES
        for words, most in _CUT_OFFS.items()
    }
    name, off = first_that_agrees(
        partial(run, original),
        [(name, partial(run, ours)) for name, ours in candidates.items()],
        largest_difference,
        1e-12,
    )
    return Proof(candidates[name], f"{name}; differs by {off:.0e}")


def _make(original: Callable[..., Any], dialect: str, cut_offs: int | None) -> Callable[..., Any]:
    bind = arguments_of(original)

    def average_recall_vs_avg_nr_proposals(*args: Any, **kwargs: Any) -> Any:
        given = bind(*args, **kwargs)
        most = given["max_avg_nr_proposals"]
        if isinstance(most, bool) or not isinstance(most, (int, np.integer)) or most < 1:
            raise UnsuitableError(f"max_avg_nr_proposals is {most!r}")
        both = columns(given["ground_truth"], given["proposals"])
        if both.scores.dtype != np.float64:
            raise UnsuitableError(f"scores are of dtype {both.scores.dtype}")
        rules = matching_rules(dialect, "numpy")
        thresholds = given["tiou_thresholds"]
        result = evaluated(both, None, thresholds, rules)
        try:
            found = average_recall(result, max_proposals=int(most), cut_offs=cut_offs)
        except TalFastError as error:
            raise UnsuitableError(str(error)) from error
        return found.recall, found.average_recall, found.proposals_per_video

    return average_recall_vs_avg_nr_proposals
