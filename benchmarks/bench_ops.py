# SPDX-License-Identifier: Apache-2.0
"""Deformable attention against what models run today, forward and forward + backward.

Three implementations of one op on the same tensors:

- ``tal_fast``: ``tal_fast.ops.deform_attn``.
- ``grid_sample``: sampling from an image of height 1 with ``grid_sample``, the formulation that
  TadTR and OpenTAD run. Written for this benchmark: a stand-in for their code, not their code.
- ``compiled gather``: two gathers per sample and a linear blend, under ``torch.compile``.

Every implementation is verified against the float64 reference before anything is timed; one that
fails is not timed. Calls are interleaved (A, B, C, A, B, C, ...), so that load on the machine hits
all alike, and the median and interquartile range are reported.

Run: ``python benchmarks/bench_ops.py [--repetitions 50] [--threads 1 2] [--shapes A B]``; writes
``benchmarks/results/<date>-<machine>.json`` as well. ``make bench`` runs it with everything else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import machine
import torch
from torch import Tensor
from torch.nn import functional

from tal_fast import ops
from tal_fast.reference.deform_attn import deform_attn as reference

Attention = Callable[[Tensor, Sequence[int], Tensor, Tensor], Tensor]

RESULTS = Path(__file__).parent / "results"


class Shape(NamedTuple):
    """Sizes of one case: batch, queries, heads, channels per head, points, rows per level."""

    batch: int
    queries: int
    heads: int
    channels: int
    points: int
    levels: tuple[int, ...]


SHAPES = {
    "A": Shape(16, 128, 8, 32, 4, (128,)),  # TadTR's encoder, THUMOS14
    "B": Shape(16, 40, 8, 32, 4, (128,)),  # TadTR's decoder
    "W": Shape(8, 256, 8, 32, 4, (256,)),  # OpenTAD's TadTR configuration
    "C": Shape(2, 4536, 8, 32, 4, (2304, 1152, 576, 288, 144, 72)),  # a pyramid
}


def grid_sample_attention(
    value: Tensor, level_lengths: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """A sequence as an image of height 1; the vertical coordinate is 0, the middle of its row."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    sampled = []
    for level, rows in enumerate(value.split(list(level_lengths), dim=1)):
        image = rows.permute(0, 2, 3, 1).reshape(batch * heads, channels, 1, -1)
        x = locations[:, :, :, level].transpose(1, 2).reshape(batch * heads, queries, points)
        grid = torch.stack([2 * x - 1, torch.zeros_like(x)], dim=-1)  # [B*H, Q, P, 2]
        sampled.append(
            functional.grid_sample(image, grid, "bilinear", "zeros", align_corners=False)
        )  # [B*H, D, Q, P]
    share = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)  # [B*H, 1, Q, L*P]
    out = (torch.cat(sampled, dim=-1) * share).sum(-1)  # [B*H, D, Q]
    return out.view(batch, heads * channels, queries).transpose(1, 2)


def gather_attention(
    value: Tensor, level_lengths: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """Both neighbours of every sample by index, blended; the natural thing to compile."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = value.new_zeros(batch, heads, queries, channels)
    for level, rows in enumerate(value.split(list(level_lengths), dim=1)):
        length = rows.shape[1]
        table = rows.transpose(1, 2)  # [B, H, T, D]
        x = locations[:, :, :, level].transpose(1, 2) * length - 0.5  # [B, H, Q, P]
        share = weights[:, :, :, level].transpose(1, 2)
        left = x.detach().floor()
        fraction = x - left
        for tap, blend in ((left, 1 - fraction), (left + 1, fraction)):
            inside = (tap >= 0) & (tap <= length - 1)
            index = tap.clamp(0, length - 1).long().reshape(batch, heads, -1, 1)
            taken = table.gather(2, index.expand(-1, -1, -1, channels))
            taken = taken.view(batch, heads, queries, points, channels)
            out = out + (taken * (share * blend * inside)[..., None]).sum(3)
    return out.transpose(1, 2).reshape(batch, queries, heads * channels)


class Inputs(NamedTuple):
    """Tensors of one case; the first four are the op's arguments."""

    value: Tensor
    level_lengths: tuple[int, ...]
    locations: Tensor
    weights: Tensor
    grad: Tensor

    def differentiable(self) -> list[Tensor]:
        """Returns the tensors that get a gradient."""
        return [self.value, self.locations, self.weights]


def make_inputs(shape: Shape) -> Inputs:
    """Random float32 inputs; samples keep away from integer positions, where the slope jumps."""
    generator = torch.Generator().manual_seed(0)
    batch, queries, heads, channels, points, levels = shape
    rows = sum(levels)
    per_level = []
    for length in levels:
        size = (batch, queries, heads, 1, points)
        cell = torch.randint(-1, length + 1, size, generator=generator)
        # A tenth of a row from either side, far above float32's error in loc * T - 0.5.
        inside = 0.1 + 0.8 * torch.rand(size, generator=generator)
        per_level.append((cell + inside + 0.5) / length)
    logits = torch.randn(batch, queries, heads, len(levels) * points, generator=generator)
    weights = logits.softmax(-1).view(batch, queries, heads, len(levels), points)
    value = torch.randn(batch, rows, heads, channels, generator=generator)
    grad = torch.randn(batch, queries, heads * channels, generator=generator)
    inputs = Inputs(value, levels, torch.cat(per_level, 3), weights.contiguous(), grad)
    for tensor in inputs.differentiable():
        tensor.requires_grad_()
    return inputs


def forward(attention: Attention, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return attention(*inputs[:4])


def forward_backward(attention: Attention, inputs: Inputs) -> tuple[Tensor, ...]:
    out = attention(*inputs[:4])
    grads = torch.autograd.grad(out, inputs.differentiable(), inputs.grad.to(out.dtype))
    return (out.detach(), *grads)


def verify(name: str, attention: Attention, inputs: Inputs, expected: Sequence[Tensor]) -> None:
    """Compares output and gradients, relative to the largest entry of each.

    Float32 places a sample of level length T to about T * 2**-24 rows, which bounds what any
    implementation can reach.

    Raises:
        AssertionError: naming implementation and quantity, if one is off.
    """
    bound = max(1e-5, 8 * max(inputs.level_lengths) * 2.0**-24)
    got = forward_backward(attention, inputs)
    parts = ("output", "grad of value", "grad of locations", "grad of weights")
    for part, a, b in zip(parts, got, expected, strict=True):
        error = float((a.double() - b).abs().max() / b.abs().max())
        if not error <= bound:
            raise AssertionError(f"{name}: {part} is off by {error:.1e}, allowed {bound:.1e}")


def interleaved(calls: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Returns seconds of every call; one call of each per round.

    Each timed call follows an untimed one of the same kind: without it a call pays for the caches
    and freed pages of the one before it (measured: 0.85 instead of 0.23 ms for the forward of A
    behind ``grid_sample``), which says nothing about either.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():  # warm up: allocator, threads, caches
        for _ in range(3):
            call()
    for _ in range(repetitions):
        for name, call in calls.items():
            call()
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def run(shapes: Sequence[str], threads: Sequence[int], repetitions: int) -> list[dict[str, Any]]:
    """Verifies and times every shape with every number of threads."""
    rows: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    try:
        for count in threads:
            torch.set_num_threads(count)
            torch.compiler.reset()  # compiled code keeps the number of threads it was made for
            for shape in shapes:
                rows += run_shape(shape, count, repetitions)
    finally:
        torch.set_num_threads(before)
    return rows


def run_shape(shape: str, threads: int, repetitions: int) -> list[dict[str, Any]]:
    inputs = make_inputs(SHAPES[shape])
    implementations: dict[str, Attention] = {
        "tal_fast": ops.deform_attn,
        "grid_sample (stand-in)": grid_sample_attention,
        "compiled gather": torch.compile(gather_attention, fullgraph=True, dynamic=False),
    }
    expected = forward_backward(reference, inputs)
    for name, attention in implementations.items():
        verify(name, attention, inputs, expected)
    rows = []
    for what, call in (("forward", forward), ("forward + backward", forward_backward)):
        calls = {
            name: (lambda attention=attention, call=call: call(attention, inputs))
            for name, attention in implementations.items()
        }
        seconds = interleaved(calls, repetitions)
        ours = statistics.median(seconds["tal_fast"])
        for name, values in seconds.items():
            low, median, high = statistics.quantiles(values, n=4)
            rows.append(
                {
                    "op": "deform_attn",
                    "shape": shape,
                    "dtype": "float32",
                    "threads": threads,
                    "pass": what,
                    "implementation": name,
                    "median_ms": round(median * 1e3, 4),
                    "iqr_ms": round((high - low) * 1e3, 4),
                    "times_ours": round(median / ours, 2),
                    "repetitions": repetitions,
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    keys = ("shape", "threads", "pass", "implementation", "median_ms", "iqr_ms", "times_ours")
    cells = [list(keys), *([str(row[key]) for key in keys] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def report(rows: Sequence[dict[str, Any]]) -> Path:
    """Prints the table and stores it; rows of the same day and machine are replaced."""
    print(f"\nmachine: {machine.header()}\nshapes: {SHAPES}\n{table(rows)}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{machine.slug()}.json"
    content = {"machine": machine.describe(), "rows": list(rows)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return path


def test_deform_attn(benchmark: Any) -> None:
    """One round of everything; the interleaved timings inside are what counts."""
    report(benchmark.pedantic(run, args=(("A", "B"), (1, 2), 20), rounds=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["A", "B"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=50)
    arguments = parser.parse_args()
    report(run(arguments.shapes, arguments.threads, max(arguments.repetitions, 2)))


if __name__ == "__main__":
    main()
