# SPDX-License-Identifier: Apache-2.0
"""One experiment: train on some videos, detect in others, score the detections."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tal_fast.averaging import Scores
from tal_fast.data.dataset import TALDataset
from tal_fast.data.files import file_in_one_step
from tal_fast.data.locks import BusyError, locked_directory
from tal_fast.errors import ConfigError, DataError, TrainingError, counted, os_reason
from tal_fast.evaluation import Detections, EvaluationResult, evaluate
from tal_fast.interrupts import passed_on
from tal_fast.models.base import Detector
from tal_fast.training import distributed
from tal_fast.training.config import ExperimentConfig, save_config
from tal_fast.training.device import resolve_amp, resolve_device
from tal_fast.training.environment import describe_environment, peak_memory_mib
from tal_fast.training.inference import detect, predict
from tal_fast.training.told import ProgressEvent, TrainingSummary
from tal_fast.training.trainer import Trainer

__all__ = ["ExperimentResult", "run_experiment", "train"]

Progress = Callable[[ProgressEvent], None]

# Beside that of the trial whose directory it may be. Who waits may wait for one that is dying.
_LOCK_FILE = ".training.lock"
_SECONDS_FOR_LOCK = 5.0


@dataclass(frozen=True)
class ExperimentResult:
    """What an experiment gave and took.

    Attributes:
        average_map: mean over thresholds of mAP, 0..1, of the first mode of averaging.
        map_per_threshold: mAP by tIoU threshold (``"0.3"``), of the same.
        ema: the scores of every mode of averaging (``training.ema``), by name.
        epochs: passes over the training clips.
        steps: optimiser steps.
        windows: training clips (windows, crops or videos, as the model takes them).
        best_epoch: epoch whose weights were tested.
        train_seconds: wall-clock time of the training.
        total_seconds: with prediction and evaluation.
        peak_memory_mib: largest resident memory of the process, the first of several.
    """

    average_map: float
    map_per_threshold: dict[str, float]
    ema: dict[str, Scores]
    epochs: int
    steps: int
    windows: int
    best_epoch: int
    train_seconds: float
    total_seconds: float
    peak_memory_mib: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Run:
    """How a training runs: arguments of :func:`train`."""

    positions: Sequence[int] | None
    resume: bool
    progress: Progress | None
    threads: int | None
    trust_times: bool


def train(
    config: ExperimentConfig,
    data: TALDataset,
    videos: Sequence[str],
    out: str | Path,
    *,
    positions: Sequence[int] | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    threads: int | None = None,
    trust_times: bool = False,
    check: Callable[[], None] = lambda: None,
) -> TrainingSummary:
    """Trains a model and writes config.yaml, environment.json, log.csv and checkpoint.pt.

    With ``training.holdout`` > 0 that share of ``videos`` is kept back and picks the weights, in
    the first draw of the seed that leaves an instance on both sides; no other video is ever looked
    at. Where ``training.ema`` names several modes of averaging, each further one has its own
    checkpoint, ``checkpoint_plain.pt``.

    Under torchrun its processes train together (:mod:`tal_fast.training.distributed`).

    Args:
        config: all settings.
        data: the data set.
        videos: names of the training videos.
        out: directory, made when missing.
        positions: of the windows to train on, among all training windows of ``videos`` (a
            :class:`~tal_fast.data.WindowSet` that drops empty ones); all of them when None.
        resume: whether to go on with an interrupted training in ``out``. A training that begins
            removes the weights of one that ended there.
        progress: called after every step, in the first process alone.
        threads: torch threads of a process; as they are when None.
        trust_times: go on with an interrupted training although feature files have another size or
            time than then, since they hold the same.
        check: called in the first process once no other can train in ``out``; what it raises
            refuses the training.

    Raises:
        ConfigError: the budget lacks a setting, or windows are chosen under a hold-out.
        DataError: the videos hold nothing to train on, or too little for a hold-out.
        TrainingError: the training cannot go on, ``out`` cannot be written, or another process
            trains there.
        KeyboardInterrupt: Ctrl-C, once the running step is done and the state is written. SIGTERM
            ends the process after the same.
    """
    out = Path(out)
    run = _Run(positions, resume, progress, threads, trust_times)
    parts = _parts(config, data, videos, positions)
    with _alone(config, out, check):
        return _train(config, data, parts, out, run)


def _parts(
    config: ExperimentConfig,
    data: TALDataset,
    videos: Sequence[str],
    positions: Sequence[int] | None,
) -> tuple[list[str], list[str]]:
    """Returns the videos to train on and those to keep back."""
    if positions is not None and config.training.holdout > 0.0:
        raise ConfigError(
            "training.holdout keeps back whole videos: a sample of windows has none to keep back; "
            f"expected 0 with chosen windows, got {config.training.holdout:g}"
        )
    return _hold_out(data, videos, config.training.holdout, config.training.seed)


def _train(
    config: ExperimentConfig,
    data: TALDataset,
    parts: tuple[list[str], list[str]],
    out: Path,
    run: _Run,
) -> TrainingSummary:
    """As :func:`train`, on parts of the videos, in a directory that is this training's own."""
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    kept, held = parts

    def validate(model: Detector) -> float:
        def score() -> float:
            detections = detect(model, data, held, config.training)
            return _score(data, held, detections).average_map

        return distributed.from_first(score)

    trainer = Trainer(
        config,
        data,
        kept,
        out,
        positions=run.positions,
        progress=run.progress if distributed.is_first() else None,
        validate=validate if held else None,
        held=held,
        trust_times=run.trust_times,
        begin=lambda: _describe(config, out),
    )
    return trainer.run(run.resume)


@contextlib.contextmanager
def _alone(
    config: ExperimentConfig, out: Path, check: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Joins the processes of this training, and keeps others out of its directory.

    A SIGTERM that waited for the state to be saved ends the process when both are over.
    """
    with (
        passed_on(),
        distributed.joined(resolve_device(config.training.device)),
        _alone_in(out, check),
    ):
        yield


@contextlib.contextmanager
def _alone_in(out: Path, check: Callable[[], None]) -> Iterator[None]:
    """Makes the directory, and keeps other trainings out of it; the first process does, for all.

    Raises:
        TrainingError: another process trains there, or it cannot be written.
    """
    with contextlib.ExitStack() as held:

        def lock() -> None:
            busy = f"{out}: another process trains in this directory"
            try:
                held.enter_context(
                    locked_directory(out, wait=_SECONDS_FOR_LOCK, busy=busy, name=_LOCK_FILE)
                )
            except BusyError as error:
                raise TrainingError(str(error)) from error
            except OSError as error:
                raise TrainingError(f"cannot write to {out}: {os_reason(error)}") from error
            check()

        distributed.from_first(lock)
        yield


def _describe(config: ExperimentConfig, out: Path) -> None:
    """Writes the settings, and what they meet."""
    device = resolve_device(config.training.device)
    description = {
        **describe_environment(),
        "amp": resolve_amp(device, config.training.amp),
        "processes": distributed.world_size(),
    }
    try:
        save_config(config, out / "config.yaml")
        with file_in_one_step(out / "environment.json") as file:
            file.write((json.dumps(description, indent=2) + "\n").encode())
    except OSError as error:
        raise TrainingError(f"cannot write to {out}: {os_reason(error)}") from error


def run_experiment(
    config: ExperimentConfig,
    data: TALDataset,
    *,
    train_videos: Sequence[str],
    test_videos: Sequence[str],
    out: str | Path,
    positions: Sequence[int] | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    threads: int | None = None,
    trust_times: bool = False,
) -> ExperimentResult:
    """Trains, detects in the test videos and scores; the test videos decide nothing.

    Besides what :func:`train` writes, ``out`` gets metrics.json, and predictions.json for each
    checkpoint, with the same ending to its name.

    Args:
        config: all settings.
        data: the data set.
        train_videos: names of the training videos.
        test_videos: names of the test videos; none may be among the training ones.
        out: directory, made when missing.
        positions: of the windows to train on, as in :func:`train`.
        resume: whether to go on with an interrupted experiment in ``out``.
        progress: called after every step, in the first process alone.
        threads: torch threads of a process; as they are when None.
        trust_times: go on with an interrupted training although feature files have another size or
            time than then, since they hold the same.

    Raises:
        ConfigError: as :func:`train`.
        DataError: a video is in both lists, the training videos hold nothing to train on, or the
            test videos nothing to score.
        TrainingError: the training cannot go on, ``out`` cannot be written, or another process
            trains there.
    """
    both = sorted(set(train_videos) & set(test_videos))
    if both:
        raise DataError(
            f"{counted(len(both), 'video', 'are')} both training and test videos, the first is "
            f"{both[0]!r}"
        )
    if not _annotated(data, test_videos):
        raise DataError(
            f"{data.path}: expected an instance in the {len(test_videos)} test videos, there is "
            "none: nothing could be scored"
        )
    began = time.perf_counter()
    out = Path(out)
    run = _Run(positions, resume, progress, threads, trust_times)
    parts = _parts(config, data, train_videos, positions)
    with _alone(config, out):
        summary = _train(config, data, parts, out, run)
        return distributed.from_first(
            lambda: _test(summary, data, test_videos, out, progress, began)
        )


def _test(
    summary: TrainingSummary,
    data: TALDataset,
    test_videos: Sequence[str],
    out: Path,
    progress: Progress | None,
    began: float,
) -> ExperimentResult:
    """Detects in the test videos with every mode's weights, scores and writes the results."""
    scores, evaluations = {}, {}
    for number, (mode, checkpoint) in enumerate(summary.checkpoints.items()):

        def predicting(done: int, total: int, before: int = number) -> None:
            if progress is not None:
                modes = len(summary.checkpoints)
                progress(ProgressEvent("predict", before * total + done, modes * total))

        name = checkpoint.with_suffix(".json").name.replace("checkpoint", "predictions")
        detections = predict(checkpoint, data, test_videos, out / name, progress=predicting)
        if progress is not None:
            progress(ProgressEvent("evaluate", number, len(summary.checkpoints)))
        score = _score(data, test_videos, detections)
        evaluations[mode] = score.to_dict()
        per_threshold = zip(score.tiou_thresholds, score.map_per_threshold, strict=True)
        scores[mode] = Scores(
            average_map=float(score.average_map),
            map_per_threshold={f"{at:g}": float(value) for at, value in per_threshold},
            held_out=summary.held_out.get(mode),
        )
    first = next(iter(scores))
    result = ExperimentResult(
        average_map=scores[first].average_map,
        map_per_threshold=dict(scores[first].map_per_threshold),
        ema=scores,
        epochs=summary.epochs,
        steps=summary.steps,
        windows=summary.windows,
        best_epoch=summary.best_epoch,
        train_seconds=summary.seconds,
        total_seconds=time.perf_counter() - began,
        peak_memory_mib=peak_memory_mib(),
    )
    try:
        metrics = json.dumps({**result.to_dict(), "evaluation": evaluations[first]}, indent=2)
        with file_in_one_step(out / "metrics.json") as file:
            file.write((metrics + "\n").encode())
    except OSError as error:
        raise TrainingError(f"cannot write {out / 'metrics.json'}: {os_reason(error)}") from error
    return result


def _score(data: TALDataset, videos: Sequence[str], detections: Detections) -> EvaluationResult:
    # On the threads of this trial: those of the machine belong to the trials beside it, too.
    truth = data.truth.select(videos)
    return evaluate(truth, detections, num_threads=torch.get_num_threads())


def _hold_out(
    data: TALDataset, videos: Sequence[str], share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Returns the videos to train on and those to keep back.

    The first draw of the seed that leaves an instance on both sides: without one, nothing is
    learned, or nothing can be rated.
    """
    if share == 0.0:
        return list(videos), []
    count = max(1, round(share * len(videos)))
    if count >= len(videos):
        raise DataError(
            f"training.holdout = {share} leaves none of {len(videos)} training videos to train on"
        )
    annotated = set(_annotated(data, videos))
    if len(annotated) < 2:
        raise DataError(
            f"training.holdout = {share}: expected instances in at least two of {len(videos)} "
            f"training videos, one to train on and one to rate by, found them in {len(annotated)}"
        )
    numbers = random.Random(seed)
    held = set(numbers.sample(sorted(videos), count))
    while not held & annotated or annotated <= held:
        held = set(numbers.sample(sorted(videos), count))
    return [v for v in videos if v not in held], [v for v in videos if v in held]


def _annotated(data: TALDataset, videos: Sequence[str]) -> list[str]:
    known = data.annotations.videos
    return [name for name in videos if name in known and len(known[name].labels)]
