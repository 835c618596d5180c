# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the ops on a GPU: three numbers per op and shape, and its peers in the same run.

``python benchmarks/gpu_bench.py --out rows.json`` measures, for every row,

- ``event``: time per call in a loop, launches included, by CUDA events;
- ``graph``: time per call when a CUDA graph replays it, launches nearly excluded;
- ``floor``: the unique bytes it must move (each input read once, each output written once) at the
  bandwidth of a device-to-device copy measured at the start, and graph time as a share of it.

Contenders take turns, medians count, and each peer's result is compared with ours first: a failed
comparison leaves the peer's error in the row instead of a time. Shapes whose data fit the L2 cache
are timed with it warm, as they are in training; the others with a flushed one in between.
``--rehearse`` runs everything on the CPU with tiny shapes and host clocks: a check of this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from gpu_harness import Bench, Call, close
from peers import PeerMissingError, gpu_attention, stand_ins

from tal_fast import ops

__all__ = ["PARTS", "main"]

# ---- the cases ---------------------------------------------------------------------------------

# (B, Q, heads, channels, points, level lengths), as in bench_deform_attn.py, and a padded window.
ATTENTION = {
    "A": (16, 128, 8, 32, 4, (128,)),
    "B": (16, 40, 8, 32, 4, (128,)),
    "W": (8, 256, 8, 32, 4, (256,)),
    "P": (8, 2304, 8, 32, 4, (2304,)),
    "C": (2, 4536, 8, 32, 4, (2304, 1152, 576, 288, 144, 72)),
}
TINY = dict.fromkeys(ATTENTION, (1, 6, 2, 8, 2, (8,)))


#: Peers without 16-bit kernels.
_FLOAT32_ALONE = ("DiGIT", "Deformable-DETR, H = 1")
_COMPILED_CORE = {("A", "float32"), ("W", "float32")}
_COMPILED_GATHER = {(name, "float32") for name in "ABWP"} | {("A", "bfloat16"), ("P", "bfloat16")}


def attention(bench: Bench) -> None:
    """deform_attn and its fused form, fp32 and bf16, forward and forward + backward."""

    def compiled(function: Any) -> Any:
        return torch.compile(function, dynamic=False) if bench.real else function

    core = compiled(stand_ins.deform_attn_grid_sample)
    gather = compiled(stand_ins.deform_attn_gather)
    for dtype in (torch.float32, torch.bfloat16):
        for name, shape in (ATTENTION if bench.real else TINY).items():
            case = AttentionCase(name, shape, dtype, bench.device)
            _plain_attention(bench, case, core, gather)
            _fused_attention(bench, case)


class AttentionCase:
    """Random inputs of one shape and dtype, and the bytes that its op must move."""

    def __init__(self, name: str, shape: Any, dtype: torch.dtype, device: torch.device) -> None:
        batch, queries, heads, channels, self.points, self.lengths = shape
        self.name, self.dtype, self.label = name, dtype, str(dtype).removeprefix("torch.")
        levels = len(self.lengths)
        self.samples = (batch, queries, heads, levels, self.points)
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        # A tenth of a row from integer positions, where the gradient jumps.
        sizes = torch.tensor(self.lengths).view(1, 1, 1, -1, 1)
        cell = torch.floor(torch.rand(self.samples, generator=generator) * (sizes + 2)) - 1
        inside = 0.1 + 0.8 * torch.rand(self.samples, generator=generator)
        self.locations = ((cell + inside + 0.5) / sizes).to(device)
        weights = normal(*self.samples).flatten(3).softmax(-1).view(self.samples)
        self.weights = weights.to(device, dtype)
        self.value = normal(batch, sum(self.lengths), heads, channels).to(device, dtype)
        self.grad = normal(batch, queries, heads * channels).to(device, dtype)
        self.centre = torch.rand(batch, queries, levels, 2, generator=generator).to(device)
        self.half = heads * levels * self.points
        self.projected = normal(batch, queries, 2 * self.half).to(device, dtype)
        item = self.value.element_size()
        by_sample = self.locations.numel() * (4 + item)
        self.forward_bytes = (self.value.numel() + self.grad.numel()) * item + by_sample
        self.backward_bytes = (2 * self.value.numel() + self.grad.numel()) * item + 2 * by_sample
        self.fused_bytes = item * (
            3 * self.value.numel() + 2 * self.grad.numel() + 4 * self.projected.numel()
        )
        self.large = self.forward_bytes > 20e6
        # What any float32 implementation can reach; 16 bits round results once.
        exact = dtype == torch.float32
        self.bound = max(1e-5, 16 * sum(self.lengths) * 2.0**-24) if exact else 5e-2

    def differentiated(self, function: Any, *inputs: Tensor) -> Call:
        """Returns a call that gives the output of the function and all gradients."""
        leaves = [x.detach().clone().requires_grad_() for x in inputs]

        def call() -> tuple[Tensor, ...]:
            out = function(*leaves)
            grads = torch.autograd.grad(out, leaves, self.grad.to(out.dtype))
            # Peers with two coordinates have a gradient for the second: not compared.
            return (out.detach(), *(g[..., 0] if g.dim() == 6 else g for g in grads))

        return call


def _plain_attention(bench: Bench, case: AttentionCase, core: Any, gather: Any) -> None:
    # The eager form samples with locations of value's dtype.
    own_dtype = case.locations.to(case.dtype)
    contenders: dict[str, tuple[Any, Tensor]] = {
        "grid_sample core": (_with(stand_ins.deform_attn_grid_sample, case), own_dtype)
    }
    # Compiling takes seconds each: the shapes and types that the targets speak of.
    if (case.name, case.label) in _COMPILED_CORE:
        contenders["compiled grid_sample core"] = (_with(core, case), own_dtype)
    if (case.name, case.label) in _COMPILED_GATHER:
        contenders["compiled gather"] = (_with(gather, case), case.locations)
    for peer, (adapter, shape_locations) in gpu_attention.PEERS.items():
        if case.dtype != torch.float32 and peer in _FLOAT32_ALONE:
            continue
        try:
            prepared = adapter(case.lengths, bench.device)
        except PeerMissingError:
            continue
        contenders[peer] = (prepared, shape_locations(case.locations).contiguous())

    def forward(function: Any, locations: Tensor) -> Call:
        def call() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (function(case.value, locations, case.weights),)

        return call

    def both(function: Any, locations: Tensor) -> Call:
        return case.differentiated(function, case.value, locations, case.weights)

    for what, make, num_bytes in (
        ("fwd", forward, case.forward_bytes),
        ("fwd+bwd", both, case.forward_bytes + case.backward_bytes),
    ):
        bench.compare(
            "deform_attn",
            f"{case.name} {what} {case.label}",
            make(_with(ops.deform_attn, case), case.locations),
            {peer: make(function, at) for peer, (function, at) in contenders.items()},
            num_bytes=num_bytes,
            check=close(case.bound),
            # 16-bit locations misplace samples by up to several rows.
            unchecked=[p for p, (_, at) in contenders.items() if at.dtype != torch.float32],
            large=case.large,
        )


def _with(function: Any, case: AttentionCase) -> Any:
    return lambda value, locations, weights: function(value, case.lengths, locations, weights)


def _fused_attention(bench: Bench, case: AttentionCase) -> None:
    def fused(value: Tensor, projected: Tensor) -> Tensor:
        offsets, raw = projected.split(case.half, -1)
        shape = case.samples
        return ops.deform_attn_fused(
            value, case.lengths, case.centre, offsets.view(shape), raw.view(shape)
        )

    def composed(value: Tensor, projected: Tensor) -> Tensor:
        offsets, raw = projected.split(case.half, -1)
        share = raw.float().reshape(*case.samples[:3], -1).softmax(-1).view(case.samples)
        middle, width = case.centre[:, :, None, :, None].unbind(-1)
        at = middle + offsets.reshape(case.samples).float() * width * 0.5 / case.points
        return ops.deform_attn(value, case.lengths, at, share.to(value.dtype))

    exact = case.dtype == torch.float32
    bench.compare(
        "deform_attn_fused",
        f"{case.name} fwd+bwd {case.label}",
        case.differentiated(fused, case.value, case.projected),
        {"deform_attn + eager softmax": case.differentiated(composed, case.value, case.projected)},
        num_bytes=case.fused_bytes,
        check=close(1e-3) if exact else None,  # offsets of 16 bits lie on integer positions
        large=case.large,
    )


def _random_segments(n: int, scale: float, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(n, generator=generator) * scale
    return torch.stack((start, start + 0.5 + 10 * torch.rand(n, generator=generator)), 1).to(device)


def overlaps(bench: Bench) -> None:
    """Pairwise IoU and GIoU, the matching cost, the assignment."""
    n = 4096 if bench.real else 64
    a, b = (_random_segments(n, 1000.0, bench.device, seed) for seed in (0, 1))
    tools = stand_ins.iou_tools()
    for kind in ("iou", "giou"):
        eager = getattr(tools, f"compute_{kind}_torch")
        peers: dict[str, Call] = {"eager": lambda f=eager: (f(b, a),)}
        if bench.real:
            compiled = torch.compile(eager, dynamic=False)
            peers["compiled"] = lambda f=compiled: (f(b, a),)
        eps = 1e-6 if kind == "giou" else 0.0
        bench.compare(
            "segment_iou",
            f"{kind} {n} x {n} float32",
            lambda kind=kind, eps=eps: (ops.segment_iou(a, b, kind, eps=eps),),
            peers,
            num_bytes=n * n * 4,
            check=close(1e-5),
            large=True,
        )
    generator = torch.Generator().manual_seed(0)
    counts = [3] * 16
    logits = torch.randn(16, 40, 20, generator=generator).to(bench.device)
    queries = (torch.rand(16, 40, 2, generator=generator) * 0.5 + 0.1).to(bench.device)
    labels = torch.randint(20, (48,), generator=generator).to(bench.device)
    targets = (torch.rand(48, 2, generator=generator) * 0.5 + 0.1).to(bench.device)
    outputs = {"pred_logits": logits, "pred_segments": queries}
    wanted = [
        {"labels": x, "segments": y} for x, y in zip(labels.split(3), targets.split(3), strict=True)
    ]
    bench.compare(
        "matching_cost",
        "16 videos x 40 queries, 48 targets",
        lambda: (ops.matching_cost(logits, queries, labels, targets, counts),),
        {"TadTR's cost, all pairs": lambda: (stand_ins.matching_cost(outputs, wanted),)},
    )
    from scipy.optimize import linear_sum_assignment

    columns = [1 + i % 12 for i in range(64)]
    costs = torch.rand(40 * sum(columns), generator=generator).to(bench.device)

    def on_host() -> list[Any]:
        blocks = costs.cpu().split([40 * c for c in columns])
        return [linear_sum_assignment(x.view(40, -1).numpy()) for x in blocks]

    bench.compare(
        "linear_assignment",
        "64 x (40 x 1..12)",
        lambda: tuple(ops.linear_assignment(costs, 40, columns)),
        {"scipy, copy included": on_host},
    )


def suppression(bench: Bench) -> None:
    """Hard NMS of one list and of a data set, soft-NMS and voting."""
    try:
        from torchvision.ops import batched_nms as their_batched
        from torchvision.ops import nms as their_nms
    except (ImportError, RuntimeError):
        their_batched = their_nms = None

    def boxes(segments: Tensor) -> Tensor:
        zero = torch.zeros_like(segments[:, :1])
        return torch.cat((segments[:, :1], zero, segments[:, 1:], zero + 1), 1)

    def same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
        if not torch.equal(ours[0].sort().values, theirs[0].sort().values):
            raise AssertionError("other segments are kept")

    for n in (2000, 10000, 40000) if bench.real else (200,):
        segments = _random_segments(n, n / 4.0, bench.device)
        scores = torch.rand(n, generator=torch.Generator().manual_seed(1)).to(bench.device)
        peers: dict[str, Call] = {}
        if their_nms is not None:
            as_boxes = boxes(segments)
            peers["torchvision nms"] = lambda b=as_boxes, s=scores: (their_nms(b, s, 0.5),)
        bench.compare(
            "nms",
            f"hard, {n} segments",
            lambda x=segments, s=scores: (ops.nms(x, s, 0.5),),
            peers,
            check=same,
            graph=False,
        )
    videos, each = (213, 2000) if bench.real else (3, 60)
    total = videos * each
    segments = _random_segments(total, 200.0, bench.device)
    generator = torch.Generator().manual_seed(2)
    scores = torch.rand(total, generator=generator).to(bench.device)
    labels = torch.randint(20, (total,), generator=generator).to(bench.device)
    video = torch.arange(videos).repeat_interleave(each).to(bench.device)
    case = f"{videos} videos x {each} x 20 classes"
    peers = {}
    if their_batched is not None:
        as_boxes = boxes(segments)
        peers["torchvision batched_nms"] = lambda: (
            their_batched(as_boxes, scores, video * 20 + labels, 0.5),
        )
    bench.compare(
        "batched_nms",
        f"hard, {case}",
        lambda: (ops.batched_nms(segments, scores, labels, video).indices,),
        peers,
        check=same,
        graph=False,
    )
    host = [x.cpu() for x in (segments, scores, labels, video)]
    for method, voting in (("gaussian", None), ("gaussian", 0.7)):
        settings: Any = {"method": method, "voting_threshold": voting, "min_score": 0.001}
        bench.compare(
            "batched_nms",
            f"{method}{' + voting' if voting else ''}, {case}",
            lambda settings=settings: tuple(
                ops.batched_nms(segments, scores, labels, video, **settings)
            )[:1],
            {
                "tal_fast on the CPU": lambda settings=settings: tuple(
                    x.to(bench.device) for x in ops.batched_nms(*host, **settings)[:1]
                )
            },
            check=same,
            graph=False,
        )


def local_attention(bench: Bench) -> None:
    """Banded self-attention at ActionFormer's sizes."""
    rows = 2304 if bench.real else 40
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(2, rows, 4, 128, generator=generator).to(bench.device).requires_grad_()
        for _ in range(3)
    ]
    grad = torch.randn(2, rows, 4, 128, generator=generator).to(bench.device)
    t = torch.arange(rows, device=bench.device)
    band = (t[:, None] - t).abs() <= 9

    def masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=band)
        return out.transpose(1, 2)

    def run(function: Callable[..., Tensor]) -> Call:
        def call() -> tuple[Tensor, ...]:
            out = function(*parts)
            return (out.detach(), *torch.autograd.grad(out, parts, grad))

        return call

    bench.compare(
        "local_attn",
        f"fwd+bwd 2 x {rows} rows, 4 heads of 128, window 19",
        run(lambda q, k, v: ops.local_attn(q, k, v, 19)),
        {"masked scaled_dot_product_attention": run(masked)},
        num_bytes=11 * grad.numel() * 4,
        check=close(1e-3),
    )


def pooling(bench: Bench) -> None:
    """Segment RoI align, boundary max pooling, dropout, and the gather of windows."""
    generator = torch.Generator().manual_seed(0)
    rows = 256 if bench.real else 16
    features = torch.randn(8, 256, rows, generator=generator).to(bench.device).requires_grad_()
    rois = torch.cat(
        (torch.arange(800)[:, None] % 8, _random_segments(800, rows * 0.9, torch.device("cpu"))), 1
    ).to(bench.device)
    grad = torch.randn(800, 256, 16, generator=generator).to(bench.device)

    def run(function: Callable[[Tensor], Tensor]) -> Call:
        def call() -> tuple[Tensor, ...]:
            out = function(features)
            return (out.detach(), *torch.autograd.grad(out, features, grad))

        return call

    bench.compare(
        "segment_roi_align",
        "fwd+bwd 800 x 256 x 16 float32",
        run(lambda x: ops.segment_roi_align(x, rois, 16)),
        {"compiled gather": run(_roi_gather(bench, rois))} if bench.real else {},
        num_bytes=2 * features.numel() * 4 + 2 * grad.numel() * 4,
        check=close(1e-3),
    )
    x = torch.randn(16, 128, 2048, generator=generator).to(bench.device).requires_grad_()

    def dropped(function: Callable[[Tensor], Tensor]) -> Call:
        def call() -> tuple[Tensor, ...]:
            out = function(x)
            return (out.detach(), *torch.autograd.grad(out, x, x.detach()))

        return call

    bench.compare(
        "dropout",
        "relu + dropout fwd+bwd 16 x 128 x 2048",
        dropped(lambda y: ops.dropout(y, 0.1, relu=True)),
        {
            "eager": dropped(
                lambda y: torch.nn.functional.dropout(torch.relu(y), 0.1, training=True)
            )
        },
        num_bytes=5 * x.numel() * 4,
        graph=False,
    )
    gather(bench)


def _roi_gather(bench: Bench, rois: Tensor) -> Callable[[Tensor], Tensor]:
    function = torch.compile(stand_ins.segment_roi_align_gather, dynamic=False)
    return lambda x: function(x, rois, 16)


def gather(bench: Bench) -> None:
    """Windows of features that live on the device."""
    if not hasattr(ops, "gather_windows"):
        return
    rows, channels, length, batch = (400_000, 2048, 128, 16) if bench.real else (500, 16, 8, 4)
    for dtype in (torch.float32, torch.bfloat16):
        store = torch.empty(rows, channels, device=bench.device, dtype=dtype).normal_()
        first = torch.arange(batch, device=bench.device) * (rows // batch - length)
        count = torch.full_like(first, length)

        def indexed(store: Tensor = store, first: Tensor = first) -> tuple[Tensor, ...]:
            index = first[:, None] + torch.arange(length, device=first.device)
            return (store[index].float(),)

        bench.compare(
            "gather_windows",
            f"{batch} x {length} x {channels} of {dtype}".replace("torch.", ""),
            lambda store=store, first=first, count=count: (
                ops.gather_windows(store, first, count, length, dtype=torch.float32)[0],
            ),
            {"eager indexing": indexed},
            num_bytes=batch * length * channels * (store.element_size() + 4),
            check=close(0),
        )
        del store


PARTS: dict[str, Callable[[Bench], None]] = {
    "attention": attention,
    "overlaps": overlaps,
    "suppression": suppression,
    "local_attn": local_attention,
    "pooling": pooling,
}


def main() -> int:
    """Runs the parts; one that fails is recorded and the others go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny, host clocks")
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        print("torch finds no GPU; --rehearse runs this on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    bench = Bench(device, rounds=2 if arguments.rehearse else arguments.rounds)
    print(f"copy: {bench.copy_gbs:.0f} GB/s", flush=True)
    failures = {}
    for part in arguments.parts:
        try:
            PARTS[part](bench)
        except Exception:
            failures[part] = traceback.format_exc()
            print(failures[part], file=sys.stderr, flush=True)
        content = {
            "copy_gbs": bench.copy_gbs,
            "rehearsed": arguments.rehearse,
            "failures": failures,
            "rows": [{**asdict(r), "share_of_floor": r.share_of_floor()} for r in bench.rows],
        }
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    errors = [row for row in bench.rows if row.error and row.name == "tal_fast"]
    return 1 if failures or errors else 0


if __name__ == "__main__":
    sys.exit(main())
