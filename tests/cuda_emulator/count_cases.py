# SPDX-License-Identifier: Apache-2.0
"""The calls whose kernels are counted: every op at the shapes that goals speak of.

Shapes are whole, so that launches are those of a GPU; only some of the blocks are run and counted,
where nothing needs the results of the others. What is cut nevertheless says so by ``scale``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tal_fast import ops

__all__ = ["CASES", "CountCase"]

# (B, Q, heads, channels, points, level lengths): TadTR's encoder and decoder on THUMOS14, OpenTAD's
# configuration, one long level, a pyramid. As in benchmarks/gpu_bench_attention.py.
_ATTENTION = {
    "A": (16, 128, 8, 32, 4, (128,)),
    "B": (16, 40, 8, 32, 4, (128,)),
    "W": (8, 256, 8, 32, 4, (256,)),
    "P": (8, 2304, 8, 32, 4, (2304,)),
    "C": (2, 4536, 8, 32, 4, (2304, 1152, 576, 288, 144, 72)),
}


@dataclass(frozen=True)
class CountCase:
    """One call of an op, and how its launches stand for those of the whole problem.

    Attributes:
        op: Name of the op, as in the benchmark.
        case: Name of the benchmark's case.
        make: Makes the inputs; returns the call that is counted.
        num_bytes: What the whole problem must move: inputs read once, outputs written once.
        scale: The whole problem has so many times the blocks of the call.
        partly: How the names of kernels begin of which only the counted blocks are run.
    """

    op: str
    case: str
    make: Callable[[], Callable[[], Any]]
    num_bytes: int
    scale: float = 1.0
    partly: Sequence[str] = field(default=())

    @property
    def name(self) -> str:
        """``op: case``."""
        return f"{self.op}: {self.case}"


CASES: dict[str, CountCase] = {}


def _add(*arguments: Any, **settings: Any) -> None:
    case = CountCase(*arguments, **settings)
    assert case.name not in CASES
    CASES[case.name] = case


def _label(dtype: torch.dtype, backward: bool = False) -> str:
    return str(dtype).removeprefix("torch.") + (" bwd" if backward else "")


def _segments(n: int, scale: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(n, generator=generator) * scale
    return torch.stack((start, start + 0.5 + 10 * torch.rand(n, generator=generator)), 1)


def _pass(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], backward: bool
) -> Callable[[], Any]:
    """A call of the forward pass, or of the backward pass alone, for which it went forward."""
    if not backward:
        return lambda: function(*inputs)
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    grad = torch.ones_like(out)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


# ---- attention ---------------------------------------------------------------------------------


def _attention(name: str, dtype: torch.dtype, fused: bool, backward: bool) -> None:
    batch, queries, heads, channels, points, lengths = _ATTENTION[name]
    samples = (batch, queries, heads, len(lengths), points)
    rows, count = sum(lengths), torch.Size(samples).numel()
    item = dtype.itemsize
    values, outputs = batch * rows * heads * channels, batch * queries * heads * channels
    # Locations are float32, offsets are not.
    inputs = (2 * item if fused else 4 + item) * count
    num_bytes = item * (values + outputs) + inputs
    if backward:
        num_bytes = item * (2 * values + outputs) + 2 * inputs

    def make() -> Callable[[], Any]:
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        value = normal(batch, rows, heads, channels).to(dtype)
        weights = normal(*samples)
        if fused:
            centre = torch.rand(batch, queries, len(lengths), 2, generator=generator)
            parts = [value, normal(*samples).to(dtype), weights.to(dtype)]
            return _pass(
                lambda v, o, w: ops.deform_attn_fused(v, lengths, centre, o, w), parts, backward
            )
        weights = weights.flatten(3).softmax(-1).view(samples).to(dtype)
        parts = [value, torch.rand(samples, generator=generator), weights]
        return _pass(lambda v, x, w: ops.deform_attn(v, lengths, x, w), parts, backward)

    op = "deform_attn_fused" if fused else "deform_attn"
    what = "bwd" if backward else "fwd"
    partly = [f"{op} forward", f"{op} backward"]
    _add(op, f"{name} {what} {_label(dtype)}", make, num_bytes, partly=partly)


# ---- overlaps, matching ------------------------------------------------------------------------


def _iou(kind: str, dtype: torch.dtype, backward: bool) -> None:
    n = 4096

    def make() -> Callable[[], Any]:
        parts = [_segments(n, 1000.0, seed).to(dtype) for seed in (0, 1)]
        return _pass(
            lambda x, y: ops.segment_iou(x, y, kind, eps=1e-6),  # type: ignore[arg-type]
            parts,
            backward,
        )

    _add(
        "segment_iou",
        f"{kind} {n} x {n} {_label(dtype, backward)}",
        make,
        dtype.itemsize * (n * n + (8 if backward else 4) * n),
        partly=["segment_iou"],
    )


def _matching() -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(0)
    counts = [int(n) for n in torch.randint(1, 25, (16,), generator=generator)]
    logits = torch.randn(4, 16, 40, 20, generator=generator)
    queries = torch.rand(4, 16, 40, 2, generator=generator)
    labels = torch.randint(20, (sum(counts),), generator=generator)
    targets = torch.rand(sum(counts), 2, generator=generator)

    def call() -> Any:
        costs = ops.matching_cost(logits, queries, labels, targets, counts)
        return ops.linear_assignment(costs, 40, counts * 4)

    return call


def _assignment() -> Callable[[], Any]:
    costs = torch.rand(4 * 300 * 60, generator=torch.Generator().manual_seed(0))
    return lambda: ops.linear_assignment(costs, [300] * 4, [60] * 4)


# ---- suppression -------------------------------------------------------------------------------


def _nms(n: int) -> None:
    def make() -> Callable[[], Any]:
        segments = _segments(n, n / 4.0)
        scores = torch.rand(n, generator=torch.Generator().manual_seed(1))
        return lambda: ops.nms_padded(segments, scores, 0.5, n)

    _add("nms_padded", f"hard, {n} segments", make, 12 * n + 8 * n)


# A tenth of the videos: every kernel has a block or a thread per segment, problem or video.
_VIDEOS, _COUNTED_VIDEOS, _EACH = 213, 21, 2000


def _batches(method: str, voting: float | None = None) -> None:
    def make() -> Callable[[], Any]:
        total = _COUNTED_VIDEOS * _EACH
        generator = torch.Generator().manual_seed(2)
        segments = _segments(total, 200.0)
        scores = torch.rand(total, generator=generator)
        labels = torch.randint(20, (total,), generator=generator)
        video = torch.arange(_COUNTED_VIDEOS).repeat_interleave(_EACH)
        return lambda: ops.batched_nms_padded(
            segments,
            scores,
            labels,
            video,
            method=method,
            max_segments=200,
            num_videos=_COUNTED_VIDEOS,
            voting_threshold=voting,
        )

    _add(
        "batched_nms_padded",
        f"{method}{' + voting' if voting else ''}, {_VIDEOS} videos x {_EACH} x 20 classes",
        make,
        _VIDEOS * _EACH * (12 + 16) + _VIDEOS * 200 * 20,
        scale=_VIDEOS / _COUNTED_VIDEOS,
    )


# ---- windows, pooling, local attention, dropout ------------------------------------------------


def _local(dtype: torch.dtype, backward: bool) -> None:
    size = (2, 2304, 4, 128)

    def make() -> Callable[[], Any]:
        generator = torch.Generator().manual_seed(0)
        parts = [torch.randn(size, generator=generator).to(dtype) for _ in range(3)]
        return _pass(lambda q, k, v: ops.local_attn(q, k, v, 19), parts, backward)

    _add(
        "local_attn",
        f"2 x 2304 rows, 4 heads of 128, window 19 {_label(dtype, backward)}",
        make,
        dtype.itemsize * torch.Size(size).numel() * (7 if backward else 4),
        partly=["local_attn"],
    )


def _roi_align(dtype: torch.dtype, backward: bool) -> None:
    def make() -> Callable[[], Any]:
        features = torch.randn(8, 256, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
        rois = torch.cat((torch.arange(800)[:, None] % 8, _segments(800, 230.0)), 1)
        return _pass(lambda x: ops.segment_roi_align(x, rois, 16), [features], backward)

    _add(
        "segment_roi_align",
        f"800 x 256 x 16 {_label(dtype, backward)}",
        make,
        dtype.itemsize * (8 * 256 * 256 + 800 * 256 * 16),
        partly=["segment_roi_align"],
    )


def _max_pool(dtype: torch.dtype, backward: bool) -> None:
    def make() -> Callable[[], Any]:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(8, 256, 128, generator=generator).to(dtype)
        bounds = torch.randint(128, (8, 126, 4), generator=generator).sort(-1).values.float()
        return _pass(lambda x: ops.boundary_max_pool(x, bounds), [features], backward)

    _add(
        "boundary_max_pool",
        f"8 x 256 x 128, 126 anchors {_label(dtype, backward)}",
        make,
        dtype.itemsize * 8 * 256 * (128 + 126),
    )


def _dropout(backward: bool) -> None:
    def make() -> Callable[[], Any]:
        x = torch.randn(16, 128, 2048, generator=torch.Generator().manual_seed(0))

        def function(y: Tensor) -> Tensor:
            torch.manual_seed(0)
            return ops.dropout(y, 0.1, relu=True)

        return _pass(function, [x], backward)

    _add(
        "dropout",
        f"relu + dropout 16 x 128 x 2048{' bwd' if backward else ''}",
        make,
        4 * 16 * 128 * 2048 * (3 if backward else 2),
        partly=["dropout"],
    )


def _gather(dtype: torch.dtype, channels_first: bool) -> None:
    def make() -> Callable[[], Any]:
        store = torch.randn(4096, 2048, generator=torch.Generator().manual_seed(0)).to(dtype)
        first = torch.arange(16) * 248
        rows = torch.full_like(first, 128)
        return lambda: ops.gather_windows(
            store, first, rows, 128, dtype=torch.float32, channels_first=channels_first
        )

    _add(
        "gather_windows",
        f"16 x 128 x 2048 of {_label(dtype)}{', channels first' if channels_first else ''}",
        make,
        16 * 128 * 2048 * (dtype.itemsize + 4),
        partly=["gather_windows"],
    )


_TWO = (torch.float32, torch.bfloat16)
for _name in _ATTENTION:
    for _dtype in _TWO:
        for _fused in (False, True):
            for _backward in (False, True):
                _attention(_name, _dtype, _fused, _backward)
for _kind in ("iou", "giou"):
    for _dtype in _TWO:
        _iou(_kind, _dtype, False)
_iou("iou", torch.float32, True)
_add(
    "matching_cost, linear_assignment",
    "4 layers x 16 clips x 40 queries, 20 classes",
    _matching,
    4 * 4 * 16 * 40 * (20 + 2 + 12),
)
_add("linear_assignment", "4 problems of 300 x 60", _assignment, 4 * 4 * 300 * 60)
_add(
    "ragged_index",
    "64 lists",
    lambda: lambda: ops.ragged_index([k % 30 for k in range(64)], torch.empty(0)),
    8 * 64 * 15,
)
_nms(2000)
_batches("hard")
_batches("gaussian")
_batches("hard", 0.7)
for _dtype in _TWO:
    for _backward in (False, True):
        _local(_dtype, _backward)
        _roi_align(_dtype, _backward)
        _max_pool(_dtype, _backward)
    for _first in (False, True):
        _gather(_dtype, _first)
for _backward in (False, True):
    _dropout(_backward)
