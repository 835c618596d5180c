# SPDX-License-Identifier: Apache-2.0
"""Calls of ops with adversarial values (``op_values``), and what their twins say."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from endurance import op_values as v
from endurance.nms_draws import NMS_DRAWS
from endurance.op_values import Call
from torch import Tensor

from tal_fast import ops
from tal_fast.reference import boundary_max_pool as pool_twin
from tal_fast.reference import deform_attn as attention_twin
from tal_fast.reference import deform_attn_fused as fused_twin
from tal_fast.reference import dropout as dropout_twin
from tal_fast.reference import gather_windows as windows_twin
from tal_fast.reference import linear_assignment as assignment_twin
from tal_fast.reference import local_attn as local_twin
from tal_fast.reference import matching_cost as cost_twin
from tal_fast.reference import ragged_index as ragged_twin
from tal_fast.reference import segment_iou as iou_twin
from tal_fast.reference import segment_losses as loss_twins
from tal_fast.reference import segment_roi_align as roi_twin
from tal_fast.reference import segment_voting as voting_twin


def draw_segment_iou(rng: random.Random) -> Call:
    dtype, n, m = rng.choice(v.DTYPES), rng.choice(v.SIZES), rng.choice(v.SIZES)
    kind, aligned = rng.choice(("iou", "giou", "diou", "ioa")), rng.random() < 0.3
    eps = rng.choice((0.0, 1e-6, 0.1))
    a, b = v.segments(rng, n, dtype), v.segments(rng, n if aligned else m, dtype)
    return Call(
        lambda a, b: ops.segment_iou(a, b, kind, aligned, eps), (a, b),
        lambda a, b: iou_twin.segment_iou(a.double(), b.double(), kind, aligned, eps), 1.0,
    )  # fmt: skip


def draw_segment_losses(rng: random.Random) -> Call:
    dtype, n = rng.choice(v.DTYPES[:3]), rng.choice(v.SIZES[1:])
    name, reduction = (
        rng.choice(("iou_loss", "giou_loss", "diou_loss")),
        rng.choice(("none", "sum")),
    )
    tensors = v.segments(rng, n, dtype, 1.0), v.segments(rng, n, dtype, 1.0)
    return Call(
        lambda p, t: getattr(ops, name)(p, t, reduction), tensors,
        lambda p, t: getattr(loss_twins, name)(p.double(), t.double(), reduction),
        4.0 * (n if reduction == "sum" else 1),
    )  # fmt: skip


def draw_segment_voting(rng: random.Random) -> Call:
    dtype, n, m = rng.choice(v.DTYPES), rng.choice(v.FEW), rng.choice(v.FEW)
    threshold, weight = rng.choice((0.3, 0.5, 0.75)), rng.choice(("score", "score_iou"))
    segments, scores = v.segments(rng, m, dtype), v.scores(rng, m, dtype) + 0.125
    return Call(
        lambda k, s, c: ops.segment_voting(k, s, c, threshold, weight),
        (segments[:n], segments, scores),
        lambda k, s, c: voting_twin.segment_voting(k, s, c, threshold, weight), 50.0,
    )  # fmt: skip


def draw_deform_attn(rng: random.Random) -> Call:
    dtype = rng.choice(v.DTYPES)
    levels = rng.choice(((5,), (7, 3), (1,), (8, 4, 2)))
    batch, heads, width, queries, points = (rng.choice(s) for s in (
        (0, 1, 2), (1, 2), (1, 3, 8), (0, 1, 5), (1, 4)))  # fmt: skip
    value = v.numbers(rng, batch, sum(levels), heads, width, dtype=dtype, scale=4.0)
    shape = batch, queries, heads, len(levels), points
    # On the edges of rows, between them and beyond both ends.
    # 16 bits would misplace them, and are refused.
    fine = torch.float64 if dtype == torch.float64 else torch.float32
    places = v.numbers(rng, *shape, dtype=fine, scale=0.75) + 0.5
    weights = v.numbers(rng, *shape, dtype=dtype)
    return Call(
        lambda v, p, w: ops.deform_attn(v, levels, p, w), (value, places, weights),
        lambda v, p, w: attention_twin.deform_attn(v.double(), levels, p.double(), w.double()),
        # A place that differs by an ulp moves the value by as many rows.
        4.0 * len(levels) * points * max(levels),
    )  # fmt: skip


def draw_local_attn(rng: random.Random) -> Call:
    dtype, window = rng.choice(v.DTYPES[:3]), rng.choice((1, 3, 5))
    shape = rng.choice((1, 2)), rng.choice((1, 6, 33)), rng.choice((1, 2)), rng.choice((1, 3, 8))
    tensors = tuple(v.numbers(rng, *shape, dtype=dtype, scale=3.0) for _ in range(3))
    return Call(
        lambda q, k, v: ops.local_attn(q, k, v, window), tensors,
        lambda q, k, v: local_twin.local_attn(q.double(), k.double(), v.double(), window), 12.0,
    )  # fmt: skip


def draw_gather_windows(rng: random.Random) -> Call:
    dtype, rows, count = rng.choice(v.DTYPES), rng.choice((1, 7, 40)), rng.choice((0, 1, 4))
    length, first = rng.choice((1, 5, 16)), rng.random() < 0.5
    store = v.special(rng, v.numbers(rng, rows, rng.choice((1, 3, 8)), dtype=dtype, scale=1e3))
    starts = torch.tensor([rng.randrange(rows) for _ in range(count)], dtype=torch.int64)
    sizes = torch.tensor([rng.randint(0, min(length, rows - int(s))) for s in starts],
                         dtype=torch.int64)  # fmt: skip
    return Call(
        lambda s, a, n: ops.gather_windows(s, a, n, length, channels_first=first),
        (store, starts, sizes),
        lambda s, a, n: windows_twin.gather_windows(s, a, n, length, channels_first=first),
        contiguous=True,
    )


def draw_ragged_index(rng: random.Random) -> Call:
    counts = [rng.choice((0, 0, 1, 2, 7, 100)) for _ in range(rng.choice((0, 1, 5, 40)))]
    return Call(
        lambda like: ops.ragged_index(counts, like), (torch.zeros(1),),
        lambda like: ragged_twin.ragged_index(counts),
    )  # fmt: skip


def draw_linear_assignment(rng: random.Random) -> Call:
    dtype = rng.choice(v.DTYPES[:3])
    rows = [rng.choice((0, 1, 3, 6)) for _ in range(rng.choice((1, 3)))]
    columns = [rng.choice((0, 1, 2, 5)) for _ in rows]
    size = sum(r * c for r, c in zip(rows, columns, strict=True))
    costs = v.numbers(rng, size, dtype=dtype, scale=10.0)
    costs = costs.round() if rng.random() < 0.3 else costs

    def totals(found: list[Tensor]) -> list[Tensor]:
        """The cost of each problem: ties may be solved in several ways."""
        first, sums = 0, []
        for problem, (r, c) in enumerate(zip(rows, columns, strict=True)):
            matrix = costs[first : first + r * c].double().view(r, c)
            first += r * c
            mine = found[0] == problem
            sums.append(math.fsum(matrix[found[1][mine], found[2][mine]].tolist()))
        return [torch.tensor(sums, dtype=torch.float64)]

    def twin(given: Tensor) -> Tensor:
        found = assignment_twin.linear_assignment(given, rows, columns)
        return torch.tensor([best for best, _ in found], dtype=torch.float64)

    def op(given: Tensor) -> Any:
        return ops.linear_assignment(given, rows, columns)

    return Call(op, (costs,), twin, 60.0, told=totals)


def draw_boundary_max_pool(rng: random.Random) -> Call:
    dtype, rows, count = rng.choice(v.DTYPES), rng.choice((1, 4, 9)), rng.choice((0, 1, 3))
    features = v.special(rng, v.numbers(rng, 2, 4, rows, dtype=dtype, scale=5.0))
    fine = torch.float64 if dtype == torch.float64 else torch.float32
    ends = (v.numbers(rng, 2, count, 4, dtype=fine, scale=rows) + rows / 2).clamp(-2, rows + 2)
    ends = ends.reshape(2, count, 2, 2).sort(-1).values.reshape(2, count, 4)
    ends = v.special(rng, ends, math.inf, -math.inf)
    return Call(ops.boundary_max_pool, (features, ends), pool_twin.boundary_max_pool)


def draw_deform_attn_fused(rng: random.Random) -> Call:
    dtype = rng.choice(v.DTYPES)
    levels = rng.choice(((5,), (7, 3), (1,), (8, 4, 2)))
    batch, heads, width, queries, points = (rng.choice(s) for s in (
        (0, 1, 2), (1, 2), (1, 3, 8), (0, 1, 5), (1, 4)))  # fmt: skip
    value = v.numbers(rng, batch, sum(levels), heads, width, dtype=dtype, scale=4.0)
    shape = batch, queries, heads, len(levels), points
    fine = torch.float64 if dtype == torch.float64 else torch.float32
    ends = rng.choice((1, 2))
    reference = v.numbers(rng, batch, queries, len(levels), ends, dtype=fine, scale=0.75) + 0.5
    offsets = v.numbers(rng, *shape, dtype=fine, scale=3.0)
    logits = v.numbers(rng, *shape, dtype=dtype, scale=4.0)
    padding = torch.tensor([rng.random() < 0.3 for _ in range(batch * sum(levels))])
    mask = (padding.view(batch, -1).bool(),) if rng.random() < 0.5 and batch else ()
    return Call(
        lambda x, *t: ops.deform_attn_fused(x, levels, *t),
        (value, reference, offsets, logits, *mask),
        lambda x, *t: fused_twin.deform_attn_fused(x, levels, *t),
        4.0 * len(levels) * points * max(levels),
    )  # fmt: skip


def draw_segment_roi_align(rng: random.Random) -> Call:
    dtype, rows, count = rng.choice(v.DTYPES), rng.choice((1, 4, 9, 30)), rng.choice((0, 1, 3))
    bins, samples, aligned = rng.choice((1, 2, 5)), rng.choice((0, 0, 1, 3)), rng.random() < 0.5
    features = v.numbers(rng, 2, rng.choice((1, 3, 8)), rows, dtype=dtype, scale=5.0)
    fine = torch.float64 if dtype == torch.float64 else torch.float32
    ends = v.segments(rng, count, fine, rows / 2 + 2.0) + rows / 2
    rois = torch.cat((v.integers(rng, count, 2).to(fine)[:, None], ends), 1)
    return Call(
        lambda f, r: ops.segment_roi_align(f, r, bins, samples, aligned), (features, rois),
        lambda f, r: roi_twin.segment_roi_align(f, r, bins, samples, aligned), 5.0 * rows,
    )  # fmt: skip


def draw_matching_cost(rng: random.Random) -> Call:
    dtype = rng.choice(v.DTYPES)
    layers, queries, classes = rng.choice((0, 1, 2)), rng.choice((1, 4)), rng.choice((1, 3))
    counts = [rng.choice((0, 1, 3)) for _ in range(rng.choice((1, 2)))]
    shape = (*((layers,) if layers else ()), len(counts), queries)
    options = {
        "gamma": rng.choice((0.0, 1.5, 2.0)),
        "alpha": rng.choice((0.0, 0.25, 1.0)),
        "eps": rng.choice((1e-12, 1e-3)),
    }
    # Widths may be zero, in other places than their partners': 0 / 0 hangs on an eps of no weight.
    logits = v.numbers(rng, *shape, classes, dtype=dtype, scale=rng.choice((3.0, 80.0)))
    boxes = v.numbers(rng, *shape, 2, dtype=dtype).abs() + 0.125
    targets = v.numbers(rng, sum(counts), 2, dtype=dtype).abs() + 0.125
    labels = v.integers(rng, sum(counts), classes)
    return Call(
        lambda x, s, c, t: ops.matching_cost(x, s, c, t, counts, **options),
        (logits, boxes, labels, targets),
        # What a wide type of 16 bits rounds, the op computes in float32.
        lambda x, s, c, t: cost_twin.matching_cost(x, s, c, t, counts, **options), 600.0,
    )  # fmt: skip


def draw_dropout(rng: random.Random) -> Call:
    dtype, shape = rng.choice(v.DTYPES), rng.choice(((0,), (1,), (33,), (4, 7), (2, 3, 5)))
    p, how, seed = rng.choice((0.1, 0.5, 1e-9, 0.999)), rng.randrange(3), rng.getrandbits(31)
    x = v.numbers(rng, *shape, dtype=dtype, scale=8.0)
    rest = (v.numbers(rng, *shape, dtype=dtype),) if how == 2 else ()

    def op(x: Tensor, *rest: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return ops.dropout(x, p, relu=how == 1, residual=rest[0] if rest else None)

    def twin(x: Tensor, *rest: Tensor) -> Tensor:
        torch.manual_seed(seed)
        number = int(torch.randint(2**63 - 1, (), dtype=torch.int64))
        return dropout_twin.dropout(x, p, number, how == 1, *rest)

    return Call(op, (x, *rest), twin, 9.0 / (1 - p))


DRAWS: dict[str, Callable[[random.Random], Call]] = {
    draw.__name__.removeprefix("draw_"): draw
    for draw in (
        draw_segment_iou,
        draw_segment_losses,
        draw_segment_voting,
        draw_deform_attn,
        draw_deform_attn_fused,
        draw_local_attn,
        draw_segment_roi_align,
        draw_gather_windows,
        draw_ragged_index,
        draw_linear_assignment,
        draw_boundary_max_pool,
        draw_matching_cost,
        draw_dropout,
        *NMS_DRAWS,
    )
}
#: Names of ``tal_fast.ops`` that no case of its own name calls, and why.
OTHERWISE = {
    "iou_loss": "among segment_losses",
    "giou_loss": "among segment_losses",
    "diou_loss": "among segment_losses",
    "BatchedNMSResult": "a type",
    "LinearAssignment": "a type",
    "PaddedNMSResult": "a type",
    "RaggedIndex": "a type",
}
