# SPDX-License-Identifier: Apache-2.0
"""What a training tells of its steps and of its end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tal_fast.errors import counted

__all__ = ["MadeStep", "ProgressEvent", "TrainingSummary"]


@dataclass(frozen=True)
class ProgressEvent:
    """What a running experiment tells.

    Attributes:
        stage: ``train``, ``predict`` or ``evaluate``.
        step: steps (clips in ``predict``) done.
        total_steps: of how many.
        epoch: current epoch, from 1.
        epochs: of how many, as far as can be told.
        losses: of that step.
        clips_per_second: of this run so far.
        seconds_left: of this stage.
    """

    stage: str
    step: int
    total_steps: int
    epoch: int = 0
    epochs: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    clips_per_second: float = 0.0
    seconds_left: float = math.nan


class MadeStep(NamedTuple):
    """Whose numbers are read, perhaps some steps later.

    Attributes:
        step: its number, from 1.
        epoch: from 0.
        when: names it in messages.
        videos: of its clips.
    """

    step: int
    epoch: int
    when: str
    videos: list[str]


@dataclass(frozen=True)
class TrainingSummary:
    """What a training took.

    As text (``print``), what a reader of the terminal wants to know.

    Attributes:
        checkpoint: file of the final (or best) weights, of the first mode of averaging.
        checkpoints: the files of all modes.
        epochs: passes over the clips, the last perhaps in part.
        steps: optimiser steps.
        windows: training clips (windows, crops or videos, as the model takes them).
        seconds: wall-clock time of the training, earlier interrupted parts included.
        best_epoch: epoch whose weights were kept, from 1; the last one without a hold-out.
        held_out: mode -> average mAP of its weights in the held-out videos; empty without.
        videos: videos trained on, those of the hold-out aside.
        unit: what a clip is, as in ``window of 128 rows``.
        remarks: what is wrong with the weights, in the words of their model.
    """

    checkpoint: Path
    checkpoints: dict[str, Path]
    epochs: int
    steps: int
    windows: int
    seconds: float
    best_epoch: int
    held_out: dict[str, float]
    videos: int
    unit: str
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        clip = "window" if self.unit.startswith("window") else "clip"
        return (
            f"{counted(self.epochs, 'epoch')}, {counted(self.steps, 'step')} over "
            f"{counted(self.windows, clip)} of {counted(self.videos, 'video')} in "
            f"{self.seconds:.1f} s\n{self.checkpoint}"
        )
