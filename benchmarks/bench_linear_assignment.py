# SPDX-License-Identifier: Apache-2.0
"""Many small assignment problems: one call against a loop over scipy's solver.

The loop ends as matchers end: both index arrays of every problem become tensors.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import Peer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tal_fast import ops


@pytest.mark.parametrize(
    ("problems", "rows", "most", "must", "aim"),
    [(64, 40, 12, 3, 6), (64, 100, 40, None, None)],
    ids=["tadtr", "large"],
)
def test_linear_assignment(
    compare: Any, problems: int, rows: int, most: int, must: float | None, aim: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(1, most + 1, (problems,), generator=generator).tolist()
    blocks = [torch.rand(rows, count, generator=generator) for count in columns]
    flat = torch.cat([block.flatten() for block in blocks])
    row_counts = [rows] * problems

    def loop() -> list[tuple[Tensor, Tensor]]:
        found = [linear_sum_assignment(block) for block in blocks]
        return [
            (torch.as_tensor(i, dtype=torch.int64), torch.as_tensor(j, dtype=torch.int64))
            for i, j in found
        ]

    def check(ours: Any, peer: list[tuple[Tensor, Tensor]]) -> None:
        assert torch.equal(ours.row, torch.cat([i for i, _ in peer]))
        assert torch.equal(ours.column, torch.cat([j for _, j in peer]))

    compare(
        "linear_assignment",
        f"{problems} problems of {rows} x ≤ {most}",
        lambda: ops.linear_assignment(flat, row_counts, columns),
        [Peer("loop over scipy", loop, must, aim)],
        check=check,
        verified="every pair",
    )
