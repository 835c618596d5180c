# SPDX-License-Identifier: Apache-2.0
"""What test_distributed.py has torchrun run in two processes: everything in one launch.

``several_processes.py DATA OUT``; writes trainings into OUT and what each process saw into
``OUT/<rank>.json``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from small_settings import small

from tal_fast.data.dataset import open_dataset
from tal_fast.errors import TalFastError, TrainingError
from tal_fast.training import run_experiment, train
from tal_fast.training.distributed import launched
from tal_fast.training.step import Stepper

NO_DROPOUT = "model.dropout=0"
#: Trainings that must come out as in one process.
COMPARED = {
    "plain": [NO_DROPOUT],
    "targets of the batch": [NO_DROPOUT, "loss.actionness_targets=batch"],
    # 19 windows: one process takes ten of them, the other nine.
    "less than a batch": [NO_DROPOUT, "training.batch_size=1000", "training.epochs=5"],
    "hold-out": [NO_DROPOUT, "training.holdout=0.34", "training.ema=corrected,off"],
}
#: A training with dropout, interrupted and resumed.
RESUMED = ["training.epochs=3", "training.ema=plain,off", "training.ema_decay=0.9"]


class Scenarios:
    """Runs trainings and notes what happened in this process."""

    def __init__(self, data: str, out: str) -> None:
        self.data = open_dataset(data)
        self.out = Path(out)
        place = launched()
        assert place is not None
        self.rank = place.rank
        self.seen: dict[str, object] = {}

    def train(self, name, overrides=(), **options):
        config = small(overrides)
        return self._noted(
            name,
            lambda: train(config, self.data, self.data.splits["train"], self.out / name, **options),
        )

    def _noted(self, name, function):
        try:
            result = function()
        except (TalFastError, KeyboardInterrupt) as error:
            self.seen[name] = f"{type(error).__name__}: {error}"
            return None
        self.seen[name] = {"steps": result.steps, "epochs": result.epochs}
        return result

    @contextmanager
    def _second_before_step(self, number, action):
        """Has the second process do something before a certain step."""
        run = Stepper.run

        def other(stepper, batch, count):
            if self.rank == 1 and count == number:
                action()
            return run(stepper, batch, count)

        Stepper.run = other
        yield
        Stepper.run = run

    def experiment(self) -> None:
        config = small([NO_DROPOUT])
        stages = []
        result = self._noted(
            "experiment",
            lambda: run_experiment(
                config,
                self.data,
                train_videos=self.data.splits["train"],
                test_videos=self.data.splits["test"],
                out=self.out / "experiment",
                progress=lambda event: stages.append(event.stage),
            ),
        )
        self.seen["experiment"] = {"map": result.average_map, "stages": sorted(set(stages))}

    def interrupt(self) -> None:
        """SIGTERM to the second process alone, in mid-epoch."""
        self.train("whole", RESUMED)
        with self._second_before_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            self.train("cut", RESUMED)
        self.seen["after the cut"] = sorted(p.name for p in (self.out / "cut").iterdir())
        if self.rank == 0:  # what a single process finds when it is asked to go on with it
            (self.out / "left").mkdir()
            for name in ("resume.pt", "config.yaml"):
                (self.out / "left" / name).write_bytes((self.out / "cut" / name).read_bytes())
        self.seen["interrupted"] = self.seen["cut"]
        self.train("cut", RESUMED)

    def fail(self) -> None:
        """The second process fails, then both differ, then the shares are impossible."""
        with self._second_before_step(3, _fail):
            self.train("failing")
        self.train("differing", [f"training.seed={self.rank}"])
        self.train("odd batch", ["training.batch_size=5"])
        self.train("one window", positions=[0])


def _fail() -> None:
    raise TrainingError("of the second process")


def main() -> None:
    scenarios = Scenarios(*sys.argv[1:])
    for name, overrides in COMPARED.items():
        scenarios.train(name, overrides)
    scenarios.train("wall-clock", ["training.budget=wall-clock", "training.seconds=0.5"])
    scenarios.experiment()
    scenarios.interrupt()
    scenarios.fail()
    text = json.dumps(scenarios.seen, indent=1)
    (scenarios.out / f"{scenarios.rank}.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
