# SPDX-License-Identifier: Apache-2.0
"""``soft_nms``: BSN's soft-NMS over an array of proposals in [0, 1], of mmaction2 and TadTR.

A decay acts from an IoU on that grows with the length of the proposal taken (Lin et al., ECCV
2018). It takes one more than ``top_k``, and drops nothing for its score. Rows are sorted by their
last column; the score is there, or in the third one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from tal_fast import ops
from tal_fast.compat.options import Options
from tal_fast.compat.proof import Proof, UnsuitableError, arguments_of, first_that_agrees

__all__ = ["prove"]


_COLUMNS = {"last": -1, "third": 2}


def prove(original: Callable[..., Any], options: Options) -> Proof:
    """Compares proposals and scores, all and a part of them, within 1e-9 of each."""
    rng = np.random.default_rng(0)
    start = rng.random(60) * 0.8
    end = start + rng.random(60) * 0.2 + 0.01
    rows = np.stack([start, end, rng.random(60), rng.random(60)], axis=1)
    rows[4, :2] = rows[9, :2]
    rows[[11, 12, 13], 2:] = 0.5

    def run(function: Callable[..., Any]) -> Any:
        return [
            np.asarray(function(rows.copy(), 0.4, low, high, most))
            for low, high in ((0.5, 0.9), (0.0, 0.3))
            for most in (20, 60, 100)
        ]

    candidates = {name: _make(original, column) for name, column in _COLUMNS.items()}
    name, off = first_that_agrees(
        partial(run, original),
        [(name, partial(run, ours)) for name, ours in candidates.items()],
        _difference,
        1e-9,
    )
    return Proof(candidates[name], f"score in the {name} column; differs by {off:.0e}")


def _difference(expected: Any, actual: Any) -> float:
    if [part.shape for part in expected] != [part.shape for part in actual]:
        return float("inf")
    pairs = zip(expected, actual, strict=True)
    return max(float((np.abs(a - b) / np.maximum(np.abs(a), 1e-300)).max()) for a, b in pairs)


def _make(original: Callable[..., Any], column: int) -> Callable[..., Any]:
    bind = arguments_of(original)

    def soft_nms(*args: Any, **kwargs: Any) -> Any:
        given = bind(*args, **kwargs)
        rows, most = given["proposals"], given["top_k"]
        if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype != np.float64:
            raise UnsuitableError("proposals that are no array of float64 and two dimensions")
        if len(rows) == 0 or rows.shape[1] < 3 or not np.isfinite(rows).all():
            raise UnsuitableError("no proposals, or a value that is not finite")
        if not (rows[:, 0] < rows[:, 1]).all() or not (rows[:, column] >= 0).all():
            raise UnsuitableError("a proposal without length, or a negative score")
        sigma, low = float(given["alpha"]), float(given["low_threshold"])
        if not sigma > 0 or most < 0:
            raise UnsuitableError("a parameter out of range")
        rows = rows[rows[:, -1].argsort()[::-1]]
        order, scores = ops.soft_nms(
            torch.from_numpy(np.ascontiguousarray(rows[:, :2])),
            torch.from_numpy(np.ascontiguousarray(rows[:, column])),
            "length_gaussian",
            sigma=sigma,
            min_score=0.0,
            max_segments=int(most) + 1,
            t1=low,
            t2=float(given["high_threshold"]) - low,
        )
        return np.column_stack([rows[order.numpy(), :2], scores.numpy()])

    return soft_nms
