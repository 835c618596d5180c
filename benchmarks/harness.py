# SPDX-License-Identifier: Apache-2.0
"""One way to time an op against its peers: verify, interleave, compare medians, keep the row.

A benchmark hands the fixture ``compare`` (conftest.py) two or more calls that do the same work.
Each peer's result is checked against ours first; a failed check fails the benchmark and leaves no
row. Then the calls take turns, and the ratio of their medians is what counts. Rows are stored as
JSON (``results/<date>-<machine>.json``) and shown as a table (results_table.py).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import machine

__all__ = [
    "RESULTS",
    "ROW_SECONDS",
    "Peer",
    "Row",
    "interleaved",
    "results_file",
    "sentence",
    "store",
    "summarise",
    "turns",
]

RESULTS = Path(__file__).parent / "results"

#: How long a comparison may take, if nothing else is said, before it does with fewer repetitions.
ROW_SECONDS = 60.0
#: Rounds that are made however long they take: a median of fewer tells nothing.
_FEWEST_ROUNDS = 3
#: A sample is at least this long: shorter calls are repeated within it.
_SAMPLE_SECONDS = 5e-4
#: Calls shorter than this follow an untimed one of the same kind; see ``interleaved``.
_SHORT_CALL_SECONDS = 0.05


@dataclass(frozen=True)
class Peer:
    """Something to compare with.

    Attributes:
        name: how the table calls it.
        call: does the work and returns its result.
        must: least ratio (peer's time over ours) that the op promises, if any.
        aim: ratio that it hopes for.
        stand_in: the peer's algorithm written here, because the peer itself is absent.
        at_most: the ratio is ours over the peer's and must not exceed ``must`` (growth rows).
    """

    name: str
    call: Callable[[], Any]
    must: float | None = None
    aim: float | None = None
    stand_in: bool = False
    at_most: bool = False


@dataclass(frozen=True)
class Row:
    """One comparison: times in milliseconds, medians with interquartile ranges."""

    op: str
    case: str
    peer: str
    stand_in: bool
    threads: int
    ours_ms: float
    ours_iqr_ms: float
    peer_ms: float | None
    peer_iqr_ms: float | None
    ratio: float | None
    must: float | None
    aim: float | None
    at_most: bool
    repetitions: int
    verified: str
    commit: str
    date: str

    def key(self) -> tuple[str, str, str, int]:
        """What makes a later run's row replace this one."""
        return self.op, self.case, self.peer, self.threads

    def reached(self) -> str:
        """Returns ``aim``, ``must``, ``missed``, or nothing where nothing was promised."""
        if self.ratio is None or self.must is None:
            return ""
        if self.at_most:
            return "must" if self.ratio <= self.must else "missed"
        if self.aim is not None and self.ratio >= self.aim:
            return "aim"
        return "must" if self.ratio >= self.must else "missed"


def sentence(row: Row) -> str:
    """Returns a row in words."""
    name = f"{row.op}, {row.case}, {row.threads} thread{'s' if row.threads > 1 else ''}"
    text = f"{name}: {row.ours_ms:.4g} ms"
    if row.peer_ms is not None:
        text += f", {row.peer} {row.peer_ms:.4g} ms: {row.ratio:.2f}x {row.reached()}".rstrip()
    return text


def turns(
    repetitions: int, budget: float = ROW_SECONDS, fewest: int = _FEWEST_ROUNDS
) -> Iterator[int]:
    """Counts the rounds of a comparison: as many as asked for, or as fit into a time.

    Args:
        repetitions: most rounds.
        budget: seconds; none begins after them.
        fewest: rounds that are made all the same.
    """
    end = time.perf_counter() + budget
    for done in range(repetitions):
        if done >= fewest and time.perf_counter() > end:
            return
        yield done


def interleaved(
    calls: Mapping[str, Callable[[], Any]], repetitions: int, budget: float = ROW_SECONDS
) -> dict[str, list[float]]:
    """Returns seconds per call of every contender; one sample of each per round.

    A short call is repeated within its sample. Each sample follows an untimed call of the same
    kind: without it a call pays for the caches and freed pages of the one before it (measured: 0.85
    instead of 0.23 ms for the forward of deformable attention behind ``grid_sample``), which says
    nothing about either. Fewer repetitions where ``budget`` seconds are over before.
    """
    number = {}
    for name, call in calls.items():  # warm up: allocator, threads, caches
        for done in range(2):
            began = time.perf_counter()
            call()
            spent = time.perf_counter() - began
            if not done and spent > budget / (10 * len(calls)):
                break
        number[name] = max(1, int(_SAMPLE_SECONDS / max(spent, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in turns(repetitions, budget):
        for name, call in calls.items():
            if number[name] > 1 or not seconds[name] or seconds[name][-1] < _SHORT_CALL_SECONDS:
                call()
            began = time.perf_counter()
            for _ in range(number[name]):
                call()
            seconds[name].append((time.perf_counter() - began) / number[name])
    return seconds


def summarise(seconds: list[float]) -> tuple[float, float]:
    """Returns median and interquartile range in milliseconds."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return median * 1e3, (high - low) * 1e3


def results_file() -> Path:
    """Returns where this machine's rows of today lie."""
    return RESULTS / f"{machine.slug()}.json"


def store(rows: list[Row], path: Path | None = None) -> Path:
    """Adds rows to today's file, or to another; a row replaces the one of the same comparison.

    Each row carries the commit it was measured at, so a file may be filled by several runs.
    """
    path = path or results_file()
    kept: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    if path.exists():
        for old in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            kept[(old["op"], old["case"], old["peer"], old["threads"])] = old
    for row in rows:
        kept[row.key()] = asdict(row)
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine.describe(), "rows": list(kept.values())}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
