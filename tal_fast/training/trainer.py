# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, learning rate, checkpoints, log."""

from __future__ import annotations

import csv
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tal_fast.data.batches import Batch, BatchLoader
from tal_fast.data.dataset import TALDataset
from tal_fast.data.windows import WindowSet
from tal_fast.errors import TrainingError
from tal_fast.models import TadTR
from tal_fast.ranges import nvtx_range
from tal_fast.training.budget import make_budget
from tal_fast.training.checkpoint import read_checkpoint, save_model, write_checkpoint
from tal_fast.training.config import ExperimentConfig, TrainingConfig, config_to_dict
from tal_fast.training.device import autocast, resolve_device
from tal_fast.training.events import EventWriter
from tal_fast.training.interrupts import deferred_interrupt
from tal_fast.training.kept_weights import KeptWeights
from tal_fast.training.losses import tadtr_loss

__all__ = ["ProgressEvent", "Trainer", "TrainingSummary", "parameter_groups"]

# After an epoch the state is saved, unless the epochs are so short that saving would take more than
# about this share of the time.
_SAVING_SHARE = 0.02
_EXPLODED = 1e12  # products of larger weights leave float32
_LOSSES = ("total", "classification", "l1", "iou", "actionness")
_LOG_COLUMNS = (
    "epoch",
    "step",
    "learning_rate",
    *_LOSSES,
    "gradient_norm",
    "windows_per_second",
    "seconds",
    "data_wait_seconds",
    "holdout_map",
)


@dataclass(frozen=True)
class ProgressEvent:
    """What a running experiment tells.

    Attributes:
        stage: ``train``, ``predict`` or ``evaluate``.
        step: steps (windows in ``predict``) done.
        total_steps: of how many.
        epoch: current epoch, from 1.
        epochs: of how many, as far as can be told.
        losses: of the last step.
        windows_per_second: of this run so far.
        seconds_left: of this stage.
    """

    stage: str
    step: int
    total_steps: int
    epoch: int = 0
    epochs: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    windows_per_second: float = 0.0
    seconds_left: float = math.nan


@dataclass(frozen=True)
class TrainingSummary:
    """What a training took.

    Attributes:
        checkpoint: file of the final (or best) weights, of the first mode of averaging.
        checkpoints: the files of all modes.
        epochs: passes over the windows, the last perhaps in part.
        steps: optimiser steps.
        windows: training windows.
        seconds: wall-clock time of the training, earlier interrupted parts included.
        best_epoch: epoch whose weights were kept, from 1; the last one without a hold-out.
    """

    checkpoint: Path
    checkpoints: dict[str, Path]
    epochs: int
    steps: int
    windows: int
    seconds: float
    best_epoch: int


def parameter_groups(model: torch.nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Splits parameters into the two learning rates of TadTR's recipe.

    Reference points and sampling offsets steer where attention looks; they learn
    ``sampling_lr_scale`` times as fast as the rest.
    """
    slow_names = ("reference_points", "sampling_offsets")
    slow: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (slow if any(key in name for key in slow_names) else rest).append(parameter)
    return [
        {"params": rest, "scale": 1.0},
        {"params": slow, "scale": config.sampling_lr_scale},
    ]


class Trainer:
    """Trains a model on the windows of given videos.

    Args:
        config: all settings.
        data: the data set.
        videos: names of the training videos.
        out: directory for ``checkpoint.pt``, ``log.csv`` and, while it runs, ``resume.pt``.
        positions: of the windows to train on, among all training windows of these videos; all of
            them when None.
        progress: called after every step.
        validate: scores a model by held-out videos, and so picks the weights to keep.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        data: TALDataset,
        videos: Sequence[str],
        out: Path,
        *,
        positions: Sequence[int] | None = None,
        progress: Callable[[ProgressEvent], None] | None = None,
        validate: Callable[[TadTR], float] | None = None,
    ) -> None:
        self.config = config
        self.data = data
        self.videos = list(videos)
        self.out = out
        self.positions = None if positions is None else list(positions)
        self.progress = progress
        self.validate = validate

    def run(self, resume: bool = True) -> TrainingSummary:
        """Trains to the end, from where an interrupted run with the same settings stopped.

        On a CPU the resumed run gives the very weights of an uninterrupted one.

        Raises:
            DataError: no training video, or none with an instance.
            TrainingError: the loss is not finite, or ``resume.pt`` is of other settings.
            KeyboardInterrupt: after the state was written.
        """
        self._start()
        with (
            BatchLoader(
                self.windows,
                self.config.training.batch_size,
                shuffle=True,
                drop_last=len(self.windows) >= self.config.training.batch_size,
                seed=self.config.training.seed,
                threads=self.config.data.threads,
            ) as loader,
            EventWriter(self.out, self.config.training.tensorboard) as events,
            deferred_interrupt() as interrupted,
        ):
            self._steps_per_epoch = len(loader)
            self.budget = make_budget(self.config.training, self._steps_per_epoch)
            if resume and (self.out / "resume.pt").exists():
                self._restore(read_checkpoint(self.out / "resume.pt"))
            self._began = time.perf_counter() - self.seconds
            for epoch in itertools.count(self.epoch):
                if self.budget.done(self.step, self.seconds):
                    break
                self._epoch(epoch, loader, events, interrupted)
        if not self.kept.rates:
            self.kept.keep_last()
        (self.out / "resume.pt").unlink(missing_ok=True)
        files = self.kept.files
        epochs = math.ceil(self.step / self._steps_per_epoch)
        first = self.kept.modes[0]
        return TrainingSummary(
            checkpoint=files[first],
            checkpoints=files,
            epochs=epochs,
            steps=self.step,
            windows=len(self.windows),
            seconds=self.seconds,
            best_epoch=self.kept.best[first][1] if self.kept.rates else epochs,
        )

    # The state of a training: everything below is written by _save and read by _restore.

    def _start(self) -> None:
        config = self.config
        self.windows = WindowSet(
            self.data,
            self.videos,
            length=config.data.window,
            overlap=config.data.train_overlap,
            min_inside=config.data.min_inside,
            drop_empty=True,
        )
        if self.positions is not None:
            self.windows = self.windows.subset(self.positions)
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = resolve_device(config.training.device)
        torch.manual_seed(config.training.seed)
        self.model = TadTR(self.data.channels, self.data.num_classes, config.model)
        self.model.to(self.device).train()
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config.training),
            lr=config.training.learning_rate,
            weight_decay=config.training.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.training.amp == "float16"
        )
        self.kept = KeptWeights(
            self.model,
            config.training.ema,
            config.training.ema_decay,
            self.out,
            self._write_model,
            self.validate,
        )
        self.epoch = 0  # the epoch to go on with, and how many of its batches are done
        self.batches_done = 0
        self.step = 0
        self.seconds = 0.0
        self.log: list[dict[str, Any]] = []
        self.sums: dict[str, float] = {}  # of the losses of the epoch so far
        self._windows_seen = 0
        self._ratings: dict[str, float] = {}  # of the held-out videos, the epoch's last
        self._checked = 0  # step of the last rating of the held-out videos
        self._saving = (0.0, -math.inf)  # seconds that the last save took, and when it was

    def _identity(self) -> dict[str, Any]:
        return {
            "config": config_to_dict(self.config),
            "videos": self.videos,
            "positions": self.positions,
        }

    def _write_model(self, path: Path, weights: dict[str, Tensor]) -> None:
        classes = self.data.annotations.classes
        save_model(path, weights, self.config, classes, self.data.channels)

    def _save_sometimes(self) -> None:
        took, when = self._saving
        if time.perf_counter() - when >= took / _SAVING_SHARE:
            self._save()

    def _save(self) -> None:
        began = time.perf_counter()
        content = {
            "identity": self._identity(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "kept": self.kept.state_dict(),
            "budget": self.budget.state_dict(),
            "checked": self._checked,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "progress": [self.epoch, self.batches_done, self.step],
            "seconds": self.seconds,
            "log": self.log,
            "sums": self.sums,
        }
        write_checkpoint(self.out / "resume.pt", content)
        ended = time.perf_counter()
        self._saving = (ended - began, ended)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["identity"] != self._identity():
            raise TrainingError(
                f"{self.out / 'resume.pt'} is of a training with other settings or videos; use "
                "another directory, or start anew with --no-resume"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.kept.load_state_dict(state["kept"])
        self.budget.load_state_dict(state["budget"])
        self._checked = state["checked"]
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"])
        self.epoch, self.batches_done, self.step = state["progress"]
        self.seconds = state["seconds"]
        self.log = state["log"]
        self.sums = state["sums"]

    def _epoch(
        self,
        epoch: int,
        loader: BatchLoader,
        events: EventWriter,
        interrupted: Callable[[], bool],
    ) -> None:
        first = self.batches_done
        loader.resume(epoch, first)
        if first == 0:
            self.sums = dict.fromkeys((*_LOSSES, "gradient_norm"), 0.0)
        self._ratings.clear()
        began = time.perf_counter()
        waited = 0.0
        rate = self._set_learning_rate()
        batches = iter(loader)
        while not self.budget.done(self.step, self.seconds):
            rate = self._set_learning_rate()
            asked = time.perf_counter()
            with nvtx_range("tal_fast.data"):
                batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            losses = self._step(batch)
            for key, value in losses.items():
                self.sums[key] += value
            self.batches_done += 1
            self._report(epoch, losses, len(batch.windows))
            every = self.budget.check_every
            if every is not None and self.step % every == 0:
                self._rate(epoch + 1)
            if interrupted():
                self._save()
                raise KeyboardInterrupt
        elapsed = time.perf_counter() - began
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": self.step,
            "learning_rate": rate,
            **{key: value / self.batches_done for key, value in self.sums.items()},
            "windows_per_second": (self.batches_done - first)
            * self.config.training.batch_size
            / elapsed,
            "seconds": elapsed,
            "data_wait_seconds": waited,
        }
        if self.budget.check_every is None or self.budget.done(self.step, self.seconds):
            self._rate(epoch + 1)
        row.update(self._ratings)
        self.epoch, self.batches_done = epoch + 1, 0
        self.log.append(row)
        events.write(self.step, row)
        self._write_log()
        if not self.budget.done(self.step, self.seconds):
            self._save_sometimes()

    def _set_learning_rate(self) -> float:
        config = self.config.training
        falls = self.budget.falls(self.step, self.seconds)
        rate = config.learning_rate * config.lr_drop_factor**falls
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        return rate

    def _rate(self, epoch: int) -> None:
        """Rates the weights by the held-out videos, unless that was done after this very step."""
        if self._checked == self.step or not self.kept.rates:
            return
        scores, improved = self.kept.rate(epoch, self.step)
        self._checked = self.step
        self._ratings["holdout_map"] = scores[self.kept.modes[0]]
        self.budget.rated(improved)

    def _step(self, batch: Batch) -> dict[str, float]:
        with nvtx_range("tal_fast.transfer"):
            features = batch.features.to(self.device, non_blocking=True)
            mask = batch.mask.to(self.device, non_blocking=True)
        try:
            with nvtx_range("tal_fast.forward"), autocast(self.device, self.config.training.amp):
                output = self.model(features, mask)
            with nvtx_range("tal_fast.loss"):
                losses = tadtr_loss(output, batch.labels, batch.segments, self.config.loss)
        except (RuntimeError, ValueError) as error:
            # Ops and matching refuse values that are not finite; the cause is the training.
            if all(bool((p.abs() < _EXPLODED).all()) for p in self.model.parameters()):
                raise
            raise self._diverged("the outputs are", batch) from error
        with nvtx_range("tal_fast.backward"):
            self.scaler.scale(losses["total"]).backward()
        with nvtx_range("tal_fast.optimizer"):
            norm = self._update()
        self.step += 1
        # One copy for all numbers of the step.
        values = torch.stack([*(losses[key].detach() for key in losses), norm]).tolist()
        numbers = dict(zip([*losses, "gradient_norm"], values, strict=True))
        if not math.isfinite(numbers["total"]):
            raise self._diverged("the loss is", batch)
        return numbers

    def _diverged(self, what: str, batch: Batch) -> TrainingError:
        videos = sorted({window.video for window in batch.windows})
        return TrainingError(
            f"{what} not finite at step {self.step} (windows of {', '.join(videos)}); lower "
            "training.learning_rate or check the features"
        )

    def _update(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        limit = self.config.training.clip_norm
        parameters = self.model.parameters()
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.kept.update()
        return norm

    def _report(self, epoch: int, losses: dict[str, float], windows: int) -> None:
        self._windows_seen += windows
        self.seconds = time.perf_counter() - self._began
        if self.progress is None:
            return
        total = self.budget.expected_steps(self.step, self.seconds)
        self.progress(
            ProgressEvent(
                stage="train",
                step=self.step,
                total_steps=total,
                epoch=epoch + 1,
                epochs=math.ceil(total / self._steps_per_epoch),
                losses={key: losses[key] for key in _LOSSES if key in losses},
                windows_per_second=self._windows_seen / max(self.seconds, 1e-9),
                seconds_left=(total - self.step) * self.seconds / self.step,
            )
        )

    def _write_log(self) -> None:
        try:
            with open(self.out / "log.csv", "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, _LOG_COLUMNS)
                writer.writeheader()
                writer.writerows(self.log)
        except OSError as error:
            raise TrainingError(f"cannot write {self.out / 'log.csv'}: {error}") from error
