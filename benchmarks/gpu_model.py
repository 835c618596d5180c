# SPDX-License-Identifier: Apache-2.0
"""How long a kernel takes on a GPU that nobody has at hand: predicted from what can be counted.

``python benchmarks/gpu_model.py`` prints, for every call that the emulator counts, the predicted
time and what limits it, beside floor and goal; ``--device`` is another one of gpu_devices.json,
``--kernels`` prints every kernel. ``--write`` writes gpu_predictions.json, which `make gpu-check`
compares with what it measures.

A launch takes as long as the slowest of these, at 60 to 80 % of the peak, and its launch:

- ``issue``: instructions of warps over the schedulers of the busiest multiprocessor. Turns of
  marked loops are counted (count_limits.json), instructions of a turn are read from the machine
  code (kernel_limits.json), from the middle between the shortest and all ways to all ways; parts
  that are marked count as often as warps came there, and what stands outside of both at most once
  per warp. Of kernels without a mark: six to twelve instructions per request of memory or operation
  of a warp.
- ``shared memory``: wavefronts, and those of global memory in the same pipe (a request, or four
  sectors), one per clock and multiprocessor.
- ``L2``: sectors, at best those that are distinct per block, over its bandwidth.
- ``memory``: the bytes that the call must move, shared among its kernels by their distinct bytes.
  Not where the benchmark leaves the L2 cache warm.
- ``latency``: what the slowest warps of a block wait for, one after the other, times the rounds in
  which blocks follow each other (or problems, where each warp of blocks that fill the device has
  its own). At best loads come from L2, four under way, and operations overlap.

It knows nothing of caches beside that, of how well latencies overlap, or of clocks under load.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/cuda"), str(ROOT / "benchmarks")]

import limits as kernel_limits  # noqa: E402
from gpu_report import PREDICTIONS, write_json  # noqa: E402
from occupancy import MULTIPROCESSORS  # noqa: E402

__all__ = ["Parts", "instructions", "predict", "predict_kernel", "predictions"]

COUNTS = ROOT / "tests/cuda_emulator/count_limits.json"
DEVICES = Path(__file__).with_name("gpu_devices.json")
GOALS = Path(__file__).with_name("gpu_goals.json")

_EFFICIENCY = (0.8, 0.6)  # best, worst
_UNDER_WAY = 4  # loads of a warp that overlap at best
_SECTOR = 32
_WARM = 20e6  # bytes up to which the benchmark leaves the cache warm (gpu_harness.py)

#: Marked loops that stand within others: the outer one's instructions include the inner one's.
INNER = {
    "round": "query",
    "samples of a bin": "bin",
    "candidate": "turn",
    "decay": "turn",
    "earlier picks": "turn",
    "turn": "problem of a warp",
    "late decay": "turn",
    "settle": "word",
}
#: A loop whose turns a larger problem spreads over more warps of the same blocks.
BY_WARP = "problem of a warp"
#: Instructions per request or operation where no loop is marked; best, worst.
DENSITY = (6.0, 12.0)

# Kernels that torch launches for what the library asks it: CUB's sort makes a histogram and a scan,
# then a pass per 8 bits over keys and places.
_SORT = "aten::sort"
_SORT_LAUNCHES = 3
_KEY_BYTES = 8
_PLACE_BYTES = 8


@dataclass
class Parts:
    """Times of one kernel in microseconds, all its launches; each best and worst."""

    issue: tuple[float, float]
    shared_memory: tuple[float, float]
    l2: tuple[float, float]
    memory: tuple[float, float]
    latency: tuple[float, float]
    launch: float

    def work(self) -> dict[str, tuple[float, float]]:
        """By name, all but the launch."""
        return {
            "issue": self.issue,
            "shared memory": self.shared_memory,
            "L2": self.l2,
            "memory": self.memory,
            "latency": self.latency,
        }

    def total(self) -> tuple[float, float]:
        """Best and worst."""
        best, worst = (max(times[i] for times in self.work().values()) for i in (0, 1))
        return best + self.launch, worst + self.launch

    def limiter(self) -> str:
        """What takes longest, the means of best and worst compared."""
        means = {name: sum(times) / 2 for name, times in self.work().items()}
        means["launch"] = self.launch
        return max(means, key=lambda name: means[name])


def instructions(
    row: Mapping[str, Any], code: Mapping[str, Any] | None, once: float = 1.0
) -> tuple[float, float]:
    """Instructions that the warps of the counted blocks issue: at best, at worst.

    Args:
        row: of a kernel, as counts.py documents it.
        code: its machine code, as in kernel_limits.json; None if there is none.
        once: what stands outside of loops counts so many times per warp.
    """
    kinds = ("loads", "stores", "atomics", "shared_loads", "shared_stores", "shared_atomics")
    counted = row["operations"] + sum(row[kind]["requests"] for kind in kinds)
    loops = {} if code is None else code["loops"]
    known = {name: turns for name, turns in row["turns"].items() if name in loops}
    if code is None or not known:
        return DENSITY[0] * counted, DENSITY[1] * counted
    best = worst = 0.0
    parts = code.get("parts", {})
    for name, turns in known.items():
        own, least = loops[name][0], loops[name][1]
        for inner, outer in INNER.items():
            if outer == name and inner in loops:
                own -= loops[inner][0]
        own -= sum(counts.get(name, 0) for counts in parts.values())
        least = min(least, own)
        best += turns * (own + least) / 2
        worst += turns * own
    for name, counts in parts.items():
        # A warp takes one way through it, as through what is in none. In which loop is not counted.
        turns = row["turns"].get(name, 0) * (once if "" in counts else 1.0)
        best += turns * max(counts.values()) / 2
        worst += turns * max(counts.values())
    inside = sum(facts[0] for name, facts in loops.items() if INNER.get(name) not in loops)
    inside += sum(counts.get("", 0) for counts in parts.values())
    outside = max(0, code["instructions"] - inside) * row["warps"] * once
    return best + outside / 2, worst + outside


def predict_kernel(
    row: Mapping[str, Any],
    code: Mapping[str, Any] | None,
    device: Mapping[str, Any],
    *,
    scale: float = 1.0,
    memory_bytes: float = 0.0,
    first: bool = False,
) -> Parts:
    """Times of all launches of a kernel in one call.

    Args:
        row: of a kernel, as counts.py documents it.
        code: its machine code, as in kernel_limits.json; None if there is none.
        device: one of gpu_devices.json.
        scale: the problem has so many times the blocks of the row.
        memory_bytes: what its launches move to and from memory.
        first: it is the first launch of the call.
    """
    clock = 1e3 * device["clock_ghz"]  # cycles per us
    launches = row["launches"]
    # What a launch of one block does does not become several blocks with a larger problem.
    blocks = max(1.0, row["blocks"] * scale / launches)
    busiest = math.ceil(blocks / device["multiprocessors"])  # blocks of one multiprocessor
    per_block = 1 / row["counted_blocks"]

    def both(best: float, worst: float) -> tuple[float, float]:
        """Cycles at the peak to us."""
        return best / _EFFICIENCY[0] / clock, worst / _EFFICIENCY[1] / clock

    registers = None if code is None else code["registers"]
    at_once = max(
        1,
        MULTIPROCESSORS[device["arch"]].at_once(row["threads"], registers, row["shared_bytes"]),
    )
    # Blocks that fill the device take a larger problem in more turns, not in more blocks.
    fills = row["blocks"] == launches * device["multiprocessors"] * at_once
    once = 1 / scale if fills else 1.0
    issued = [n * per_block * busiest * launches for n in instructions(row, code, once)]
    issue = both(issued[0] / device["schedulers"], issued[1] / device["schedulers"])

    shared = ("shared_loads", "shared_stores", "shared_atomics")
    waves = sum(row[kind]["wavefronts"] for kind in shared)
    waves += sum(
        max(row[kind]["requests"], row[kind]["sectors"] / 4)
        for kind in ("loads", "stores", "atomics")
    )
    pipe = waves * per_block * busiest * launches

    whole = row["blocks"] * scale * per_block  # counted blocks in all blocks
    distinct = row["block_read_sectors"] + row["block_written_sectors"]
    sectors = sum(row[kind]["sectors"] for kind in ("loads", "stores", "atomics"))
    l2 = [whole * n * _SECTOR / device["l2_bytes_per_clock"] for n in (distinct, sectors)]

    rounds = math.ceil(blocks / (device["multiprocessors"] * at_once))
    if fills and BY_WARP in row["turns"]:
        rounds = max(1, math.ceil(row["turns"][BY_WARP] / row["warps"] * scale))
    slowest, chains, cycles = row["slowest"], row["chains"], device["cycles"]

    def chain(what: str) -> float:
        # Of the slowest blocks of each launch, and those that precede or follow on their place.
        return slowest[what] + (rounds - 1) * launches * chains[what] * per_block

    waits = (chain("global_waits"), chain("shared_waits"), chain("barriers"))
    requests = 2 * (chain("global_requests") + chain("shared_requests"))
    best, worst = (
        waits[0] * of_global + waits[1] * cycles["shared"] + waits[2] * cycles["barrier"]
        for of_global in (cycles["l2"] / _UNDER_WAY, cycles["global"])
    )
    operations = chain("operations")
    latency = (
        (best + requests + 2 * operations) / clock,
        (worst + requests + cycles["operation"] * operations) / clock,
    )
    gb_per_s = device["memory_gb_per_s"]
    return Parts(
        issue=issue,
        shared_memory=both(pipe, pipe),
        l2=both(l2[0], l2[1]),
        memory=(
            memory_bytes / gb_per_s / 1e3 / _EFFICIENCY[0] * 0.9,
            memory_bytes / gb_per_s / 1e3 / _EFFICIENCY[0],
        ),
        latency=latency,
        launch=device["launch_us"] * launches
        + (device["first_launch_us"] - device["launch_us"] if first else 0.0),
    )


def _torch_time(op: Mapping[str, Any], scale: float, device: Mapping[str, Any]) -> float:
    """Of what torch does for the library, in us."""
    elements = op["elements"] * scale
    if op["op"] != _SORT:
        return float(device["launch_us"])
    passes = _KEY_BYTES
    moved = passes * 2 * elements * (_KEY_BYTES + _PLACE_BYTES) + elements * _KEY_BYTES
    bandwidth = device["l2_bytes_per_clock"] * device["clock_ghz"] * 1e3  # bytes per us
    if elements * (_KEY_BYTES + _PLACE_BYTES) > device["l2_bytes"]:
        bandwidth = device["memory_gb_per_s"] * 1e3
    return float((_SORT_LAUNCHES + passes) * device["launch_us"] + moved / bandwidth / 0.6)


def predict(
    case: Mapping[str, Any], codes: Mapping[str, Any], device: Mapping[str, Any]
) -> tuple[tuple[float, float], str, dict[str, Parts]]:
    """Best and worst time of a call in us, what limits it, and the parts of its kernels.

    Args:
        case: of count_limits.json.
        codes: ``kernels`` of kernel_limits.json.
        device: one of gpu_devices.json.
    """
    rows = case["kernels"]
    memory = case["num_bytes"] if case["num_bytes"] > _WARM else 0.0
    moved = [
        (row["read_bytes"] + row["written_bytes"]) * row["blocks"] / row["counted_blocks"]
        for row in rows
    ]
    parts = {
        row["kernel"]: predict_kernel(
            row,
            codes.get(row["kernel"]),
            device,
            scale=case["scale"],
            memory_bytes=memory * own / max(1.0, sum(moved)),
            first=number == 0,
        )
        for number, (row, own) in enumerate(zip(rows, moved, strict=True))
    }
    torch_us = sum(_torch_time(op, case["scale"], device) for op in case["torch"])
    best = torch_us + sum(one.total()[0] for one in parts.values())
    worst = torch_us + sum(one.total()[1] for one in parts.values())
    shares: dict[str, float] = {"torch's kernels": torch_us} if torch_us else {}
    for one in parts.values():
        mean = sum(one.total()) / 2
        shares["launch"] = shares.get("launch", 0.0) + one.launch
        if one.limiter() != "launch":
            shares[one.limiter()] = shares.get(one.limiter(), 0.0) + mean - one.launch
    return (best, worst), max(shares, key=lambda name: shares[name]), parts


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _with_attention(
    goals: Iterable[Mapping[str, Any]], counts: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Adds what attention has no goal for: the benchmark measures all of its counted cases."""
    found = list(goals)
    known = {(goal["op"], goal["case"]) for goal in found}
    for name, case in counts["cases"].items():
        entry: dict[str, Any] = {"op": case["op"], "case": case["case"]}
        if not case["op"].startswith("deform_attn"):
            continue
        if " bwd " in case["case"]:  # forward and backward, without the forward
            whole, forward = (case["case"].replace("bwd", what) for what in ("fwd+bwd", "fwd"))
            entry |= {"case": whole, "minus": forward, "counts": [name]}
        if (entry["op"], entry["case"]) not in known:
            found.append(entry)
    return found


def predictions(
    counts: Mapping[str, Any],
    codes: Mapping[str, Any],
    devices: Mapping[str, Any],
    goals: Mapping[str, Any],
    device: str = "NVIDIA H200",
) -> dict[str, Any]:
    """What gpu_predictions.json holds (gpu_report.read_predictions): a row per benchmarked case.

    Raises:
        ValueError: a goal is about a case that was not counted; it is named.
    """
    facts = devices["devices"][device]
    rows = []

    def row(entry: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
        found = [predict(counts["cases"][name], codes["kernels"], facts) for name in names]
        num_bytes = sum(counts["cases"][name]["num_bytes"] for name in names)
        bounds = [sum(one[0][i] for one in found) for i in (0, 1)]
        same = {key: entry[key] for key in ("op", "case", "minus") if entry.get(key) is not None}
        return {
            **same,
            "predicted_us": [_rounded(bound) for bound in bounds],
            "floor_us": _rounded(num_bytes / facts["memory_gb_per_s"] / 1e3),
            "must_us": entry.get("must_us"),
            "aim_us": entry.get("aim_us"),
            "limiter": ", ".join(dict.fromkeys(one[1] for one in found)),
        }

    for goal in _with_attention(goals["rows"], counts):
        names = goal.get("counts", [f"{goal['op']}: {goal['case']}"])
        missing = [name for name in names if name not in counts["cases"]]
        if missing:
            raise ValueError(
                f"{GOALS.name}: expected a case of {COUNTS.name} for {goal['op']} "
                f"{goal['case']!r}, found none called {missing[0]!r}"
            )
        rows.append(row(goal, names))
    return {
        "source": "python benchmarks/gpu_model.py --write, from tests/cuda_emulator/"
        f"{COUNTS.name} and tests/cuda/{kernel_limits.PATH.name} (nvcc {codes['nvcc']}); nothing "
        "of it was measured",
        "device": device,
        "rows": rows,
    }


# ---- the command -------------------------------------------------------------------------------


def read() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Counts, machine code, devices and goals, as they are in the repository."""
    files = (COUNTS, kernel_limits.PATH, DEVICES, GOALS)
    found = [json.loads(path.read_text("utf-8")) for path in files]
    return found[0], found[1], found[2], found[3]


def table(found: Mapping[str, Any]) -> str:
    """Predictions beside floors and goals."""
    lines = [
        f"{found['device']}: us, predicted at best and at worst",
        f"{'op':34} {'case':52} {'predicted':>13} {'floor':>7} {'must':>6} {'aim':>5}  "
        f"{'reached':8} limiter",
    ]
    for row in found["rows"]:
        best, worst = row["predicted_us"]
        must, aim = row["must_us"], row["aim_us"]
        case = row["case"] if "minus" not in row else f"{row['case']} - {row['minus']}"
        lines.append(
            f"{row['op']:34} {case:52} {f'{best:g}-{worst:g}':>13} {row['floor_us']:>7g} "
            f"{'-' if must is None else f'{must:g}':>6} {'-' if aim is None else f'{aim:g}':>5}  "
            f"{reached(row['predicted_us'], must):8} {row['limiter']}"
        )
    return "\n".join(lines)


def reached(bounds: Iterable[float], must: float | None) -> str:
    """Whether a goal is met: ``yes``, ``perhaps`` between best and worst, ``no``, or empty."""
    best, worst = bounds
    if must is None:
        return ""
    return "yes" if worst <= must else "perhaps" if best <= must else "no"


def _kernels(case: Mapping[str, Any], codes: Mapping[str, Any], device: Mapping[str, Any]) -> str:
    lines = []
    for kernel, parts in predict(case, codes, device)[2].items():
        times = ", ".join(
            f"{name} {best:.2f}-{worst:.2f}" for name, (best, worst) in parts.work().items()
        )
        known = "" if kernel in codes else " (no machine code)"
        lines.append(f"    {kernel}{known}: launch {parts.launch:.1f}, {times}")
    return "\n".join(lines)


def main() -> int:
    """Prints predictions; writes them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    counts, codes, devices, goals = read()
    parser.add_argument("--device", default="NVIDIA H200", choices=devices["devices"])
    parser.add_argument("--kernels", action="store_true", help="print every kernel")
    parser.add_argument("--write", action="store_true", help=f"write {PREDICTIONS.name} anew")
    arguments = parser.parse_args()
    found = predictions(counts, codes, devices, goals, arguments.device)
    print(table(found))
    if arguments.kernels:
        for name, case in counts["cases"].items():
            kernels = _kernels(case, codes["kernels"], devices["devices"][arguments.device])
            print(f"\n{name}\n{kernels}")
    if arguments.write:
        write_json(PREDICTIONS, found)
        print(f"{PREDICTIONS.name}: {len(found['rows'])} rows written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
