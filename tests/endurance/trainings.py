# SPDX-License-Identifier: Apache-2.0
"""Trainings that are killed at random steps, and go on.

Some are killed just before they change a file, some in mid-step, by SIGKILL or SIGTERM, several
times in a row. In the end weights, log and files are those of an undisturbed training, bit by bit.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from endurance.faults import Faults, build
from endurance.forks import Ended, Forks, forking
from endurance.record import Batch, Failure, Kind, Outcome, Part, why
from endurance.tiny_study import TADTR, clear, files, of_log, weights_of

from tal_fast.data.dataset import open_dataset
from tal_fast.data.synthetic import make_synthetic
from tal_fast.training import load_config, train

_TRAINING = (
    "training.epochs=3",
    "training.batch_size=4",
    "training.amp=float32",
    "training.tensorboard=never",
)
_NARROW = ("model.width=32", "model.head_width=32")
MODELS: Mapping[str, tuple[str, ...]] = {
    "tadtr-small": TADTR,
    "actionformer-small": _NARROW,
    "tridet-small": _NARROW,
    "temporalmaxer-small": _NARROW,
}
#: Each with more of a state to keep: averages of the weights, held-out videos that choose them.
VARIANTS = (
    (),
    ("training.ema=plain,off",),
    ("training.ema=corrected", "training.holdout=0.3"),
)
_SEED = 5


def train_and_end(
    model: str, variant: str, data: str, out: str, step: str, share: str, number: str
) -> int:
    """Trains in a forked process, which gets a signal ``share`` of a step after ``step`` steps."""
    torch.set_num_threads(1)
    dataset = open_dataset(data)
    config = load_config(preset=model, overrides=_settings(model, int(variant)))
    at, part, told = int(step), float(share), [time.monotonic()]

    def end() -> None:
        os.kill(os.getpid(), int(number))

    def progress(event: Any) -> None:
        now = time.monotonic()
        took, told[0] = now - told[0], now
        if event.step == at:
            timer = threading.Timer(part * took, end)
            timer.daemon = True
            timer.start()

    train(config, dataset, dataset.splits["train"], out, progress=progress)
    return 0


def _settings(model: str, variant: int) -> list[str]:
    return [*_TRAINING, f"training.seed={_SEED}", *MODELS[model], *VARIANTS[variant]]


class Place:
    """Data, a process that forks, and the undisturbed trainings as they are asked for."""

    def __init__(self, folder: Path, forks: Forks) -> None:
        self._folder = folder
        self._forks = forks
        self._numbers = itertools.count()
        self._undisturbed: dict[tuple[str, int], tuple[dict[str, Any], int, int]] = {}

    def new(self) -> Path:
        """Returns a folder that is not there yet."""
        return self._folder / f"t{next(self._numbers)}"

    def run(
        self, model: str, variant: int, out: Path, *, faults: str = "", ends: Any = (0, 0.0, 0)
    ) -> Ended:
        """Trains, to the end or to a signal."""
        where = [model, str(variant), str(self._folder / "data"), str(out)]
        return self._forks.run(
            [*where, *map(str, ends)],
            faults=faults,
            kind="endurance.trainings:train_and_end",
        )

    def undisturbed(self, model: str, variant: int) -> tuple[dict[str, Any], int, int]:
        """Returns what an undisturbed training leaves, its calls on files, and its steps."""
        if (model, variant) not in self._undisturbed:
            out = self.new()
            ended = self.run(model, variant, out, faults=Faults(out).text())
            assert ended.status == 0, ended.output
            steps = int(of_log(out / "log.csv")[-1]["step"])
            self._undisturbed[model, variant] = contents(out), ended.calls, steps
        return self._undisturbed[model, variant]


def contents(out: Path) -> dict[str, Any]:
    """Returns what two equal trainings have in common, by file."""
    found: dict[str, Any] = {}
    for name in sorted(files(out)):
        path = out / name
        if path.suffix == ".pt":
            found[name] = weights_of(path)
        elif path.suffix == ".csv":
            found[name] = of_log(path)
        else:
            found[name] = path.read_bytes() if name == "config.yaml" else None
    return found


def _killed(place: Place, model: str, variant: int, out: Path, numbers: random.Random) -> bool:
    """Trains until a signal; returns whether that came before the end."""
    _, calls, steps = place.undisturbed(model, variant)
    if numbers.random() < 0.5:
        faults = Faults(out, "kill", numbers.randint(1, calls)).text()
        ended = place.run(model, variant, out, faults=faults)
        signals = (signal.SIGKILL,)
    else:
        signals = (numbers.choice((signal.SIGKILL, signal.SIGTERM)),)
        ends = numbers.randint(1, steps), 2.0 * numbers.random(), int(signals[0])
        ended = place.run(model, variant, out, ends=ends)
    if -ended.status in signals:
        return True
    clear(ended)
    assert ended.status == 0, f"status {ended.status}: {ended.output[-600:]}"
    return False


def _of_model(model: str) -> Callable[[Place, Batch], Outcome]:
    def run(place: Place, batch: Batch) -> Outcome:
        numbers, killed = batch.random(), 0
        variant = numbers.randrange(len(VARIANTS))
        expected = place.undisturbed(model, variant)[0]
        out = place.new()
        told = f"variant {variant}: "
        try:
            while killed < batch.count:
                if _killed(place, model, variant, out, numbers):
                    killed += 1
                else:
                    check(expected, out)
                    shutil.rmtree(out)
            ended = place.run(model, variant, out)
            assert ended.status == 0, f"status {ended.status}: {ended.output[-600:]}"
            check(expected, out)
        except AssertionError as error:
            failure = Failure(batch.first, why(AssertionError(told + str(error))))
            return Outcome(done=max(0, batch.count - 1), failures=[failure])
        finally:
            shutil.rmtree(out, ignore_errors=True)
        return Outcome(done=batch.count)

    return run


def check(expected: Mapping[str, Any], out: Path) -> None:
    """Checks that a training left what an undisturbed one leaves, bit by bit.

    Raises:
        AssertionError: it did not.
    """
    found = contents(out)
    assert found.keys() == expected.keys(), (
        f"left behind: {sorted(found.keys() - expected.keys())}, "
        f"lost: {sorted(expected.keys() - found.keys())}"
    )
    for name, content in expected.items():
        assert found[name] == content, f"{name} differs from the undisturbed one"


@contextlib.contextmanager
def _prepare() -> Iterator[Place]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        folder = Path(name)
        make_synthetic(
            folder / "data", size="demo", train_videos=20, test_videos=2, channels=8, seed=3
        )
        paths = os.pathsep.join(path for path in sys.path if path)
        with forking(folder / "commands", build(folder), {"PYTHONPATH": paths}) as forks:
            yield Place(folder, forks)


PART = Part(
    "trainings",
    "Trainings that are killed and go on",
    [
        Kind(model, "SIGKILLs and SIGTERMs of trainings", 100, _of_model(model), batch=5)
        for model in MODELS
    ],
    _prepare,
)
