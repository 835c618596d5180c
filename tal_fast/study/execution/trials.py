# SPDX-License-Identifier: Apache-2.0
"""One trial = one training of a study = one directory that is either complete or not there.

A trial is written in ``trials/.p010_r0.partial`` and renamed to ``trials/p010_r0`` when everything,
``trial.json`` last, is in it. What a killed run left in a partial directory is continued when it
belongs to the same trial of the same settings and software, and thrown away otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tal_fast
from tal_fast.data.files import write_text_atomically
from tal_fast.errors import ConfigError, DataError
from tal_fast.study.execution.failures import is_environment_error
from tal_fast.study.execution.locks import LOCK_FILE, locked_directory

__all__ = [
    "EXPERIMENT",
    "Progress",
    "Trial",
    "TrialTask",
    "execute_trial",
    "load_experiment",
    "load_trial",
    "scan_trials",
    "trial_directories",
]

EXPERIMENT = "tal_fast.training.experiment:run_experiment"
_FORMAT = 1
_RECORD = "trial.json"
_HEADER = "started.json"

Progress = Callable[[str, dict[str, Any]], None]
"""Receives (trial name, the fields of a progress event)."""


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Attributes:
        model: name of the model preset.
        fraction: share p of the training data, in (0, 1].
        repetition: which draw of this share, counted from 0.
        seed: training seed.
        sampling: how the sample is drawn (:data:`~tal_fast.study.sampling.draws.SAMPLINGS`).
        budget: what ends the training (``training.budget``).
        training: which training on this draw, counted from 0.
        options: settings of the training besides the study's, ``section.field`` -> value.
    """

    model: str
    fraction: float
    repetition: int
    seed: int
    sampling: str = "video"
    budget: str = "epochs"
    training: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the trial's directory.

        ``p010_r0`` is p = 10 %, repetition 0, of videos, under a number of epochs. What differs
        from that is named: ``window.steps.p010_r0_s1`` is the second training of that draw.
        """
        words = [self.sampling] if self.sampling != "video" else []
        words += [self.budget] if self.budget != "epochs" else []
        percent = f"{self.fraction * 100:.4f}".rstrip("0").rstrip(".")
        whole, dot, rest = percent.partition(".")
        last = f"p{whole:0>3}{dot}{rest}_r{self.repetition}"
        return ".".join([*words, last + (f"_s{self.training}" if self.training else "")])


@dataclass(frozen=True)
class TrialTask:
    """Everything a process needs to run a trial; survives JSON, so that any executor can send it.

    Attributes:
        trial: what to run.
        root: directory that holds the trials.
        settings: hash of the study's settings.
        data: the prepared data directory.
        config: YAML file of the resolved configuration.
        train_videos: the drawn training videos; all of them where windows are drawn.
        test_videos: the test videos.
        coverage: what the sample covers (videos, instances, classes, missing_classes, and windows
            where those are drawn), recorded as is.
        threads: torch threads for this trial.
        experiment: ``"module:function"`` with the interface of ``run_experiment``.
        positions: the drawn windows among those of ``train_videos``; None where videos are drawn.
    """

    trial: Trial
    root: str
    settings: str
    data: str
    config: str
    train_videos: tuple[str, ...]
    test_videos: tuple[str, ...]
    coverage: Mapping[str, Any]
    threads: int
    experiment: str = EXPERIMENT
    positions: tuple[int, ...] | None = None

    def to_json(self) -> str:
        """Returns the task as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrialTask:
        """Returns the task that :meth:`to_json` wrote."""
        fields = json.loads(text)
        fields["trial"] = Trial(**fields["trial"])
        fields["train_videos"] = tuple(fields["train_videos"])
        fields["test_videos"] = tuple(fields["test_videos"])
        if fields["positions"] is not None:
            fields["positions"] = tuple(fields["positions"])
        return cls(**fields)


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


def trial_directories(root: Path) -> Iterator[Path]:
    """Yields the directories of finished trials in order of name."""
    if root.is_dir():
        for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
            if entry.is_dir() and not entry.name.startswith("."):
                yield Path(entry.path)


@functools.cache
def _quick_reader() -> Callable[[bytes], Any] | None:
    """Returns msgspec's reader of JSON, three times as fast as Python's, if it is installed."""
    try:
        return importlib.import_module("msgspec").json.decode
    except ImportError:
        return None


def _read_json(content: bytes) -> Any:
    quick = _quick_reader()
    if quick is not None:
        # What it refuses is for Python's reader to take (NaN) or to explain.
        with contextlib.suppress(Exception):
            return quick(content)
    return json.loads(content)


def load_trial(directory: Path) -> dict[str, Any]:
    """Reads the record of a finished trial.

    Raises:
        DataError: ``trial.json`` is missing, is not JSON or lacks a field.
    """
    path = directory / _RECORD
    try:
        with open(path, "rb") as file:
            record = _read_json(file.read())
    except FileNotFoundError:
        raise DataError(
            f"{directory}: expected a finished trial with {_RECORD}, found none; "
            "remove this directory to run the trial again"
        ) from None
    except ValueError as error:
        raise DataError(
            f"{path}: expected JSON, got {error}; remove {directory.name} to run the trial again"
        ) from error
    needed = (
        *("trial", "settings", "fraction", "repetition", "seed", "sampling", "budget", "training"),
        *("sample", "result"),
    )
    missing = [key for key in needed if not isinstance(record, dict) or key not in record]
    if missing:
        raise DataError(
            f"{path}: expected the fields of a trial, {missing[0]!r} is missing; "
            f"remove {directory.name} to run the trial again"
        )
    scores = {"result": record["result"]}
    scores |= {f"result.ema.{mode}": one for mode, one in record["result"].get("ema", {}).items()}
    for where, one in scores.items():
        for key in ("average_map", "map_per_threshold"):
            if key not in one:
                raise DataError(
                    f"{path}: expected {where}.{key}, found none; "
                    f"remove {directory.name} to run the trial again"
                )
    return record


def scan_trials(
    root: Path, settings: str, known: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Reads all finished trials of a study.

    Args:
        root: directory that holds the trials.
        settings: hash of the study's settings.
        known: records that were read before, by name: a finished trial does not change, and is not
            read again.

    Returns:
        name -> record, in order of name.

    Raises:
        DataError: a directory is no readable trial, or was renamed.
        ConfigError: a trial was run with other settings: results are never mixed.
    """
    records = {}
    for directory in trial_directories(root):
        if known is not None and directory.name in known:
            records[directory.name] = known[directory.name]
            continue
        record = load_trial(directory)
        if record["settings"] != settings:
            raise ConfigError(
                f"{directory}: this trial was run with other settings than this study's "
                f"(settings {record['settings'][:12]}, expected {settings[:12]}); "
                "results are never mixed: use another --out"
            )
        if record["trial"] != directory.name:
            raise DataError(
                f"{directory}: expected trial {directory.name}, it is {record['trial']}"
            )
        records[directory.name] = record
    return records


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
    overrides = [f"{key}={value}" for key, value in (own | dict(task.trial.options)).items()]
    return load_config(task.config, overrides=overrides)


def execute_trial(
    task: TrialTask,
    *,
    dataset: Any,
    experiment: Callable[..., Any],
    progress: Progress | None = None,
    wait: float = 20.0,
) -> dict[str, Any]:
    """Runs a trial and renames its directory into place.

    Args:
        task: the trial and its surroundings.
        dataset: the opened data set.
        experiment: called as ``run_experiment`` is.
        progress: receives the trial's progress.
        wait: seconds to wait for another process that runs this trial, which may be dying.

    Returns:
        The record, as ``trial.json`` holds it. A trial that is there already is not run again.

    Raises:
        BusyError: another process runs this trial.
    """
    name = task.trial.name
    final, partial = Path(task.root) / name, Path(task.root) / f".{name}.partial"
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
            progress(name, {key: getattr(event, key, None) for key in keys})

    busy = f"trial {name}: another process is running it in {partial}"
    with locked_directory(partial, wait=wait, busy=busy):
        if final.exists():
            _remove(partial)
            return load_trial(final)
        continued = _take_over(partial, header)
        config = _trial_config(task)
        chosen = {} if task.positions is None else {"positions": list(task.positions)}
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
        record = {
            "format": _FORMAT,
            "trial": name,
            **dataclasses.asdict(task.trial),
            "settings": task.settings,
            "sample": dict(task.coverage),
            "test_videos": len(task.test_videos),
            "tal_fast": tal_fast.__version__,
            "threads": task.threads,
            "continued": continued,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(started)) + "Z",
            "seconds": round(time.perf_counter() - clock, 3),
            "result": result.to_dict(),
        }
        write_text_atomically(partial / _RECORD, json.dumps(record, indent=1))
        (partial / _HEADER).unlink(missing_ok=True)
        try:
            os.rename(partial, final)
        except OSError:
            # Finished by another machine whose lock this one could not see: the first one counts.
            if not final.exists():
                raise
            _remove(partial)
            return load_trial(final)
    return record
