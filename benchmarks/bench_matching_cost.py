# SPDX-License-Identifier: Apache-2.0
"""TadTR's matching cost: our fused op against its eager formulas, 16 videos of 40 queries.

The peer is TadTR's own matcher with the solver left out: it computes the cost of every query with
every target of the batch and then keeps each video's block.
"""

from __future__ import annotations

from typing import Any

import torch
from harness import Peer
from peers import PeerMissingError, stand_ins, tadtr
from torch import Tensor

from tal_fast import ops

VIDEOS, QUERIES, CLASSES = 16, 40, 20


def test_matching_cost(compare: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 21, (VIDEOS,), generator=generator).tolist()
    logits = torch.randn(VIDEOS, QUERIES, CLASSES, generator=generator) - 2
    segments = torch.rand(VIDEOS, QUERIES, 2, generator=generator) * 0.5 + 0.05
    labels = torch.randint(0, CLASSES, (sum(counts),), generator=generator)
    targets = torch.rand(sum(counts), 2, generator=generator) * 0.5 + 0.05
    per_video = [
        {"labels": label, "segments": segment}
        for label, segment in zip(labels.split(counts), targets.split(counts), strict=True)
    ]
    outputs = {"pred_logits": logits, "pred_segments": segments}
    try:
        name, cost, stand_in = "eager (TadTR)", tadtr.matching_cost(), False
    except PeerMissingError:
        name, cost, stand_in = "eager", stand_ins.matching_cost, True

    def check(ours: Tensor, peer: Tensor) -> None:
        torch.testing.assert_close(ours, peer, rtol=1e-5, atol=1e-5)

    compare(
        "matching_cost",
        f"16 videos x 40 queries, {sum(counts)} targets",
        lambda: ops.matching_cost(
            logits, segments, labels, targets, counts, classification=6.0, l1=5.0, iou=2.0
        ),
        [Peer(name, lambda: cost(outputs, per_video), 5, 10, stand_in=stand_in)],
        check=check,
        verified="every video's block",
    )
