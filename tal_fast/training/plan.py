# SPDX-License-Identifier: Apache-2.0
"""A training that was asked for in a few words, checked before anything is written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tal_fast.averaging import NOTED_START, start_kept
from tal_fast.data import TALDataset, open_dataset, require_learnable
from tal_fast.errors import ConfigError, argument, counted
from tal_fast.interrupts import passed_on
from tal_fast.models import detector_of
from tal_fast.models.called import clip_set_of
from tal_fast.progress import bar
from tal_fast.training.config import ExperimentConfig, load_config, parse_overrides
from tal_fast.training.distributed import launched
from tal_fast.training.experiment import train
from tal_fast.training.told import ProgressEvent, TrainingSummary
from tal_fast.typing import FilePath

DEFAULT_MODEL = "tadtr-small"

__all__ = ["DEFAULT_MODEL", "ShownProgress", "TrainingPlan", "plan_training", "resolved_config"]

ShownProgress = bool | Callable[[ProgressEvent], None]
"""True for a bar on a terminal or in a notebook, False for nothing, or a function for each step."""


@dataclass(frozen=True)
class TrainingPlan:
    """A training that makes sense on its data.

    Attributes:
        config: all settings.
        data: the opened data set.
        videos: names of the training videos.
        out: directory to write.
        resume: whether to go on with an interrupted training in ``out``.
        first: whether this process is the one that tells; of several, the first.
        notes: what of the data is left out, or never learned.
    """

    config: ExperimentConfig
    data: TALDataset
    videos: list[str]
    out: Path
    resume: bool
    first: bool
    notes: tuple[str, ...]

    def run(
        self,
        *,
        progress: ShownProgress = True,
        threads: int | None = None,
        trust_times: bool = False,
        watch: Callable[[], None] | None = None,
    ) -> TrainingSummary:
        """Trains; arguments and errors as of :func:`tal_fast.train`.

        ``watch`` is called after every step beside ``progress``, in the first process alone.
        """
        with passed_on(), _shown(progress, self.first, watch) as told:
            return train(
                self.config,
                self.data,
                self.videos,
                self.out,
                resume=self.resume,
                progress=told,
                threads=threads,
                trust_times=trust_times,
                # Another training may have ended there since this one was planned.
                check=lambda: _refuse_finished(self.out, self.resume),
            )

    def notes_after(self, summary: TrainingSummary) -> tuple[str, ...]:
        """What of the training its scores will not show.

        Args:
            summary: of :meth:`run`.
        """
        training = self.config.training
        start = start_kept(training.ema_decay, summary.steps)
        if training.ema[0] != "plain" or start <= NOTED_START:
            return summary.remarks
        return (
            *summary.remarks,
            f"the averaged weights keep about {100 * start:.0f} % of their random start "
            f"({training.ema_decay:g} to the power of {counted(summary.steps, 'step')}), which "
            "can cost most "
            f"of the mAP: train longer, or with "
            f"{argument('settings', {'training.ema': 'warmup'}, option='--set')}",
        )


@contextlib.contextmanager
def _shown(
    progress: ShownProgress, first: bool, watch: Callable[[], None] | None
) -> Iterator[Callable[[ProgressEvent], None] | None]:
    if not isinstance(progress, bool):
        yield progress
        return
    with bar("training", shown=progress and first) as update:

        def tell(event: ProgressEvent) -> None:
            loss = event.losses.get("total", event.losses.get("loss"))
            shown = "" if loss is None else f"loss {loss:.3f}, "
            note = f"epoch {event.epoch}, {shown}{event.clips_per_second:.0f} clips/s"
            update(event.step, event.total_steps, note)
            if watch is not None:
                watch()

        yield tell


def resolved_config(
    config: FilePath | ExperimentConfig | None,
    model: str | None,
    settings: Mapping[str, Any] | Sequence[str],
) -> ExperimentConfig:
    """Returns all settings of a training.

    Args:
        config: a YAML file of settings over those of the model, or all of them, resolved.
        model: a preset or a class of one's own; None takes the file's, and ``tadtr-small`` where
            it names none.
        settings: single ones over both, ``{"training.epochs": 30}`` or ``["training.epochs=30"]``.

    Raises:
        ConfigError: a setting is unknown or of the wrong kind, or one is given beside a resolved
            ``config``.
    """
    if isinstance(config, ExperimentConfig):
        for name, given in (("model", model), ("settings", settings)):
            if given:
                raise ConfigError(
                    f"{name}: config holds all settings already; expected none besides, got "
                    f"{given!r}"
                )
        return config
    path = None if config is None else Path(config)
    return load_config(path, preset=model, overrides=settings, fallback=DEFAULT_MODEL)


def plan_training(
    data: FilePath | TALDataset,
    out: FilePath,
    *,
    model: str | None = None,
    videos: str | Iterable[str] = "train",
    config: FilePath | ExperimentConfig | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    seed: int | None = None,
    resume: bool = True,
) -> TrainingPlan:
    """Checks what was asked for; arguments and errors as of :func:`tal_fast.train`."""
    place, folder = launched(), Path(out)
    first = place is None or place.rank == 0
    if first:
        _refuse_finished(folder, resume)
    if seed is not None:
        chosen = settings if isinstance(settings, Mapping) else parse_overrides(settings)
        settings = {**chosen, "training.seed": seed}
    resolved = resolved_config(config, model, settings)
    dataset = data if isinstance(data, TALDataset) else open_dataset(data)
    names = dataset.videos_of(videos, "videos")
    dataset.require_every_class(names, "training")
    detector = detector_of(resolved.name)
    clips = clip_set_of(detector, resolved.detector, dataset, names, training=True)
    notes = (*dataset.notes(), *require_learnable(clips))
    return TrainingPlan(resolved, dataset, names, folder, resume, first, notes)


def _refuse_finished(out: Path, resume: bool) -> None:
    """Refuses a directory whose training has ended: one more would replace its weights.

    A trial of a study may have none, and is finished all the same.
    """
    for name in ("study.yaml", "trial.json"):
        if os.path.exists(out / name):
            raise ConfigError(f"out: {out} is a folder of a study ({name}); use another")
    if resume and os.path.exists(out / "checkpoint.pt") and not os.path.exists(out / "resume.pt"):
        raise ConfigError(
            f"out: {out} holds a training that has ended; use another directory, or replace it "
            f"with {argument('resume', False)}"
        )
