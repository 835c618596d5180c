# SPDX-License-Identifier: Apache-2.0
"""A study around its trainings: its overhead, trials side by side, and what reading costs a trial.

``overhead``: the study of ``tal-fast study demo``, one trial after another, against its trainings
alone. ``throughput``: trials per hour of two jobs with a thread each against one job with one and
with two threads. All trials are alike; the three take turns, medians count, and the predictions of
trials that one and two jobs share must be the same bytes. The first trial of each process is not
counted (it loads and warms up): that is the throughput of a long study. The whole command, start
of the workers, tables and pictures included, is a row of its own. ``reading``: bytes from storage
and CPU seconds of the reader's threads, for the first trial and for one in another process.

Every measurement is a process of its own. Run on a machine that does nothing else:
``python benchmarks/bench_study.py``, and ``--only reading``.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import machine
import numpy as np

PARTS = ("overhead", "throughput", "reading")
OVERHEAD_MUST = 1.02
THROUGHPUT_MUST = 1.7
#: name -> jobs, threads of each, trials.
CONTENDERS = {"ours": (2, 1, 8), "one job, 1 thread": (1, 1, 4), "one job, 2 threads": (1, 2, 4)}
READING_STEPS = 20
_STAMPS = "stamps.jsonl"

Stamp = Mapping[str, Any]


# ---- in the processes that are measured --------------------------------------------------------


def timed(config: Any, data: Any, *, out: Path, **arguments: Any) -> Any:
    """``run_experiment``, and a line beside the study that says when it ran in which process."""
    from tal_fast.training import run_experiment

    began = time.monotonic()
    result = run_experiment(config, data, out=out, **arguments)
    stamp = {"process": os.getpid(), "began": began, "ended": time.monotonic()}
    with open(out.parent.parent / _STAMPS, "a", encoding="utf-8") as file:
        file.write(json.dumps(stamp) + "\n")
    return result


def run_one_study(request: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a study in this process and returns when it began and ended."""
    from rich.console import Console

    from tal_fast.study import StudySpec, run_study, trial
    from tal_fast.study.spec import demo_spec

    out = Path(request["out"])
    if request["steps"] is None:
        spec = replace(demo_spec(out, jobs=request["jobs"]), data=Path(request["data"]))
    else:
        spec = StudySpec(
            data=Path(request["data"]),
            out=out,
            model="tadtr-small",
            fractions=(0.5,),
            repetitions=request["trials"],
            budgets=("steps",),
            overrides={"training.steps": request["steps"]},
            jobs=request["jobs"],
        )
    spec = replace(spec, threads=request["threads"])
    began = time.monotonic()
    trial.EXPERIMENT = "bench_study:timed"  # of this process, which runs this study alone
    run_study(spec, console=Console(file=io.StringIO()))
    return {"began": began, "ended": time.monotonic()}


def read_one_trial(request: Mapping[str, Any]) -> dict[str, Any]:
    """Trains and tests once in this process and returns what reading took."""
    import csv

    from tal_fast.data import open_dataset
    from tal_fast.training import load_config, run_experiment

    data = open_dataset(request["data"])
    if request["cold"]:
        from bench_loader import drop_from_cache

        drop_from_cache(data)
    steps = f"training.steps={READING_STEPS}"
    config = load_config(preset="tadtr-small", overrides=["training.budget=steps", steps])
    before, own, process = _from_storage(), time.thread_time(), time.process_time()
    run_experiment(
        config,
        data,
        train_videos=data.splits["train"],
        test_videos=data.splits["test"],
        out=request["out"],
        threads=1,
    )
    own, process = time.thread_time() - own, time.process_time() - process
    with open(Path(request["out"]) / "log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        "from_storage": _from_storage() - before,
        # With one thread of torch, all that is not this thread is the reader.
        "reader_seconds": process - own,
        "cpu_seconds": process,
        "waited": sum(float(row["data_wait_seconds"]) for row in rows),
        "features": sum(extent.num_bytes for extent in data.features.values()),
    }


def _from_storage() -> int:
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


# ---- what is made of it ------------------------------------------------------------------------


def trials_per_second(stamps: Iterable[Stamp]) -> float:
    """Returns the rate of all processes together, the first trial of each not counted.

    It ends where the first process has no more work: a trial that runs alone would be quicker.
    """
    ends: dict[int, list[float]] = {}
    for stamp in stamps:
        ends.setdefault(stamp["process"], []).append(stamp["ended"])
    until = min(max(times) for times in ends.values())
    rate = 0.0
    for process, times in ends.items():
        counted = sorted(end for end in times if end <= until)
        if len(counted) < 2:
            raise RuntimeError(f"process {process} ran {len(counted)} trials, expected 2 or more")
        rate += (len(counted) - 1) / (counted[-1] - counted[0])
    return rate


def same_predictions(first: Path, second: Path) -> int:
    """Returns the trials that both studies hold, after comparing their predictions.

    Raises:
        AssertionError: they share no trial, or some predictions differ.
    """
    shared = {path.name for path in (first / "trials").iterdir()} & {
        path.name for path in (second / "trials").iterdir()
    }
    assert shared, f"{first} and {second} share no trial"
    for name in sorted(shared):
        files = [study / "trials" / name / "predictions.json" for study in (first, second)]
        assert files[0].read_bytes() == files[1].read_bytes(), f"{name}: predictions differ"
    return len(shared)


def row(
    case: str,
    peer: str,
    threads: int,
    ours: Sequence[float],
    theirs: Sequence[float],
    verified: str,
    *,
    must: float | None,
    at_most: bool = False,
) -> harness.Row:
    """Returns the row of two lists of seconds."""
    facts = machine.describe()
    (ours_ms, ours_iqr), (peer_ms, peer_iqr) = map(_summary, (ours, theirs))
    return harness.Row(
        op="study",
        case=case,
        peer=peer,
        stand_in=False,
        threads=threads,
        ours_ms=round(ours_ms, 2),
        ours_iqr_ms=round(ours_iqr, 2),
        peer_ms=round(peer_ms, 2),
        peer_iqr_ms=round(peer_iqr, 2),
        ratio=round(ours_ms / peer_ms if at_most else peer_ms / ours_ms, 4),
        must=must,
        aim=None,
        at_most=at_most,
        repetitions=len(ours),
        verified=verified,
        commit=facts["commit"],
        date=facts["date"],
    )


def _summary(seconds: Sequence[float]) -> tuple[float, float]:
    return harness.summarise(list(seconds)) if len(seconds) > 1 else (seconds[0] * 1e3, 0.0)


# ---- the parts ---------------------------------------------------------------------------------


def in_process(kind: str, request: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Runs this file as a process; returns what it said, and when it was started."""
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, "--process", kind, json.dumps(request)],
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
    )
    return {"started": started, **json.loads(done.stdout.splitlines()[-1])}


def study(folder: Path, **request: Any) -> tuple[dict[str, Any], list[Stamp]]:
    """Runs a study in a process of its own; returns its times and those of its trials."""
    times = in_process("study", {"out": str(folder), **request}, request["threads"])
    lines = (folder / _STAMPS).read_text(encoding="utf-8").splitlines()
    return times, [json.loads(line) for line in lines]


def overhead(folder: Path, data: Path) -> tuple[list[harness.Row], dict[str, float]]:
    """Returns the row of the demo's study, and the seconds that its command takes to start."""
    out = folder / "overhead"
    times, stamps = study(out, data=str(data), steps=None, trials=None, jobs=1, threads=1)
    whole = times["ended"] - times["began"]
    trainings = sum(stamp["ended"] - stamp["began"] for stamp in stamps)
    print(
        f"{len(stamps)} trials: {whole:.1f} s, of which {whole - trainings:.2f} s "
        f"({(whole - trainings) / whole:.2%}) around the trainings; the command's imports before "
        f"that took {times['began'] - times['started']:.1f} s",
        flush=True,
    )
    case = f"overhead: {len(stamps)} trials of tadtr-small (the demo's study)"
    rows = [
        row(case, "its trainings alone", 1, [whole], [trainings], "every trial complete",
            must=OVERHEAD_MUST, at_most=True)
    ]  # fmt: skip
    return rows, {"start of the command, s": times["began"] - times["started"]}


def throughput(
    folder: Path, data: Path, rounds: int, steps: int
) -> tuple[list[harness.Row], dict[str, float]]:
    """Returns the rows of two jobs against one, and the seconds until a worker's first trial."""
    steady: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    whole: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    starts = []
    shared = 0
    for number in range(rounds):
        outs = {}
        for name, (jobs, threads, trials) in CONTENDERS.items():
            outs[name] = folder / f"{name.replace(' ', '-')}-{number}"
            times, stamps = study(
                outs[name],
                data=str(data),
                steps=steps,
                trials=trials,
                jobs=jobs,
                threads=threads,
            )
            steady[name].append(1 / trials_per_second(stamps))
            whole[name].append((times["ended"] - times["began"]) / trials)
            if jobs > 1:
                starts.append(min(stamp["began"] for stamp in stamps) - times["began"])
            print(
                f"round {number + 1}, {name}: {3600 / steady[name][-1]:.0f} trials per hour, "
                f"{3600 / whole[name][-1]:.0f} by the whole command of {trials}",
                flush=True,
            )
        shared = same_predictions(outs["ours"], outs["one job, 1 thread"])
    case = f"trials of tadtr-small, {steps} steps: 2 jobs of 1 thread"
    same = f"{shared} trials of both: predictions bit for bit"
    rows = []
    for threads in (1, 2):
        peer = f"one job, {threads} thread{'s' if threads > 1 else ''}"
        verified = same if threads == 1 else "every trial complete"
        must = THROUGHPUT_MUST if threads == 1 else None
        rows.append(
            row(case, "one job", threads, steady["ours"], steady[peer], verified, must=must)
        )
        rows.append(
            row(f"{case}; the whole command", "one job", threads, whole["ours"], whole[peer],
                verified, must=None)
        )  # fmt: skip
    return rows, {"until the first trial of a worker, s": statistics.median(starts)}


def forms(folder: Path) -> dict[str, Path]:
    """Makes one data set of 2048 channels in the forms that are read in place."""
    from tal_fast.data import open_dataset, read_array, save_spec
    from tal_fast.data.packing import pack_features
    from tal_fast.data.streams import streams_of
    from tal_fast.data.synthetic import make_synthetic

    plain = make_synthetic(folder / "npy", train_videos=24, test_videos=8, channels=2048, seed=0)
    data = open_dataset(plain)
    found = {".npy float32": plain}

    def beside(name: str, label: str, **changes: Any) -> Path:
        path = folder / name
        path.mkdir()
        (path / "annotations.json").write_bytes((plain / "annotations.json").read_bytes())
        save_spec(replace(data.spec, **changes), path)
        found[label] = path
        return path / "features"

    for name, label, layout in (
        ("float16", ".npy float16", "TC"),
        ("float64", ".npy float64", "TC"),
        ("float32", ".npy float32, [C, T]", "CT"),
    ):
        features = beside(
            f"{name}-{layout}", label, feature=replace(data.spec.feature, layout=layout)
        )
        features.mkdir()
        for video, extent in data.features.items():
            values = read_array(extent).astype(name)
            np.save(features / f"{video}.npy", values if layout == "TC" else values.T.copy())
    named = {"feature": replace(data.spec.feature, prefix="", suffix="", template="%s")}
    features = beside("packed", "packed, bfloat16", **named)
    pack_features(streams_of(plain / "features"), features, dtype="bfloat16")
    try:
        import h5py
    except ImportError:
        return found
    features = beside("hdf5", "HDF5, contiguous", features="all.h5", **named)
    with h5py.File(features.parent / "all.h5", "w") as file:
        for video, extent in data.features.items():
            file[video] = read_array(extent)
    return found


def reading(folder: Path) -> dict[str, dict[str, float]]:
    """Prints and returns what reading costs the first trial and one in another process."""
    found: dict[str, dict[str, float]] = {}
    for form, data in forms(folder).items():
        for name, cold in (("first", True), ("second", False)):
            request = {"data": str(data), "cold": cold, "out": str(folder / f"{data.name}-{name}")}
            facts = in_process("trial", request, 1)
            reader, cpu = facts["reader_seconds"], facts["cpu_seconds"]
            found[f"{form}, {name} trial"] = {
                "features, MB": facts["features"] / 1e6,
                "from storage, MB": facts["from_storage"] / 1e6,
                "reader, CPU s": reader,
                "reader, share of the CPU time": reader / cpu,
                "waited, s": facts["waited"],
            }
            print(
                f"{form:<22} {name:<7} {facts['from_storage'] / 1e6:7.1f} MB from storage of "
                f"{facts['features'] / 1e6:.1f}, reader {reader:.3f} s of CPU "
                f"({reader / cpu:.2%}), waited {facts['waited']:.3f} s",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=("overhead", "throughput"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50, help="of a trial of the throughput")
    parser.add_argument("--results", type=Path, help="add the rows to this file, not to today's")
    parser.add_argument("--dry-run", action="store_true", help="store nothing")
    parser.add_argument("--process", nargs=2, metavar=("KIND", "REQUEST"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.process:
        kind, request = arguments.process
        run = {"study": run_one_study, "trial": read_one_trial}[kind]
        print(json.dumps(run(json.loads(request))))
        return
    from tal_fast.study.spec import prepare_demo_data

    print(machine.header(), flush=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TAL_FAST_BENCH_DIR")) as name:
        folder = Path(name)
        data = prepare_demo_data(folder)
        for part in arguments.only:
            rows: list[harness.Row] = []
            if part == "overhead":
                rows, facts = overhead(folder, data)
            elif part == "throughput":
                rows, facts = throughput(folder, data, arguments.rounds, arguments.steps)
            else:
                facts = {"reading": reading(folder)}
            for row in rows:
                bound = "" if row.must is None else f" ({row.reached()}: {row.must:g})"
                print(f"{row.case}, {row.peer} {row.threads}: {row.ratio:.3f}{bound}", flush=True)
            if not arguments.dry_run:
                keep(rows, facts, arguments.results)


def keep(rows: list[harness.Row], facts: dict[str, Any], results: Path | None) -> None:
    """Stores what a part gave: rows for the table, and everything in a file of its own."""
    if rows:
        print(f"stored in {harness.store(rows, results)}")
    path = harness.RESULTS / f"{machine.slug()}-study-facts.json"
    old = json.loads(path.read_text(encoding="utf-8"))["facts"] if path.exists() else {}
    found = [*old.get("comparisons", []), *map(dataclasses.asdict, rows)]
    newest = {(row["case"], row["peer"], row["threads"]): row for row in found}
    content = {
        "machine": machine.describe(),
        "facts": {**old, **facts, "comparisons": list(newest.values())},
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"stored in {path}", flush=True)


if __name__ == "__main__":
    main()
