# SPDX-License-Identifier: Apache-2.0
"""The profile of a training that is run only for it: recorded, then without its suspects."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tal_fast.data.dataset import TALDataset
from tal_fast.data.files import check_writable
from tal_fast.errors import TrainingError, counted
from tal_fast.profiling.ceilings import machine_ceilings
from tal_fast.profiling.figures import figure, value_of
from tal_fast.profiling.interventions import tried
from tal_fast.profiling.recording import (
    Recording,
    Setting,
    profile_files,
    start_recording,
    write_profile,
)
from tal_fast.profiling.rig import Rig
from tal_fast.training import train
from tal_fast.training.config import ExperimentConfig
from tal_fast.training.told import ProgressEvent

__all__ = ["profile_training"]

_WARM_UP = 5
_RECORDED = 35.0  # seconds, as all of these, of what a stage may take at most, or about
_ALTERED = 45.0
_ALONE = 2.0
_MOST_BATCHES = 50
_LEAST_STEPS = 3


class _EnoughError(Exception):
    """Ends a training from within."""


def profile_training(
    config: ExperimentConfig,
    data: TALDataset,
    videos: Sequence[str],
    out: Path,
    *,
    steps: int = 50,
    quick: bool = False,
    threads: int | None = None,
    said: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Profiles a training; what it learns is thrown away.

    A stage that takes too long on this machine does fewer steps, so that all of it takes about two
    minutes.

    Args:
        config: all settings.
        data: the data set.
        videos: names of the training videos.
        out: directory to write.
        steps: to record.
        quick: leave out the steps without the suspects.
        threads: torch threads; as they are when None.
        said: told of each stage.

    Returns:
        The content of ``profile.json``.

    Raises:
        TrainingError: no step was made.
        DataError: ``out`` cannot be written.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    check_writable(out)  # before the minutes that it takes
    said(f"recording {counted(steps, 'step')}")
    recording = _recorded(config, data, videos, Setting.of(config), steps)
    said("measuring the machine")
    files = profile_files(recording, machine_ceilings())
    profile: dict[str, Any] = files["profile.json"]
    profile["command"] = "profile train"
    rig = Rig(config, data, videos)
    try:
        _altered(rig, data, list(videos), profile, quick, said)
    finally:
        rig.close()
    write_profile(out, files)
    return profile


def _altered(
    rig: Rig,
    data: TALDataset,
    videos: list[str],
    profile: dict[str, Any],
    quick: bool,
    said: Callable[[str], None],
) -> None:
    """Adds to a profile what takes the training in parts: loader, memory, its suspects."""
    step_seconds = value_of(profile, "step", "wall") / 1e3
    said("reading without training")
    profile["loader"] = _loader(rig, profile, step_seconds)
    if quick:
        rig.from_memory()
    else:
        said("training without the suspects")
        profile["tried"] = tried(rig, data, videos, seconds=_ALTERED, step_seconds=step_seconds)
    profile["memory"] |= _memory(rig)
    profile["training"] |= {
        "rows": rig.cached[0].padded,
        "channels": data.channels,
        "classes": data.num_classes,
        "clips_of_epoch": len(rig.loader.clips),
        "data": data.name,
        "reader_threads": rig.config.detector.data.threads,
    }


def _recorded(
    config: ExperimentConfig,
    data: TALDataset,
    videos: Sequence[str],
    setting: Setting,
    steps: int,
) -> Recording:
    recording = start_recording(setting, steps=steps, warm_up=_WARM_UP)
    began = time.perf_counter()

    def progress(event: ProgressEvent) -> None:
        if recording.finished:
            raise _EnoughError
        if recording.ops.started:
            return
        # The steps by op that are to come take as long as those before, or longer.
        elapsed = time.perf_counter() - began
        a_step = elapsed / event.step
        by_op = max(1, min(recording.ops.steps, int(0.2 * _RECORDED / a_step)))
        recording.ops.steps = by_op
        late = elapsed + 2 * (by_op + 1) * a_step > _RECORDED
        if late and len(recording.steps.records) >= _LEAST_STEPS:
            recording.steps.finish()

    # Long enough, whatever ends it; all else is as in the training that is to be seen.
    needed = _WARM_UP + steps + recording.ops.steps + 3
    training = replace(
        config.training,
        epochs=max(config.training.epochs, needed),
        steps=None if config.training.steps is None else max(config.training.steps, needed),
        seconds=None if config.training.seconds is None else 1e6,
        tensorboard="never",
    )
    try:
        with tempfile.TemporaryDirectory(prefix="tal_fast_profile_") as folder:
            train(replace(config, training=training), data, videos, folder, progress=progress)
    except _EnoughError:
        pass
    finally:
        recording.stop()
    if not recording.steps.records:
        raise TrainingError(
            f"profile: expected more than {counted(_WARM_UP, 'step')}, got {recording.steps.seen}"
        )
    return recording


def _loader(rig: Rig, profile: dict[str, Any], step_seconds: float) -> dict[str, Any]:
    """Returns what batches need, what was read for them, and how fast they come by themselves."""
    clips, needed, batches = 0, 0, 0
    reading = iter(rig.batches())
    next(reading)
    began = time.perf_counter()
    while batches < _MOST_BATCHES and time.perf_counter() - began < _ALONE:
        batch = next(reading)
        batches += 1
        clips += len(batch)
        needed += sum(
            rows * rig.model.in_channels * batch.features.element_size() for rows in batch.lengths
        )
    took = time.perf_counter() - began
    del reading
    read = value_of(profile, "reading", "read")
    each = needed / batches
    return {
        "needed": figure(each, "bytes per step", "formula"),
        "amplification": figure(
            None if read is None else read / each, "times", "counter", "reading was not counted"
        ),
        "alone": figure(clips / took, "clips/s", "clock"),
        "consumed": figure(len(rig.cached[0]) / step_seconds, "clips/s", "clock"),
    }


def _memory(rig: Rig) -> dict[str, Any]:
    held = {key: figure(value, "bytes", "counter") for key, value in rig.held_bytes().items()}
    peak = None
    if rig.device.type == "cuda":
        peak = float(torch.cuda.max_memory_allocated(rig.device))
    return {
        **held,
        "saved": figure(rig.saved_bytes(), "bytes", "counter"),
        "device_peak": figure(peak, "bytes", "counter", "not on a GPU"),
    }
