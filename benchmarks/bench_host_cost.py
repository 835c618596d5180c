# SPDX-License-Identifier: Apache-2.0
"""What a call of an op costs on the host, apart from the work: on inputs of a few elements.

``python benchmarks/bench_host_cost.py`` prints a row for every op with a gradient, in microseconds
of CPU time, with gradients wanted, forward and forward + backward:

- ``raw``: the native op alone, below autograd.
- ``hand``: an ``autograd.Function`` written for it by hand.
- ``ours``: the public function.
- ``before``: the same of another checkout (``--against DIRECTORY``), in processes that take turns.

``linear`` and ``F.dropout`` of torch stand beside them, as a measure of the machine. Results of
ours and of the function by hand are compared bit for bit first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from host_cost_by_hand import BY_HAND, below_autograd
from torch import Tensor

from tal_fast import ops

ROOT = Path(__file__).resolve().parents[1]
CALLS, ROUNDS = 300, 11


class Case(NamedTuple):
    """One op: the public call, its native arguments, and the tensors that get a gradient."""

    public: Callable[[], Tensor]
    arguments: tuple[Any, ...]
    wanted: tuple[Tensor, ...]


def make_cases() -> dict[str, Case]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).requires_grad_()

    x, rows, features = leaf(1, 4, 8), leaf(1, 8, 2, 4), leaf(1, 4, 8)
    locations, logits = leaf(1, 4, 2, 1, 2), leaf(1, 4, 2, 1, 2)
    reference, lengths = leaf(1, 4, 1, 1), (8,)
    query, key, value = leaf(1, 8, 2, 4), leaf(1, 8, 2, 4), leaf(1, 8, 2, 4)
    a, b = leaf(4, 2), leaf(4, 2)
    ends = torch.tensor([[[0.0, 2.0, 3.0, 6.0]]])
    rois = torch.tensor([[0.0, 1.0, 5.0]])
    return {
        "dropout": Case(lambda: ops.dropout(x, 0.1), (x, 0.1, 5, False, None, None), (x,)),
        "deform_attn": Case(
            lambda: ops.deform_attn(rows, lengths, locations, logits),
            (rows, lengths, locations, logits),
            (rows, locations, logits),
        ),
        "deform_attn_fused": Case(
            lambda: ops.deform_attn_fused(rows, lengths, reference, locations, logits),
            (rows, lengths, reference, locations, logits, None),
            (rows, reference, locations, logits),
        ),
        "local_attn": Case(
            lambda: ops.local_attn(query, key, value, 3),
            (query, key, value, 3, None, True),
            (query, key, value),
        ),
        "segment_iou": Case(
            lambda: ops.segment_iou(a, b, "diou", True), (a, b, 2, True, 0.0), (a, b)
        ),
        "boundary_max_pool": Case(
            lambda: ops.boundary_max_pool(features, ends),
            (features, ends, True, False),
            (features,),
        ),
        "segment_roi_align": Case(
            lambda: ops.segment_roi_align(features, rois, 2),
            (features, rois, 2, 0, False),
            (features,),
        ),
    }


def contenders() -> dict[str, dict[str, Callable[[], Any]]]:
    """Returns the calls to time, by op and by name; verified."""
    x, w, b = torch.rand(1, 4, 8), torch.rand(8, 8), torch.rand(8)
    of_linear = tuple(t.requires_grad_() for t in (x, w, b))
    calls: dict[str, dict[str, Callable[[], Any]]] = {}

    def add(op: str, name: str, call: Callable[[], Tensor], wanted: tuple[Tensor, ...]) -> None:
        grad = torch.ones_like(call())
        calls.setdefault(op, {})[name] = call
        calls[op][f"{name}, backward"] = lambda: torch.autograd.grad(call(), wanted, grad)

    add("linear", "ours", lambda: F.linear(x, w, b), of_linear)
    add("F.dropout", "ours", lambda: F.dropout(x, 0.1), (x,))
    for op, case in make_cases().items():
        native = getattr(torch.ops.tal_fast, op).default
        by_hand = BY_HAND[op].apply

        def raw(native: Any = native, arguments: tuple[Any, ...] = case.arguments) -> Any:
            with below_autograd():
                return native(*arguments)

        def hand(by_hand: Any = by_hand, arguments: tuple[Any, ...] = case.arguments) -> Tensor:
            out = by_hand(*arguments)
            return out[0] if isinstance(out, tuple) else out

        calls[op] = {"raw": raw}
        add(op, "hand", hand, case.wanted)
        add(op, "ours", case.public, case.wanted)
        if op != "dropout":  # which draws its seed
            verify(op, calls[op])
    return calls


def verify(op: str, calls: dict[str, Callable[[], Any]]) -> None:
    pairs = zip(calls["ours, backward"](), calls["hand, backward"](), strict=True)
    same = torch.equal(calls["ours"](), calls["hand"]()) and all(torch.equal(*p) for p in pairs)
    assert same, f"{op}: ours and the function by hand differ"


def measure() -> dict[str, dict[str, float]]:
    """Returns the median microseconds per call, of samples that take turns."""
    calls = contenders()
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for op, own in calls.items():
            for name, call in own.items():
                call()
                began = time.process_time()
                for _ in range(CALLS):
                    call()
                spent = (time.process_time() - began) / CALLS
                seconds.setdefault((op, name), []).append(spent)
    result: dict[str, dict[str, float]] = {}
    for (op, name), samples in seconds.items():
        result.setdefault(op, {})[name] = statistics.median(samples) * 1e6
    return result


def in_process(checkout: Path) -> dict[str, dict[str, float]]:
    """Measures a checkout in a process of its own."""
    command = [sys.executable, __file__, "--child"]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=checkout, check=True, capture_output=True, text=True
    )
    measured: dict[str, dict[str, float]] = json.loads(done.stdout)
    return measured


def combine(
    runs: list[dict[str, dict[str, float]]], before: list[dict[str, dict[str, float]]]
) -> list[dict[str, Any]]:
    """One row per op and pass: medians over the processes."""

    def median(of: list[dict[str, dict[str, float]]], op: str, name: str) -> float | None:
        values = [run[op][name] for run in of if name in run.get(op, {})]
        return round(statistics.median(values), 2) if values else None

    rows = []
    for op in runs[0]:
        for ending, what in (("", "forward"), (", backward", "forward + backward")):
            row: dict[str, Any] = {"op": op, "pass": what, "raw": median(runs, op, f"raw{ending}")}
            for name in ("hand", "ours"):
                row[name] = median(runs, op, name + ending)
            row["before"] = median(before, op, f"ours{ending}") if before else None
            linear = median(runs, "linear", f"ours{ending}")
            row["over hand"] = round(row["ours"] / row["hand"], 2) if row["hand"] else None
            row["over linear"] = round(row["ours"] / linear, 2) if linear else None
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    head = list(rows[0])
    cells = [head, *(["" if row[k] is None else str(row[k]) for k in head] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--against", type=Path, help="another checkout, built")
    parser.add_argument("--processes", type=int, default=3, help="of each checkout (default: 3)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        print(json.dumps(measure()))
        return
    import machine

    runs, before = [], []
    for _ in range(arguments.processes):
        runs.append(in_process(ROOT))
        if arguments.against is not None:
            before.append(in_process(arguments.against.resolve()))
    rows = combine(runs, before)
    print(machine.header())
    print(table(rows))
    path = ROOT / "benchmarks" / "results" / f"{machine.slug()}-host-cost.json"
    content = {"machine": machine.describe(), "unit": "us of CPU time per call", "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
