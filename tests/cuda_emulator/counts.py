# SPDX-License-Identifier: Apache-2.0
"""What kernels do to memory, counted by the emulator; ``count_limits.json``, compared and written.

``python tests/cuda_emulator/counts.py`` counts the calls of count_cases.py and prints a table:
requests of warps to global memory and sectors (32 bytes) per request beside the least that the same
bytes need, the same for wavefronts of shared memory, lanes that take part, barriers, operations of
warps, distinct bytes, and the blocks that a multiprocessor takes with the registers and the shared
memory of the launch. It compares them with the limits: more of anything fails, ``--write`` writes
down what is. ``--json FILE`` keeps all that was counted, per kernel.

A row is about all launches of one kernel in one call::

    name, kernel         of the NVTX range; the type, as in kernel_limits.json
    launches, blocks     how many of both; numbers below are of counted_blocks of these
    threads, warps       per block; of all counted blocks
    shared_bytes         that the launch asks for, per block
    per_multiprocessor   blocks at once on sm_90
    loads, stores, atomics                       requests, lanes, bytes, sectors, ideal
    shared_loads, shared_stores, shared_atomics  requests, lanes, bytes, wavefronts, ideal
    turns                of marked loops, by name: turns of warps
    operations           of warps, in registers of 32 bits, and the lanes that take part
    barriers             of blocks
    read_bytes, written_bytes                    distinct bytes of the launch
    block_read_sectors, block_written_sectors    distinct sectors per block, added up
    slowest, chains      what the slowest block waits for, one after the other; all blocks
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cuda"))

import emulated
import limits as kernel_limits
import torch
from count_cases import CASES, CountCase
from occupancy import MULTIPROCESSORS
from torch.autograd import profiler_legacy

PATH = Path(__file__).with_name("count_limits.json")

# Of a launch with more blocks so many are counted, in runs of neighbours: what neighbours read
# together shows in the distinct bytes.
RUNS, LENGTH = 10, 2

_SLACK = 1.01  # of what depends on where a memory allocator puts things
_GLOBAL = ("loads", "stores", "atomics")
_SHARED = ("shared_loads", "shared_stores", "shared_atomics")
_ADDED = (
    "launches",
    "blocks",
    "counted_blocks",
    "warps",
    "operations",
    "operation_lanes",
    "barriers",
    "read_bytes",
    "written_bytes",
    "block_read_sectors",
    "block_written_sectors",
)


def registers(path: Path | None = None) -> dict[str, int]:
    """Registers of a thread, by kernel, as ``kernel_table.py`` wrote them."""
    return {name: facts["registers"] for name, facts in kernel_limits.read(path)["kernels"].items()}


def summarise(launches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row per kernel from what the emulator counted of launches."""
    rows: dict[str, dict[str, Any]] = {}
    known = registers()
    for launch in launches:
        kernel = kernel_limits.short_name(launch["kernel"])
        one = {**launch, "launches": 1, "operations": sum(launch["operations"].values())}
        row = rows.setdefault(
            kernel,
            {
                **{"name": one["name"], "kernel": kernel, "threads": 0, "shared_bytes": 0},
                **dict.fromkeys(_ADDED, 0),
                **{kind: dict.fromkeys(one[kind], 0) for kind in (*_GLOBAL, *_SHARED)},
                "turns": {},
                "slowest": dict.fromkeys(one["slowest"], 0),
                "chains": dict.fromkeys(one["chains"], 0),
            },
        )
        for key in _ADDED:
            row[key] += one[key]
        for key in ("threads", "shared_bytes"):
            row[key] = max(row[key], one[key])
        for key in (*_GLOBAL, *_SHARED, "slowest", "chains"):
            row[key] = {what: count + one[key][what] for what, count in row[key].items()}
        for loop, count in one["turns"].items():
            row["turns"][loop] = row["turns"].get(loop, 0) + count
    for row in rows.values():
        row["turns"] = dict(sorted(row["turns"].items()))
        row["per_multiprocessor"] = MULTIPROCESSORS["sm_90"].at_once(
            row["threads"], known.get(row["kernel"]), row["shared_bytes"]
        )
    return list(rows.values())


# The library's ops call these of torch's; their launches are none of ours.
_TORCH_OPS = ("aten::sort", "aten::new_zeros")


def count(case: CountCase) -> dict[str, Any]:
    """Runs a case on the emulator.

    Returns:
        ``op``, ``case``, ``num_bytes`` and ``scale`` of the case, its rows as ``kernels``, and what
        torch did for it as ``torch``: dicts of ``op`` and ``elements``.
    """
    with emulated.counted(RUNS, LENGTH, case.partly):  # a forward pass, in part
        call = case.make()
    # Not torch.profiler, which writes a line to the terminal whenever it begins and ends.
    with (
        emulated.counted(RUNS, LENGTH, case.partly) as launches,
        profiler_legacy.profile(record_shapes=True) as profile,
    ):
        call()
    facts = {key: getattr(case, key) for key in ("op", "case", "num_bytes", "scale")}
    done = [
        {"op": event.name, "elements": torch.Size(event.input_shapes[0]).numel()}
        for event in profile.function_events
        if event.name in _TORCH_OPS and event.input_shapes
    ]
    return {**facts, "torch": done, "kernels": summarise(launches)}


# ---- limits ------------------------------------------------------------------------------------


def compiler() -> str:
    """What compiled the emulator: its code decides which raw accesses there are."""
    function = emulated.load(emulated.COUNTED).tal_fast_emulator_compiler
    function.restype = emulated.ctypes.c_char_p
    name: str = function().decode()
    return name


def read(path: Path = PATH) -> dict[str, Any]:
    """The file: ``compiler``, and ``cases`` by name, as :func:`count` gives them."""
    if not path.exists():
        return {"compiler": "", "cases": {}}
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def write(cases: Mapping[str, Any], path: Path = PATH) -> None:
    """Writes the file, a kernel per line."""
    lines = ["{", f' "compiler": {json.dumps(compiler())},', ' "cases": {']
    for i, (name, case) in enumerate(cases.items()):
        kernels = ",\n".join(f"   {json.dumps(row)}" for row in case["kernels"])
        head = {key: value for key, value in case.items() if key != "kernels"}
        lines.append(f'  {json.dumps(name)}: {json.dumps(head)[:-1]}, "kernels": [')
        lines += [kernels, "  ]}" + ("," if i + 1 < len(cases) else "")]
    path.write_text("\n".join([*lines, " }", "}", ""]), "utf-8")


def costs(row: Mapping[str, Any]) -> dict[str, float]:
    """What must not grow, of all blocks of the launches, counted or not."""
    share = row["blocks"] / row["counted_blocks"]
    found = {
        "requests of global memory": sum(row[kind]["requests"] for kind in _GLOBAL),
        "sectors": sum(row[kind]["sectors"] for kind in _GLOBAL),
        "sectors read, distinct per block": row["block_read_sectors"],
        "sectors written, distinct per block": row["block_written_sectors"],
        "requests of shared memory": sum(row[kind]["requests"] for kind in _SHARED),
        "wavefronts": sum(row[kind]["wavefronts"] for kind in _SHARED),
        "operations of warps": row["operations"],
        "barriers": row["barriers"],
        **{f"turns of '{loop}'": turns for loop, turns in row["turns"].items()},
    }
    return {"launches": row["launches"], **{what: n * share for what, n in found.items()}}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    worse, better = [], []
    before = costs(old)
    for what, now in costs(new).items():
        was = before.get(what, 0)
        if now > _SLACK * was:
            worse.append(f"{what} {was:.0f} -> {now:.0f}")
        elif was > _SLACK * now:
            better.append(f"{what} {was:.0f} -> {now:.0f}")
    was, now = old["per_multiprocessor"], new["per_multiprocessor"]
    if was != now:
        shared = f"shared memory {old['shared_bytes']} -> {new['shared_bytes']} bytes"
        text = f"blocks per multiprocessor {was} -> {now} ({shared})"
        (worse if now < was else better).append(text)
    return worse, better


def compare(
    known: Mapping[str, Any], name: str, rows: Iterable[Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """Lines about kernels of a case that are worse than their limits, and about better ones."""
    case = known["cases"].get(name)
    if case is None:
        return [f"{name}: has no limits yet"], []
    limits = {row["kernel"]: row for row in case["kernels"]}
    worse, better = [], []
    for row in rows:
        kernel = row["kernel"]
        if kernel not in limits:
            worse.append(f"{name}: {kernel}: has no limits yet")
            continue
        bad, good = _changes(limits.pop(kernel), row)
        worse += [f"{name}: {kernel}: {text}" for text in bad]
        better += [f"{name}: {kernel}: {text}" for text in good]
    better += [f"{name}: {kernel}: is no longer launched" for kernel in limits]
    return worse, better


# ---- the command -------------------------------------------------------------------------------

_HEAD = (
    f"{'kernel':44} {'blocks':>7} {'counted':>7} {'on SM':>5} {'global':>8} {'lanes':>5} "
    f"{'sectors':>13} {'shared':>8} {'wavefronts':>13} {'operations':>10} {'barriers':>8} "
    f"{'distinct KB':>11}"
)


def _per_request(sums: list[Mapping[str, int]], cost: str) -> tuple[int, str, str]:
    requests = sum(one["requests"] for one in sums)
    if requests == 0:
        return 0, "-", "-"
    lanes, costs, ideal = (sum(one[key] for one in sums) for key in ("lanes", cost, "ideal"))
    return requests, f"{lanes / requests:.0f}", f"{costs / requests:.2f} ({ideal / requests:.2f})"


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line per kernel; sectors and wavefronts are per request, the least possible in brackets."""
    lines = []
    for row in rows:
        requests, lanes, sectors = _per_request([row[kind] for kind in _GLOBAL], "sectors")
        shared, _, wavefronts = _per_request([row[kind] for kind in _SHARED], "wavefronts")
        name = row["name"] + (f" x {row['launches']}" if row["launches"] > 1 else "")
        lines.append(
            f"{name:44} {row['blocks']:7} {row['counted_blocks']:7} "
            f"{row['per_multiprocessor']:5} {requests:8} {lanes:>5} {sectors:>13} {shared:8} "
            f"{wavefronts:>13} {row['operations']:10} {row['barriers']:8} "
            f"{(row['read_bytes'] + row['written_bytes']) / 1e3:11.1f}"
        )
        lines += [f"    turns of '{loop}': {turns}" for loop, turns in row["turns"].items()]
    return "\n".join(lines)


def main() -> int:
    """Counts, prints, compares; returns 1 if something is worse than its limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--write", action="store_true", help="write the limits of these cases anew")
    parser.add_argument("--json", type=Path, help="keep what was counted in this file")
    arguments = parser.parse_args()
    if not emulated.COUNTED.exists():
        print(f"counts: {emulated.COUNTED} is absent: run `make build`")
        return 1
    known = read()
    cases: dict[str, Any] = {}
    worse: list[str] = []
    better: list[str] = []
    for name, case in CASES.items():
        if arguments.only not in name:
            continue
        begin = time.process_time()
        cases[name] = count(case)
        rows = cases[name]["kernels"]
        seconds = time.process_time() - begin
        part = "" if case.scale == 1 else f"; the whole is {case.scale:.3g} times that"
        print(f"\n{name} ({seconds:.1f} CPU s{part})\n{_HEAD}\n{table(rows)}", flush=True)
        found = compare(known, name, rows)
        worse += found[0]
        better += found[1]
    if arguments.json:
        arguments.json.write_text(json.dumps(cases, indent=1) + "\n", "utf-8")
    if arguments.write:
        kept = {name: known["cases"][name] for name in CASES if name in known["cases"]}
        write({name: {**kept, **cases}[name] for name in CASES if name in {**kept, **cases}})
        print("\n".join([*worse, *better, f"{PATH.name}: {len(cases)} cases written"]))
        return 0
    if known["compiler"] != compiler():
        print(f"not compared: {PATH.name} is of {known['compiler']}, this of {compiler()}")
        return 0
    for text in worse:
        print(f"worse than its limit: {text}")
    for text in better:
        print(f"better than its limit: {text}")
    print(f"{len(cases)} cases counted, {len(worse)} limits exceeded")
    if better:
        print("counts.py --write writes down what is better")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
