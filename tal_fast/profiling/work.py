# SPDX-License-Identifier: Apache-2.0
"""The ops of a step against what the machine can do: kinds of work, limits, rates, shares."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich import box
from rich.table import Table

from tal_fast.profiling.ceilings import Ceiling, product_ceiling, rate_of, with_threads
from tal_fast.profiling.figures import csv_text, figure, value_of
from tal_fast.profiling.kinds import DISPATCH, OpRow, StepOps

__all__ = ["kind_table", "no_work", "ops_csv", "roofs", "work_of"]

_SECONDS = 0.2  # that each product is repeated for
_SQUARE = (1, 1024, 1024, 1024)
_DEVICE_ELEMENTS = 1 << 26  # of each array that a GPU copies
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def roofs(
    ceilings: Mapping[str, Any] | None,
    *,
    products: Sequence[tuple[int, int, int, int]],
    amp: str,
    threads: int,
    device: torch.device,
) -> dict[str, Any]:
    """Returns what limits a step on this machine: products, memory, calls.

    Args:
        ceilings: of :func:`~tal_fast.profiling.ceilings.machine_ceilings`; None if not measured.
        products: the shapes of the model's own largest products, which are measured here.
        amp: precision of products.
        threads: torch threads.
        device: where the model is.
    """
    dtype = _DTYPES[amp]
    shapes = dict.fromkeys([*products, _SQUARE])
    with with_threads(threads):
        measured = [product_ceiling(s, dtype, threads, _SECONDS, device) for s in shapes]
        bandwidth = _bandwidth(ceilings, threads, device)
    best = max(measured, key=lambda ceiling: ceiling.best)
    call = None
    if ceilings is not None:
        found = [c["best"] for c in ceilings["ceilings"] if c["name"] == "call of add"]
        call = found[0] if found else None
    why = "tal-fast profile machine was not run in the last day"
    return {
        "threads": threads,
        "dtype": amp,
        "device": str(device),
        "products": [
            {"name": ceiling.name, "best": figure(ceiling.best, ceiling.unit, "clock")}
            for ceiling in measured
        ],
        "flops": figure(best.best, "GFLOP/s", "clock"),
        "bytes": figure(bandwidth, "GB/s", "clock", why),
        "call": figure(call, "us", "clock", why),
    }


def _bandwidth(
    ceilings: Mapping[str, Any] | None, threads: int, device: torch.device
) -> float | None:
    if device.type == "cuda":
        a, b = (torch.ones(_DEVICE_ELEMENTS, device=device) for _ in range(2))
        amount = 2 * a.numel() * a.element_size()
        copied: Ceiling = rate_of(
            "copy", threads, amount, "GB/s", lambda: a.copy_(b), _SECONDS, device
        )
        return copied.best
    if ceilings is None:
        return None
    memory = [c for c in ceilings["ceilings"] if c["name"].endswith(", memory")]
    # Measured with one thread and with one per core: the nearest.
    nearest = min({c["threads"] for c in memory}, key=lambda n: abs(n - threads), default=0)
    return max((c["best"] for c in memory if c["threads"] == nearest), default=None)


def no_work(reason: str) -> dict[str, Any]:
    """Returns the part of a profile about ops where there is nothing to say."""
    return {"kinds": None, "reason": reason}


def work_of(
    rows: Sequence[OpRow],
    steps: Sequence[StepOps],
    limits: Mapping[str, Any],
    profile: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what the profile says of ops: by kind, by limit, and the rates of a whole step.

    Args:
        rows: of :func:`~tal_fast.profiling.kinds.op_rows`.
        steps: they are the median of.
        limits: of :func:`roofs`.
        profile: times of steps that no profiler slowed down.
    """
    step_seconds, rates_by = _step_seconds(profile, limits["threads"])
    total = sum(row.time for row in rows)
    on_gpu = any(row.device_seconds is not None for row in rows)
    kinds: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(row.kind for row in rows):
        of_kind = [row for row in rows if row.kind == kind]
        kinds[kind] = _kind(of_kind, total, limits)
    order = sorted(kinds, key=lambda kind: -kinds[kind]["time"]["value"])
    limited = {"compute": 0.0, "memory": 0.0}
    for row in rows:
        roof = _roof(row, limits)
        if roof is not None and row.kind != DISPATCH:
            limited[roof[0]] += row.time
    launches = statistics.median(step.launches for step in steps)
    flops, touched = sum(row.flops for row in rows), sum(row.bytes for row in rows)
    peak = value_of(limits, "flops")
    counted = bool(touched)
    why = "the training ended before a step was counted"
    return {
        "steps": len(steps),
        "rates_by": rates_by,
        "step": figure(
            1e3 * statistics.median(step.seconds for step in steps), "ms, under the profiler",
            "clock",
        ),
        "kinds": {kind: kinds[kind] for kind in order},
        "limits": {
            limit: figure(share / total if counted else None, "of the time", "formula", why)
            for limit, share in limited.items()
        },
        "host": _host(rows, limits),
        "launches": figure(launches if on_gpu else None, "kernels", "counter", "not on a GPU"),
        "flops": figure(flops if counted else None, "FLOP", "formula", why),
        "bytes": figure(touched if counted else None, "bytes", "formula", why),
        "flops_rate": figure(
            flops / step_seconds / 1e9 if counted else None, "GFLOP/s", "formula", why
        ),
        "bytes_rate": figure(
            touched / step_seconds / 1e9 if counted else None, "GB/s", "estimate", why
        ),
        "mfu": figure(
            flops / step_seconds / 1e9 / peak if counted and peak else None,
            "of the best product", "formula", why,
        ),
    }  # fmt: skip


def _step_seconds(profile: Mapping[str, Any], threads: int) -> tuple[float, str]:
    """Returns what a step takes, and by which clock: on a busy machine that of the CPU."""
    if profile["disturbed"] and threads == 1:
        return value_of(profile, "step", "thread_cpu") / 1e3, "CPU time"
    return value_of(profile, "step", "wall") / 1e3, "clock"


def _roof(row: OpRow, limits: Mapping[str, Any]) -> tuple[str, float] | None:
    flops, memory = value_of(limits, "flops"), value_of(limits, "bytes")
    if flops is None or memory is None:
        return None
    return row.roof(1e9 * flops, 1e9 * memory)


def _kind(rows: Sequence[OpRow], total: float, limits: Mapping[str, Any]) -> dict[str, Any]:
    sums = OpRow(
        "all",
        rows[0].kind,
        sum(row.calls for row in rows),
        sum(row.seconds for row in rows),
        None if rows[0].device_seconds is None else sum(row.device_seconds or 0.0 for row in rows),
        sum(row.flops for row in rows),
        sum(row.bytes for row in rows),
    )
    roof = _roof(sums, limits) if sums.kind != DISPATCH else None
    why = "no bytes were counted, or no ceiling was measured"
    return {
        "calls": figure(sums.calls, "per step", "counter"),
        "time": figure(1e3 * sums.time, "ms, under the profiler", "clock"),
        "share": figure(sums.time / total if total else 0.0, "of the time", "clock"),
        "flops": figure(sums.flops, "FLOP", "formula"),
        "bytes": figure(sums.bytes, "bytes", "formula"),
        "limit": roof[0] if roof else None,
        "roof": figure(roof[1] if roof else None, "of the limit", "formula", why),
    }


def _host(rows: Sequence[OpRow], limits: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the share of the time that goes into calling alone.

    What lies between ops, and of each call of an op what a call without work takes.
    """
    call = value_of(limits, "call")
    total = sum(row.seconds for row in rows)
    if call is None or not total:
        return figure(None, "of the time", "estimate", "no ceiling of calls was measured")
    calling = sum(
        row.seconds if row.kind == DISPATCH else min(row.seconds, row.calls * call / 1e6)
        for row in rows
    )
    return figure(calling / total, "of the time", "estimate")


def ops_csv(rows: Sequence[OpRow], limits: Mapping[str, Any]) -> str:
    """Returns a row per op of a median step; times in milliseconds, under the profiler."""
    total = sum(row.time for row in rows) or 1.0
    lines: list[Sequence[Any]] = [
        ("op", "kind", "calls", "time_ms", "device_ms", "share", "flops", "bytes",
         "flops_per_byte", "limit", "share_of_limit"),
    ]  # fmt: skip
    for row in rows:
        roof = _roof(row, limits) if row.kind != DISPATCH else None
        limit, reached = roof if roof is not None else (None, None)
        device = None if row.device_seconds is None else 1e3 * row.device_seconds
        lines.append(
            (row.op, row.kind, row.calls, 1e3 * row.seconds, device, row.time / total, row.flops,
             row.bytes, row.intensity, limit, reached)
        )  # fmt: skip
    return csv_text(lines)


def kind_table(work: Mapping[str, Any]) -> Table:
    """Returns kinds of work for a terminal: time, calls, arithmetic, bytes, limit."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kind of work", no_wrap=True)
    for name in ("share", "ms", "calls", "GFLOP", "MB", "FLOP/B", "limit", "of it"):
        table.add_column(name, justify="left" if name == "limit" else "right", no_wrap=True)
    for kind, figures in (work["kinds"] or {}).items():
        flops, touched, roof = (
            figures["flops"]["value"],
            figures["bytes"]["value"],
            figures["roof"]["value"],
        )
        table.add_row(
            kind,
            f"{figures['share']['value']:.0%}",
            f"{figures['time']['value']:.1f}",
            f"{figures['calls']['value']:.0f}",
            f"{flops / 1e9:.2f}",
            f"{touched / 1e6:.1f}",
            f"{flops / touched:.1f}" if touched else "-",
            figures["limit"] or "-",
            "-" if roof is None else f"{roof:.0%}" if roof <= 1 else f"{roof:.0%}, from cache",
        )
    return table
