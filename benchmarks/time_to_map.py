# SPDX-License-Identifier: Apache-2.0
"""How soon a model is good: seconds from a cold start to a target of average mAP on HAPT.

After the manner of speedruns: the target is fixed, the clock decides, every run is kept. The rules:

1. The official split. A recipe reaches a target when its mean over three seeds on the nine test
   people does (average mAP, tIoU 0.3 to 0.7).
2. The clock runs from the start of a new process, with all its imports, until the weights are on
   disk. Features lie prepared in a folder. Prediction and scoring are not timed.
3. The test people decide nothing. How many steps a recipe takes is chosen by a fifth of the
   training people, each seed another one: the fewest of a list with which training on the others
   reaches the target by two standard deviations over these three, so that people who are harder
   may reach it, too. The timed trainings then take so many steps on all training people. A
   published recipe has its own number.
4. A recipe is a preset and settings of the command line; schedules are shares of the steps.

Run: ``tal-fast prepare hapt --archive hapt_raw.zip --out data/hapt``, then
``python benchmarks/time_to_map.py --data data/hapt --out results/time-to-map.json``. What FILE
holds is not run again; ``--table FILE`` prints its table, ``--picture PNG`` draws it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tal_fast.data.files import write_text_atomically

STEPS = (75, 100, 125, 150, 200, 300, 400, 600, 800)
SEEDS = (1, 2, 3)
TARGETS = (0.90, 0.93)
LAST = {"training.ema": "off"}  # the weights themselves, not their average
FASTER = {**LAST, "training.schedule": "cosine", "training.warmup": 0.1}


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        name: in the table.
        preset: the model.
        settings: ``section.field`` -> value, on top of the preset's.
        brought: what is new in it.
        steps: that it takes; None where held-out people say.
    """

    name: str
    preset: str
    settings: dict[str, Any]
    brought: str
    steps: int | None = None


def _recipes() -> Iterator[Recipe]:
    """Yields the published recipes, then one change after the other, then all on other models."""
    published = (("TadTR", 864), ("ActionFormer", 840), ("TriDet", 840), ("TemporalMaxer", 840))
    for model, steps in published:
        average = {} if model == "TadTR" else LAST
        yield Recipe(model, f"{model.lower()}-small", average, "as published", steps)
    preset, settings = "temporalmaxer-small", dict(FASTER)
    changes: tuple[tuple[str, dict[str, Any]], ...] = (
        ("10 times its learning rate, 1e-3", {"training.learning_rate": 1e-3}),
        ("half its width, 128", {"model.width": 128, "model.head_width": 128}),
        ("crops of 512 rows, not 1280", {"data.max_length": 512}),
        ("learning rate 2e-3", {"training.learning_rate": 2e-3}),
    )
    for number, (brought, change) in enumerate(changes, start=1):
        settings = {**settings, **change}
        yield Recipe(f"TemporalMaxer, {number}", preset, settings, brought)
    for model in ("TriDet", "ActionFormer"):
        yield Recipe(f"{model}, 4", f"{model.lower()}-small", settings, "all of that")
    yield Recipe(
        "TadTR, 1",
        "tadtr-small",
        {**FASTER, "training.learning_rate": 1e-3, "training.clip_norm": 1.0},
        "5 times its learning rate, a cosine, clipped at 1",
    )


RECIPES = tuple(_recipes())


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        recipe: name of a recipe.
        steps: optimiser steps.
        seed: of all that is random.
        held_out: train without a fifth of the training people and score those, else train with all
            and score the test people.
    """

    recipe: str
    steps: int
    seed: int
    held_out: bool


class Log:
    """All runs so far, in a file that is written after each.

    Args:
        path: of the file.
        data: the prepared data set.
        threads: of a training.
    """

    def __init__(self, path: Path, data: str, threads: int) -> None:
        import machine

        self._path = path
        self._data = data
        self._threads = threads
        self._machine = machine.describe()
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = json.loads(path.read_text())["runs"]

    def results(self, recipe: Recipe, steps: int, *, held_out: bool) -> list[dict[str, Any]]:
        """Returns what the runs of all seeds gave; those that are missing are run."""
        return [self._result(recipe, Run(recipe.name, steps, seed, held_out)) for seed in SEEDS]

    def _result(self, recipe: Recipe, run: Run) -> dict[str, Any]:
        known = {**dataclasses.asdict(recipe), **dataclasses.asdict(run)}
        del known["name"], known["brought"]
        for row in self.rows:
            if all(row[key] == value for key, value in known.items()):
                return row
        began = time.perf_counter()
        command = [sys.executable, __file__, "--data", self._data]
        command += ["--threads", str(self._threads), "--one", json.dumps(known)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        given = json.loads(done.stdout.splitlines()[-1])
        # Both clocks are the system's monotonic one.
        row = {**known, **given, "seconds": given.pop("saved_at") - began, "machine": self._machine}
        del row["saved_at"]
        self.rows.append(row)
        write_text_atomically(self._path, json.dumps({"runs": self.rows}, indent=1) + "\n")
        people = "held-out" if run.held_out else "test"
        print(
            f"{run.recipe}: {run.steps} steps, seed {run.seed}: {100 * row['average_map']:.1f} on "
            f"{people} people, {row['seconds']:.1f} s, {row['cpu_seconds']:.1f} s of CPU",
            flush=True,
        )
        return row


def fewest_steps(held_out: Callable[[int], list[dict[str, Any]]], target: float) -> int | None:
    """Returns the fewest steps that reach a target on held-out people, if any do.

    Args:
        held_out: gives the rows of a number of steps; none where they are not known.
        target: of the mean average mAP.
    """
    for steps in STEPS:
        scores = [row["average_map"] for row in held_out(steps)]
        if len(scores) > 1 and statistics.mean(scores) - 2 * statistics.stdev(scores) >= target:
            return steps
    return None


def mean_of(rows: list[dict[str, Any]], key: str) -> float:
    """Returns the mean of one figure."""
    return statistics.mean(row[key] for row in rows)


def train_one(known: dict[str, Any], data: str, threads: int) -> None:
    """Trains in this process and prints what it gave."""
    import torch

    from tal_fast.data.dataset import open_dataset
    from tal_fast.evaluation import evaluate
    from tal_fast.training import load_config, train
    from tal_fast.training.checkpoint import load_model
    from tal_fast.training.inference import detect

    torch.set_num_threads(threads)
    dataset = open_dataset(data)
    train_videos, test_videos = dataset.splits["train"], dataset.splits["test"]
    if known["held_out"]:
        train_videos, test_videos = without_some_people(train_videos, known["seed"])
    settings = {**known["settings"], "training.budget": "steps", "training.tensorboard": "never"}
    settings |= {"training.steps": known["steps"], "training.seed": known["seed"]}
    config = load_config(preset=known["preset"], overrides=settings)
    with tempfile.TemporaryDirectory() as out:
        summary = train(config, dataset, train_videos, out)
        saved_at, cpu = time.perf_counter(), time.process_time()
        model, _, _ = load_model(Path(out) / "checkpoint.pt")
        found = detect(model, dataset, test_videos, config.training)
    score = evaluate(dataset.truth.select(test_videos), found)
    given = {
        "average_map": float(score.average_map),
        "saved_at": saved_at,
        "cpu_seconds": cpu,
        "train_seconds": summary.seconds,
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }
    print(json.dumps(given))


def without_some_people(
    videos: tuple[str, ...], seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits training recordings, such as ``exp01_user01``, by person; each seed another fifth."""
    people = sorted({video.split("_")[1] for video in videos})
    held = set(people[seed % 5 :: 5])
    return (
        tuple(video for video in videos if video.split("_")[1] not in held),
        tuple(video for video in videos if video.split("_")[1] in held),
    )


def table_of(rows: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown: per target and recipe what its timed trainings gave."""
    lines = [
        "| target | recipe | what it brings | steps | test mAP | seconds | CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        for recipe in RECIPES:
            mine = [row for row in rows if row["recipe"] == recipe.name]
            chosen = recipe.steps or fewest_steps(partial(_of, mine, held_out=True), target)
            timed = [] if chosen is None else _of(mine, chosen, held_out=False)
            if not timed:
                continue
            scores = [100 * row["average_map"] for row in timed]
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            reached = "" if statistics.mean(scores) >= 100 * target else " (missed)"
            cells = [
                f"{100 * target:.0f}",
                recipe.name,
                recipe.brought,
                str(chosen),
                f"{statistics.mean(scores):.1f}{spread}{reached}",
                f"{mean_of(timed, 'seconds'):.1f}",
                f"{mean_of(timed, 'cpu_seconds'):.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(rows: list[dict[str, Any]], steps: int, *, held_out: bool) -> list[dict[str, Any]]:
    return [row for row in rows if row["steps"] == steps and row["held_out"] == held_out]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws mAP over the seconds of a training: each model's last recipe, and it as published.

    Args:
        rows: of the log.
        path: of the PNG.
    """
    from matplotlib.ticker import NullFormatter

    from tal_fast.curves.figures import INK, SERIES, blank_figure

    def points(recipe: Recipe, *, held_out: bool) -> list[tuple[float, float]]:
        mine = [row for row in rows if row["recipe"] == recipe.name]
        runs = [
            _of(mine, steps, held_out=held_out)
            for steps in sorted({row["steps"] for row in mine if row["held_out"] == held_out})
        ]
        return [(mean_of(one, "seconds"), 100 * mean_of(one, "average_map")) for one in runs]

    figure, (axes,) = blank_figure(size=(7.6, 4.8))
    last = {recipe.preset: recipe for recipe in RECIPES if recipe.steps is None}
    published = {recipe.preset: recipe for recipe in RECIPES if recipe.steps is not None}
    for (preset, recipe), (colour, dashes, mark) in zip(last.items(), SERIES, strict=False):
        style = {"color": colour, "marker": mark}
        for held_out, dash, size, fill, what in (
            (True, dashes, 4, "none", "held-out people"),
            (False, "none", 8, colour, "test people"),
        ):
            found = points(recipe, held_out=held_out)
            if found:
                name = f"{recipe.name}: {what}"
                axes.plot(*zip(*found, strict=True), linestyle=dash, linewidth=1.3, label=name,
                          markersize=size, markerfacecolor=fill, **style)  # fmt: skip
        for x, y in points(published[preset], held_out=False):
            axes.plot(x, y, linestyle="none", markersize=9, markerfacecolor="none", **style)
            up = 9 if y > 100 * TARGETS[0] else -16  # away from the line of the target
            axes.annotate(f"{published[preset].name}, as published", (x, y), (0, up), ha="center",
                          textcoords="offset points", fontsize=8.5, color=INK)  # fmt: skip
    for target in TARGETS:
        axes.axhline(100 * target, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(4, 260)
    axes.set_ylim(82, 98)
    axes.set_xlabel("seconds from a cold start, 2 threads")
    axes.set_ylabel("average mAP, mean of three seeds (%)")
    axes.legend(frameon=False, fontsize=8.5, loc="lower right", labelcolor=INK)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/hapt")
    parser.add_argument("--out", default="results/time-to-map.json")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recipes", nargs="+", default=[recipe.name for recipe in RECIPES])
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--table", metavar="FILE", help="print the table of FILE and stop")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="with --table: draw it, too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        rows = json.loads(Path(arguments.table).read_text())["runs"]
        print(table_of(rows))
        if arguments.picture:
            draw(rows, arguments.picture)
        return
    if arguments.one:
        train_one(json.loads(arguments.one), arguments.data, arguments.threads)
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    log = Log(out, arguments.data, arguments.threads)
    for recipe in RECIPES:
        if recipe.name not in arguments.recipes:
            continue
        for target in arguments.targets:
            steps = recipe.steps or fewest_steps(
                partial(log.results, recipe, held_out=True), target
            )
            if steps is None:
                print(f"{recipe.name}: {target:.2f} is not reached in {STEPS[-1]} steps")
            else:
                log.results(recipe, steps, held_out=False)
    print(table_of(log.rows))


if __name__ == "__main__":
    main()
