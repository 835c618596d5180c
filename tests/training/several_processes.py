# SPDX-License-Identifier: Apache-2.0
"""What test_distributed.py has torchrun run in two processes, all of it in one launch.

``several_processes.py DATA EVERY_CLASS OUT``: trainings go to OUT, what each process saw to
``OUT/<rank>.json``; the last training is one of the command line and ends by Ctrl-C only.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from small_settings import SMALL, small

from tal_fast import cli
from tal_fast.data.dataset import open_dataset
from tal_fast.errors import TalFastError, TrainingError
from tal_fast.models import TadTR
from tal_fast.training import run_experiment, train
from tal_fast.training.distributed import launched

NO_DROPOUT = "model.dropout=0"
#: Trainings that must come out as in one process; the first as part of an experiment.
COMPARED = {
    "experiment": [NO_DROPOUT],
    "targets of the batch": [NO_DROPOUT, "loss.actionness_targets=batch"],
    # 19 windows: one process takes ten of them, the other nine.
    "less than a batch": [NO_DROPOUT, "training.batch_size=1000"],
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
        videos = self.data.splits["train"]
        try:
            done = train(small(overrides), self.data, videos, self.out / name, **options)
        except (TalFastError, KeyboardInterrupt) as error:
            self.seen[name] = f"{type(error).__name__}: {error}"
        else:
            self.seen[name] = {"steps": done.steps, "epochs": done.epochs}

    @contextmanager
    def second_in_step(self, number, action):
        """Has the second process do something in a certain step, where the others wait for it."""
        forward, count = TadTR.forward, itertools.count(1)

        def other(model, *inputs):
            if self.rank == 1 and next(count) == number:
                action()
            return forward(model, *inputs)

        TadTR.forward = other
        yield
        TadTR.forward = forward

    def compare(self) -> None:
        """Trainings that go as they should."""
        for name, overrides in COMPARED.items():
            if name != "experiment":
                self.train(name, overrides)
        self.train("wall-clock", ["training.budget=wall-clock", "training.seconds=0.3"])
        stages = []
        result = run_experiment(
            small(COMPARED["experiment"]),
            self.data,
            train_videos=self.data.splits["train"],
            test_videos=self.data.splits["test"],
            out=self.out / "experiment",
            progress=lambda event: stages.append(event.stage),
        )
        self.seen["stages"] = sorted(set(stages))
        self.seen["experiment"] = {"steps": result.steps, "map": result.average_map}

    def interrupt(self) -> None:
        """SIGTERM to the second process alone, in mid-epoch."""
        self.train("whole", RESUMED)
        # Without a handler of its own the second process would end of it.
        signal.signal(signal.SIGTERM, lambda *_: None)
        with self.second_in_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            self.train("cut", RESUMED)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.seen["interrupted"] = self.seen["cut"]
        if self.rank == 0:  # for a single process that is asked to go on with it
            (self.out / "left").mkdir()
            state = (self.out / "cut" / "resume.pt").read_bytes()
            (self.out / "left" / "resume.pt").write_bytes(state)
        self.train("cut", RESUMED)

    def fail(self) -> None:
        """One process fails; both differ; the shares are impossible."""
        with self.second_in_step(3, _fail):
            self.train("failing")
        self.train("differing", [f"training.seed={self.rank}"])
        self.train("odd batch", ["training.batch_size=5"])
        self.train("one window", positions=[0])


def _fail() -> None:
    raise TrainingError("of the second process")


def main(data: str, every_class: str, out: str) -> int:
    """Runs everything; returns the exit status of the command line."""
    scenarios = Scenarios(data, out)
    scenarios.compare()
    scenarios.interrupt()
    scenarios.fail()
    text = json.dumps(scenarios.seen, indent=1)
    (scenarios.out / f"{scenarios.rank}.json").write_text(text, "utf-8")
    settings = [*SMALL, "training.epochs=100000", "training.batch_size=32"]
    return cli.main(
        ["train", "--data", every_class, "--out", f"{out}/command"]
        + [word for item in settings for word in ("--set", item)]
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
