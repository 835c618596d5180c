# SPDX-License-Identifier: Apache-2.0
"""One trial is one directory that is either complete or not there.

A trial is written in ``trials/.p010_r0.partial`` and renamed to ``trials/p010_r0`` when everything,
``trial.json`` last, is in it. What a killed run left in a partial directory is continued when it
belongs to the same trial of the same settings and software, and thrown away otherwise.

**What stays of it** (``--keep``) is in its record, so that files go only where the run that made
them allowed it, also when that run was killed before it came to it:

- ``metrics``: detections and weights go before the trial's directory gets its name. What stays
  (``trial.json``, ``metrics.json``, settings and log) is what tables, fits and pages are made from.
- ``predictions``: the detections of every trial stay, and of each level (a share of a curve) the
  weights of the best trial. The better ones are in place before the others are removed.
- ``all``: everything, as early versions did.

The best trial of a level is the one whose weights its held-out training videos rate highest.
Without held-out videos it is the first one: the test videos rate trials, but choose none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import tal_fast
from tal_fast.data.files import sync_directory, write_error, write_text_atomically
from tal_fast.data.locks import LOCK_FILE, BusyError, locked_directory
from tal_fast.errors import ConfigError, DataError
from tal_fast.study.execution.messages import Progress, is_environment_error
from tal_fast.study.execution.store import RECORD, TOKEN, load_trial
from tal_fast.study.trial import TrialRecord, TrialTask

__all__ = [
    "BestCheckpoints",
    "execute_trial",
    "load_experiment",
    "remove_left",
    "require_kept",
    "why_not_kept",
]

_HEADER = "started.json"
_LARGE = ("checkpoint*.pt", "predictions*.json")

Level = tuple[str, str, str, float]
"""Sampling, budget, mode of averaging and share: a point of a curve."""

Rank = tuple[float, int, int]
"""Held-out score, its sign turned; repetition; training. The least is the best."""


def load_experiment(door: str) -> Callable[..., Any]:
    """Imports the function named by ``"module:function"``.

    Raises:
        ConfigError: the text has another form, or there is no such function.
    """
    module, colon, function = door.partition(":")
    if not (module and colon and function):
        raise ConfigError(f"experiment: expected 'module:function', got {door!r}")
    try:
        return getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"experiment: cannot import {door!r}: {error}") from error


def _empty(directory: Path) -> None:
    """Removes everything but the lock that this process holds."""
    for entry in os.scandir(directory):
        if entry.name == LOCK_FILE:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _remove(partial: Path) -> None:
    """Removes a partial directory whose trial is finished."""
    _empty(partial)
    (partial / LOCK_FILE).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: who waited for the lock removes it
        partial.rmdir()


def remove_left(root: Path, finished: Iterable[str]) -> None:
    """Removes what killed runs left of trials that are finished; for who holds the study's lock.

    A kill may come between the last steps of a trial: its directory has its name, but holds the
    lock file still; or it was there already, and what another run made of it was being removed.

    Args:
        root: directory that holds the trials.
        finished: names of the trials that are there.
    """
    for left in (*root.glob(f"{TOKEN}*"), *root.glob(f".{TOKEN}*.tmp")):  # of a cluster's driver
        with contextlib.suppress(OSError):
            left.unlink()
    for name in finished:
        # A lock on it that somebody still holds or wants is on a directory of another name.
        with contextlib.suppress(OSError):
            os.unlink(root / name / LOCK_FILE)
        partial = root / f".{name}.partial"
        if partial.is_dir():
            with (
                contextlib.suppress(OSError, BusyError),
                locked_directory(partial, wait=0.0, busy=f"{partial}: in use"),
            ):
                _remove(partial)


def _take_over(partial: Path, header: dict[str, Any]) -> bool:
    """Makes ``partial`` ready for this trial; returns whether it holds work to continue."""
    try:
        begun = json.loads((partial / _HEADER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        begun = None
    if begun == header:
        return True
    _empty(partial)
    write_text_atomically(partial / _HEADER, json.dumps(header, indent=1))
    return False


def _trial_config(task: TrialTask) -> Any:
    from tal_fast.training.config import load_config

    of_trial = {"training.seed": task.trial.seed, "training.budget": task.trial.budget}
    return load_config(task.config, overrides={**of_trial, **task.trial.options})


def execute_trial(
    task: TrialTask,
    *,
    dataset: Any,
    progress: Progress | None = None,
    wait: float = 20.0,
) -> TrialRecord:
    """Runs a trial and renames its directory into place.

    Args:
        task: the trial and its surroundings.
        dataset: the opened data set.
        progress: receives the trial's progress.
        wait: seconds to wait for another process that runs this trial, which may be dying.

    Returns:
        What it gave. A trial that is there already is not run again.

    Raises:
        BusyError: another process runs this trial.
    """
    name = task.trial.name
    final, partial = Path(task.root) / name, Path(task.root) / f".{name}.partial"
    busy = f"trial {name}: another process is running it in {partial}"
    with locked_directory(partial, wait=wait, busy=busy):
        if final.exists():
            _remove(partial)
            return load_trial(final)
        record = _train(task, dataset, partial, progress)
        text = json.dumps(record.to_dict(), indent=1)
        write_text_atomically(partial / RECORD, text, sync=True)
        (partial / _HEADER).unlink(missing_ok=True)
        # Without its header, what a kill leaves from here on is begun again: a trial has its name
        # only when what is to go has gone.
        if task.keep == "metrics":
            _remove_large_files(partial)
        _sync(partial)
        try:
            os.rename(partial, final)
        except OSError:
            # Finished by another machine whose lock this one could not see: the first one counts.
            if not final.exists():
                raise
            _remove(partial)
            return load_trial(final)
        _sync(final.parent)
    return record


def _sync(directory: Path) -> None:
    try:
        sync_directory(directory)
    except OSError as error:
        raise write_error(directory, error) from error


def _train(task: TrialTask, dataset: Any, partial: Path, progress: Progress | None) -> TrialRecord:
    """Runs the experiment in ``partial``, or goes on with what a killed run left there."""
    header = {
        **dataclasses.asdict(task.trial),
        "settings": task.settings,
        "tal_fast": tal_fast.__version__,
        "train_videos": list(task.train_videos),
        "test_videos": list(task.test_videos),
    }
    header = json.loads(json.dumps(header))

    def forward(event: Any) -> None:
        if progress is not None:
            keys = ("stage", "step", "total_steps", "epoch", "epochs")
            progress(task.trial.name, {key: getattr(event, key, None) for key in keys})

    experiment = load_experiment(task.experiment)
    continued = _take_over(partial, header)
    config = _trial_config(task)
    positions = task.sample.positions
    chosen = {} if positions is None else {"positions": list(positions)}
    started, clock = time.time(), time.perf_counter()

    def attempt() -> Any:
        return experiment(
            config,
            dataset,
            train_videos=list(task.train_videos),
            test_videos=list(task.test_videos),
            out=partial,
            resume=True,
            progress=forward,
            threads=task.threads,
            **chosen,
        )

    try:
        result = attempt()
    except Exception as error:
        if not continued or is_environment_error(error):
            raise
        # What the killed run left may be what fails: once more, from nothing.
        _empty(partial)
        continued = _take_over(partial, header)
        result = attempt()
    return TrialRecord(
        trial=task.trial,
        settings=task.settings,
        sample=replace(task.sample, positions=None),
        result=result.to_dict(),
        seconds=round(time.perf_counter() - clock, 3),
        threads=task.threads,
        keep=task.keep,
        started=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(started)) + "Z",
        more={
            "test_videos": len(task.test_videos),
            "tal_fast": tal_fast.__version__,
            "continued": continued,
        },
    )


def _remove_large_files(directory: Path) -> None:
    """Removes detections and weights of a trial that is to keep its metrics alone."""
    for pattern in _LARGE:
        for path in directory.glob(pattern):
            path.unlink()


def _checkpoints(directory: Path, record: TrialRecord) -> dict[str, Path]:
    """Returns the checkpoint of each mode of averaging that is there."""
    from tal_fast.training.kept_weights import checkpoint_name

    modes = list(record.scores)
    paths = {mode: directory / checkpoint_name(modes, mode) for mode in modes}
    return {mode: path for mode, path in paths.items() if path.exists()}


class BestCheckpoints:
    """The checkpoints of a study whose trials keep those of the best alone.

    Args:
        root: directory that holds the trials.
        finished: records of the trials that are there. Of those that earlier runs were to keep the
            best of, this removes what a killed run left.

    Attributes:
        replaced: names of these trials whose weights went for better ones.
    """

    def __init__(self, root: Path, finished: Iterable[TrialRecord]) -> None:
        self._root = root
        self._best: dict[Level, tuple[Rank, TrialRecord, Path]] = {}
        self._earlier: set[str] = set()
        self.replaced: set[str] = set()
        for record in finished:
            self._earlier.add(record.name)
            self.take(record)

    def take(self, record: TrialRecord) -> None:
        """Takes in a finished trial: of two that are to keep the best, the better stays."""
        trial = record.trial
        for mode, path in _checkpoints(self._root / record.name, record).items():
            level = trial.sampling, trial.budget, mode, trial.fraction
            rated = record.scores[mode].held_out
            rank = (math.inf if rated is None else -rated, trial.repetition, trial.training)
            mine = rank, record, path
            other = self._best.setdefault(level, mine)
            if other[1].name == record.name:
                continue
            self._best[level], worse = (mine, other) if rank < other[0] else (other, mine)
            self._remove(*worse[1:])

    def _remove(self, record: TrialRecord, path: Path) -> None:
        if record.keep != "predictions":
            return
        # One too many does no harm, and the next run tries again.
        with contextlib.suppress(OSError):
            path.unlink()
            if record.name in self._earlier:
                self.replaced.add(record.name)


def require_kept(path: Path) -> None:
    """Checks that a file is not one that its study was told not to keep.

    Raises:
        DataError: it is; says how to get it.
    """
    why = why_not_kept(path)
    if why is not None:
        raise DataError(why)


def why_not_kept(path: Path) -> str | None:
    """Says why a file is not there that its trial was not to keep; None for any other file."""
    if path.exists() or not any(path.match(pattern) for pattern in _LARGE):
        return None
    try:
        record = load_trial(path.parent) if (path.parent / RECORD).is_file() else None
    except DataError:
        return None
    if record is None or record.keep in (None, "all"):
        return None
    mode = path.stem.partition("_")[2]
    if mode and mode not in list(record.scores)[1:]:
        return None  # no trial of this study has it
    if record.keep == "predictions" and path.suffix != ".pt":
        return None  # it was kept, and went some other way
    if path.parent.name in ("", ".."):  # said from within the trial, where it cannot be removed
        path = path.resolve()
    again = f"remove {path.parent} and run the study again with --keep"
    if record.keep == "metrics":
        wanted = "all" if path.suffix == ".pt" else "predictions"
        return f"{path}: this trial was run with --keep metrics, which keeps none; {again} {wanted}"
    level = record.name.rpartition("_r")[0]
    kept = sorted(path.parent.parent.glob(f"{level}_r*/{path.name}"))
    best = f" ({kept[0]})" if kept else ""
    return (
        f"{path}: this trial was run with --keep predictions, which keeps the weights of the best "
        f"trial of its level{best}; {again} all"
    )
