# SPDX-License-Identifier: Apache-2.0
"""One trial is one directory that is either complete or not there.

A trial is written in ``trials/.p010_r0.partial`` and renamed to ``trials/p010_r0`` when everything,
``trial.json`` last, is in it. What a killed run left in a partial directory is continued when it
belongs to the same trial of the same settings and software, and thrown away otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import tal_fast
from tal_fast.data.files import write_text_atomically
from tal_fast.errors import ConfigError
from tal_fast.study.execution.keep import remove_large_files
from tal_fast.study.execution.messages import Progress, is_environment_error
from tal_fast.study.execution.store import LOCK_FILE, RECORD, load_trial, locked_directory
from tal_fast.study.trial import TrialRecord, TrialTask

__all__ = ["execute_trial", "load_experiment"]

_HEADER = "started.json"


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


def _take_over(partial: Path, header: dict[str, Any]) -> bool:
    """Makes ``partial`` ready for this trial; returns whether it holds work to continue."""
    try:
        found = json.loads((partial / _HEADER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == header:
        return True
    _empty(partial)
    write_text_atomically(partial / _HEADER, json.dumps(header, indent=1))
    return False


def _trial_config(task: TrialTask) -> Any:
    from tal_fast.training.config import load_config

    own = {"training.seed": task.trial.seed, "training.budget": task.trial.budget}
    return load_config(task.config, overrides={**own, **task.trial.options})


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
        write_text_atomically(partial / RECORD, json.dumps(record.to_dict(), indent=1))
        (partial / _HEADER).unlink(missing_ok=True)
        # Without its header, what a kill leaves from here on is begun again: a trial has its name
        # only when what is to go has gone.
        if task.keep == "metrics":
            remove_large_files(partial)
        try:
            os.rename(partial, final)
        except OSError:
            # Finished by another machine whose lock this one could not see: the first one counts.
            if not final.exists():
                raise
            _remove(partial)
            return load_trial(final)
    return record


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

    continued = _take_over(partial, header)
    config = _trial_config(task)
    positions = task.sample.positions
    chosen = {} if positions is None else {"positions": list(positions)}
    started, clock = time.time(), time.perf_counter()

    def attempt() -> Any:
        return load_experiment(task.experiment)(
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
