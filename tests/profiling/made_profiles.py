# SPDX-License-Identifier: Apache-2.0
"""Profiles with numbers that are easy to recognise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tal_fast.profiling.figures import csv_text, figure


def _times(wall: float, share: float) -> dict[str, Any]:
    return {
        **{key: figure(wall, "ms", "clock") for key in ("wall", "thread_cpu", "cpu")},
        "queue_wait": figure(None, "ms", "counter"),
        "share": figure(share, "of the time", "clock"),
    }


def _kind(share: float, flops: float) -> dict[str, Any]:
    return {
        "calls": figure(12, "per step", "counter"),
        "time": figure(100 * share, "ms, under the profiler", "clock"),
        "share": figure(share, "of the time", "clock"),
        "flops": figure(flops, "FLOP", "formula"),
        "bytes": figure(3e6, "bytes", "formula"),
        "limit": "compute" if flops else "memory",
        "roof": figure(0.25, "of the limit", "formula"),
    }


def training(**changes: Any) -> dict[str, Any]:
    """A training that waits for data half of the time."""
    made = {
        "format": 2,
        "command": "profile train",
        "environment": {"cpu": "a processor", "cores": 2, "torch": "2.13"},
        "usable_cores": 2,
        "steps": {"warm_up": 5, "recorded": 50, "calm": 49, "used": 49},
        "disturbed": False,
        "disturbance": {
            name: figure(0.0, unit, "counter")
            for name, unit in (("others", "cores"), ("stolen", "cores"),
                               ("queue_wait", "of the step"), ("throttled", "times"))
        },
        "step": _times(123.4, 1.0),
        "phases": {
            "data": _times(61.7, 0.5), "forward": _times(24.7, 0.2), "backward": _times(37.0, 0.3)
        },
        "between_steps": {},
        "memory": {
            "parameters": figure(4e6, "bytes", "counter"),
            "peak": figure(5e8, "bytes", "counter"),
        },
        "reading": {
            "read": figure(172e6, "bytes per step", "counter"),
            "read_storage": figure(0.0, "bytes per step", "counter"),
        },
        "loader": {
            "needed": figure(16.8e6, "bytes per step", "formula"),
            "amplification": figure(10.2, "times", "counter"),
        },
        "training": {"model": "a <model>", "device": "cpu", "amp": "float32", "batch": 16,
                     "threads": 1, "clips_of_epoch": 160},
        "work": {
            "steps": 5,
            "rates_by": "clock",
            "kinds": {"products": _kind(0.6, 8e9), "copies": _kind(0.4, 0)},
            "limits": {name: figure(0.5, "of the time", "formula")
                       for name in ("compute", "memory")},
            "host": figure(0.1, "of the time", "estimate"),
            "launches": figure(None, "kernels", "counter", "not on a GPU"),
            "flops": figure(8e9, "FLOP", "formula"),
            "bytes": figure(6e6, "bytes", "formula"),
            "flops_rate": figure(64.8, "GFLOP/s", "formula"),
            "bytes_rate": figure(0.05, "GB/s", "estimate"),
            "mfu": figure(0.648, "of the best product", "formula"),
        },
        "limits": {"threads": 1, "flops": figure(100.0, "GFLOP/s", "clock"),
                   "bytes": figure(10.0, "GB/s", "clock")},
        "tried": {
            "runs": {
                "as it is": {"what": "the training", "steps": 4,
                             "wall": figure(120.0, "ms", "clock"),
                             "cpu": figure(110.0, "ms", "clock"),
                             "gain": figure(1.0, "times as fast", "clock")},
                "cached": {"what": "batches that are in memory", "steps": 6,
                           "wall": figure(60.0, "ms", "clock"),
                           "cpu": figure(60.0, "ms", "clock"),
                           "gain": figure(2.0, "times as fast", "clock")},
                "floor": {"what": "1 clip of 8 rows",
                          **{key: figure(None, "ms", "clock", "it failed: too short")
                             for key in ("wall", "cpu", "gain")}},
            },
            "fixed": figure(20.0, "ms per step", "clock"),
            "marginal": figure(2.5, "ms per clip", "clock"),
        },
    }  # fmt: skip
    return {**made, **changes}


def prediction(scale: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A prediction at three lengths."""

    def entry(rows: int) -> dict[str, Any]:
        time = scale * rows / 10
        return {
            "rows": rows,
            "padded": rows + 28,
            "repeats": 25,
            "proposed": 100,
            "detections": 7,
            "network_quartiles": [0.9 * time, 1.2 * time],
            "macs": figure(rows * 1e7, "MAC", "formula"),
            "transfer": figure(0.01, "ms", "clock"),
            "network": figure(time, "ms", "clock"),
            "network_cpu": figure(time, "ms", "clock"),
            "candidates": figure(0.5, "ms", "clock"),
            "suppression": figure(0.75, "ms", "clock"),
            "cpu": figure(time, "ms", "clock"),
            "memory": figure(rows * 1e4, "bytes", "counter"),
            "minute": figure(60 * scale, "ms per minute of video", "clock"),
            "macs_rate": figure(100.0 / scale, "GMAC/s", "formula"),
            "peak_share": figure(0.5 / scale, "of the best product", "formula"),
        }

    made = {
        "format": 2,
        "command": "profile predict",
        "environment": {"cpu": "a processor", "cores": 2, "torch": "2.13"},
        "usable_cores": 2,
        "disturbance": {"others": figure(0.1, "cores", "counter")},
        "prediction": {"model": "b", "device": "cpu", "amp": "float32", "threads": 1, "batch": 1,
                       "weights": "fresh", "rates_by": "clock", "parameters": 1_234_567,
                       "channels": 8, "classes": 3},
        "limits": {"threads": 1, "flops": figure(400.0, "GFLOP/s", "clock"),
                   "bytes": figure(10.0, "GB/s", "clock")},
        "lengths": [entry(rows) for rows in (200, 600, 1000)],
    }  # fmt: skip
    return {**made, **changes}


OPS = [
    ("op", "kind", "calls", "time_ms", "device_ms", "share", "flops", "bytes", "flops_per_byte",
     "limit", "share_of_limit"),
    ("aten::mm", "products", 12, 60.0, None, 0.6, 8_000_000_000, 3_000_000, 2666.7, "compute", 0.9),
    ("aten::copy_", "copies", 12, 40.0, None, 0.4, 0, 3_000_000, 0.0, "memory", 0.1),
]  # fmt: skip
TIMELINE = [
    ("time", "cpu", "children_cpu", "machine_busy", "machine_steal", "queue_wait", "resident",
     "read", "read_storage", "throttled"),
    *((t / 5, t / 5, 0.0, t / 4, 0.0, 0.0, 400_000_000, t * 1000, 0, 0) for t in range(10)),
]  # fmt: skip


def write(folder: Path, profile: dict[str, Any], *, tables: bool = True) -> Path:
    """Writes a profile, with the tables of a training."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile.json").write_text(json.dumps(profile))
    if tables:
        (folder / "ops.csv").write_text(csv_text(OPS))
        (folder / "timeline.csv").write_text(csv_text(TIMELINE))
    return folder
