# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the ops on a GPU: three numbers per op and shape, and its peers in the same run.

``python benchmarks/gpu_bench.py --out rows.json`` measures, for every row,

- ``event``: time per call in a loop, launches included, by CUDA events;
- ``graph``: time per call when a CUDA graph replays it, launches nearly excluded;
- ``floor``: the unique bytes it must move (each input read once, each output written once) at the
  bandwidth of a device-to-device copy measured at the start, and graph time as a share of it.

Contenders take turns, medians count, and each peer's result is compared with ours first: a failed
comparison leaves the peer's error in the row instead of a time. Shapes whose data fit the L2 cache
are timed with it warm, as they are in training; the others with a flushed one in between. The file
is written anew after every row: whatever ends this, it holds all that was measured.
``--parts training`` times steps of the models with and without a CUDA graph; it is no default.
``--rehearse`` runs everything on the CPU with tiny shapes and host clocks: a check of this file.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from gpu_bench_attention import attention
from gpu_bench_training import training
from gpu_harness import PEERS, Bench, Call, close
from gpu_report import write_json
from peers import stand_ins

from tal_fast import ops

__all__ = ["PARTS", "main"]


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

        def peer(function: Any, a: Tensor = a, b: Tensor = b) -> Call:
            return lambda: (function(b, a),)

        eps = 1e-6 if kind == "giou" else 0.0
        bench.compare(
            "segment_iou",
            f"{kind} {n} x {n} float32",
            lambda kind=kind, eps=eps: (ops.segment_iou(a, b, kind, eps=eps),),
            {"eager": peer(eager)},
            compiled={"compiled": lambda f=eager, peer=peer: peer(bench.compile(f))},
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
        bench.compare(
            "nms_padded",
            f"hard, {n} segments",
            lambda x=segments, s=scores, n=n: (ops.nms_padded(x, s, 0.5, n)[0],),
            {},
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
    # As in a graph of a whole prediction, whose results have a fixed size.
    for method in ("hard", "gaussian"):
        bench.compare(
            "batched_nms_padded",
            f"{method}, {case}",
            lambda method=method: (
                ops.batched_nms_padded(
                    segments,
                    scores,
                    labels,
                    video,
                    method=method,
                    max_segments=200,
                    num_videos=videos,
                )[0],
            ),
            {},
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
        {},
        compiled={"compiled gather": lambda: run(_roi_gather(bench, rois))},
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
    function = bench.compile(stand_ins.segment_roi_align_gather)
    longest = float((rois[:, 2] - rois[:, 1]).max())
    return lambda x: function(x, rois, 16, math.ceil(longest / 16))


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
    "training": training,
}


def main() -> int:
    """Runs the parts; one that fails is recorded and the others go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file, kept true at any time")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS)[:-1])
    parser.add_argument("--peers", choices=PEERS, default="eager", help="whom to measure beside it")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no case after that")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny, host clocks")
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        print("torch finds no GPU; --rehearse runs this on the CPU", file=sys.stderr)
        return 2
    began = time.monotonic()
    bench = Bench(
        torch.device("cpu" if arguments.rehearse else "cuda"),
        rounds=2 if arguments.rehearse else arguments.rounds,
        peers=arguments.peers,
        on_row=lambda row: write(),
        seconds_left=lambda: arguments.seconds - (time.monotonic() - began),
    )
    failures: dict[str, str] = {}

    def write() -> None:
        content = {
            "copy_gbs": bench.copy_gbs,
            "rehearsed": arguments.rehearse,
            "failures": failures,
            "left_out": bench.left_out,
            "rows": [{**asdict(r), "share_of_floor": r.share_of_floor()} for r in bench.rows],
        }
        write_json(arguments.out, content)

    print(f"copy: {bench.copy_gbs:.0f} GB/s", flush=True)
    write()
    for part in arguments.parts:
        try:
            PARTS[part](bench)
        except Exception:
            failures[part] = traceback.format_exc()
            print(failures[part], file=sys.stderr, flush=True)
        write()
    for case in bench.left_out:
        print(f"no time left for {case}", flush=True)
    errors = [row for row in bench.rows if row.error and row.name == "tal_fast"]
    return 1 if failures or errors else 0


if __name__ == "__main__":
    sys.exit(main())
