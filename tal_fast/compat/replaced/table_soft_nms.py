# SPDX-License-Identifier: Apache-2.0
"""``Soft_NMS``: the Gaussian soft-NMS of BSN and G-TAD over a table of proposals.

It loses the last proposal, and G-TAD's gives those of 300 frames and more the score 0, which is
never picked; the proof finds out which of the two it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from tal_fast import ops
from tal_fast.compat.options import Options
from tal_fast.compat.proof import Proof, UnsuitableError, arguments_of, first_that_agrees

__all__ = ["prove"]

_LIMITS = {"below 300 frames": 300.0, "of any length": math.inf}
_SMALLEST = 5e-324  # what is above 0 is picked


def prove(original: Callable[..., Any], options: Options) -> Proof:
    """Compares proposals and scores, cut and uncut, within 1e-9 of each."""
    import pandas as pd

    rng = np.random.default_rng(0)
    start = rng.random(60) * 1500
    table = pd.DataFrame(
        {"xmin": start, "xmax": start + rng.random(60) * 350 + 1, "score": rng.random(60)}
    )

    def run(function: Callable[..., Any]) -> Any:
        found = [function(table.copy(), 0.46, 30), function(table.copy(), 0.46, 500)]
        return [part[["score", "xmin", "xmax"]].to_numpy() for part in found]

    def difference(expected: Any, actual: Any) -> float:
        if [part.shape for part in expected] != [part.shape for part in actual]:
            return math.inf
        pairs = zip(expected, actual, strict=True)
        return max(float((np.abs(a - b) / np.maximum(np.abs(a), 1e-300)).max()) for a, b in pairs)

    candidates = {name: _make(original, limit) for name, limit in _LIMITS.items()}
    name, off = first_that_agrees(
        partial(run, original),
        [(name, partial(run, ours)) for name, ours in candidates.items()],
        difference,
        1e-9,
    )
    return Proof(candidates[name], f"proposals {name}; differs by {off:.0e}")


def _make(original: Callable[..., Any], limit: float) -> Callable[..., Any]:
    bind = arguments_of(original)

    def soft_nms(*args: Any, **kwargs: Any) -> Any:
        import pandas as pd

        given = bind(*args, **kwargs)
        sigma, most = given["nms_threshold"], given["num_prop"]
        table = given["df"].sort_values(by="score", ascending=False)
        segments = table[["xmin", "xmax"]].to_numpy()
        scores = table["score"].to_numpy()
        if segments.dtype != np.float64 or scores.dtype != np.float64:
            raise UnsuitableError(f"columns of dtype {segments.dtype} and {scores.dtype}")
        if not (np.isfinite(segments).all() and np.isfinite(scores).all() and (scores >= 0).all()):
            raise UnsuitableError("a value that is negative or not finite")
        length = segments[:, 1] - segments[:, 0]
        if not (length > 0).all() or not sigma > 0 or most < 1:
            raise UnsuitableError("a proposal without length, or a parameter out of range")
        live = np.flatnonzero((scores > 0) & (length < limit))
        keep = min(int(most), len(scores) - 1)
        if keep < 1 or len(live) == 0:
            raise UnsuitableError("nothing to keep")
        rows, kept = ops.soft_nms(
            torch.from_numpy(segments[live]),
            torch.from_numpy(scores[live]),
            "gaussian",
            sigma=float(sigma),
            min_score=_SMALLEST,
            max_segments=keep,
        )
        found = segments[live][rows.numpy()]
        return pd.DataFrame({"score": kept.numpy(), "xmin": found[:, 0], "xmax": found[:, 1]})

    return soft_nms
