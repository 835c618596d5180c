# SPDX-License-Identifier: Apache-2.0
"""Calls of ops with adversarial values, and what their twins say.

Values are ties, neighbours one ulp apart, denormals, zeros of both signs, large and small ones;
tensors are empty, of one element, with strides of other orders, gaps and zero.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tal_fast import ops
from tal_fast.ops.nms_options import NMSOptions
from tal_fast.reference import boundary_max_pool as pool_twin
from tal_fast.reference import deform_attn as attention_twin
from tal_fast.reference import gather_windows as windows_twin
from tal_fast.reference import linear_assignment as assignment_twin
from tal_fast.reference import local_attn as local_twin
from tal_fast.reference import nms as nms_twins
from tal_fast.reference import ragged_index as ragged_twin
from tal_fast.reference import segment_iou as iou_twin
from tal_fast.reference import segment_losses as loss_twins

DTYPES = (torch.float64, torch.float32, torch.float32, torch.float16, torch.bfloat16)
#: Of results that twins compute in float64, over the largest value that goes in.
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
_SIZES = (0, 1, 1, 2, 3, 5, 8, 17, 33, 64)


@dataclass(frozen=True)
class Call:
    """A call of an op.

    Attributes:
        op: the op as a function of the tensors.
        tensors: what it is called with.
        twin: the same of the twin, or None where only layouts and instruction sets are compared.
        scale: largest value that a difference is measured by; 0 for equal bits.
        told: what of the results the twin tells; all of them when None.
        contiguous: the op takes no other layout of its first tensor, and says so.
    """

    op: Callable[..., Any]
    tensors: tuple[Tensor, ...]
    twin: Callable[..., Any] | None
    scale: float = 0.0
    contiguous: bool = False
    told: Callable[[list[Tensor]], list[Tensor]] | None = None


def results(value: Any) -> list[Tensor]:
    """Returns the tensors that an op gave."""
    if isinstance(value, Tensor):
        return [value]
    if value is None or isinstance(value, (int, float)):
        return []
    return [tensor for one in value for tensor in results(one)]


def other_layout(rng: random.Random, tensor: Tensor) -> Tensor:
    """Returns a tensor of equal values whose memory lies otherwise."""
    how = rng.randrange(3)
    if tensor.ndim == 0 or how == 0:
        wide = tensor.new_zeros(*tensor.shape, 2)
        wide[..., 0] = tensor
        return wide[..., 0]
    if how == 1 and tensor.ndim > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    longer = tensor.new_zeros(tensor.shape[0] + 3, *tensor.shape[1:])
    longer[2 : 2 + tensor.shape[0]] = tensor
    return longer[2 : 2 + tensor.shape[0]]


def _numbers(rng: random.Random, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Numbers of [-1, 1] · scale, some of them zeros, denormals, ties or neighbours of others."""
    seed = torch.Generator().manual_seed(rng.randrange(2**31))
    values = ((torch.rand(*shape, generator=seed, dtype=torch.float64) * 2 - 1) * scale).to(dtype)
    flat = values.view(-1)
    for _ in range(rng.randrange(6) if flat.numel() else 0):
        at, other = rng.randrange(flat.numel()), rng.randrange(flat.numel())
        tiny = torch.finfo(dtype).smallest_normal
        flat[at] = rng.choice(
            (0.0, -0.0, tiny, -tiny / 2, float(flat[other]), -float(flat[other]), scale, -scale)
        )
        if rng.random() < 0.3:
            flat[at] = torch.nextafter(flat[other].float(), torch.tensor(math.inf)).to(dtype)
    return values


def _segments(rng: random.Random, n: int, dtype: torch.dtype, span: float = 50.0) -> Tensor:
    """Segments with ties, of length zero, that touch, or end one ulp after another's start."""
    ends = _numbers(rng, n, 2, dtype=dtype, scale=span).sort(1).values
    if rng.random() < 0.5:
        ends = (ends / 4).round() * 4
    for _ in range(rng.randrange(4) if n else 0):
        at, other = rng.randrange(n), rng.randrange(n)
        how = rng.randrange(4)
        if how == 0:
            ends[at] = ends[other]
        elif how == 1:
            ends[at, 1] = ends[at, 0]
        elif how == 2:
            ends[at, 0] = torch.minimum(ends[other, 1], ends[at, 1])
        else:
            up = torch.nextafter(ends[other].float(), torch.tensor(math.inf)).to(dtype)
            ends[at] = up
    return ends.sort(1).values


def _scores(rng: random.Random, n: int, dtype: torch.dtype) -> Tensor:
    scores = _numbers(rng, n, dtype=dtype).abs()
    return (scores * 8).round() / 8 if rng.random() < 0.5 else scores


def _wide(tensors: tuple[Tensor, ...]) -> float:
    largest = [
        float(t.double().abs().max()) for t in tensors if t.numel() and t.is_floating_point()
    ]
    return max([1.0, *largest])


def segment_iou(rng: random.Random) -> Call:
    dtype, n, m = rng.choice(DTYPES), rng.choice(_SIZES), rng.choice(_SIZES)
    kind, aligned = rng.choice(("iou", "giou", "diou", "ioa")), rng.random() < 0.3
    eps = rng.choice((0.0, 1e-6, 0.1))
    a, b = _segments(rng, n, dtype), _segments(rng, n if aligned else m, dtype)
    return Call(
        lambda a, b: ops.segment_iou(a, b, kind, aligned, eps), (a, b),
        lambda a, b: iou_twin.segment_iou(a.double(), b.double(), kind, aligned, eps), 1.0,
    )  # fmt: skip


def segment_losses(rng: random.Random) -> Call:
    dtype, n = rng.choice(DTYPES[:3]), rng.choice(_SIZES[1:])
    name, reduction = (
        rng.choice(("iou_loss", "giou_loss", "diou_loss")),
        rng.choice(("none", "sum")),
    )
    tensors = _segments(rng, n, dtype, 1.0), _segments(rng, n, dtype, 1.0)
    return Call(
        lambda p, t: getattr(ops, name)(p, t, reduction), tensors,
        lambda p, t: getattr(loss_twins, name)(p.double(), t.double(), reduction),
        4.0 * (n if reduction == "sum" else 1),
    )  # fmt: skip


def nms(rng: random.Random) -> Call:
    dtype, n = rng.choice(DTYPES), rng.choice(_SIZES)
    options = {
        "iou_threshold": rng.choice((0.0, 0.25, 1 / 3, 0.5, 0.7, 1.0)),
        "iou_comparison": rng.choice(("gt", "ge")),
        "length_eps": rng.choice((0.0, 0.0, 1e-3)),
        "max_segments": rng.choice((None, None, 1, 5)),
    }
    chosen = NMSOptions(op="nms", **options)
    tensors = _segments(rng, n, dtype), _scores(rng, n, dtype)
    return Call(
        lambda s, c: ops.nms(s, c, **options), tensors, lambda s, c: nms_twins.nms(s, c, chosen)
    )


def batched_nms(rng: random.Random) -> Call:
    dtype, n = rng.choice(DTYPES), rng.choice(_SIZES)
    options = {
        "method": "hard",
        "iou_threshold": rng.choice((0.25, 0.5, 0.7)),
        "iou_comparison": rng.choice(("gt", "ge")),
        "max_per_class": rng.choice((None, 1, 5)),
        "max_segments": rng.choice((None, 3)),
        "min_score": rng.choice((0.0, 0.25)),
    }
    chosen = NMSOptions(op="batched_nms", **options)
    seed = torch.Generator().manual_seed(rng.randrange(2**31))
    labels, videos = torch.randint(0, 3, (2, n), generator=seed)
    tensors = _segments(rng, n, dtype), _scores(rng, n, dtype), labels, videos
    return Call(
        lambda *t: ops.batched_nms(*t, **options), tensors,
        lambda *t: nms_twins.batched_nms(*t, chosen),
    )  # fmt: skip


def segment_voting(rng: random.Random) -> Call:
    dtype, n, m = rng.choice(DTYPES[:3]), rng.choice(_SIZES), rng.choice(_SIZES)
    threshold, weight = rng.choice((0.3, 0.5, 0.75)), rng.choice(("score", "score_iou"))
    segments, scores = _segments(rng, m, dtype), _scores(rng, m, dtype) + 0.125
    kept = segments[:n]
    return Call(
        lambda k, s, c: ops.segment_voting(k, s, c, threshold, weight), (kept, segments, scores),
        None,  # an overlap within an ulp of the threshold may count or not
    )  # fmt: skip


def deform_attn(rng: random.Random) -> Call:
    dtype = rng.choice(DTYPES)
    levels = rng.choice(((5,), (7, 3), (1,), (8, 4, 2)))
    batch, heads, width, queries, points = (rng.choice(s) for s in (
        (0, 1, 2), (1, 2), (1, 3, 8), (0, 1, 5), (1, 4)))  # fmt: skip
    value = _numbers(rng, batch, sum(levels), heads, width, dtype=dtype, scale=4.0)
    shape = batch, queries, heads, len(levels), points
    # On the edges of rows, between them and beyond both ends.
    # 16 bits would misplace them, and are refused.
    fine = torch.float64 if dtype == torch.float64 else torch.float32
    places = _numbers(rng, *shape, dtype=fine, scale=0.75) + 0.5
    weights = _numbers(rng, *shape, dtype=dtype)
    return Call(
        lambda v, p, w: ops.deform_attn(v, levels, p, w), (value, places, weights),
        lambda v, p, w: attention_twin.deform_attn(v.double(), levels, p.double(), w.double()),
        # A place that differs by an ulp moves the value by as many rows.
        4.0 * len(levels) * points * max(levels),
    )  # fmt: skip


def local_attn(rng: random.Random) -> Call:
    dtype, window = rng.choice(DTYPES[:3]), rng.choice((1, 3, 5))
    shape = rng.choice((1, 2)), rng.choice((1, 6, 33)), rng.choice((1, 2)), rng.choice((1, 3, 8))
    tensors = tuple(_numbers(rng, *shape, dtype=dtype, scale=3.0) for _ in range(3))
    return Call(
        lambda q, k, v: ops.local_attn(q, k, v, window), tensors,
        lambda q, k, v: local_twin.local_attn(q.double(), k.double(), v.double(), window), 12.0,
    )  # fmt: skip


def gather_windows(rng: random.Random) -> Call:
    dtype, rows, count = rng.choice(DTYPES), rng.choice((1, 7, 40)), rng.choice((0, 1, 4))
    length, first = rng.choice((1, 5, 16)), rng.random() < 0.5
    store = _numbers(rng, rows, rng.choice((1, 3, 8)), dtype=dtype, scale=1e3)
    starts = torch.tensor([rng.randrange(rows) for _ in range(count)], dtype=torch.int64)
    sizes = torch.tensor([rng.randint(0, min(length, rows - int(s))) for s in starts],
                         dtype=torch.int64)  # fmt: skip
    return Call(
        lambda s, a, n: ops.gather_windows(s, a, n, length, channels_first=first),
        (store, starts, sizes),
        lambda s, a, n: windows_twin.gather_windows(s, a, n, length, channels_first=first),
        contiguous=True,
    )


def ragged_index(rng: random.Random) -> Call:
    counts = [rng.choice((0, 0, 1, 2, 7, 100)) for _ in range(rng.choice((0, 1, 5, 40)))]
    return Call(
        lambda like: ops.ragged_index(counts, like), (torch.zeros(1),),
        lambda like: ragged_twin.ragged_index(counts),
    )  # fmt: skip


def linear_assignment(rng: random.Random) -> Call:
    dtype = rng.choice(DTYPES[:3])
    rows = [rng.choice((0, 1, 3, 6)) for _ in range(rng.choice((1, 3)))]
    columns = [rng.choice((0, 1, 2, 5)) for _ in rows]
    size = sum(r * c for r, c in zip(rows, columns, strict=True))
    costs = _numbers(rng, size, dtype=dtype, scale=10.0)
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


def boundary_max_pool(rng: random.Random) -> Call:
    dtype, rows, count = rng.choice(DTYPES), rng.choice((1, 4, 9)), rng.choice((0, 1, 3))
    features = _numbers(rng, 2, 4, rows, dtype=dtype, scale=5.0)
    fine = torch.float64 if dtype == torch.float64 else torch.float32
    ends = (_numbers(rng, 2, count, 4, dtype=fine, scale=rows) + rows / 2).clamp(-2, rows + 2)
    ends = ends.reshape(2, count, 2, 2).sort(-1).values.reshape(2, count, 4)
    return Call(ops.boundary_max_pool, (features, ends), pool_twin.boundary_max_pool)


DRAWS: dict[str, Callable[[random.Random], Call]] = {
    draw.__name__: draw
    for draw in (segment_iou, segment_losses, nms, batched_nms, segment_voting, deform_attn,
                 local_attn, gather_windows, ragged_index, linear_assignment, boundary_max_pool)
}  # fmt: skip
