# SPDX-License-Identifier: Apache-2.0
"""The profile of a training: recorded steps as figures with unit and origin, and as tables."""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from tal_fast.errors import counted
from tal_fast.profiling.figures import csv_text, figure
from tal_fast.profiling.recorder import OTHER, PhaseTime, StepRecord
from tal_fast.profiling.sampler import Sample
from tal_fast.training.environment import usable_cores

__all__ = ["FORMAT", "FORMATS", "phase_table", "profile_of", "steps_csv", "summary"]

FORMAT = 2
"""Version of profile.json."""

FORMATS = (1, 2)
"""Versions that can still be read; the first knows steps and phases alone."""

# A step is calm where others used no more of the cores, and this process waited no longer for one.
_OTHERS = 0.1  # cores
_WAITED = 0.03  # of the step, all threads together
_STOLEN = 0.01  # cores
_LEAST_CALM = 8  # steps; with fewer the figures are of all steps, and marked
_WINDOW = 1.0  # seconds around a step that are looked at: the kernel counts in hundredths


def steps_csv(records: Sequence[StepRecord], samples: Sequence[Sample]) -> str:
    """Returns a row per step and phase, times in seconds; the phase ``step`` is the whole."""
    rows: list[Sequence[Any]] = [
        ("step", "phase", "start", "wall", "thread_cpu", "cpu", "queue_wait", "children_cpu",
         "others_cores", "calm"),
    ]  # fmt: skip
    for record in records:
        around = _around(record, samples)
        end = record.start + record.whole.wall
        children = _between(samples, "children_cpu", record.start, end)
        calm = _is_calm(record, around)
        for name, took in {"step": record.whole, **record.phases}.items():
            whole = name == "step"
            rows.append(
                (record.number, name, record.start if whole else None, took.wall,
                 took.thread_cpu, took.cpu, took.queue_wait, children if whole else None,
                 around.get("others") if whole else None, calm)
            )  # fmt: skip
    return csv_text(rows)


def _at(samples: Sequence[Sample], name: str, time: float) -> float | None:
    """Returns a figure at a time, on a line between the samples before and after it."""
    after = bisect.bisect_left([sample.time for sample in samples], time)
    before = samples[max(0, min(after, len(samples)) - 1)]
    later = samples[min(after, len(samples) - 1)]
    first, last = getattr(before, name), getattr(later, name)
    if first is None or last is None:
        return None
    if later.time <= before.time:
        return float(first)
    share = min(1.0, max(0.0, (time - before.time) / (later.time - before.time)))
    return float(first + share * (last - first))


def _between(samples: Sequence[Sample], name: str, start: float, end: float) -> float | None:
    if not samples:
        return None
    first, last = _at(samples, name, start), _at(samples, name, end)
    return None if first is None or last is None else max(0.0, last - first)


def _around(record: StepRecord, samples: Sequence[Sample]) -> dict[str, float]:
    """Returns the cores that others used around a step, and those that the host took."""
    if len(samples) < 2:
        return {}
    margin = max(0.0, _WINDOW - record.whole.wall) / 2
    start = max(samples[0].time, record.start - margin)
    end = min(samples[-1].time, record.start + record.whole.wall + margin)
    names = ("machine_busy", "machine_steal", "cpu", "children_cpu")
    busy, stolen, this_process, children = (_between(samples, name, start, end) for name in names)
    if end <= start or busy is None or stolen is None or this_process is None:
        return {}
    others = max(0.0, busy - this_process - (children or 0.0))
    return {"others": others / (end - start), "stolen": stolen / (end - start)}


def _is_calm(record: StepRecord, around: dict[str, float]) -> bool | None:
    """Tells whether nobody disturbed a step; None where the system does not say."""
    waited = record.whole.queue_wait
    if not around or waited is None:
        return None
    return (
        around["others"] < _OTHERS
        and around["stolen"] < _STOLEN
        and waited < _WAITED * record.whole.wall
    )


def profile_of(
    records: Sequence[StepRecord],
    samples: Sequence[Sample],
    *,
    between: dict[str, PhaseTime],
    warm_up: int,
    environment: dict[str, Any],
    peak: float | None = None,
) -> dict[str, Any]:
    """Returns the profile of recorded steps, fit for JSON.

    Every figure says its unit and where it comes from: ``clock``, ``counter`` of the system, or
    ``estimate``; one that cannot be had is null, with the reason.

    Args:
        records: at least one.
        samples: of the time in which they ran.
        between: what ranges between them took.
        warm_up: steps before them that were left out.
        environment: of the machine.
        peak: bytes of memory that the process has had at most.
    """
    around = [_around(record, samples) for record in records]
    calm = [_is_calm(record, item) for record, item in zip(records, around, strict=True)]
    chosen = [record for record, is_calm in zip(records, calm, strict=True) if is_calm]
    disturbed = len(chosen) < _LEAST_CALM
    chosen = list(records) if disturbed else chosen
    names = dict.fromkeys(name for record in chosen for name in record.phases)
    chosen_wall = sum(record.whole.wall for record in chosen)
    all_wall = sum(took.wall for took in (*(r.whole for r in records), *between.values()))
    unknown = any(item is None for item in calm)
    return {
        "format": FORMAT,
        "environment": environment,
        "usable_cores": usable_cores(),
        "steps": {
            "warm_up": warm_up,
            "recorded": len(records),
            "calm": None if unknown else sum(1 for item in calm if item),
            "used": len(chosen),
        },
        "disturbed": None if unknown else disturbed,
        "disturbance": _disturbance(records, around, samples),
        "step": _times(_median([record.whole for record in chosen]), 1.0),
        "phases": {name: _phase(name, chosen, chosen_wall) for name in names},
        "between_steps": {
            name: _times(took, took.wall / all_wall) for name, took in between.items()
        },
        "memory": {
            "resident": figure(
                max((s.resident for s in samples), default=None), "bytes", "counter", "no sample"
            ),
            "peak": figure(peak, "bytes", "counter", "not asked for"),
        },
        "reading": {
            name: figure(_rate(samples, name, records), "bytes per step", "counter")
            for name in ("read", "read_storage")
        },
    }


def _disturbance(
    records: Sequence[StepRecord], around: Sequence[dict[str, float]], samples: Sequence[Sample]
) -> dict[str, Any]:
    known = [item for item in around if item]
    waits = [r.whole.queue_wait / r.whole.wall for r in records if r.whole.queue_wait is not None]
    return {
        "others": figure(_mean([item["others"] for item in known]), "cores", "counter"),
        "stolen": figure(_mean([item["stolen"] for item in known]), "cores", "counter"),
        "queue_wait": figure(_mean(waits), "of the step", "counter"),
        "throttled": figure(_rise(samples, "throttled"), "times", "counter"),
    }


def _phase(name: str, records: Sequence[StepRecord], wall: float) -> dict[str, Any]:
    """Returns the figures of a phase; steps without it count as 0 in the medians."""
    times = [record.phases.get(name, PhaseTime()) for record in records]
    # Of the sums: a phase of some steps alone, such as rating, has a median of 0.
    return _times(_median(times), sum(took.wall for took in times) / wall)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _rise(samples: Sequence[Sample], name: str) -> float | None:
    if not samples:
        return None
    first, last = getattr(samples[0], name), getattr(samples[-1], name)
    return None if first is None or last is None else float(last - first)


def _rate(samples: Sequence[Sample], name: str, records: Sequence[StepRecord]) -> float | None:
    rise = _rise(samples, name)
    return None if rise is None else rise / len(records)


def _median(times: Sequence[PhaseTime]) -> PhaseTime:
    """Returns the medians of each clock, each by itself."""
    columns = {name: [asdict(t)[name] for t in times] for name in ("wall", "thread_cpu", "cpu")}
    waits = [t.queue_wait for t in times if t.queue_wait is not None]
    return PhaseTime(
        **{name: statistics.median(values) for name, values in columns.items()},
        queue_wait=statistics.median(waits) if waits else None,
    )


def _times(took: PhaseTime, share: float) -> dict[str, Any]:
    wait = took.queue_wait
    return {
        "wall": figure(1e3 * took.wall, "ms", "clock"),
        "thread_cpu": figure(1e3 * took.thread_cpu, "ms", "clock"),
        "cpu": figure(1e3 * took.cpu, "ms", "clock"),
        "queue_wait": figure(None if wait is None else 1e3 * wait, "ms", "counter"),
        "share": figure(share, "of the time", "clock"),
    }


def summary(profile: dict[str, Any]) -> str:
    """Returns what disturbed the steps, and how many are behind the figures."""
    steps, taken = profile["steps"], profile["disturbance"]
    others, waited = taken["others"]["value"], taken["queue_wait"]["value"]
    parts = [f"{counted(steps['recorded'], 'step')} after {steps['warm_up']} of warm-up"]
    if steps["calm"] is not None:
        parts.append(f"{steps['calm']} of them calm")
    if others is not None:
        parts.append(f"others used {others:.2f} of {profile['usable_cores']} cores")
    if waited is not None:
        parts.append(f"threads waited for a core {waited:.0%} of the time")
    return ", ".join(parts) + "."


def phase_table(profile: dict[str, Any]) -> Table:
    """Returns phases x (median time, CPU time, waiting for a core, share)."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase", no_wrap=True)
    for name in ("ms", "CPU of its thread", "CPU", "waited for a core", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    phases = dict(profile["phases"])
    last = {name: phases.pop(name) for name in (OTHER,) if name in phases}
    for name, times in {**phases, **last, "step": profile["step"]}.items():
        cells = [times[key]["value"] for key in ("wall", "thread_cpu", "cpu", "queue_wait")]
        shown = ["-" if value is None else f"{value:.1f}" for value in cells]
        share = times["share"]["value"]
        table.add_row(name, *shown, "-" if share is None else f"{share:.0%}")
    return table
