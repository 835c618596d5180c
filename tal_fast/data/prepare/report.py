# SPDX-License-Identifier: Apache-2.0
"""What the preparation of a data set of recordings found and wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tal_fast.errors import counted

__all__ = ["RecordingReport"]


@dataclass(frozen=True)
class RecordingReport:
    """What a preparation of recordings from sensors found and wrote.

    Attributes:
        path: the data directory.
        recordings: recordings in all.
        training: recordings of the training subset.
        test: recordings of the validation subset.
        segments: labelled segments, without the background.
        classes: number of classes.
        rows: feature rows over all recordings.
        channels: of the features.
        seconds: length of all signals.
        mean: per axis, over the training recordings.
        std: per axis, over the training recordings.
        people: people in all; None where the data tells nothing of them.
        background: label that is no class; empty if there is none.
        single_samples: stretches of one sample that were left out: slips of the labelling.
    """

    path: Path
    recordings: int
    training: int
    test: int
    segments: int
    classes: int
    rows: int
    channels: int
    seconds: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    people: int | None = None
    background: str = ""
    single_samples: int = 0

    def lines(self) -> list[str]:
        """Says in a few lines what was found."""
        people = "" if self.people is None else f" of {counted(self.people, 'person')}"
        hours = f"{self.seconds / 3600:.2f} h"
        length = hours if self.seconds >= 3600 else f"{self.seconds / 60:.1f} min"
        segments = f"{counted(self.segments, 'segment')} of {counted(self.classes, 'class')}"
        if self.background:
            segments += (
                f"; {self.background} is background, and "
                f"{counted(self.single_samples, 'segment')} of one "
                "sample are left out"
            )
        return [
            f"{counted(self.recordings, 'recording')}{people}, {self.training} training and "
            f"{self.test} test "
            f"({length})",
            segments,
            f"{self.rows} feature rows of {counted(self.channels, 'channel')}, standardised per "
            "axis with the "
            "training recordings",
            f"written to {self.path}",
        ]
