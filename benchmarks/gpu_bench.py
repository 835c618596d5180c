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
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from peers import PeerMissingError, gpu_attention, stand_ins

from tal_fast import ops

__all__ = ["Bench", "GpuRow", "main"]

Call = Callable[[], Any]


@dataclass
class GpuRow:
    """One contender of one case; times in microseconds, medians."""

    op: str
    case: str
    name: str
    event_us: float | None = None
    graph_us: float | None = None
    floor_us: float | None = None
    bytes: int | None = None
    cache: str = "warm"
    error: str | None = None
    ratio_event: float | None = None  # peer over ours
    ratio_graph: float | None = None

    def share_of_floor(self) -> float | None:
        """Floor over graph time: 1 is as fast as a copy of the same bytes."""
        if self.graph_us is None or not self.floor_us:
            return None
        return self.floor_us / self.graph_us


@dataclass
class Bench:
    """Times calls on one device and keeps the rows."""

    device: torch.device
    rounds: int = 20
    copy_gbs: float = 0.0
    rows: list[GpuRow] = field(default_factory=list)
    seconds_left: Callable[[], float] = lambda: 1e9

    def __post_init__(self) -> None:
        self.real = self.device.type == "cuda"
        size = (1 << 28) if self.real else (1 << 20)
        self._flush = torch.empty(1 << 26 if self.real else 1, device=self.device)
        source = torch.empty(size, device=self.device, dtype=torch.uint8).random_()
        target = torch.empty_like(source)
        copy_us = self._median(lambda: target.copy_(source), 5)
        self.copy_gbs = 2 * size / copy_us / 1e3

    # ---- clocks --------------------------------------------------------------------------------
    def _time(self, call: Call, number: int) -> float:
        """Microseconds per call of one sample."""
        if not self.real:
            began = time.perf_counter()
            for _ in range(number):
                call()
            return (time.perf_counter() - began) / number * 1e6
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(number):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / number * 1e3

    def _median(self, call: Call, rounds: int) -> float:
        call()
        return statistics.median(self._time(call, 4) for _ in range(rounds))

    def _graph(self, call: Call) -> Call | None:
        """A replay of the call, or None where it cannot be captured."""
        if not self.real:
            return None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    # ---- a case --------------------------------------------------------------------------------
    def compare(
        self,
        op: str,
        case: str,
        ours: Call,
        peers: dict[str, Call],
        *,
        num_bytes: int | None = None,
        check: Callable[[Any, Any], None] | None = None,
        graph: bool = True,
        large: bool = False,
    ) -> None:
        """Times ours against the peers and keeps one row each."""
        calls: dict[str, Call] = {"tal_fast": ours, **peers}
        cache = "flushed" if large else "warm"
        rows = {name: GpuRow(op, case, name, cache=cache) for name in calls}
        expected: Any = None
        for name, call in list(calls.items()):
            try:
                result = call()
                if name == "tal_fast":
                    expected = result
                elif check is not None:
                    check(expected, result)
            except Exception as error:  # a row says what went wrong, the others go on
                rows[name].error = f"{type(error).__name__}: {error}"[:300]
                del calls[name]
        if self.real:
            torch.cuda.synchronize()
        replays: dict[str, Call] = {}
        for name, call in calls.items() if graph else ():
            try:
                replay = self._graph(call)
            except Exception as error:
                rows[name].error = f"no graph: {type(error).__name__}: {error}"[:300]
                if self.real:
                    torch.cuda.synchronize()
            else:
                if replay is not None:
                    replays[name] = replay
        for kind, contenders in (("event_us", calls), ("graph_us", replays)):
            samples = self._interleaved(contenders, large)
            for name, values in samples.items():
                setattr(rows[name], kind, statistics.median(values))
        base = rows["tal_fast"]
        if num_bytes is not None:
            base.bytes = num_bytes
            base.floor_us = num_bytes / self.copy_gbs / 1e3
        for name, row in rows.items():
            if name != "tal_fast":
                row.ratio_event = _ratio(row.event_us, base.event_us)
                row.ratio_graph = _ratio(row.graph_us, base.graph_us)
            self.rows.append(row)
            print(_line(row), flush=True)

    def _interleaved(self, calls: dict[str, Call], large: bool) -> dict[str, list[float]]:
        number = {}
        for name, call in calls.items():
            once = self._time(call, 1)
            number[name] = 1 if large else max(1, min(50, int(300 / max(once, 0.1))))
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(self.rounds):
            for name, call in calls.items():
                if large:
                    self._flush.zero_()
                samples[name].append(self._time(call, number[name]))
        return samples


def _ratio(peer: float | None, ours: float | None) -> float | None:
    return None if peer is None or not ours else peer / ours


def _line(row: GpuRow) -> str:
    def show(value: float | None, unit: str = "") -> str:
        return "-" if value is None else f"{value:.3g}{unit}"

    share = row.share_of_floor()
    return (
        f"{row.op:18} {row.case:32} {row.name:26} event {show(row.event_us, ' us'):>9}"
        f"  graph {show(row.graph_us, ' us'):>9}  floor {show(row.floor_us, ' us'):>9}"
        f"  of floor {'-' if share is None else f'{share:.0%}':>5}"
        f"  ratio {show(row.ratio_event, 'x'):>7} {show(row.ratio_graph, 'x'):>7}"
        f"{'' if row.error is None else '  ' + row.error}"
    )


def _close(bound: float) -> Callable[[Any, Any], None]:
    def check(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
        for part, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a, b = a.double().flatten(), b.double().flatten()
            error = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
            if not error <= bound:
                raise AssertionError(f"result {part} is off by {error:.1e}, allowed {bound:.1e}")

    return check


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


_COMPILED_CORE = {("A", "float32"), ("W", "float32")}
_COMPILED_GATHER = {(name, "float32") for name in "ABWP"} | {("A", "bfloat16"), ("P", "bfloat16")}


def attention(bench: Bench) -> None:
    """deform_attn and its fused form, fp32 and bf16, forward and forward + backward."""
    compiled = {
        "compiled grid_sample core": torch.compile(stand_ins.deform_attn_grid_sample, dynamic=False)
        if bench.real
        else stand_ins.deform_attn_grid_sample,
        "compiled gather": torch.compile(stand_ins.deform_attn_gather, dynamic=False)
        if bench.real
        else stand_ins.deform_attn_gather,
    }
    for dtype, (name, shape) in (
        (dtype, item)
        for dtype in (torch.float32, torch.bfloat16)
        for item in (ATTENTION if bench.real else TINY).items()
    ):
        batch, queries, heads, channels, points, lengths = shape
        generator = torch.Generator().manual_seed(0)
        samples = (batch, queries, heads, len(lengths), points)
        rows = sum(lengths)
        sizes = torch.tensor(lengths).view(1, 1, 1, -1, 1)
        cell = torch.floor(torch.rand(samples, generator=generator) * (sizes + 2)) - 1
        fraction = 0.1 + 0.8 * torch.rand(samples, generator=generator)
        points_at = ((cell + fraction + 0.5) / sizes).to(bench.device)
        logits = torch.randn(samples, generator=generator)
        weights = logits.flatten(3).softmax(-1).view(samples).to(bench.device, dtype)
        value = torch.randn(batch, rows, heads, channels, generator=generator)
        value = value.to(bench.device, dtype)
        grad = torch.randn(batch, queries, heads * channels, generator=generator)
        grad = grad.to(bench.device, dtype)
        item = value.element_size()
        sample_count = points_at.numel()
        unique = value.numel() * item + grad.numel() * item + sample_count * (4 + item)
        large = unique > 20e6
        short = str(dtype).removeprefix("torch.")
        bound = max(1e-5, 16 * rows * 2.0**-24) if dtype == torch.float32 else 5e-2

        def forward(
            function: Any, at: Tensor, value: Tensor = value, weights: Tensor = weights
        ) -> Call:
            def call() -> tuple[Tensor, ...]:
                with torch.no_grad():
                    return (function(value, at, weights),)

            return call

        def both(
            function: Any,
            at: Tensor,
            value: Tensor = value,
            weights: Tensor = weights,
            grad: Tensor = grad,
        ) -> Call:
            leaves = [x.detach().clone().requires_grad_() for x in (value, at, weights)]

            def call() -> tuple[Tensor, ...]:
                out = function(*leaves)
                grads = torch.autograd.grad(out, leaves, grad.to(out.dtype))
                # Peers with two coordinates have a gradient for the second: not compared.
                by_location = grads[1] if grads[1].dim() == 5 else grads[1][..., 0]
                return (out.detach(), grads[0], by_location, grads[2])

            return call

        bound_op = lambda v, x, w, lengths=lengths: ops.deform_attn(v, lengths, x, w)  # noqa: E731
        cores: dict[str, tuple[Any, Tensor]] = {
            "grid_sample core": (
                lambda v, x, w, lengths=lengths: stand_ins.deform_attn_grid_sample(
                    v, lengths, x, w
                ),
                points_at if dtype == torch.float32 else points_at.to(dtype),
            )
        }
        for peer, function in compiled.items():
            # Compiling takes seconds each: the shapes and types that the targets speak of.
            gathers = "gather" in peer
            if (name, short) in (_COMPILED_GATHER if gathers else _COMPILED_CORE):
                cores[peer] = (
                    lambda v, x, w, f=function, lengths=lengths: f(v, lengths, x, w),
                    points_at if gathers or dtype == torch.float32 else points_at.to(dtype),
                )
        for peer, (adapter, shape_locations) in gpu_attention.PEERS.items():
            try:
                prepared = adapter(lengths, bench.device)
            except PeerMissingError:
                continue
            at = shape_locations(points_at)
            takes_float = peer in ("DiGIT", "Deformable-DETR, H = 1")
            if takes_float and dtype != torch.float32:
                continue
            cores[peer] = (prepared, at.contiguous())
        for what, make in (("fwd", forward), ("fwd+bwd", both)):
            moved = (
                unique
                if what == "fwd"
                else unique
                + 2 * value.numel() * item
                + 2 * (sample_count * (4 + item))
                + grad.numel() * item
            )
            # 16-bit locations misplace samples, so the 16-bit cores are compared loosely or not.
            checked = _close(bound) if dtype == torch.float32 else None
            bench.compare(
                "deform_attn",
                f"{name} {what} {short}",
                make(bound_op, points_at),
                {peer: make(function, at) for peer, (function, at) in cores.items()},
                num_bytes=moved,
                check=checked,
                large=large,
            )
        centre = torch.rand(batch, queries, len(lengths), 2, generator=generator).to(bench.device)
        projected = torch.randn(
            batch, queries, 2 * heads * len(lengths) * points, generator=generator
        ).to(bench.device, dtype)
        half = heads * len(lengths) * points

        def fused(
            value: Tensor,
            projected: Tensor,
            half: int = half,
            samples: Any = samples,
            lengths: Any = lengths,
            centre: Tensor = centre,
        ) -> Tensor:
            offsets, raw = projected.split(half, -1)
            return ops.deform_attn_fused(
                value, lengths, centre, offsets.view(samples), raw.view(samples)
            )

        def composed(
            value: Tensor,
            projected: Tensor,
            half: int = half,
            samples: Any = samples,
            lengths: Any = lengths,
            centre: Tensor = centre,
            points: int = points,
        ) -> Tensor:
            offsets, raw = projected.split(half, -1)
            share = raw.float().reshape(*samples[:3], -1).softmax(-1).view(samples)
            middle, width = centre[:, :, None, :, None, 0], centre[:, :, None, :, None, 1]
            at = middle + offsets.reshape(samples).float() * width * 0.5 / points
            return ops.deform_attn(value, lengths, at, share.to(value.dtype))

        def run(
            function: Any, value: Tensor = value, projected: Tensor = projected, grad: Tensor = grad
        ) -> Call:
            leaves = [x.detach().clone().requires_grad_() for x in (value, projected)]

            def call() -> tuple[Tensor, ...]:
                out = function(*leaves)
                return (out.detach(), *torch.autograd.grad(out, leaves, grad))

            return call

        moved = 3 * value.numel() * item + 2 * grad.numel() * item + 4 * projected.numel() * item
        bench.compare(
            "deform_attn_fused",
            f"{name} fwd+bwd {short}",
            run(fused),
            {"deform_attn + eager softmax": run(composed)},
            num_bytes=moved,
            check=_close(1e-3) if dtype == torch.float32 else None,
            large=large,
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
            check=_close(1e-5),
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
        check=_close(1e-3),
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
            check=_close(0),
        )
        del store


PARTS: dict[str, Callable[[Bench], None]] = {
    "attention": attention,
    "overlaps": overlaps,
    "suppression": suppression,
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
