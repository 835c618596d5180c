# SPDX-License-Identifier: Apache-2.0
"""Steps of a training, recorded into a directory: timed by the clock, then by op."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from tal_fast.data.files import write_bytes_atomically, write_text_atomically
from tal_fast.profiling.ceilings import kept_ceilings, machine_ceilings
from tal_fast.profiling.figures import csv_text
from tal_fast.profiling.op_recorder import OpRecorder
from tal_fast.profiling.profile import profile_of, steps_csv
from tal_fast.profiling.recorder import StepRecorder
from tal_fast.profiling.sampler import Sample
from tal_fast.profiling.work import no_work, ops_csv, roofs, work_of
from tal_fast.training.config import ExperimentConfig
from tal_fast.training.device import resolve_amp, resolve_device
from tal_fast.training.environment import describe_environment, peak_memory_mib

CAPTURE = "TAL_FAST_CAPTURE"
"""Variable that has another profiler look at the recorded steps, by cudaProfilerStart and -Stop."""

__all__ = [
    "CAPTURE",
    "Recording",
    "Setting",
    "profile_files",
    "recorded",
    "start_recording",
    "write_files",
    "write_profile",
]

# All that a profile and its page may hold: what an earlier one left is not of a new one.
_PICTURES = ("breakdown", "timeline", "roofline", "lengths", "training")
_NAMES = {
    *("ops.csv", "steps.csv", "timeline.csv", "lengths.csv", "trace.json.gz", "index.html"),
    *(f"{name}.{kind}" for name in _PICTURES for kind in ("png", "svg")),
}


@dataclass(frozen=True)
class Setting:
    """What of a training decides its speed.

    Attributes:
        model: its name.
        device: where it runs.
        amp: precision of products: ``float32``, ``bfloat16`` or ``float16``.
        batch: clips of a step.
    """

    model: str
    device: torch.device
    amp: str
    batch: int

    @classmethod
    def of(cls, config: ExperimentConfig) -> Setting:
        """Returns that of a training with these settings."""
        device = resolve_device(config.training.device)
        amp = resolve_amp(device, config.training.amp)
        return cls(config.name, device, amp, config.training.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values, with the threads of now."""
        return {
            "model": self.model,
            "device": str(self.device),
            "amp": self.amp,
            "batch": self.batch,
            "threads": torch.get_num_threads(),
        }


@dataclass
class Recording:
    """Steps and ops of a training, while they are recorded and afterwards.

    Attributes:
        setting: of the training.
        warm_up: steps before those that are recorded.
        steps: timed by the clock.
        ops: of the steps after them.
        peak: bytes of memory that the process has had at most, when recording stopped.
    """

    setting: Setting
    warm_up: int
    steps: StepRecorder
    ops: OpRecorder
    peak: float | None = None

    @property
    def finished(self) -> bool:
        """Whether all that was to be recorded is."""
        return self.ops.done

    def stop(self) -> None:
        """Stops recording; may be called again."""
        self.steps.stop()
        self.ops.stop()
        if self.peak is None:
            self.peak = peak_memory_mib() * 2**20


@contextlib.contextmanager
def recorded(out: Path, setting: Setting, *, steps: int, warm_up: int = 10) -> Iterator[Recording]:
    """Records steps of a training that the block runs, and writes their profile.

    Where the block is left by an error, what there is by then is written and nothing is measured.

    Args:
        out: directory to write, made when there is something to write.
        setting: of the training.
        steps: to time; five more are profiled by op, and one is counted.
        warm_up: steps before them.
    """
    recording = start_recording(setting, steps=steps, warm_up=warm_up)
    known: Mapping[str, Any] | None = None
    try:
        yield recording
        recording.stop()
        if recording.steps.records:
            known = machine_ceilings()
    finally:
        recording.stop()
        if recording.steps.records:
            ceilings = kept_ceilings() if known is None else known
            write_profile(out, profile_files(recording, ceilings))


def start_recording(setting: Setting, *, steps: int, warm_up: int) -> Recording:
    """Begins to record; arguments as of :func:`recorded`."""
    ops = OpRecorder()
    if os.environ.get(CAPTURE, "0") in ("", "0"):
        recorder = StepRecorder(steps, warm_up, done=ops.start)
    else:
        # Of a GPU there can be one profiler at a time.
        ops.missing = "another profiler looked at these steps"
        recorder = StepRecorder(steps, warm_up, done=_end_capture, begins=_begin_capture)
    recorder.start()
    return Recording(setting, warm_up, recorder, ops)


def _begin_capture() -> None:
    if torch.cuda.is_available():
        torch.cuda.profiler.start()


def _end_capture() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def profile_files(recording: Recording, ceilings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the files of a profile by name: text, and ``profile.json`` as a dict.

    Args:
        recording: with at least one recorded step.
        ceilings: of :func:`~tal_fast.profiling.ceilings.machine_ceilings`, if there are any.
    """
    recorder, setting = recording.steps, recording.setting
    samples = recorder.sampler.samples
    profile = profile_of(
        recorder.records,
        samples,
        between=recorder.between,
        warm_up=recording.warm_up,
        environment=describe_environment(),
        peak=recording.peak,
    )
    profile["training"] = setting.to_dict()
    rows, steps, products = recording.ops.rows()
    files: dict[str, Any] = {"profile.json": profile}
    limits = roofs(
        ceilings,
        products=products,
        amp=setting.amp,
        threads=torch.get_num_threads(),
        device=setting.device,
    )
    profile["limits"] = limits
    profile["ceilings"] = None if ceilings is None else ceilings["ceilings"]
    if rows:
        profile["work"] = work_of(rows, steps, limits, profile)
        files["ops.csv"] = ops_csv(rows, limits)
        files["trace.json.gz"] = recording.ops.trace()
    else:
        profile["work"] = no_work(recording.ops.missing)
    files["steps.csv"] = steps_csv(recorder.records, samples)
    timeline = [Sample.names(), *(astuple(sample) for sample in samples)]
    files["timeline.csv"] = csv_text(timeline)
    return files


def write_profile(out: Path, files: Mapping[str, Any]) -> None:
    """Writes a profile in the place of one that may be there; else as :func:`write_files`."""
    for name in _NAMES - files.keys():
        (out / name).unlink(missing_ok=True)
    write_files(out, files)


def write_files(out: Path, files: Mapping[str, Any]) -> None:
    """Writes some files of a profile, ``profile.json`` last.

    Args:
        out: directory, made when missing.
        files: text or bytes by name; dicts become JSON.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, file_content in sorted(files.items(), key=lambda item: item[0] == "profile.json"):
        if isinstance(file_content, bytes):
            write_bytes_atomically(out / name, file_content)
            continue
        serialised = (
            file_content
            if isinstance(file_content, str)
            else json.dumps(file_content, indent=2) + "\n"
        )
        write_text_atomically(out / name, serialised)
