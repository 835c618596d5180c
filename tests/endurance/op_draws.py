# SPDX-License-Identifier: Apache-2.0
"""Calls of ops with adversarial values (``op_values``), and what their twins say."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable

import torch
from endurance import op_values as v
from endurance.attention_draws import ATTENTION_DRAWS
from endurance.nms_draws import NMS_DRAWS
from endurance.op_values import Call
from torch import Tensor

from tal_fast import ops
from tal_fast.reference import boundary_max_pool as pool_twin
from tal_fast.reference import dropout as dropout_twin
from tal_fast.reference import gather_windows as windows_twin
from tal_fast.reference import matching_cost as cost_twin
from tal_fast.reference import ragged_index as ragged_twin
from tal_fast.reference import segment_iou as iou_twin
from tal_fast.reference import segment_losses as loss_twins
from tal_fast.reference import segment_roi_align as roi_twin
from tal_fast.reference import segment_voting as voting_twin


def _steepness(a: Tensor, b: Tensor, kind: str, aligned: bool, eps: float) -> Tensor:
    """What the gradients of a pair of segments are rounded by, in units of their type's rounding.

    A value changes with an end by no more than a few times one over what it is divided by. The
    distance of two centres is a difference of numbers that may be much larger.
    """
    a, b = (a.double(), b.double()) if aligned else (a.double()[:, :, None], b.double()[:, None])
    length, other = a[..., 1] - a[..., 0], b[..., 1] - b[..., 0]
    divisor = (length + 0 * other if kind == "ioa" else torch.maximum(length, other)) + eps
    if kind == "diou":
        far = torch.maximum(a.abs().amax(-1), b.abs().amax(-1))
        hull = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
        return 8.0 / divisor + 8.0 * (far + hull) / (hull**2 + eps)
    return 8.0 / divisor


def draw_segment_iou(rng: random.Random) -> Call:
    dtype, n, m = rng.choice(v.DTYPES), rng.choice(v.SIZES), rng.choice(v.SIZES)
    kind, aligned = rng.choice(("iou", "giou", "diou", "ioa")), rng.random() < 0.3
    eps = rng.choice((0.0, 1e-6, 0.1))
    a, b = v.segments(rng, n, dtype), v.segments(rng, n if aligned else m, dtype)

    def twin(a: Tensor, b: Tensor) -> Tensor:
        """To the last bit, so in the type that the op computes in."""
        pairs = (a, b) if aligned else (a[:, :, None], b[:, None])
        fine = torch.promote_types(a.dtype, torch.float32)
        return iou_twin.segment_iou(*pairs, kind, True, eps, fine).to(a.dtype)

    def slopes(a: Tensor, b: Tensor) -> dict[int, Tensor | float]:
        steep = _steepness(a, b, kind, aligned, eps)
        rows = (steep, steep) if aligned else (steep.sum(2), steep.sum(1))
        return {at: row[..., None] for at, row in enumerate(rows)}

    return Call(lambda a, b: ops.segment_iou(a, b, kind, aligned, eps), (a, b), twin, slopes=slopes)


def draw_segment_losses(rng: random.Random) -> Call:
    dtype, n = rng.choice(v.DTYPES[:3]), rng.choice(v.SIZES[1:])
    name = rng.choice(("iou_loss", "giou_loss", "diou_loss"))
    reduction = rng.choice(("none", "sum"))
    tensors = v.segments(rng, n, dtype, 1.0), v.segments(rng, n, dtype, 1.0)

    def twin(p: Tensor, t: Tensor) -> Tensor:
        losses: Tensor = getattr(loss_twins, name)(p, t)
        return losses.sum(1) if reduction == "sum" else losses

    def slopes(p: Tensor, t: Tensor) -> dict[int, Tensor | float]:
        steep = _steepness(p, t, name.removesuffix("_loss"), True, 1e-8)[..., None]
        return {0: steep, 1: steep}

    return Call(
        lambda p, t: getattr(ops, name)(p, t, reduction), tensors, twin,
        4.0 * (n if reduction == "sum" else 1), slopes=slopes,
    )  # fmt: skip


def draw_segment_voting(rng: random.Random) -> Call:
    dtype, n, m = rng.choice(v.DTYPES), rng.choice(v.FEW), rng.choice(v.FEW)
    threshold, weight = rng.choice((0.3, 0.5, 0.75)), rng.choice(("score", "score_iou"))
    segments, scores = v.segments(rng, m, dtype), v.scores(rng, m, dtype) + 0.125
    return Call(
        lambda k, s, c: ops.segment_voting(k, s, c, threshold, weight),
        (segments[:, :n], segments, scores),
        lambda k, s, c: voting_twin.segment_voting(k, s, c, threshold, weight), 50.0,
    )  # fmt: skip


def draw_gather_windows(rng: random.Random) -> Call:
    dtype, rows, count = rng.choice(v.DTYPES), rng.choice((1, 7, 40)), rng.choice((0, 1, 4))
    length, first = rng.choice((1, 5, 16)), rng.random() < 0.5
    store = v.special(rng, v.numbers(rng, rows, rng.choice((1, 3, 8)), dtype=dtype, scale=1e3))
    starts = v.integers(rng, count, rows)
    sizes = v.integers(rng, count, length + 1).minimum(rows - starts)

    def twin(s: Tensor, a: Tensor, n: Tensor) -> list[Tensor]:
        a = a + rows * torch.arange(len(s))[:, None]  # in the stores of all cases, in a row
        found = windows_twin.gather_windows(
            s.flatten(0, 1), a.flatten(), n.flatten(), length, channels_first=first
        )
        return [x.unflatten(0, n.shape) for x in found]

    return Call(
        lambda s, a, n: ops.gather_windows(s, a, n, length, channels_first=first),
        (store, starts, sizes), twin, contiguous=True,
    )  # fmt: skip


def draw_ragged_index(rng: random.Random) -> Call:
    counts = v.some_of(rng, rng.choice((0, 1, 5, 40)), (0, 0, 1, 2, 7, 100))
    like = torch.zeros(1)
    return Call(
        lambda counts: ops.ragged_index(counts.tolist(), like), (counts,),
        v.each(lambda counts: ragged_twin.ragged_index(counts.tolist())),
    )  # fmt: skip


@functools.cache
def _assignments(r: int, c: int) -> Tensor:
    """All assignments of a matrix of r rows and c columns, as places of its numbers."""
    fewer = min(r, c)
    return torch.tensor([
        [i * c + j for i, j in zip(rows, columns, strict=True)]
        for rows in itertools.combinations(range(r), fewer)
        for columns in itertools.permutations(range(c), fewer)
    ], dtype=torch.int64)  # fmt: skip


def draw_linear_assignment(rng: random.Random) -> Call:
    dtype = rng.choice(v.DTYPES[:3])
    rows = [rng.choice((0, 1, 3, 6)) for _ in range(rng.choice((1, 3)))]
    columns = [rng.choice((0, 1, 2, 5)) for _ in rows]
    sizes = [r * c for r, c in zip(rows, columns, strict=True)]
    costs = v.numbers(rng, sum(sizes), dtype=dtype, scale=10.0)
    costs = costs.round() if rng.random() < 0.3 else costs
    firsts = torch.tensor([0, *itertools.accumulate(sizes)])
    widths = torch.tensor(columns)

    def totals(found: list[list[Tensor]]) -> list[list[Tensor]]:
        """The cost of each problem: ties may be solved in several ways."""
        sums = []
        for case, (problem, row, column, *_) in zip(costs.double(), found, strict=True):
            pairs = case[firsts[problem] + row * widths[problem] + column]
            sums.append([torch.zeros(len(rows)).double().index_add_(0, problem, pairs)])
        return sums

    def twin(given: Tensor) -> Tensor:
        matrices = given.double().split(sizes, 1)
        places = map(_assignments, rows, columns)
        least = (m[:, p].sum(-1).amin(-1) for m, p in zip(matrices, places, strict=True))
        return torch.stack(list(least), 1)

    return Call(
        lambda given: ops.linear_assignment(given, rows, columns), (costs,), twin, 60.0, told=totals
    )


def draw_boundary_max_pool(rng: random.Random) -> Call:
    dtype, rows, count = rng.choice(v.DTYPES), rng.choice((1, 4, 9)), rng.choice((0, 1, 3))
    features = v.special(rng, v.numbers(rng, 2, 4, rows, dtype=dtype, scale=5.0))
    fine = torch.float64 if dtype == torch.float64 else torch.float32
    ends = (v.numbers(rng, 2, count, 4, dtype=fine, scale=rows) + rows / 2).clamp(-2, rows + 2)
    ends = ends.unflatten(-1, (2, 2)).sort(-1).values.flatten(-2)
    ends = v.special(rng, ends, math.inf, -math.inf)
    return Call(
        ops.boundary_max_pool, (features, ends), v.folded(pool_twin.boundary_max_pool),
        slopes=lambda *_: {0: 3.0},
    )  # fmt: skip


def draw_segment_roi_align(rng: random.Random) -> Call:
    dtype, rows, count = rng.choice(v.DTYPES), rng.choice((1, 4, 9, 30)), rng.choice((0, 1, 3))
    bins, samples, aligned = rng.choice((1, 2, 5)), rng.choice((0, 0, 1, 3)), rng.random() < 0.5
    features = v.numbers(rng, 2, rng.choice((1, 3, 8)), rows, dtype=dtype, scale=5.0)
    fine = torch.float64 if dtype == torch.float64 else torch.float32
    ends = v.segments(rng, count, fine, rows / 2 + 2.0) + rows / 2
    rois = torch.cat((v.integers(rng, count, 2).to(fine)[..., None], ends), -1)

    def twin(f: Tensor, r: Tensor) -> Tensor:
        item = r[..., :1] + 2 * torch.arange(len(f))[:, None, None]
        r = torch.cat((item, r[..., 1:]), -1).flatten(0, 1)
        found = roi_twin.segment_roi_align(f.flatten(0, 1), r, bins, samples, aligned)
        return found.unflatten(0, (len(f), count))

    return Call(
        lambda f, r: ops.segment_roi_align(f, r, bins, samples, aligned), (features, rois),
        twin, 5.0 * rows, slopes=lambda *_: {0: 15.0},
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

    def twin(x: Tensor, s: Tensor, c: Tensor, t: Tensor) -> Tensor:
        """Of all cases as more videos of one call, which lie within each layer."""
        x, s = (y.movedim(0, -4).flatten(-4, -3) for y in (x, s))
        found = cost_twin.matching_cost(
            x, s, c.flatten(), t.flatten(0, 1), counts * len(c), **options
        )
        return found.view(max(layers, 1), len(c), -1).transpose(0, 1).flatten(1)

    return Call(
        lambda x, s, c, t: ops.matching_cost(x, s, c, t, counts, **options),
        # What a wide type of 16 bits rounds, the op computes in float32.
        (logits, boxes, labels, targets), twin, 600.0,
    )  # fmt: skip


def draw_dropout(rng: random.Random) -> Call:
    dtype, shape = rng.choice(v.DTYPES), rng.choice(((0,), (1,), (33,), (4, 7), (2, 3, 5)))
    p, how = rng.choice((0.1, 0.5, 1e-9, 0.999)), rng.randrange(3)
    x = v.numbers(rng, *shape, dtype=dtype, scale=8.0)
    rest = (v.numbers(rng, *shape, dtype=dtype),) if how == 2 else ()
    seeds = v.integers(rng, 1, 2**31)

    def op(x: Tensor, seed: Tensor, *rest: Tensor) -> Tensor:
        torch.default_generator.manual_seed(int(seed))  # torch's own function seeds every device
        return ops.dropout(x, p, relu=how == 1, residual=rest[0] if rest else None)

    def twin(x: Tensor, seed: Tensor, *rest: Tensor) -> Tensor:
        torch.default_generator.manual_seed(int(seed))
        number = int(torch.randint(2**63 - 1, (), dtype=torch.int64))
        return dropout_twin.dropout(x, p, number, how == 1, *rest)

    wrt = (0, 2) if rest else (0,)
    return Call(
        op, (x, seeds, *rest), v.each(twin), 9.0 / (1 - p),
        slopes=lambda *_: dict.fromkeys(wrt, 1 / (1 - p)),
    )  # fmt: skip


DRAWS: dict[str, Callable[[random.Random], Call]] = {
    draw.__name__.removeprefix("draw_"): draw
    for draw in (
        draw_segment_iou,
        draw_segment_losses,
        draw_segment_voting,
        *ATTENTION_DRAWS,
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
#: Those that give gradients.
DIFFERENTIABLE = (
    "segment_iou",
    "segment_losses",
    "deform_attn",
    "deform_attn_fused",
    "local_attn",
    "segment_roi_align",
    "boundary_max_pool",
    "dropout",
)
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
