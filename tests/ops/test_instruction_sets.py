# SPDX-License-Identifier: Apache-2.0
"""Ops that are the same bits on every instruction set: overlaps, costs, assignments, tiles."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tal_fast import info

pytestmark = pytest.mark.cpu_only

PROGRAM = r"""
import hashlib
import torch
from tal_fast import ops
from tal_fast.ops.conv_tiles import rows_to_tiles, tiles_to_rows

digest = hashlib.sha256()
generator = torch.Generator().manual_seed(0)


def add(*tensors):
    for tensor in tensors:
        digest.update(tensor.detach().double().numpy().tobytes())


def segments(n, dtype):
    start = torch.rand(n, generator=generator, dtype=torch.float64) * 100
    length = torch.rand(n, generator=generator, dtype=torch.float64) * 20
    return torch.stack((start, start + length), 1).to(dtype)


for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    for kind in ("iou", "giou", "diou", "ioa"):
        a, b = segments(333, dtype).requires_grad_(), segments(217, dtype).requires_grad_()
        out = ops.segment_iou(a, b, kind, eps=1e-6)
        weight = torch.randn(333, 217, generator=generator).to(dtype)
        add(out, *torch.autograd.grad(out, (a, b), weight))
for dtype in (torch.float64, torch.float32):
    for gamma in (2.0, 1.5):
        counts = torch.randint(25, (9,), generator=generator).tolist()
        logits = torch.randn(2, 9, 40, 20, generator=generator) * 8
        queries = torch.rand(2, 9, 40, 2, generator=generator)
        labels = torch.randint(20, (sum(counts),), generator=generator)
        targets = torch.rand(sum(counts), 2, generator=generator)
        costs = ops.matching_cost(
            logits.to(dtype), queries.to(dtype), labels, targets.to(dtype), counts, gamma=gamma
        )
        add(costs, *ops.linear_assignment(costs, 40, counts * 2))
        add(*ops.linear_assignment(costs.round(), 40, counts * 2))  # ties
    spans = [0, 30, 0, 31, 31, 90, 31, 90]
    for inputs in (True, False):
        tiles = rows_to_tiles(
            torch.randn(90, 45, generator=generator).to(dtype), spans, inputs=inputs
        )
        add(tiles, tiles_to_rows(tiles, spans, 90, inputs=inputs))
print(digest.hexdigest())
"""


def test_same_bits_on_every_instruction_set() -> None:
    isas = info.collect()["isa"]["available"]
    if len(isas) < 2:
        pytest.skip("this machine has one instruction set")
    digests = {
        isa: subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"TAL_FAST_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for isa in isas
    }
    assert len(set(digests.values())) == 1, digests
