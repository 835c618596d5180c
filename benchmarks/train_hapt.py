# SPDX-License-Identifier: Apache-2.0
"""Accuracy of the full TadTR on HAPT: several seeds, last epoch, official split.

Trains on all training recordings and tests on the nine test people, one run per (preset, epochs,
seed); finished runs are not repeated. ``tadtr-small`` is not here: its study has five seeds at
100 %. Two processes with a thread each are faster on two cores than
one with two, so runs go in pairs.

Run: ``tal-fast prepare hapt --archive hapt_raw.zip --out data/hapt``, then
``python benchmarks/train_hapt.py --data data/hapt --out results/hapt-presets``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RUNS = (("tadtr", 30), ("tadtr", 16))
FIELDS = ("average_map", "map_per_threshold", "train_seconds", "steps", "peak_memory_mib")


def one(data: str, preset: str, epochs: int, seed: int, out: str) -> None:
    """Trains and tests in this process."""
    from tal_fast.data.dataset import open_dataset
    from tal_fast.training import load_config, run_experiment

    dataset = open_dataset(data)
    config = load_config(
        preset=preset, overrides=[f"training.epochs={epochs}", f"training.seed={seed}"]
    )
    run_experiment(
        config,
        dataset,
        train_videos=dataset.splits["train"],
        test_videos=dataset.splits["test"],
        out=out,
        threads=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/hapt")
    parser.add_argument("--out", default="results/hapt-presets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", nargs=4, metavar=("PRESET", "EPOCHS", "SEED", "OUT"))
    arguments = parser.parse_args()
    if arguments.one:
        preset, epochs, seed, out = arguments.one
        one(arguments.data, preset, int(epochs), int(seed), out)
        return

    def launch(run: tuple[str, int, int]) -> dict[str, Any]:
        preset, epochs, seed = run
        out = Path(arguments.out) / f"{preset}-{epochs}-epochs-seed{seed}"
        if not (out / "metrics.json").exists():
            command = [sys.executable, __file__, "--data", arguments.data]
            command += ["--one", preset, str(epochs), str(seed), str(out)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        metrics = json.loads((out / "metrics.json").read_text())
        print(f"{out.name}: average mAP {metrics['average_map']:.4f}", flush=True)
        return {"preset": preset, "epochs": epochs, "seed": seed} | {
            key: metrics[key] for key in FIELDS
        }

    runs = [(preset, epochs, seed) for preset, epochs in RUNS for seed in arguments.seeds]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(launch, runs))
    environment = json.loads(
        next(Path(arguments.out).glob("*/environment.json")).read_text("utf-8")
    )
    summary = []
    for preset, epochs in RUNS:
        scores = [
            row["average_map"]
            for row in results
            if (row["preset"], row["epochs"]) == (preset, epochs)
        ]
        spread = statistics.stdev(scores) if len(scores) > 1 else None
        summary.append(
            {
                "preset": preset,
                "epochs": epochs,
                "mean": statistics.mean(scores),
                "standard_deviation": spread,
                "runs": len(scores),
            }
        )
        print(preset, epochs, f"{summary[-1]['mean']:.4f}", "+-", spread)
    content = {"environment": environment, "summary": summary, "runs": results}
    (Path(arguments.out) / "summary.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
