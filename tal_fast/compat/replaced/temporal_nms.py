# SPDX-License-Identifier: Apache-2.0
"""``temporal_nms``: hard NMS of rows (start, end, score, …) in NumPy, of P-GCN, MUSES and TadTR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tal_fast import ops
from tal_fast.compat.options import Options
from tal_fast.compat.proof import Proof, UnprovedError, UnsuitableError

__all__ = ["prove"]


def prove(original: Callable[..., Any], options: Options) -> Proof:
    """Compares the rows that are kept, at several thresholds."""
    rng = np.random.default_rng(0)
    start = np.round(rng.random(200) * 60)
    rows = np.stack(
        [start, start + np.round(rng.random(200) * 12) + 1, rng.random(200), np.arange(200.0)], 1
    )
    rows[:, 2] = np.round(rows[:, 2], 1)  # ties
    rows[:2, :3] = [[0.0, 10.0, 2.0], [0.0, 5.0, 1.0]]  # IoU 0.5
    for threshold in (0.2, 0.5, 0.7):
        try:
            expected = original(rows.copy(), threshold)
        except Exception as error:
            raise UnprovedError(f"the original raises {type(error).__name__}: {error}") from error
        if not np.array_equal(expected, temporal_nms(rows.copy(), threshold)):
            raise UnprovedError(f"keeps other rows at a threshold of {threshold}")
    return Proof(temporal_nms, "the same rows")


def temporal_nms(segments: Any, thresh: float) -> Any:
    """Returns the rows that are kept, by falling score; float64 array [N, >= 3]."""
    rows = np.asarray(segments)
    if rows.ndim != 2 or len(rows) == 0 or rows.dtype != np.float64:
        raise UnsuitableError(f"an array of shape {list(rows.shape)} and dtype {rows.dtype}")
    if not 0 <= thresh <= 1:
        raise UnsuitableError(f"a threshold of {thresh}")
    # In the original 0 / 0 removes, and so does what else is not a number.
    if not (np.isfinite(rows[:, :3]).all() and (rows[:, 0] < rows[:, 1]).all()):
        raise UnsuitableError("a segment without length, or a value that is not finite")
    order = rows[:, 2].argsort()[::-1]
    rank = torch.arange(len(rows), 0, -1, dtype=torch.float64, device="cpu")
    ranked = torch.from_numpy(np.ascontiguousarray(rows[order, :2]))
    kept = ops.nms(ranked, rank, float(thresh))
    return rows[order[kept.numpy()], :]
