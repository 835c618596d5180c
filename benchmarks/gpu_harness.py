# SPDX-License-Identifier: Apache-2.0
"""Times an op and its peers on a GPU: event time, graph-replay time, share of a copy's bandwidth.

Contenders take turns and medians count; each peer's result is compared with ours first. A row is
handed over as soon as it is measured, so that a run which is cut off has lost one case, not all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["PEERS", "Bench", "Call", "GpuRow", "close"]

Call = Callable[[], Any]
PEERS = ("none", "eager", "compiled")


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
    peers: str = "none"  # which peers were measured beside it

    def share_of_floor(self) -> float | None:
        """Floor over graph time: 1 is as fast as a copy of the same bytes."""
        if self.graph_us is None or not self.floor_us:
            return None
        return self.floor_us / self.graph_us


@dataclass
class Bench:
    """Times calls on one device and keeps the rows.

    Attributes:
        device: where the calls run.
        rounds: samples of each contender.
        peers: whom ours is measured against: nobody; peers that run as they are; or those that
            ``torch.compile`` makes, which costs seconds each, and only in cases that have one.
        on_row: called with every row as it is measured.
        seconds_left: of the time that is allowed; a case that would begin without any is named in
            ``left_out`` instead.
    """

    device: torch.device
    rounds: int = 20
    peers: Literal["none", "eager", "compiled"] = "eager"
    on_row: Callable[[GpuRow], None] = lambda row: None
    seconds_left: Callable[[], float] = lambda: 1e9
    copy_gbs: float = 0.0
    rows: list[GpuRow] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.real = self.device.type == "cuda"
        size = (1 << 28) if self.real else (1 << 20)
        self._flush = torch.empty(1 << 26 if self.real else 1, device=self.device)
        source = torch.empty(size, device=self.device, dtype=torch.uint8).random_()
        target = torch.empty_like(source)
        copy_us = self._median(lambda: target.copy_(source), 5)
        self.copy_gbs = 2 * size / copy_us / 1e3

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles for the shapes at hand; a rehearsal traces, and leaves the rest to eager."""
        return torch.compile(function, dynamic=False, backend="inductor" if self.real else "eager")

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
        peers: Mapping[str, Call],
        *,
        compiled: Mapping[str, Callable[[], Call]] | None = None,
        num_bytes: int | None = None,
        check: Callable[[Any, Any], None] | None = None,
        unchecked: Collection[str] = (),
        graph: bool = True,
        large: bool = False,
    ) -> None:
        """Times ours against the peers and keeps one row each.

        Args:
            op: name of the op.
            case: what it is given.
            ours: the call that is measured.
            peers: calls that do the same work, by name.
            compiled: what makes such calls with ``torch.compile``, by name.
            num_bytes: what the call must read and write at least, each byte once.
            check: raises if a peer's result differs from ours; such a peer gets no time.
            unchecked: peers that compute something else by design (16-bit locations).
            graph: whether the calls can be captured in a CUDA graph.
            large: flush the L2 cache before every sample.
        """
        calls: dict[str, Call] = {"tal_fast": ours}
        if self.peers == "eager":
            calls.update(peers)
        if self.peers == "compiled":
            if not compiled:
                return
            # Else the ninth case of a function meets the limit on recompiling, and runs eagerly
            # under the name of a compiled one.
            torch._dynamo.reset()
            calls.update((name, make()) for name, make in compiled.items())
        if self.seconds_left() <= 0:
            self.left_out.append(f"{op}, {case}")
            return
        cache = "flushed" if large else "warm"
        rows = {name: GpuRow(op, case, name, cache=cache, peers=self.peers) for name in calls}
        expected: Any = None
        for name, call in list(calls.items()):
            try:
                result = call()
                if name == "tal_fast":
                    expected = result
                elif check is not None and name not in unchecked:
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
            self.on_row(row)

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


def close(bound: float) -> Callable[[Any, Any], None]:
    def check(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
        for part, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a, b = a.double().flatten(), b.double().flatten()
            error = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
            if not error <= bound:
                raise AssertionError(f"result {part} is off by {error:.1e}, allowed {bound:.1e}")

    return check
