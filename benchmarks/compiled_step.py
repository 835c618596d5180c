# SPDX-License-Identifier: Apache-2.0
"""What ``torch.compile`` brings a training step of each model on a CPU, and what compiling costs.

The network's forward, and with it its backward, is compiled; loss and optimiser stay eager. One
shape, that of a batch of HAPT: a TadTR batch always has it, while crops of the other models differ
in length, so that theirs would be compiled again, or for any length (``dynamic``). Each model in a
process of its own with an empty cache; eager and compiled steps take turns.

Run: ``python benchmarks/compiled_step.py --out results/compiled-step.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PRESETS = ("tadtr-small", "actionformer-small", "tridet-small", "temporalmaxer-small")


def _cpu_seconds() -> float:
    """CPU time of this process and of the compilers that it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, kinds))


def one(preset: str, dynamic: bool, steps: int) -> dict[str, Any]:
    """Compiles and times in this process."""
    import torch
    from made_training import MadeTraining

    made = MadeTraining(preset, threads=1)
    model = made.model
    compiled = torch.compile(model.forward, dynamic=dynamic or None)
    model.eval()  # dropout draws differently when it is compiled
    with torch.no_grad():
        wanted = model(made.features, made.mask)
        began = time.perf_counter(), _cpu_seconds()
        given = compiled(made.features, made.mask)
    for ours, theirs in zip(wanted, given, strict=True):
        if isinstance(ours, torch.Tensor) and ours.is_floating_point():
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    model.train()
    made.step(compiled)
    compiling, cpu = time.perf_counter() - began[0], _cpu_seconds() - began[1]
    times: dict[str, list[float]] = {"eager": [], "compiled": []}
    for number in range(3 + steps):
        for name, forward in (("eager", model.forward), ("compiled", compiled)):
            since = time.process_time()
            made.step(forward)
            if number >= 3:
                times[name].append((time.process_time() - since) * 1e3)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "preset": preset,
        "shapes": "dynamic" if dynamic else "static",
        "eager_cpu_ms": medians["eager"],
        "compiled_cpu_ms": medians["compiled"],
        "compiled_of_eager": medians["compiled"] / medians["eager"],
        "compile_seconds": compiling,
        "compile_cpu_seconds": cpu,
        "pays_after_steps": (
            cpu * 1e3 / (medians["eager"] - medians["compiled"])
            if medians["compiled"] < medians["eager"]
            else None
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/compiled-step.json"))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--shapes", nargs="+", default=("static", "dynamic"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        preset, dynamic, steps = arguments.one
        print(json.dumps(one(preset, dynamic == "dynamic", int(steps))))
        return
    import machine

    print(machine.header(), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for preset in arguments.presets:
        for shapes in arguments.shapes:
            with tempfile.TemporaryDirectory() as cache:
                command = [sys.executable, __file__, "--one", preset, shapes, str(arguments.steps)]
                environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
                done = subprocess.run(
                    command, env=environment, stdout=subprocess.PIPE, text=True, check=False
                )
            if done.returncode:
                rows.append({"preset": preset, "shapes": shapes, "failed": done.returncode})
            else:
                rows.append(json.loads(done.stdout.splitlines()[-1]))
            content = {"machine": machine.describe(), "rows": rows}
            arguments.out.write_text(json.dumps(content, indent=1) + "\n")
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
