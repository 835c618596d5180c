# SPDX-License-Identifier: Apache-2.0
"""What profilers of others write, as rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

__all__ = ["Rows", "ncu_tables", "nsys_rows", "speedscope_rows"]

Rows = list[dict[str, Any]]

_MOST = 15  # rows of a table

# Names of metrics by what ncu calls them in its sections "GPU Speed Of Light" and "Launch".
_NCU = {
    "Duration": "time",
    "Compute (SM) Throughput": "compute %",
    "Memory Throughput": "memory %",
    "DRAM Throughput": "dram %",
}
_NANOSECONDS = {"ns": 1.0, "nsecond": 1.0, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6,
                "s": 1e9, "second": 1e9}  # fmt: skip


def nsys_rows(report: str) -> Rows:
    """Reads a report of ``nsys stats --format csv``, whatever it says around it.

    Args:
        report: what it printed.

    Returns:
        Its first rows, by the names of its columns; none where nothing was recorded.
    """
    lines = report.splitlines()
    for start, line in enumerate(lines):
        header = next(csv.reader([line]), [])
        if len(header) < 3 or not any(name.endswith("(ns)") for name in header):
            continue
        body = []
        for row in lines[start + 1 :]:
            if not row.strip() or row.startswith("Processing ["):
                break
            body.append(row)
        rows = csv.DictReader(io.StringIO("\n".join([line, *body])))
        return [dict(row) for row in rows][:_MOST]
    return []


def ncu_tables(report: str) -> dict[str, Rows]:
    """Reads ``ncu --csv``: a line per kernel and metric.

    Args:
        report: of its log file.

    Returns:
        ``kernels``: launches, time, and means of the shares of what the device can do, the longest
        first; nothing where no kernel was looked at.
    """
    lines = [line for line in report.splitlines() if line.startswith('"')]
    if not lines:
        return {}
    launches: dict[tuple[str, str], dict[str, float]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines))):
        name, own = row.get("Metric Name") or "", launches.setdefault(
            (row.get("Kernel Name") or "", row.get("ID") or ""), {}
        )  # fmt: skip
        if name not in _NCU:
            continue
        try:
            value = float((row.get("Metric Value") or "").replace(",", ""))
        except ValueError:  # n/a
            continue
        if _NCU[name] == "time":
            value *= _NANOSECONDS.get(row.get("Metric Unit") or "", 1.0) / 1e3
        elif row.get("Metric Unit") != "%":
            continue  # the same name in bytes per second
        own[_NCU[name]] = value
    kernels: dict[str, list[dict[str, float]]] = {}
    for (kernel, _), own in launches.items():
        kernels.setdefault(kernel, []).append(own)
    rows: Rows = [_kernel(kernel, own) for kernel, own in kernels.items()]
    rows.sort(key=lambda row: -(row["us"] or 0.0))
    return {"kernels": rows[:_MOST]} if rows else {}


def _kernel(name: str, launches: list[dict[str, float]]) -> dict[str, Any]:
    def mean(key: str) -> float | None:
        known = [launch[key] for launch in launches if key in launch]
        return round(sum(known) / len(known), 2) if known else None

    times = [launch["time"] for launch in launches if "time" in launch]
    return {
        "kernel": name,
        "launches": len(launches),
        "us": round(sum(times), 3) if times else None,
        **{key: mean(key) for key in ("compute %", "memory %", "dram %")},
    }


def speedscope_rows(content: Mapping[str, Any]) -> Rows:
    """Reads sampled stacks: the functions that ran, those most often seen first.

    Args:
        content: of a speedscope file.

    Returns:
        Function, file, the share of all samples in which it ran itself, and in which it or what
        it called did.
    """
    frames = content["shared"]["frames"]
    self_time: dict[int, float] = {}
    within: dict[int, float] = {}
    total = 0.0
    for profile in content["profiles"]:
        for stack, weight in zip(profile["samples"], profile["weights"], strict=True):
            if not stack:
                continue
            total += weight
            self_time[stack[-1]] = self_time.get(stack[-1], 0.0) + weight
            for frame in set(stack):
                within[frame] = within.get(frame, 0.0) + weight
    order = sorted(self_time, key=lambda frame: -self_time[frame])[:_MOST]
    return [
        {
            "function": frames[frame]["name"],
            "file": _file(frames[frame]),
            "itself %": round(100 * self_time[frame] / total, 1),
            "with what it calls %": round(100 * within[frame] / total, 1),
        }
        for frame in order
    ]


def _file(frame: Mapping[str, Any]) -> str:
    """Returns the end of a path and the line: whose directories it lies in is nobody's business."""
    name = "/".join(str(frame.get("file") or "").split("/")[-2:])
    line = frame.get("line")
    return f"{name}:{line}" if name and line else name
