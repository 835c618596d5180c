# SPDX-License-Identifier: Apache-2.0
"""Calls of the ops of attention, as ``op_draws`` has those of all others."""

from __future__ import annotations

import random

import torch
from endurance import op_values as v
from endurance.op_values import Call
from torch import Tensor

from tal_fast import ops
from tal_fast.reference import deform_attn as attention_twin
from tal_fast.reference import deform_attn_fused as fused_twin
from tal_fast.reference import local_attn as local_twin


def _sizes(rng: random.Random) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], float]:
    """Rows of each level, the shapes of values and of points, and the scale of a result."""
    levels = rng.choice(((5,), (7, 3), (1,), (8, 4, 2)))
    batch, heads, width, queries, points = (rng.choice(s) for s in (
        (0, 1, 2), (1, 2), (1, 3, 8), (0, 1, 5), (1, 4)))  # fmt: skip
    # A place that differs by an ulp moves the value by as many rows.
    scale = 4.0 * len(levels) * points * max(levels)
    value = batch, sum(levels), heads, width
    return levels, value, (batch, queries, heads, len(levels), points), scale


def _special(rng: random.Random, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Infinities and NaN in one of the tensors, in a quarter of all groups."""
    chosen = rng.randrange(4 * len(tensors))
    return tuple(
        v.special(rng, tensor.clone()) if at == chosen else tensor
        for at, tensor in enumerate(tensors)
    )


def _kinks(x: Tensor) -> Tensor:
    """Infinity where a position in rows is so near to a whole number that it may be rounded to it.

    The slope to its left is another one than that to its right.
    """
    return torch.where((x - x.round()).abs() < 1e-4, torch.inf, 1.0)


def _finite(out: Tensor) -> Tensor:
    """NaN for infinity."""
    return torch.where(out.isfinite(), out, torch.nan)


def draw_deform_attn(rng: random.Random) -> Call:
    dtype = rng.choice(v.DTYPES)
    levels, rows, points, scale = _sizes(rng)
    value = v.numbers(rng, *rows, dtype=dtype, scale=4.0)
    # On the edges of rows, between them and beyond both ends.
    # 16 bits would misplace them, and are refused.
    fine = torch.float64 if dtype == torch.float64 else torch.float32
    places = v.numbers(rng, *points, dtype=fine, scale=0.75) + 0.5
    weights = v.numbers(rng, *points, dtype=dtype)
    tensors = value, places, weights
    lengths = torch.tensor(levels, dtype=torch.float64)[:, None]

    def slopes(x: Tensor, p: Tensor, w: Tensor) -> dict[int, Tensor | float]:
        row = 8.0 * rows[-1] * max(levels)  # of two rows, with numbers of [-4, 4]
        x = p.double() * lengths - 0.5
        kinks = torch.where(x == x.round(), 1.0, _kinks(x))  # a whole number is the op's as well
        return {0: scale * points[1], 1: row * kinks, 2: row}

    given = _special(rng, *tensors)

    def twin(x: Tensor, p: Tensor, w: Tensor) -> Tensor:
        return attention_twin.deform_attn(x, levels, p, w)

    if not bool(given[2].isfinite().all()):  # whether NaN or infinity comes of it, nobody says
        return Call(
            lambda x, p, w: _finite(ops.deform_attn(x, levels, p, w)), given,
            v.folded(lambda *t: _finite(twin(*t))), scale, slopes=slopes, finite=tensors,
        )  # fmt: skip

    return Call(
        lambda x, p, w: ops.deform_attn(x, levels, p, w), given, v.folded(twin), scale,
        slopes=slopes, finite=tensors,
    )  # fmt: skip


def draw_deform_attn_fused(rng: random.Random) -> Call:
    dtype = rng.choice(v.DTYPES)
    levels, rows, points, scale = _sizes(rng)
    batch, queries = points[:2]
    value = v.numbers(rng, *rows, dtype=dtype, scale=4.0)
    fine = torch.float64 if dtype == torch.float64 else torch.float32
    shape = batch, queries, len(levels), rng.choice((1, 2))
    reference = v.numbers(rng, *shape, dtype=fine, scale=0.75) + 0.5
    offsets = v.numbers(rng, *points, dtype=fine, scale=3.0)
    logits = v.numbers(rng, *points, dtype=dtype, scale=4.0)
    masks: tuple[Tensor, ...] = ()
    if batch and rng.random() < 0.5:
        masks = ((v.integers(rng, batch * sum(levels), 10) < 3).unflatten(1, (batch, -1)),)
    tensors = value, reference, offsets, logits
    lengths = torch.tensor(levels, dtype=torch.float64)

    def slopes(x: Tensor, r: Tensor, o: Tensor, *_: Tensor) -> dict[int, Tensor | float]:
        r, o = r.double()[:, :, :, None, :, None], o.double()
        moved = o if shape[-1] == 1 else o / points[-1] * r[..., 1] * 0.5 * lengths[:, None]
        kinks = _kinks(r[..., 0] * lengths[:, None] + moved - 0.5)  # [K, B, Q, H, L, P]
        row = 8.0 * rows[-1] * max(levels)
        # A reference moves all points of all heads, by up to three rows.
        of_reference = 4 * row * kinks.sum((3, 5))[..., None]
        return {0: scale * points[1], 1: of_reference, 2: row * kinks, 3: 2 * row}

    return Call(
        lambda x, *t: ops.deform_attn_fused(x, levels, *t), _special(rng, *tensors) + masks,
        v.folded(lambda x, *t: fused_twin.deform_attn_fused(x, levels, *t)), scale,
        slopes=slopes, finite=tensors + masks,
    )  # fmt: skip


def draw_local_attn(rng: random.Random) -> Call:
    dtype, window = rng.choice(v.DTYPES), rng.choice((1, 2, 3, 5, 99))
    shape = rng.choice((1, 2)), rng.choice((1, 6, 33)), rng.choice((1, 2)), rng.choice((1, 3, 8))
    tensors = tuple(v.numbers(rng, *shape, dtype=dtype, scale=3.0) for _ in range(3))
    slope = 18.0 * min(window + 1, shape[1]) * shape[-1]
    masks: tuple[Tensor, ...] = ()
    if rng.random() < 0.5:
        masks = ((v.integers(rng, shape[0] * shape[1], 10) < 3).unflatten(1, shape[:2]),)
    return Call(
        lambda *t: ops.local_attn(*t[:3], window, *t[3:]), _special(rng, *tensors) + masks,
        v.folded(lambda *t: local_twin.local_attn(*t[:3], window, *t[3:])), 12.0,
        slopes=lambda *_: dict.fromkeys(range(3), slope), finite=tensors + masks,
    )  # fmt: skip


ATTENTION_DRAWS = (draw_deform_attn, draw_deform_attn_fused, draw_local_attn)
