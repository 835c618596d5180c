# SPDX-License-Identifier: Apache-2.0
"""Hours of the same: memory, open files and threads stay as they are.

Memory is what the process holds itself (``own_memory``). What it is in the end is compared with
what it is after the beginning, in which caches fill: the medians of the last tenth and of the third
tenth.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from endurance.own_memory import own_memory
from endurance.record import Batch, Failure, Kind, Outcome, Part
from endurance.tiny_study import SETTINGS, TRIALS

from tal_fast.data.dataset import TALDataset, open_dataset
from tal_fast.data.loader import FeatureLoader
from tal_fast.data.synthetic import make_synthetic
from tal_fast.evaluation import evaluate
from tal_fast.models import detector_of
from tal_fast.study import report_study
from tal_fast.training import load_config, train
from tal_fast.training.start import training_loader

_FLAT = 1.0  # percent
_SECONDS_BETWEEN_LOOKS = 0.2
_LEAST_LOOKS = 10
_FROM_EPOCH = 2


@dataclass
class Looks:
    """What the process had at times."""

    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    steps: int = 0
    _last: float = 0.0

    def look(self, *, at_once: bool = False) -> None:
        """Counts a step and looks at the process, if it is time."""
        self.steps += 1
        now = time.monotonic()
        if not at_once and now - self._last < _SECONDS_BETWEEN_LOOKS:
            return
        self._last = now
        process = psutil.Process()
        self.memory.append(own_memory())
        self.files.append(process.num_fds())
        self.threads.append(process.num_threads())

    def outcome(self, count: int, first: int) -> Outcome:
        """Compares the end with the beginning; ``count`` cases are right or lost together."""
        if len(self.memory) < _LEAST_LOOKS:
            raise RuntimeError(
                f"expected at least {_LEAST_LOOKS} looks at the process, got {len(self.memory)}: "
                "a larger --scale"
            )

        def grown(values: list[int]) -> tuple[float, float]:
            tenth = max(1, len(values) // 10)
            return (
                statistics.median(values[2 * tenth : 3 * tenth]),
                statistics.median(values[-tenth:]),
            )

        before, after = grown(self.memory)
        percent = 100.0 * (after - before) / before
        measured = {
            "memory grew by %": round(percent, 3),
            "MiB in the end": round(after / 2**20, 1),
            "steps": self.steps,
        }
        causes = [f"memory grew by {percent:.2f} %"] if percent > _FLAT else []
        for name, values in (("open files", self.files), ("threads", self.threads)):
            then, now = grown(values)
            if now > then:
                causes.append(f"{name} grew from {then:g} to {now:g}")
        if not causes:
            return Outcome(done=count, measured=measured)
        return Outcome(lost=count, failures=[Failure(first, "; ".join(causes))], measured=measured)


@dataclass
class Place:
    """Data of hundreds of windows, and a study of four trials with its detections."""

    folder: Path
    data: TALDataset
    study: Path


def _until(seconds: int, step: Callable[[], object]) -> Looks:
    looks, end = Looks(), time.monotonic() + seconds
    while time.monotonic() < end:
        step()
        looks.look()
    return looks


def _loader(place: Place, batch: Batch) -> Outcome:
    """The loader of a training, epoch after epoch."""
    config = load_config(preset="tadtr-small", overrides=SETTINGS)
    names = place.data.splits["train"]
    clips = detector_of(config.name).clips(config.detector, place.data, names, training=True)
    with training_loader(config, clips, torch.device("cpu")) as loader:
        assert isinstance(loader, FeatureLoader)
        epochs = _epochs(loader)
        for _ in range(len(loader)):  # opens all files, which stay open
            next(epochs)
        looks = _until(batch.count, lambda: next(epochs))
        epochs.close()
    return looks.outcome(batch.count, batch.first)


def _epochs(loader: FeatureLoader) -> Iterator[Any]:
    epoch = 0
    while True:
        loader.resume(epoch, 0)
        yield from loader
        epoch += 1


def _training(place: Place, batch: Batch) -> Outcome:
    """One training, which Ctrl-C ends."""
    config = load_config(
        preset="tadtr-small", overrides=[*SETTINGS, "training.epochs=100000", "training.ema=plain"]
    )
    looks, ends = Looks(), [math.inf]

    def progress(event: Any) -> None:
        if event.epoch < _FROM_EPOCH:  # the first one opens all files, which stay open
            return
        ends[:] = [min(*ends, time.monotonic() + batch.count)]
        looks.look()
        if time.monotonic() >= ends[0]:
            raise KeyboardInterrupt

    out = place.folder / f"training{batch.first}"
    with contextlib.suppress(KeyboardInterrupt):
        train(config, place.data, place.data.splits["train"], out, progress=progress, threads=1)
    return looks.outcome(batch.count, batch.first)


def _pages(place: Place, batch: Batch) -> Outcome:
    """The report of a study: tables, fits, pictures and page."""
    looks = Looks()
    for _ in range(batch.count):
        report_study(place.study)
        gc.collect()  # of what goes round in circles, not of what is left
        looks.look(at_once=True)
    return looks.outcome(batch.count, batch.first)


def _evaluations(place: Place, batch: Batch) -> Outcome:
    """The evaluation of a results file against the truth."""
    looks = Looks()
    truth = place.data.truth.select(place.data.splits["test"])
    results = place.study / "trials" / TRIALS[-1] / "predictions.json"
    for _ in range(batch.count):
        evaluate(truth, results)
        looks.look(at_once=True)
    return looks.outcome(batch.count, batch.first)


@contextlib.contextmanager
def _prepare() -> Iterator[Place]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        folder = Path(name)
        make_synthetic(
            folder / "data", size="demo", train_videos=200, test_videos=20, channels=16, seed=3
        )
        # In a process of its own: memory that it has freed would hide what is lost later.
        study = folder / "study"
        sets = [part for setting in SETTINGS for part in ("--set", setting)]
        counts = ["--fractions", "0.5,1", "--repetitions", "2", "--threads", "1"]
        command = ["study", "run", "--data", folder / "data", "--out", study, *counts, *sets]
        subprocess.run(
            [sys.executable, "-m", "tal_fast", *command],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        yield Place(folder, open_dataset(folder / "data"), study)


PART = Part(
    "soak",
    "The same for hours",
    [
        Kind("loader", "seconds of flat memory", 3600, _loader, whole=True),
        Kind("training", "seconds of flat memory", 3600, _training, whole=True),
        Kind("study page", "repetitions with flat memory", 1000, _pages, whole=True),
        Kind("evaluation", "repetitions with flat memory", 1000, _evaluations, whole=True),
    ],
    _prepare,
)
