# SPDX-License-Identifier: Apache-2.0
"""One call of every op on a device: for tests, sanitizers and profilers on a GPU.

``python benchmarks/gpu_cases.py --device cuda`` runs every op forward and backward on small shapes
that reach all of its kernels, and prints a line per case; it is what ``make gpu-check`` runs under
compute-sanitizer. ``--large`` runs the shapes of the benchmark's goals instead, each once warm and
once more between marks that a profiler begins and ends at. ``--device cpu --emulated`` does the
same with the emulated kernels, on small shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tal_fast import ops

__all__ = ["CASES", "LARGE", "Case", "run"]

#: Takes the device and a seed, returns the call; the call returns all results and gradients.
Case = Callable[[torch.device, int], Callable[[], tuple[Tensor, ...]]]
CASES: dict[str, Case] = {}


def _case(name: str) -> Callable[[Case], Case]:
    def keep(case: Case) -> Case:
        CASES[name] = case
        return case

    return keep


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _segments(n: int, seed: int, scale: float = 50.0) -> Tensor:
    generator = _generator(seed)
    start = torch.rand(n, generator=generator) * scale
    return torch.stack((start, start + 0.5 + 5 * torch.rand(n, generator=generator)), 1)


def _size(real: int, small: int) -> int:
    """Returns ``real`` where a GPU is, for its results and those of the CPU beside them alike."""
    return real if torch.cuda.is_available() else small


def _differentiated(
    function: Callable[..., Tensor], inputs: list[Tensor], grad_seed: int = 7
) -> Callable[[], tuple[Tensor, ...]]:
    leaves = [x.requires_grad_() for x in inputs]
    with torch.no_grad():
        like = function(*leaves)
    grad = torch.randn(like.shape, generator=_generator(grad_seed)).to(like)

    def call() -> tuple[Tensor, ...]:
        out = function(*leaves)
        return (out.detach(), *torch.autograd.grad(out, leaves, grad))

    return call


def _attention(
    batch: int,
    queries: int,
    heads: int,
    channels: int,
    lengths: tuple[int, ...],
    points: int,
    dtype: torch.dtype,
    fused: bool,
) -> Case:
    def case(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
        generator = _generator(seed)
        samples = (batch, queries, heads, len(lengths), points)
        value = torch.randn(batch, sum(lengths), heads, channels, generator=generator)
        offsets = torch.randn(samples, generator=generator) * 3
        logits = torch.randn(samples, generator=generator)
        centre = torch.rand(batch, queries, len(lengths), 2, generator=generator)
        value, offsets, logits = (x.to(device, dtype) for x in (value, offsets, logits))
        if fused:
            mask = (torch.arange(sum(lengths)) % 7 == 3).expand(batch, -1).to(device)
            return _differentiated(
                lambda v, r, o, a: ops.deform_attn_fused(v, lengths, r, o, a, mask),
                [value, centre.to(device), offsets, logits],
            )
        locations = (centre[:, :, None, :, :1] + offsets.cpu().float() / 20).to(device)
        weights = logits.float().flatten(3).softmax(-1).view(samples)
        return _differentiated(
            lambda v, x, w: ops.deform_attn(v, lengths, x, w), [value, locations, weights]
        )

    return case


for _dtype in (torch.float32, torch.float16, torch.bfloat16):
    _name = str(_dtype).removeprefix("torch.")
    for _fused in (False, True):
        _op = "deform_attn_fused" if _fused else "deform_attn"
        # TadTR small; several levels; odd channels; many rows; a long level with few channels.
        for _label, _shape in {
            "one level": (2, 40, 8, 32, (24,), 4),
            "three levels": (1, 33, 2, 64, (40, 20, 9), 3),
            "odd": (1, 5, 3, 7, (11,), 2),
            "long": (1, 64, 2, 16, (9000,), 4),
            # Rows enough to fill the shared memory, and queries enough for 1024 threads.
            "staged": (1, 600, 1, 32, (2304,), 4),
            "wide": (1, 20, 1, 256, (70,), 2),
            "wide rows": (1, 40, 2, 64, (40, 20), 4),
        }.items():
            CASES[f"{_op} {_label} {_name}"] = _attention(*_shape, _dtype, _fused)


for _dtype in (torch.float32, torch.float16, torch.bfloat16):
    # ActionFormer's heads; rows in several chunks; odd sizes, and a window wider than the video.
    for _label, (_rows, _heads, _channels, _window) in {
        "pyramid": (150, 4, 128, 19),
        "wide": (300, 2, 64, 201),
        "odd": (13, 3, 7, 99),
    }.items():

        @_case(f"local_attn {_label} {str(_dtype).removeprefix('torch.')}")
        def _local(
            device: torch.device,
            seed: int,
            dtype: torch.dtype = _dtype,
            size: tuple[int, ...] = (2, _rows, _heads, _channels),
            window: int = _window,
        ) -> Callable[[], tuple[Tensor, ...]]:
            generator = _generator(seed)
            parts = [torch.randn(size, generator=generator).to(device, dtype) for _ in range(3)]
            mask = (torch.arange(size[1]) >= size[1] - 5).expand(2, -1).to(device)
            return _differentiated(lambda q, k, v: ops.local_attn(q, k, v, window, mask), parts)


for _kind in ("iou", "giou", "diou", "ioa"):
    for _aligned in (False, True):

        @_case(f"segment_iou {_kind} {'aligned' if _aligned else 'pairwise'}")
        def _iou(
            device: torch.device, seed: int, kind: str = _kind, aligned: bool = _aligned
        ) -> Callable[[], tuple[Tensor, ...]]:
            a = _segments(300, seed).to(device)
            b = _segments(300 if aligned else 133, seed + 1).to(device)
            return _differentiated(
                lambda x, y: ops.segment_iou(x, y, kind, aligned=aligned, eps=1e-6),  # type: ignore[arg-type]
                [a, b],
            )


@_case("matching_cost, linear_assignment")
def _matching(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
    generator = _generator(seed)
    counts = [0, 3, 11, 1, 40, 7]
    logits = torch.randn(3, len(counts), 40, 20, generator=generator).to(device)
    queries = torch.rand(3, len(counts), 40, 2, generator=generator).to(device)
    labels = torch.randint(20, (sum(counts),), generator=generator).to(device)
    targets = torch.rand(sum(counts), 2, generator=generator).to(device)

    def call() -> tuple[Tensor, ...]:
        costs = ops.matching_cost(logits, queries, labels, targets, counts)
        return (costs, *ops.linear_assignment(costs, 40, counts * 3))

    return call


@_case("ragged_index")
def _ragged(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
    like = torch.empty(0, device=device)
    return lambda: tuple(ops.ragged_index([3, 0, 300, 1], like))


@_case("linear_assignment of 300 rows")
def _assignment(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
    costs = torch.rand(300 * 45 + 130 * 200, generator=_generator(seed)).to(device)
    return lambda: tuple(ops.linear_assignment(costs, [300, 130], [45, 200]))


def _detections(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = _generator(seed)
    labels = torch.randint(4, (n,), generator=generator)
    videos = torch.randint(3, (n,), generator=generator).sort().values
    return _segments(n, seed), torch.rand(n, generator=generator), labels, videos


@_case("nms, soft_nms")
def _nms(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
    segments, scores, _, _ = (x.to(device) for x in _detections(seed, 700))

    def call() -> tuple[Tensor, ...]:
        results = [ops.nms(segments, scores, 0.5)]
        for method in ("linear", "gaussian", "length_gaussian"):
            extra = {"t1": 0.2, "t2": 0.7} if method == "length_gaussian" else {}
            results += ops.soft_nms(segments, scores, method, max_segments=100, **extra)  # type: ignore[arg-type]
        return tuple(results)

    return call


for _method in ("hard", "gaussian"):

    @_case(f"batched_nms {_method} with voting")
    def _batched(
        device: torch.device, seed: int, method: str = _method
    ) -> Callable[[], tuple[Tensor, ...]]:
        n = _size(5000, 900)  # more than one block sorts
        segments, scores, labels, videos = (x.to(device) for x in _detections(seed, n))

        def call() -> tuple[Tensor, ...]:
            result = ops.batched_nms(
                segments, scores, labels, videos, method=method, voting_threshold=0.7
            )
            return result.indices, result.scores, result.segments

        return call


@_case("suppression of fixed size")
def _padded(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
    n = _size(5000, 900)
    segments, scores, labels, videos = (x.to(device) for x in _detections(seed, n))

    def call() -> tuple[Tensor, ...]:
        return (
            *ops.nms_padded(segments, scores, 0.5, 150),
            *ops.soft_nms_padded(segments, scores, "gaussian", max_segments=80),
            *ops.batched_nms_padded(
                segments,
                scores,
                labels,
                videos,
                max_segments=100,
                num_videos=3,
                voting_threshold=0.7,
            ),
        )

    return call


@_case("gather_windows")
def _windows(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
    store = torch.randn(400, 72, generator=_generator(seed)).half().to(device)
    first = torch.tensor([0, 37, 390]).to(device)
    rows = torch.tensor([33, 1, 10]).to(device)

    def call() -> tuple[Tensor, ...]:
        wide = torch.float32
        plain = ops.gather_windows(store, first, rows, 33, dtype=wide)
        return (
            *plain,
            *ops.gather_windows(store, first, rows, 33, dtype=wide, channels_first=True),
        )

    return call


@_case("nms of 20000")
def _many(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
    n = _size(20000, 2000)
    segments, scores, _, _ = _detections(seed, n)
    segments, scores = (segments * 100).to(device), scores.to(device)
    return lambda: (ops.nms(segments, scores, 0.5),)


for _dtype in (torch.float32, torch.bfloat16):

    @_case(f"segment_roi_align, boundary_max_pool {str(_dtype).removeprefix('torch.')}")
    def _pooling(
        device: torch.device, seed: int, dtype: torch.dtype = _dtype
    ) -> Callable[[], tuple[Tensor, ...]]:
        generator = _generator(seed)
        features = torch.randn(2, 24, 60, generator=generator).to(device, dtype)
        rois = torch.cat((torch.arange(30)[:, None] % 2, _segments(30, seed)), 1).to(device)
        align = _differentiated(lambda x: ops.segment_roi_align(x, rois, 8), [features])
        bounds = torch.randint(60, (2, 40, 4), generator=generator).sort(-1).values.float()
        bounds = bounds.to(device)
        pool = _differentiated(
            lambda x: ops.boundary_max_pool(x, bounds), [features.detach().clone()]
        )
        return lambda: (*align(), *pool())


@_case("dropout")
def _dropout(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
    x = torch.randn(33, 257, generator=_generator(seed)).to(device)
    y = torch.randn(33, 257, generator=_generator(seed + 1)).to(device)

    def seeded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*inputs: Tensor) -> Tensor:
            torch.manual_seed(seed)
            return function(*inputs)

        return call

    plain = _differentiated(seeded(lambda a: ops.dropout(a, 0.3, relu=True)), [x])
    residual = _differentiated(seeded(lambda a, b: ops.dropout(a, 0.3, residual=b)), [x.clone(), y])
    return lambda: (*plain(), *residual())


# ---- the shapes that goals speak of ------------------------------------------------------------


def _large_attention(size: tuple[Any, ...], dtype: torch.dtype, fused: bool) -> Case:
    def case(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
        if device.type == "cuda":
            return _attention(*size, dtype, fused)(device, seed)
        batch, _, heads, channels, lengths, points = size
        small = tuple(length // 36 for length in lengths)
        return _attention(1, 8 * batch, heads, channels, small, points, dtype, fused)(device, seed)

    return case


def _large_iou(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
    n = 4096 if device.type == "cuda" else 64
    a, b = (_segments(n, number, n / 4).to(device) for number in (seed, seed + 1))
    return lambda: (ops.segment_iou(a, b), ops.segment_iou(a, b, "giou", eps=1e-6))


def _large_nms(n: int) -> Case:
    def case(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
        count = n if device.type == "cuda" else n // 20
        segments = _segments(count, seed, count / 4).to(device)
        scores = torch.rand(count, generator=_generator(seed)).to(device)
        return lambda: tuple(ops.nms_padded(segments, scores, 0.5, count))

    return case


def _large_batches(method: str) -> Case:
    def case(device: torch.device, seed: int) -> Callable[[], tuple[Tensor, ...]]:
        videos, each = (213, 2000) if device.type == "cuda" else (3, 40)
        generator = _generator(seed)
        total = videos * each
        scores = torch.rand(total, generator=generator).to(device)
        labels = torch.randint(20, (total,), generator=generator).to(device)
        video = torch.arange(videos).repeat_interleave(each).to(device)
        segments = _segments(total, seed, 200.0).to(device)
        return lambda: tuple(
            ops.batched_nms_padded(
                segments, scores, labels, video, method=method, max_segments=200, num_videos=videos
            )
        )

    return case


_P = (8, 2304, 8, 32, (2304,), 4)
_C = (2, 4536, 8, 32, (2304, 1152, 576, 288, 144, 72), 4)
LARGE: dict[str, Case] = {
    "attention P float32": _large_attention(_P, torch.float32, False),
    "attention C float32": _large_attention(_C, torch.float32, False),
    "IoU, GIoU 4096 x 4096": _large_iou,
    "nms of 2000": _large_nms(2000),
    "nms of 10000": _large_nms(10000),
    "hard nms, 213 videos x 2000 x 20 classes": _large_batches("hard"),
    "soft nms, 213 videos x 2000 x 20 classes": _large_batches("gaussian"),
    "attention P bfloat16": _large_attention(_P, torch.bfloat16, False),
    "fused attention P float32": _large_attention(_P, torch.float32, True),
    "fused attention C float32": _large_attention(_C, torch.float32, True),
}


def run_large(device: torch.device, only: str = "") -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Runs every large case warm, between the marks of a profiler."""
    for name, case in LARGE.items():
        if only not in name:
            continue
        call = case(device, 0)
        call()
        with torch.cuda.profiler.profile() if device.type == "cuda" else contextlib.nullcontext():
            results = call()
            if device.type == "cuda":
                torch.cuda.synchronize()
        yield name, results


def run(device: torch.device, only: str = "") -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Runs every case whose name contains ``only`` once."""
    for name, case in CASES.items():
        if only in name:
            yield name, case(device, 0)()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--emulated", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    context: Any = contextlib.nullcontext()
    if arguments.emulated:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests/cuda_emulator"))
        from emulated import emulated

        context = emulated()
    with context:
        chosen = run_large if arguments.large else run
        for name, results in chosen(torch.device(arguments.device), arguments.only):
            size = sum(x.numel() for x in results)
            print(f"{name}: {len(results)} results, {size} numbers", flush=True)
        if arguments.device == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
