# SPDX-License-Identifier: Apache-2.0
"""How torch's threads wait: what spinning costs on busy cores, and sleeping on quiet ones.

Between two parallel parts an OpenMP thread waits, and GNU's library spins for a while before it
sleeps. On cores of its own that saves waking up; on cores that others use, too, the thread that is
waited for may be the one without a core. ``OMP_WAIT_POLICY=passive`` sleeps at once;
``GOMP_SPINCOUNT`` says how many rounds are spun. Both are read when torch is loaded.

Trains some steps per setting, each in a process of its own, in turn: on the machine as it is, and
beside as many busy processes as there are cores. One thread stands beside them.

Run: ``python benchmarks/waiting_threads.py --out results/waiting-threads.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SETTINGS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "as torch has it": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "spin 100,000": {"GOMP_SPINCOUNT": "100000"},
}
PRESETS = ("tadtr-small", "temporalmaxer-small")
BUSY = "while True: pass"


def steps(preset: str, count: int, threads: int) -> None:
    """Trains in this process; prints the medians of a step in milliseconds."""
    from made_training import MadeTraining

    made = MadeTraining(preset, threads)
    wall, cpu = [], []
    for step in range(3 + count):
        began, began_cpu = time.perf_counter(), time.process_time()
        made.step(made.model)
        if step >= 3:
            wall.append((time.perf_counter() - began) * 1e3)
            cpu.append((time.process_time() - began_cpu) * 1e3)
    print(json.dumps({"wall_ms": statistics.median(wall), "cpu_ms": statistics.median(cpu)}))


def run(preset: str, setting: str, count: int) -> dict[str, float]:
    """Trains with a setting in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GOMP_")}
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        environment.pop(name, None)
    threads = 1 if setting == "1 thread" else os.cpu_count() or 1
    command = [sys.executable, __file__, "--one", preset, str(count), str(threads)]
    done = subprocess.run(
        command, env=environment | SETTINGS[setting], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table_of(rows: list[dict[str, Any]]) -> str:
    """Returns the medians of the rounds as a table in Markdown, walls also over those of torch."""
    lines = [
        "| preset | cores | how threads wait | wall | relative to torch's default | CPU |",
        "|---|---|---|---|---|---|",
    ]
    kinds: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        mine = kinds.setdefault((row["preset"], row["cores"]), {})
        mine.setdefault(row["setting"], []).append(row)
    for (preset, cores), settings in kinds.items():
        wall = {
            setting: statistics.median(row["wall_ms"] for row in found)
            for setting, found in settings.items()
        }
        for setting, found in settings.items():
            share = wall[setting] / wall.get("as torch has it", float("nan"))
            cpu = statistics.median(row["cpu_ms"] for row in found)
            lines.append(
                f"| {preset} | {cores} | {setting} | {wall[setting]:.0f} ms | {share:.2f} "
                f"| {cpu:.0f} ms |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/waiting-threads.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--table", metavar="FILE", help="print the table of FILE and stop")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        print(table_of(json.loads(Path(arguments.table).read_text())["rows"]))
        return
    if arguments.one:
        preset, count, threads = arguments.one
        steps(preset, int(count), int(threads))
        return
    import machine

    print(machine.header(), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    content = {"machine": machine.describe(), "rows": rows}
    for round_ in range(arguments.rounds):
        for cores in ("quiet", "busy"):
            others = [
                subprocess.Popen([sys.executable, "-c", BUSY])
                for _ in range(os.cpu_count() or 1 if cores == "busy" else 0)
            ]
            try:
                for preset in PRESETS:
                    for setting in SETTINGS:
                        found = run(preset, setting, arguments.steps)
                        row = {"preset": preset, "cores": cores, "setting": setting, **found}
                        rows.append({**row, "round": round_})
                        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
                        print(row, flush=True)
            finally:
                for other in others:
                    other.kill()
                    other.wait()
    print(table_of(rows))


if __name__ == "__main__":
    main()
