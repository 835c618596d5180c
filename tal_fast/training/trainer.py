# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, learning rate, checkpoints, log."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tal_fast import ranges
from tal_fast.data.batches import Batch
from tal_fast.data.dataset import TALDataset
from tal_fast.data.fingerprint import data_facts, data_fingerprint
from tal_fast.data.loader import FeatureLoader
from tal_fast.data.row_meaning import row_meaning
from tal_fast.data.windows import windows_of
from tal_fast.errors import TrainingError
from tal_fast.interrupts import deferred_interrupt
from tal_fast.models import Detector, code_of, detector_of
from tal_fast.models.called import clip_set_of
from tal_fast.training import distributed
from tal_fast.training.budget import learning_rate, make_budget
from tal_fast.training.checkpoint import save_model
from tal_fast.training.config import ExperimentConfig, config_to_dict, deciding
from tal_fast.training.device import resolve_device
from tal_fast.training.dry_run import dry_run
from tal_fast.training.events import EventWriter, write_log
from tal_fast.training.finite import not_finite_weights
from tal_fast.training.kept_weights import KeptWeights
from tal_fast.training.late import LateNumbers, Read
from tal_fast.training.resume import StateFile, read_state
from tal_fast.training.start import fresh_model, instances_of, training_loader
from tal_fast.training.step import Stepper, diverged
from tal_fast.training.told import MadeStep, ProgressEvent, TrainingSummary

__all__ = ["Trainer"]


class Trainer:
    """Trains a model on the clips of given videos.

    Several processes of a group (:mod:`tal_fast.training.distributed`) each hold one, with the same
    arguments, and run it together; the first one's writes.

    Args:
        config: all settings.
        data: the data set.
        videos: names of the training videos.
        out: directory for ``checkpoint.pt``, ``log.csv`` and, while it runs, ``resume.pt``.
        positions: of the windows to train on, among all training windows of these videos; all of
            them when None.
        progress: called for every step, once its numbers are there: on a GPU two steps later, so
            that no step waits for them.
        validate: scores a model by held-out videos, and so picks the weights to keep; the same
            score in every process.
        held: names of those videos.
        trust_times: go on from ``resume.pt`` although feature files have another size or time than
            when it was written, since they hold the same.
        begin: called in the first process once nothing speaks against this training in ``out``.
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
        validate: Callable[[Detector], float] | None = None,
        held: Sequence[str] = (),
        trust_times: bool = False,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.begin = begin
        self.config = config
        self.data = data
        self.videos = list(videos)
        self.out = out
        self.positions = None if positions is None else list(positions)
        self.progress = progress
        self.validate = validate
        self.held = list(held)
        self.trust_times = trust_times

    def run(self, resume: bool = True) -> TrainingSummary:
        """Trains to the end, from where an interrupted run with the same settings stopped.

        On a CPU the resumed run gives the very weights of an uninterrupted one.

        Raises:
            ConfigError: several processes cannot share the batches.
            DataError: no training video, or none with an instance.
            TrainingError: the loss is not finite, or ``resume.pt`` is of other settings or data.
            KeyboardInterrupt: Ctrl-C or SIGTERM, after the state was written.
        """
        self._start()
        config = self.config.training
        with (
            training_loader(self.config, self.clips, self.device) as loader,
            EventWriter(
                self.out, config.tensorboard if distributed.is_first() else "never"
            ) as events,
            deferred_interrupt() as interrupted,
        ):
            self._steps_per_epoch = len(loader)
            self.budget = make_budget(config, self._steps_per_epoch)
            state = distributed.from_first(self._saved_state) if resume else None
            if state is not None:
                self._restore(state)
            else:
                distributed.from_first(self.file.forget)
                if self.kept.rates:  # or the first rated weights, alone, look like an ended one
                    self._save()
            distributed.from_first(self.begin)
            self._began = time.perf_counter() - self.seconds
            for epoch in itertools.count(self.epoch):
                if self.budget.done(self.step, self.seconds):
                    break
                self._epoch(epoch, loader, events, interrupted)
        distributed.from_first(self._finish)
        files = self.kept.files
        epochs = math.ceil(self.step / self._steps_per_epoch)
        first = self.kept.modes[0]
        return TrainingSummary(
            checkpoint=files[first],
            checkpoints=files,
            epochs=epochs,
            steps=self.step,
            windows=len(self.clips),
            seconds=self.seconds,
            best_epoch=self.kept.best[first][1] if self.kept.rates else epochs,
            held_out=self.kept.held_out,
            videos=len(self.videos),
            unit=self.clips.unit,
            remarks=self.model.remarks(),
        )

    def _finish(self) -> None:
        if not self.kept.rates:
            self.kept.keep_last()
        self.file.remove()

    # The state of a training: everything below is written by _state and read by _restore.

    def _start(self) -> None:
        config = self.config
        detector = detector_of(config.name)
        # Of the file as it is now: it may be edited while its class trains.
        self._code = code_of(config.name)
        clips = clip_set_of(detector, config.detector, self.data, self.videos, training=True)
        self.clips = clips if self.positions is None else windows_of(clips).subset(self.positions)
        instances = instances_of(self.data, self.videos)
        distributed.require_same(
            "settings, videos or clips, or in the data",
            (self._identity(), len(self.clips), data_fingerprint(self.data)),
        )
        if distributed.is_first():
            self.out.mkdir(parents=True, exist_ok=True)
            self._facts = data_facts(self.data, (*self.videos, *self.held))
            self._rows = row_meaning(clips)
        self.device = resolve_device(config.training.device)
        dry_run(config, self.data, self.videos, self.clips, self.device)
        self.file = StateFile(self.out, self.device)
        self.model = fresh_model(config, self.data, instances).to(self.device)
        distributed.seed_apart(config.training.seed)
        self.stepper = Stepper(self.model, config)
        self.kept = KeptWeights(
            self.model,
            config.training.ema,
            config.training.ema_decay,
            config.training.ema_repeats,
            self.out,
            self._write_model,
            self.validate,
        )
        self.stepper.follow(self.kept)
        self.epoch = 0  # the epoch to go on with, and how many of its batches are done
        self.batches_done = 0
        self.step = 0
        self.seconds = 0.0
        self.log: list[dict[str, Any]] = []
        self.sums: dict[str, float] = {}  # of the losses of the epoch so far
        self.numbers: LateNumbers[MadeStep] = LateNumbers(self.device)
        self._clips_seen = 0
        self._ratings: dict[str, float] = {}  # of the held-out videos, the epoch's last
        self._checked = 0  # step of the last rating of the held-out videos

    def _identity(self) -> dict[str, Any]:
        return {
            "config": deciding(config_to_dict(self.config)),
            "videos": self.videos,
            "positions": self.positions,
            **({} if self._code is None else {"code": self._code}),
        }

    def _write_model(self, path: Path, weights: dict[str, Tensor]) -> None:
        if distributed.is_first():
            first = not_finite_weights(weights)
            if first is not None:
                raise diverged("the weights are", self._when(), first)
            classes = self.data.annotations.classes
            save_model(path, weights, self.config, classes, self.data.channels, self._rows)

    def _save(self) -> None:
        self.file.save(self._state)

    def _state(self) -> dict[str, Any]:
        return {
            "identity": self._identity(),
            "data": self._facts,
            **self.stepper.state_dict(),
            "kept": self.kept.state_dict(),
            "budget": self.budget.state_dict(),
            "checked": self._checked,
            "progress": [self.epoch, self.batches_done, self.step],
            "seconds": self.seconds,
            "log": self.log,
            "sums": self.sums,
        }

    def _saved_state(self) -> dict[str, Any] | None:
        """Returns the state to go on from; the first process alone reads it."""
        return read_state(
            self.out / "resume.pt", self._identity(), self._facts, trust_times=self.trust_times
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.stepper.load_state_dict(state)
        self.kept.load_state_dict(state["kept"])
        self.budget.load_state_dict(state["budget"])
        self._checked = state["checked"]
        self.file.restore_random(state["random"])
        self.epoch, self.batches_done, self.step = state["progress"]
        self.seconds = state["seconds"]
        self.log = state["log"]
        self.sums = state["sums"]

    def _epoch(
        self,
        epoch: int,
        loader: FeatureLoader,
        events: EventWriter,
        interrupted: Callable[[], bool],
    ) -> None:
        first = self.batches_done
        loader.resume(epoch, first)
        if first == 0:
            self.sums = {}
        self._ratings.clear()
        began = time.perf_counter()
        waited = 0.0
        rate = self._set_learning_rate()
        batches = iter(loader)
        going = True
        while going and not self.budget.done(self.step, self.seconds):
            with ranges.range("tal_fast.step"):
                rate = self._set_learning_rate()
                asked = time.perf_counter()
                with ranges.range("tal_fast.data"):
                    batch = next(batches, None)
                waited += time.perf_counter() - asked
                going = batch is not None
                if batch is not None:
                    self._take(batch, epoch, interrupted)
        self._settle()
        elapsed = time.perf_counter() - began
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": self.step,
            "learning_rate": rate,
            **{key: value / self.batches_done for key, value in self.sums.items()},
            "clips_per_second": (self.batches_done - first)
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
        if distributed.is_first():
            write_log(self.out / "log.csv", self.log)
        if any(distributed.total([interrupted()])):
            self._save()
            raise KeyboardInterrupt
        done = self.budget.done(self.step, self.seconds)
        if not done and distributed.from_first(self.file.is_due):
            self._save()

    def _take(self, batch: Batch, epoch: int, interrupted: Callable[[], bool]) -> None:
        """Learns from a batch, reports, and rates the weights if that is due."""
        ready, stop = self._step(batch, epoch, interrupted)
        self.batches_done += 1
        for read in ready:
            self._report(read)
        every = self.budget.check_every
        if every is not None and self.step % every == 0:
            self._rate(epoch + 1)
        if stop:
            self._settle()
            self._save()
            raise KeyboardInterrupt

    def _settle(self) -> None:
        """Takes in the numbers of all steps made, before something is said or kept of them."""
        ready = self.numbers.drain()
        if not ready:
            return
        self._check_finite(ready)
        for read in self._added_up(ready, 0.0, False)[0]:
            self._report(read)

    def _when(self) -> str:
        rate = self.stepper.rate
        # The epoch's number rises when it is done, before its weights are rated and kept.
        epoch = max(1, math.ceil(self.step / self._steps_per_epoch))
        return f"step {self.step} (epoch {epoch}, learning rate {rate:g})"

    def _set_learning_rate(self) -> float:
        rate = learning_rate(self.config.training, self.budget, self.step, self.seconds)
        self.stepper.set_learning_rate(rate)
        return rate

    def _rate(self, epoch: int) -> None:
        """Rates the weights by the held-out videos, unless that was done after this very step."""
        if self._checked == self.step or not self.kept.rates:
            return
        self._settle()
        try:
            with ranges.range("tal_fast.rate"):
                scores, improved = self.kept.rate(epoch, self.step)
        except TrainingError as error:
            raise TrainingError(f"held-out videos after {self._when()}: {error}") from error
        self._checked = self.step
        self._ratings["holdout_map"] = scores[self.kept.modes[0]]
        self.budget.rated(improved)

    def _step(
        self, batch: Batch, epoch: int, interrupted: Callable[[], bool]
    ) -> tuple[list[Read[MadeStep]], bool]:
        """Makes a step; returns what is known by now, and whether any process wants to stop."""
        self.step += 1
        when = self._when()
        values = self.stepper.run(batch, when)
        self.numbers.put(values, MadeStep(self.step, epoch, when, batch.videos))
        ready = self.numbers.ready()
        self._check_finite(ready)
        seconds = time.perf_counter() - self._began if distributed.is_first() else 0.0
        ready, self.seconds, stop = self._added_up(ready, seconds, interrupted())
        return ready, stop

    def _check_finite(self, reads: Sequence[Read[MadeStep]]) -> None:
        for numbers, made in reads:
            for key, value in numbers.items():
                # Under a gradient scaler that is how a too large scale shows; it leaves out the
                # step.
                is_scale = key == "gradient_norm" and self.stepper.scaler.is_enabled()
                if not math.isfinite(value) and not is_scale:
                    what = "the gradients are" if key == "gradient_norm" else "the loss is"
                    raise diverged(what, made.when, key, made.videos)

    def _added_up(
        self, reads: list[Read[MadeStep]], seconds: float, stop: bool
    ) -> tuple[list[Read[MadeStep]], float, bool]:
        """Adds up what the processes know, and the losses over the epoch.

        Args:
            reads: this process's parts of the numbers of some steps, the same in all processes.
            seconds: of the first process's clock.
            stop: whether this process wants to stop.

        Returns:
            The same of the whole batches.
        """
        mine = [
            # All know the same norm, and go by the first one's.
            value if key != "gradient_norm" or distributed.is_first() else 0.0
            for read in reads
            for key, value in read.numbers.items()
        ]
        *sums, seconds, stopping = distributed.total([*mine, seconds, stop])
        whole = []
        for read in reads:
            values, sums = sums[: len(read.numbers)], sums[len(read.numbers) :]
            whole.append(read._replace(numbers=dict(zip(read.numbers, values, strict=True))))
        for numbers, _ in whole:
            for key, value in numbers.items():
                self.sums[key] = self.sums.get(key, 0.0) + value
        return whole, seconds, stopping > 0

    def _report(self, read: Read[MadeStep]) -> None:
        self._clips_seen += min(self.config.training.batch_size, len(self.clips))
        if self.progress is None:
            return
        step = read.note.step
        total = self.budget.expected_steps(step, self.seconds)
        self.progress(
            ProgressEvent(
                stage="train",
                step=step,
                total_steps=total,
                epoch=read.note.epoch + 1,
                epochs=math.ceil(total / self._steps_per_epoch),
                losses={
                    key: value for key, value in read.numbers.items() if key != "gradient_norm"
                },
                clips_per_second=self._clips_seen / max(self.seconds, 1e-9),
                seconds_left=(total - step) * self.seconds / step,
            )
        )
