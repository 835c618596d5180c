# SPDX-License-Identifier: Apache-2.0
"""Inputs that the tests of the NMS family share."""

import inspect
import math
from dataclasses import fields
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tal_fast import ops
from tal_fast.ops.nms_options import NMSOptions
from tal_fast.reference import nms as twins

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
COMPARISONS = ("gt", "ge")


def make(
    n: int, dtype: torch.dtype = torch.float32, *, ties: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(n, generator=generator, dtype=torch.float64) * 50
    length = torch.rand(n, generator=generator, dtype=torch.float64) * 12
    segments = torch.stack((start, start + length), dim=1)
    scores = torch.rand(n, generator=generator, dtype=torch.float64)
    if ties:  # equal scores, equal segments, segments of length zero
        segments, scores = (segments / 2).round() * 2, (scores * 8).round() / 8
    return segments.to(dtype), scores.to(dtype)


def groups(n: int, kinds: int, seed: int = 1) -> Tensor:
    return torch.randint(0, kinds, (n,), generator=torch.Generator().manual_seed(seed))


def spread(n: int, *, clustered: bool, seed: int = 0, span: float = 300.0) -> tuple[Tensor, Tensor]:
    """Float32 detections with log-normal lengths and untied scores, as a detector gives them."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.exp(torch.randn(n, generator=generator) * 0.9 + 1.2)
    start = torch.rand(n, generator=generator) * span
    if clustered:  # around 15 instances, three quarters of them
        center = torch.rand(15, generator=generator) * span
        owner = torch.randint(0, 15, (n,), generator=generator)
        near = center[owner] + torch.randn(n, generator=generator)
        alike = 8 * torch.exp(torch.randn(n, generator=generator) * 0.3)
        inside = torch.rand(n, generator=generator) < 0.75
        start, length = torch.where(inside, near, start), torch.where(inside, alike, length)
    scores = (torch.randperm(n, generator=generator) + 1).float() / (n + 1)
    return torch.stack((start, start + length), dim=1), scores


def hostile(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Segments of every wrong kind among good ones, scores untied."""
    segments, scores = spread(n, clustered=True, seed=seed, span=40.0)
    generator = torch.Generator().manual_seed(seed + 1)
    kind = torch.randint(0, 16, (n,), generator=generator)
    segments[kind == 0] = segments[kind == 0].flip(1)
    segments[kind == 1, 1] = segments[kind == 1, 0]
    for number, column, value in (
        (2, 0, math.nan),
        (3, 1, math.nan),
        (4, 0, -math.inf),
        (5, 1, math.inf),
        (6, 0, math.inf),
        (7, 1, -math.inf),
        (8, 0, -3e38),
        (9, 1, 3e38),
    ):
        segments[kind == number, column] = value
    return segments, scores


coordinates = st.integers(0, 24)
detections = st.lists(
    st.tuples(coordinates, st.integers(0, 10), st.integers(0, 4)), min_size=0, max_size=24
)


def tensors(items: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
    segments = torch.tensor([[s, s + n] for s, n, _ in items], dtype=torch.float32).reshape(-1, 2)
    return segments, torch.tensor([x / 4 for _, _, x in items], dtype=torch.float32)


def call(ops, op: str, segments: Tensor, scores: Tensor, **options):
    """One of the three functions by name, where the others' required arguments do not matter."""
    if op == "nms":
        return ops.nms(segments, scores, options.pop("iou_threshold", 0.5), **options)
    if op == "soft_nms":
        return ops.soft_nms(segments, scores, **options)
    labels = options.pop("labels", torch.zeros(len(scores), dtype=torch.int64))
    return ops.batched_nms(segments, scores, labels, **options)


def twin(op: str, *arguments: Any, vote: Any = None, **options: Any) -> Any:
    """What the twin of a function says, which gets the defaults of that function."""
    given = inspect.signature(getattr(ops, op)).bind(*arguments, **options)
    given.apply_defaults()
    names = {field.name for field in fields(NMSOptions)}
    tensors = [value for name, value in given.arguments.items() if name not in names]
    rule = NMSOptions(op=op, **{k: v for k, v in given.arguments.items() if k in names})
    extra = {} if vote is None else {"vote": vote}
    return getattr(twins, op)(*tensors, rule, **extra)
