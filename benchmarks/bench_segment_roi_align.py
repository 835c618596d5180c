# SPDX-License-Identifier: Apache-2.0
"""RoI align of segments, forward and backward, at the sizes of TadTR's actionness head.

The peers are two formulations of the same rule under ``torch.compile``, by gathering and by a
matrix product. Their sample count is fixed to that of the longest roi, known in advance, which a
model could not know.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from harness import Peer
from peers import stand_ins
from torch import Tensor

from tal_fast import ops

BATCH, ROWS, CHANNELS, QUERIES, BINS = 16, 128, 256, 40, 16


@pytest.mark.parametrize("layout", ["rows first", "channels first"])
def test_segment_roi_align(compare: Any, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    center = torch.rand(BATCH * QUERIES, generator=generator)
    width = torch.rand(BATCH * QUERIES, generator=generator) * 0.4
    bounds = torch.stack((center - 0.75 * width, center + 0.75 * width), 1)
    bounds = (bounds * ROWS).clamp(0, ROWS)
    index = torch.arange(BATCH).repeat_interleave(QUERIES)[:, None]
    rois = torch.cat((index, bounds), 1)
    features = torch.randn(BATCH, ROWS, CHANNELS, generator=generator).transpose(1, 2)
    if layout == "channels first":
        features = features.contiguous()
    features.requires_grad_()
    grad = torch.randn(BATCH * QUERIES, CHANNELS, BINS, generator=generator)
    longest = float((bounds[:, 1] - bounds[:, 0]).max())
    most = math.ceil(longest / BINS)
    gather = torch.compile(stand_ins.segment_roi_align_gather, fullgraph=True, dynamic=False)
    matmul = torch.compile(stand_ins.segment_roi_align_matmul, fullgraph=True, dynamic=False)

    def both(out: Tensor) -> tuple[Tensor, ...]:
        return (out.detach(), *torch.autograd.grad(out, features, grad))

    def check(ours: tuple[Tensor, ...], peer: tuple[Tensor, ...]) -> None:
        for a, b in zip(ours, peer, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    compare(
        "segment_roi_align",
        f"fwd+bwd, 640 rois, 256 channels, 16 bins, {layout}",
        lambda: both(ops.segment_roi_align(features, rois, BINS)),
        [
            Peer("compiled gather", lambda: both(gather(features, rois, BINS, most)), 4, 10),
            Peer("compiled product", lambda: both(matmul(features, rois, BINS, most)), 4, 10),
        ],
        check=check,
        verified="output and gradient",
    )
