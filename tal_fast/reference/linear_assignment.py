# SPDX-License-Identifier: Apache-2.0
"""The twin of :func:`tal_fast.ops.linear_assignment`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["linear_assignment"]


def linear_assignment(
    costs: Tensor, row_counts: Sequence[int], column_counts: Sequence[int]
) -> list[tuple[float, set[tuple[tuple[int, int], ...]]]]:
    """Tries every assignment of every problem; for problems of a few rows and columns.

    Args:
        costs: Tensor[sum of r * c].
        row_counts: r of each problem.
        column_counts: c of each problem.

    Returns:
        Per problem the least total cost and all assignments that have it, each as pairs
        (row, column) with rows ascending.
    """
    answers = []
    first = 0
    for r, c in zip(row_counts, column_counts, strict=True):
        matrix = costs[first : first + r * c].double().view(r, c).tolist()
        first += r * c
        best = math.inf
        found: set[tuple[tuple[int, int], ...]] = set()
        for rows in itertools.combinations(range(r), min(r, c)):
            for columns in itertools.permutations(range(c), min(r, c)):
                pairs = tuple(zip(rows, columns, strict=True))
                total = math.fsum(matrix[i][j] for i, j in pairs)
                if total < best:
                    best, found = total, set()
                if total == best:
                    found.add(pairs)
        answers.append((best, found))
    return answers
