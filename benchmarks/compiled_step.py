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
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PRESETS = ("tadtr-small", "actionformer-small", "tridet-small", "temporalmaxer-small")


def one(preset: str, dynamic: bool, steps: int) -> dict[str, Any]:
    """Compiles and times in this process."""
    import torch

    from tal_fast.models import Targets, Whole, build_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch, rows = (16, 128) if preset.startswith("tadtr") else (2, 768)
    model = build_model(preset, in_channels=300, num_classes=12)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    features = torch.randn(batch, rows, 300)
    mask = torch.zeros(batch, rows, dtype=torch.bool)
    mask[:, 736:] = True  # padding, as the models of a pyramid want it
    edges = torch.tensor([[10.0, 40.0], [60.0, 100.0]]).repeat(batch, 1).double()
    targets = Targets(torch.tensor([1, 2]).repeat(batch), edges, [2] * batch, rows)
    compiled = torch.compile(model.forward, dynamic=dynamic or None)

    def step(forward: Any) -> tuple[float, float]:
        began = time.process_time()
        loss = model.loss(forward(features, mask), targets, Whole(targets))["total"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.process_time() - began, float(loss.detach())

    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(1)
    model.eval()  # dropout draws differently when it is compiled
    with torch.no_grad():
        wanted = model(features, mask)
        began = time.perf_counter()
        given = compiled(features, mask)
    for ours, theirs in zip(wanted, given, strict=True):
        if isinstance(ours, torch.Tensor) and ours.is_floating_point():
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    model.load_state_dict(before)
    model.train()
    step(compiled)
    compiling = time.perf_counter() - began
    times: dict[str, list[float]] = {"eager": [], "compiled": []}
    for number in range(3 + steps):
        for name, forward in (("eager", model.forward), ("compiled", compiled)):
            taken, _ = step(forward)
            if number >= 3:
                times[name].append(taken * 1e3)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "preset": preset,
        "dynamic": dynamic,
        "eager_cpu_ms": medians["eager"],
        "compiled_cpu_ms": medians["compiled"],
        "compiled_of_eager": medians["compiled"] / medians["eager"],
        "compile_seconds": compiling,
        "pays_after_steps": (
            compiling * 1e3 / (medians["eager"] - medians["compiled"])
            if medians["compiled"] < medians["eager"]
            else None
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/compiled-step.json"))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
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
        for shapes in ("static", "dynamic"):
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
