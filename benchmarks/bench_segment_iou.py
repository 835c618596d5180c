# SPDX-License-Identifier: Apache-2.0
"""Pairwise IoU and GIoU against eager formulas and the same under ``torch.compile``.

All sides allocate their result: 16 MB at 2000^2, 67 MB at 4096^2. The eager formulas are OpenTAD's
where a checkout is there; their clamps of 1e-6 do not act on these segments.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import Peer
from peers import PeerMissingError, opentad, stand_ins
from torch import Tensor

from tal_fast import ops


def make_segments(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(count, generator=generator) * 300
    length = torch.empty(count).log_normal_(1.0, 0.8, generator=generator)
    return torch.stack((start, start + length), 1)


@pytest.mark.parametrize("count", [2000, 4096])
@pytest.mark.parametrize("kind", ["iou", "giou"])
def test_pairwise(compare: Any, kind: str, count: int) -> None:
    a, b = make_segments(count, 0), make_segments(count, 1)
    try:
        tools, stand_in = opentad.iou_tools(), False
    except PeerMissingError:
        tools, stand_in = stand_ins.iou_tools(), True
    formula = getattr(tools, f"compute_{kind}_torch")
    compiled = torch.compile(formula, fullgraph=True, dynamic=False)

    def check(ours: Tensor, peer: Tensor) -> None:
        torch.testing.assert_close(ours, peer, rtol=1e-5, atol=2e-6)

    name = "eager (OpenTAD)" if not stand_in else "eager"
    compare(
        "segment_iou",
        f"{kind} {count}^2",
        lambda: ops.segment_iou(a, b, kind=kind),
        [
            Peer(name, lambda: formula(b, a), 8, 20, stand_in=stand_in),
            Peer("the same compiled", lambda: compiled(b, a), 3, 5, stand_in=stand_in),
        ],
        check=check,
        verified="all pairs",
    )
