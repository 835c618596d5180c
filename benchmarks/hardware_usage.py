# SPDX-License-Identifier: Apache-2.0
"""What a training of TadTR does to processor, memory and disk: the official code and ours.

Both train the same network (d = 256, 4 + 4 layers, without actionness, float32) on the same windows
of 128 rows in batches of 16, whose features lie in a file per video: of HAPT's lengths and 300
channels, or of THUMOS14's and 2048. The official code reads with its own data set in torch's
``DataLoader`` with 0, 2 or 4 workers; ours with its native reader. A training is a process of its
own, pinned to one core or to two, with a torch thread per core; another process looks at it and at
its workers five times a second.

Run: ``TAL_FAST_PEERS=DIR python benchmarks/hardware_usage.py --out results/hardware-usage``. What
the folder holds is not run again; ``usage.json`` has every figure, ``usage.png`` the pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

LENGTH, BATCH, INSTANCES = 128, 16, 5
OFFICIAL, OURS = "official", "tal_fast"
WARM_UP = 3
# Facts: feature rows of HAPT's training recordings, every other one; 20 quantiles of THUMOS14's
# validation videos at a row per 8 frames of 30 a second. Channels, classes.
SHAPES = {
    "hapt": (
        (822, 838, 673, 659, 686, 621, 656, 697, 686, 841, 851, 762, 831, 716, 801, 848, 826, 729,
         821, 745, 940),
        300, 12,
    ),
    "thumos14": (
        (76, 122, 165, 231, 283, 347, 402, 451, 493, 523, 599, 639, 701, 739, 827, 890, 1113, 1439,
         2053, 3369),
        2048, 20,
    ),
}  # fmt: skip
PHASES = ("data", "forward", "loss", "backward", "optimizer")


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        code: ``official`` or ``tal_fast``.
        shape: of the features, a key of ``SHAPES``.
        cores: that it may run on, and torch threads.
        workers: processes that read, of the official code; ours reads with one thread.
    """

    code: str
    shape: str
    cores: int
    workers: int

    @property
    def name(self) -> str:
        """In tables and pictures."""
        reading = f", {self.workers} workers" if self.code == OFFICIAL else ""
        return f"{self.code}{reading}"


def case_of(row: dict[str, Any]) -> Case:
    """Returns the training that a row is of."""
    return Case(*(row[field.name] for field in fields(Case)))


def cases() -> list[Case]:
    """Returns all trainings."""
    return [
        case
        for shape in SHAPES
        for cores in (1, 2)
        for case in (
            *(Case(OFFICIAL, shape, cores, workers) for workers in (0, 2, 4)),
            Case(OURS, shape, cores, 0),
        )
    ]


# The training: a process of its own.


def batches_of(case: Case, folder: Path) -> tuple[Callable[[], Iterator[Tensor]], int]:
    """Returns what gives an epoch of features as the model wants them, and the bytes of a batch."""
    from tal_fast.data import FeatureLoader, WindowSet, open_dataset

    data = open_dataset(folder)
    windows = WindowSet(data, data.splits["train"], length=LENGTH, overlap=0.75, drop_empty=False)
    needed = BATCH * LENGTH * SHAPES[case.shape][1] * 4
    if case.code == OURS:
        loader = FeatureLoader(windows, BATCH, threads=1, shuffle=True, drop_last=True)
        return lambda: (batch.features for batch in loader), needed
    from peers.loaders import tadtr_windows

    spans = [(window.video, window.start, window.stop) for window in windows.windows]
    stock = torch.utils.data.DataLoader(
        tadtr_windows(spans, folder / "features", LENGTH),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=case.workers,
    )
    return lambda: iter(stock), needed


def phases_of(case: Case) -> list[Callable[[Tensor], None]]:
    """Returns the phases of a step but the first, which reads."""
    from bench_training_step import MODELS, OfficialTadTR, our_targets, targets

    from tal_fast.models import Whole, build_model
    from tal_fast.training.config import TrainingConfig
    from tal_fast.training.step import parameter_groups

    channels = SHAPES[case.shape][1]
    mask = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    state: dict[str, Any] = {}
    if case.code == OFFICIAL:
        peer = OfficialTadTR(channels, **MODELS["tadtr"])
        labels, segments = targets()
        return [
            lambda x: state.update(output=peer.forward(x, mask)),
            lambda x: state.update(loss=peer.loss(state["output"], labels, segments)),
            lambda x: state["loss"].backward(),
            lambda x: peer.update(),
        ]
    model = build_model("tadtr", in_channels=channels, num_classes=20, actionness=False)
    optimizer = torch.optim.AdamW(parameter_groups(model, TrainingConfig()), lr=2e-4, fused=True)
    wanted = our_targets()

    def update(x: Tensor) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return [
        lambda x: state.update(output=model(x, mask)),
        lambda x: state.update(loss=model.loss(state["output"], wanted, Whole(wanted))["total"]),
        lambda x: state["loss"].backward(),
        update,
    ]


def train(case: Case, folder: Path, steps: int) -> None:
    """Trains in this process; prints a line when the steps begin, and what they took at the end."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case.cores])
    torch.set_num_threads(case.cores)
    torch.manual_seed(0)
    epochs, needed = batches_of(case, folder)
    phases = phases_of(case)
    endless = (features for _ in iter(int, 1) for features in epochs())
    rows = []
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            print(json.dumps({"begins": time.monotonic()}), flush=True)
        marks = [(time.perf_counter(), time.thread_time(), time.process_time())]
        features = next(endless)
        marks.append((time.perf_counter(), time.thread_time(), time.process_time()))
        for phase in phases:
            phase(features)
            marks.append((time.perf_counter(), time.thread_time(), time.process_time()))
        if step >= WARM_UP:
            rows.append(np.diff(np.array(marks), axis=0))
    ends = time.monotonic()
    wall, thread, process = np.moveaxis(np.stack(rows), 2, 0)  # each [steps, phases]
    found = {
        "ends": ends,
        "needed_mb": needed / 1e6,
        "wall_ms": float(np.median(wall.sum(1)) * 1e3),
        "phases_wall_ms": dict(zip(PHASES, (np.median(wall, 0) * 1e3).tolist(), strict=True)),
        "phases_cpu_ms": dict(zip(PHASES, (np.median(process, 0) * 1e3).tolist(), strict=True)),
        "main_thread_cpu_ms": float(np.median(thread.sum(1)) * 1e3),
    }
    print(json.dumps(found), flush=True)
    sys.stdin.read()  # until it has been looked at: what workers took is gone with them


# The look from outside.


def look(process: psutil.Process) -> dict[str, float] | None:
    """Returns what a process and all below it have taken so far; None when it has ended."""
    try:
        tree = [process, *process.children(recursive=True)]
        seen = {"time": time.monotonic(), "cpu": 0.0, "own_cpu": 0.0, "memory": 0.0, "read": 0.0}
        seen["storage"] = 0.0
        for item in tree:
            times, io = item.cpu_times(), item.io_counters()
            seen["cpu"] += times.user + times.system
            seen["read"] += io.read_chars
            seen["storage"] += io.read_bytes
            seen["memory"] += item.memory_full_info().pss
        times = process.cpu_times()
        seen["own_cpu"] = times.user + times.system
    except psutil.Error:
        return None
    return seen


def measure(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    """Trains in a process and looks at it; returns what both tell."""
    began = time.monotonic()
    command = [sys.executable, __file__, "--one", json.dumps(asdict(case)), str(folder), str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(case.cores)}
    said = folder.parent / "said"
    with (
        said.open("w") as output,
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=output) as run,
    ):
        process, samples = psutil.Process(run.pid), []
        while run.poll() is None and '"wall_ms"' not in said.read_text():
            seen = look(process)
            if seen is not None:
                samples.append(seen)
            time.sleep(0.2)
        run.communicate()
    if run.returncode:
        raise SystemExit(f"{case.name} ended with {run.returncode}")
    lines = [json.loads(line) for line in said.read_text().splitlines() if line[:1] == "{"]
    begins, told = lines[0]["begins"], lines[-1]
    inside = [sample for sample in samples if begins <= sample["time"] <= told["ends"]]
    if len(inside) < 2:
        raise SystemExit(f"{case.name}: the steps were over before they were looked at: --steps")
    first, last = inside[0], inside[-1]
    per_step = told["wall_ms"] / 1e3 / (last["time"] - first["time"])

    def rise(name: str) -> float:
        return (last[name] - first[name]) * per_step

    return {
        **asdict(case),
        **{key: value for key, value in told.items() if key != "ends"},
        "cpu_ms": rise("cpu") * 1e3,
        "workers_cpu_ms": (rise("cpu") - rise("own_cpu")) * 1e3,
        "read_mb": rise("read") / 1e6,
        "storage_mb": rise("storage") / 1e6,
        "peak_memory_mib": max(sample["memory"] for sample in samples) / 2**20,
        "begins": begins - began,
        "samples": [{**sample, "time": sample["time"] - began} for sample in samples],
    }


# What it says.


def table_of(rows: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown; times and megabytes are per step."""
    lines = [
        "| features | cores | code | wall | waits for data | CPU | workers' share | read | needed "
        "| peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        case = case_of(row)
        cells = [
            case.shape,
            str(case.cores),
            case.name,
            f"{row['wall_ms']:.0f} ms",
            f"{row['phases_wall_ms']['data'] / row['wall_ms']:.0%}",
            f"{row['cpu_ms']:.0f} ms",
            f"{max(0.0, row['workers_cpu_ms']) / row['cpu_ms']:.0%}",
            f"{row['read_mb']:.1f} MB",
            f"{row['needed_mb']:.1f} MB",
            f"{row['peak_memory_mib']:.0f} MiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], shape: str, path: Path) -> None:
    """Draws use of processor, memory and disk over time, a column per training on two cores."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    mine = [row for row in rows if row["shape"] == shape and row["cores"] == 2]
    figure, grid = plt.subplots(
        3, len(mine), figsize=(3.6 * len(mine), 6.4), sharey="row", squeeze=False
    )
    for column, row in zip(grid.T, mine, strict=True):
        case = case_of(row)
        seen = {key: np.array([sample[key] for sample in row["samples"]]) for key in LOOKED_AT}
        middle = (seen["time"][1:] + seen["time"][:-1]) / 2
        taken = np.diff(seen["time"])
        rates = {
            key: np.maximum(np.diff(seen[key]), 0) / taken for key in ("cpu", "own_cpu", "read")
        }
        column[0].fill_between(middle, rates["cpu"], color="C1", label="workers", lw=0)
        column[0].fill_between(middle, rates["own_cpu"], color="C0", label="training", lw=0)
        column[1].plot(seen["time"], seen["memory"] / 2**30, color="C2")
        column[2].fill_between(middle, rates["read"] / 1e6, color="C3", lw=0)
        needed = row["needed_mb"] / row["wall_ms"] * 1e3
        column[2].axhline(needed, color="black", ls=":", label=f"needed: {needed:.0f} MB/s")
        column[2].legend(loc="upper right", fontsize=8)
        for axes in column:
            axes.axvline(row["begins"], color="grey", lw=0.8)
            axes.set_xlim(0, seen["time"][-1])
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.grid(alpha=0.3)
        column[0].set_title(f"{case.name}\n{row['wall_ms']:.0f} ms per step", fontsize=10)
        column[2].set_xlabel("seconds")
    for axes in grid[:, 0]:
        axes.set_ylim(bottom=0)
    grid[0][0].legend(loc="lower right", fontsize=8)
    for axes, label in zip(
        grid[:, 0], ("cores in use", "memory (GiB)", "bytes asked of files (MB/s)"), strict=True
    ):
        axes.set_ylabel(label)
    figure.suptitle(f"A training of TadTR on two cores, features as of {shape}", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


LOOKED_AT = ("time", "cpu", "own_cpu", "memory", "read")


def make_data(folder: Path) -> None:
    """Writes both sets of features, random, with instances that nobody looks at."""
    from bench_loader import make

    for shape, (rows, channels, _) in SHAPES.items():
        make(folder / shape, list(rows), channels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/hardware-usage"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--draw", action="store_true", help="only draw and print what OUT holds")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        case, folder, steps = arguments.one
        train(Case(**json.loads(case)), Path(folder), int(steps))
        return
    import machine

    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "usage.json"
    content = json.loads(path.read_text()) if path.exists() else {"machine": {}, "rows": []}
    rows = content["rows"]
    if not arguments.draw:
        content["machine"] = machine.describe()
        print(machine.header(), flush=True)
        with tempfile.TemporaryDirectory(dir=os.environ.get("TAL_FAST_BENCH_DIR")) as folder:
            make_data(Path(folder))
            for case in cases():
                if any(
                    all(row[key] == value for key, value in asdict(case).items()) for row in rows
                ):
                    continue
                rows.append(measure(case, Path(folder) / case.shape, arguments.steps))
                path.write_text(json.dumps(content) + "\n")
                print(table_of(rows[-1:]).splitlines()[-1], flush=True)
    print(table_of(rows))
    for shape in SHAPES:
        draw(rows, shape, arguments.out / f"usage-{shape}.png")


if __name__ == "__main__":
    main()
