# SPDX-License-Identifier: Apache-2.0
"""Accuracy on HAPT at 100 % of the training recordings: ours, and the official codes beside it.

Trains on all training recordings and tests on the nine test people (official split, last epoch),
one process of one thread per training; finished ones are not repeated. ActionFormer, TriDet and
TemporalMaxer run in the sizes of our small presets, in float32, at two learning rates, by our code
and by the official one (``TAL_FAST_PEERS``; left out where it is absent), whose model, crops,
optimiser, schedule, average and post-processing are its own; our evaluator scores both. One
training gives two scores: of its last weights, and of their plain moving average, which the recipes
test.

Run: ``tal-fast prepare hapt --archive hapt_raw.zip --out data/hapt``, then
``python benchmarks/train_hapt.py --data data/hapt --out results/hapt-presets``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS, OFFICIAL = "tal_fast", "official"
POINT_DETECTORS = ("actionformer-small", "tridet-small", "temporalmaxer-small")


@dataclass(frozen=True, order=True)
class Run:
    """One training.

    Attributes:
        preset: of our model.
        code: ``tal_fast`` or ``official``.
        learning_rate: its recipe's own when None.
        epochs: its recipe's own when None.
        seed: of all that is random.
    """

    preset: str
    code: str
    learning_rate: float | None
    epochs: int | None
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        rate = "" if self.learning_rate is None else f"-lr{self.learning_rate:g}"
        epochs = "" if self.epochs is None else f"-{self.epochs}-epochs"
        return f"{self.preset}{epochs}{rate}-{self.code}-seed{self.seed}"


def runs_of(presets: list[str], codes: list[str], seeds: list[int]) -> list[Run]:
    """Returns all trainings, one seed after the other."""
    kinds: list[tuple[str, str, float | None, int | None]] = []
    for preset in presets:
        if preset in POINT_DETECTORS:
            kinds += [(preset, code, rate, None) for rate in (1e-4, 1e-3) for code in codes]
        elif OURS in codes:
            kinds += [(preset, OURS, None, n) for n in ((30, 16) if preset == "tadtr" else (None,))]
    return [Run(*kind, seed) for seed in seeds for kind in kinds]


def train_ours(run: Run, data: str, out: Path) -> dict[str, Any]:
    """Trains and tests our model in this process."""
    from tal_fast.data.dataset import open_dataset
    from tal_fast.training import load_config, run_experiment

    dataset = open_dataset(data)
    overrides = [f"training.seed={run.seed}"]
    if run.preset in POINT_DETECTORS:
        overrides += ["training.amp=float32", "training.ema=off,plain"]
    if run.learning_rate is not None:
        overrides.append(f"training.learning_rate={run.learning_rate}")
    if run.epochs is not None:
        overrides.append(f"training.epochs={run.epochs}")
    began = time.process_time()
    result = run_experiment(
        load_config(preset=run.preset, overrides=overrides),
        dataset,
        train_videos=dataset.splits["train"],
        test_videos=dataset.splits["test"],
        out=out,
        threads=1,
    )
    return {
        "scores": {mode: dataclasses.asdict(scores) for mode, scores in result.ema.items()},
        "steps": result.steps,
        "train_seconds": result.train_seconds,
        # Prediction included, some hundredths of all.
        "train_cpu_seconds": time.process_time() - began,
        "peak_memory_mib": result.peak_memory_mib,
    }


def train_official(run: Run, data: str) -> dict[str, Any]:
    """Trains and tests the official model in this process."""
    import numpy as np
    import torch
    from peers.point_detectors import OfficialDetector, official_item

    from tal_fast.data.dataset import open_dataset
    from tal_fast.evaluation import Detections, evaluate
    from tal_fast.training.environment import peak_memory_mib

    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    np.random.seed(run.seed)  # noqa: NPY002  # what their code draws from
    random.seed(run.seed)
    dataset = open_dataset(data)
    timing = {"fps": 50.0, "stride": 25, "frames": 50}

    def items(split: str) -> list[dict[str, Any]]:
        found = []
        for name in dataset.splits[split]:
            video = dataset.annotations.videos[name]
            features = np.load(Path(data) / "features" / f"{name}.npy")
            found.append(
                official_item(name, features, video.segments, video.labels, video.duration, timing)
            )
        return found

    videos, batch = items("train"), 2
    per_epoch = len(videos) // batch  # what is left over is dropped, as by its loader
    official = OfficialDetector(
        run.preset,
        dataset.channels,
        dataset.num_classes,
        steps_per_epoch=per_epoch,
        learning_rate=run.learning_rate,
    )
    began, began_cpu = time.perf_counter(), time.process_time()
    for epoch in range(official.epochs):
        order = torch.randperm(len(videos)).tolist()
        for at in range(per_epoch):
            chosen = order[at * batch : (at + 1) * batch]
            loss = official.step([official.crop(videos[i]) for i in chosen])
        print(f"{run.name}: epoch {epoch + 1} of {official.epochs}, loss {loss:.3f}", flush=True)
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    scores = {}
    tests = items("test")
    for mode in ("off", "plain"):
        found = {}
        for item in tests:
            given = official.predict(item, average=mode == "plain")
            found[item["video_id"]] = (given["segments"], given["labels"], given["scores"])
        score = evaluate(
            dataset.truth.select(dataset.splits["test"]),
            Detections.from_videos(found, dataset.classes),
        )
        per_threshold = zip(score.tiou_thresholds, score.map_per_threshold, strict=True)
        scores[mode] = {
            "average_map": float(score.average_map),
            "map_per_threshold": {f"{at:g}": float(value) for at, value in per_threshold},
        }
    return {
        "scores": scores,
        "steps": official.epochs * per_epoch,
        "train_seconds": seconds,
        "train_cpu_seconds": cpu,
        "peak_memory_mib": peak_memory_mib(),
    }


def one(run: Run, data: str, out: Path) -> None:
    """Trains and tests in this process, and keeps what it gave."""
    import machine

    out.mkdir(parents=True, exist_ok=True)
    found = train_ours(run, data, out) if run.code == OURS else train_official(run, data)
    content = {**dataclasses.asdict(run), **found, "machine": machine.describe()}
    (out / "result.json.part").write_text(json.dumps(content, indent=2) + "\n")
    (out / "result.json.part").replace(out / "result.json")


def summary_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns mean and standard deviation over the seeds of each kind of training."""
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in results:
        for mode in row["scores"]:
            key = (row["preset"], row["code"], row["learning_rate"], row["epochs"], mode)
            kinds.setdefault(key, []).append(row)
    found = []
    for (preset, code, rate, epochs, mode), rows in kinds.items():
        scores = [row["scores"][mode]["average_map"] for row in rows]
        found.append(
            {
                "preset": preset,
                "code": code,
                "learning_rate": rate,
                "epochs": epochs,
                "ema": mode,
                "mean": statistics.mean(scores),
                "standard_deviation": statistics.stdev(scores) if len(scores) > 1 else None,
                "seeds": len(scores),
                "cpu_seconds_per_step": statistics.median(
                    row["train_cpu_seconds"] / row["steps"] for row in rows
                ),
                "train_cpu_seconds": statistics.median(row["train_cpu_seconds"] for row in rows),
                "train_seconds": statistics.median(row["train_seconds"] for row in rows),
                "peak_memory_mib": statistics.median(row["peak_memory_mib"] for row in rows),
            }
        )
    return found


def table_of(summary: list[dict[str, Any]]) -> str:
    """Returns a summary as a table in Markdown, average mAP in percent."""
    lines = [
        "| preset | epochs | learning rate | weights | code | average mAP | CPU per step | "
        "CPU of a training | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in summary:
        spread = row["standard_deviation"]
        score = f"{100 * row['mean']:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
        cells = [
            row["preset"],
            "recipe's" if row["epochs"] is None else str(row["epochs"]),
            "recipe's" if row["learning_rate"] is None else f"{row['learning_rate']:g}",
            {"off": "last", "plain": "average"}.get(row["ema"], row["ema"]),
            row["code"],
            f"{score} ({row['seeds']})",
            f"{row['cpu_seconds_per_step']:.2f} s",
            f"{row['train_cpu_seconds']:.0f} s",
            f"{row['peak_memory_mib']:.0f} MiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/hapt")
    parser.add_argument("--out", default="results/hapt-presets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--presets", nargs="+", default=[*POINT_DETECTORS, "tadtr-small", "tadtr"])
    parser.add_argument("--codes", nargs="+", choices=(OURS, OFFICIAL), default=[OURS, OFFICIAL])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", metavar="FILE", help="print the summary in FILE and stop")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        print(table_of(json.loads(Path(arguments.table).read_text())["summary"]))
        return
    if arguments.one:
        run = Run(**json.loads(arguments.one))
        one(run, arguments.data, Path(arguments.out) / run.name)
        return
    if OFFICIAL in arguments.codes and "TAL_FAST_PEERS" not in os.environ:
        print("no official code: TAL_FAST_PEERS is not set")
        arguments.codes.remove(OFFICIAL)

    def launch(run: Run) -> dict[str, Any]:
        result = Path(arguments.out) / run.name / "result.json"
        if not result.exists():
            command = [sys.executable, __file__, "--data", arguments.data, "--out", arguments.out]
            command += ["--one", json.dumps(dataclasses.asdict(run))]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        row: dict[str, Any] = json.loads(result.read_text())
        scores = {mode: round(score["average_map"], 4) for mode, score in row["scores"].items()}
        print(f"{run.name}: average mAP {scores}", flush=True)
        return row

    runs = runs_of(arguments.presets, arguments.codes, arguments.seeds)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(launch, runs))
    summary = summary_of(results)
    print(table_of(summary))
    content = {"summary": summary, "runs": results}
    (Path(arguments.out) / "summary.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
