# SPDX-License-Identifier: Apache-2.0
"""Boundary max pooling against a masked maximum in eager torch: the peers' op is CUDA alone."""

from __future__ import annotations

from typing import Any

import torch
from harness import Peer
from peers import stand_ins
from torch import Tensor

from tal_fast import ops

BATCH, CHANNELS, ROWS, SEGMENTS = 1, 512, 256, 126


def test_boundary_max_pool(compare: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(BATCH, CHANNELS, ROWS, generator=generator, requires_grad=True)
    center = torch.rand(BATCH, SEGMENTS, 2, generator=generator) * ROWS
    width = torch.rand(BATCH, SEGMENTS, 2, generator=generator) * 20
    segments = torch.stack((center - width, center + width), -1).flatten(2)
    grad = torch.randn(BATCH, CHANNELS, SEGMENTS, generator=generator)

    def both(out: Tensor) -> tuple[Tensor, ...]:
        return (out.detach(), *torch.autograd.grad(out, features, grad))

    def check(ours: tuple[Tensor, ...], peer: tuple[Tensor, ...]) -> None:
        assert torch.equal(ours[0], peer[0])
        torch.testing.assert_close(ours[1], peer[1], rtol=1e-5, atol=1e-5)

    compare(
        "boundary_max_pool",
        "fwd+bwd, 512 channels, 256 rows, 126 segments",
        lambda: both(ops.boundary_max_pool(features, segments)),
        [
            Peer(
                "eager masked maximum",
                lambda: both(stand_ins.boundary_max_pool(features, segments)),
            )
        ],
        check=check,
        verified="output and gradient",
    )
