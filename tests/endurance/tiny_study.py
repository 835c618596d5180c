# SPDX-License-Identifier: Apache-2.0
"""A study of four trainings that take half a second each, and what it has to be in the end."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from endurance import faults
from endurance.forks import THREADS, Ended, Forks, forking
from processes import MARK, kill_marked, marked, wait_for

from tal_fast.data.synthetic import make_synthetic

#: A TadTR whose step takes milliseconds.
TADTR = (
    "data.window=96",
    "model.d_model=32",
    "model.num_heads=4",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "model.feedforward=32",
    "model.num_queries=8",
    "model.roi_bins=4",
)
SETTINGS = ("training.epochs=2", "training.batch_size=4", "training.amp=float32", *TADTR)
TRIALS = ("p050_r0", "p050_r1", "p100_r0", "p100_r1")
#: What no two runs have in common: how long they took, when and where, and whether they went on.
_OWN = {"seconds", "train_seconds", "total_seconds", "peak_memory_mib", "started", "continued"}
_VARIES = ("seconds", "clips_per_second")


def without_own(content: Any) -> Any:
    """Returns JSON without what no two runs have in common."""
    if isinstance(content, dict):
        return {key: without_own(value) for key, value in content.items() if key not in _OWN}
    if isinstance(content, list):
        return [without_own(value) for value in content]
    return content


def weights_of(path: Path) -> dict[str, Any]:
    """Returns what a checkpoint holds, its tensors as bytes."""
    content = torch.load(path, weights_only=True)
    return {
        **{key: value for key, value in content.items() if key != "model"},
        "model": {
            name: (value.shape, value.contiguous().numpy().tobytes())
            for name, value in content["model"].items()
        },
    }


def of_log(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a table without the times in it."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {key: value for key, value in row.items() if not any(v in key for v in _VARIES)}
            for row in csv.DictReader(file)
        ]


def _content(path: Path) -> Any:
    """Returns what of a file two runs have in common."""
    if path.suffix == ".pt":
        return weights_of(path)
    if path.name == "environment.json":
        return None
    if path.suffix == ".json" and path.name != "predictions.json":
        return without_own(json.loads(path.read_text(encoding="utf-8")))
    if path.name in ("log.csv", "trials.csv"):
        return [without_own(row) for row in of_log(path)]
    if path.suffix in (".csv", ".json") or path.name == "config.yaml":
        return path.read_bytes()
    return None  # pictures, the page, and study.yaml with its runs


def files(study: Path) -> set[str]:
    """Returns the files and folders of a study, what is hidden included."""
    return {
        str((Path(folder) / name).relative_to(study))
        for folder, folders, names in os.walk(study)
        for name in (*folders, *names)
    }


@dataclass(frozen=True)
class Expected:
    """An undisturbed study."""

    contents: Mapping[str, Any]

    @classmethod
    def of(cls, study: Path) -> Expected:
        """Reads it."""
        names = {name for name in files(study) if (study / name).is_file()}
        return cls({name: _content(study / name) for name in sorted(names)})

    def check(self, study: Path) -> None:
        """Checks that a study is the same: the same files, with the same in them, bit by bit.

        Raises:
            AssertionError: it is not.
        """
        found = {name for name in files(study) if (study / name).is_file()}
        # What went wrong in a trial or a process is kept; a log of nothing is not.
        told = {
            name for name in found if name.startswith("logs/") and (study / name).stat().st_size
        }
        more = sorted(found - told - self.contents.keys())
        assert not more, f"left behind: {more}"
        missing = sorted(self.contents.keys() - found)
        assert not missing, f"lost: {missing}"
        finished = sorted(path.name for path in (study / "trials").iterdir())
        assert finished == sorted(TRIALS), f"expected every trial once, found {finished}"
        for name, content in self.contents.items():
            assert _content(study / name) == content, f"{name} differs from the undisturbed one"


class Place:
    """What the cases share: data, a process that forks, the undisturbed study."""

    def __init__(self, folder: Path, library: Path, forks: Forks) -> None:
        self.folder = folder
        self.library = library
        self.forks = forks
        self.data = folder / "data"
        self.calls = 0
        self.expected: Expected
        self._numbers = itertools.count()

    def new(self, under: Path | None = None) -> Path:
        """Returns the folder of a study that is not there yet."""
        return (under or self.folder) / f"s{next(self._numbers)}"

    def arguments(self, out: Path, *more: Any, jobs: int | None = 1) -> list[Any]:
        """Returns the arguments of ``tal-fast`` that run the study."""
        sets = [part for setting in SETTINGS for part in ("--set", setting)]
        counts = ["--fractions", "0.5,1", "--repetitions", "2", "--threads", "1"]
        some = [] if jobs is None else ["--jobs", jobs]
        return ["study", "run", "--data", self.data, "--out", out, *some, *counts, *sets, *more]

    def mark(self, out: Path) -> dict[str, str]:
        """Returns variables by which all processes of a study are known."""
        return {MARK: str(out)}

    def wait_for_processes(self, out: Path) -> None:
        """Waits until nothing runs any more for a study.

        Raises:
            AssertionError: something stays.
        """
        wait_for(lambda: not marked(str(out)), f"the end of all processes of {out.name}")

    def complete(self, out: Path, *more: Any, jobs: int | None = 1) -> None:
        """Runs what is missing, undisturbed, and checks the whole."""
        ended = self.forks.run(self.arguments(out, *more, jobs=jobs), environment=self.mark(out))
        assert ended.status == 0, f"not completed: status {ended.status}: {ended.output[-300:]}"
        clear(ended)
        self.wait_for_processes(out)
        self.expected.check(out)

    def remove(self, out: Path) -> None:
        """Ends what runs for a study, and removes it."""
        kill_marked(str(out))
        shutil.rmtree(out, ignore_errors=True)


def clear(ended: Ended) -> None:
    """Checks that a command said clearly what it had to say.

    Raises:
        AssertionError: it printed a traceback, ended by a signal, or failed without a word.
    """
    assert "Traceback (most recent call last)" not in ended.output, ended.output[-1500:]
    assert ended.status >= 0, f"ended by signal {-ended.status}: {ended.output[-300:]}"
    if ended.status:
        assert "error: " in ended.output, f"status {ended.status}: {ended.output[-300:]}"


@contextmanager
def place() -> Iterator[Place]:
    """Makes the data and the undisturbed study; removes all of it."""
    # One thread here too, for the bits of the models that this process trains.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        folder = Path(name)
        library = faults.build(folder)
        make_synthetic(
            folder / "data", size="demo", train_videos=20, test_videos=6, channels=8, seed=3
        )
        with forking(folder / "commands", library, {MARK: name, **THREADS}) as forks:
            made = Place(folder, library, forks)
            out = made.new()
            counted = faults.Faults(out).text()
            ended = forks.run(made.arguments(out), faults=counted)
            assert ended.status == 0, ended.output
            made.calls = ended.calls
            made.expected = Expected.of(out)
            try:
                yield made
            finally:
                for path in folder.glob("s*"):
                    kill_marked(str(path))
