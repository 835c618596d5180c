# SPDX-License-Identifier: Apache-2.0
"""Which files of finished trials stay on disk: ``--keep``.

What a trial asks for is in its record, so that files go only where the run that made them allowed
it, also when that run was killed before it came to it:

- ``metrics``: detections and weights go before the trial's directory gets its name. What stays
  (``trial.json``, ``metrics.json``, settings and log) is what tables, fits and pages are made from.
- ``predictions``: the detections of every trial stay, and of each level (a share of a curve) the
  weights of the best trial. The better ones are in place before the others are removed.
- ``all``: everything, as early versions did.

**The best trial of a level** is the one whose weights its held-out training videos rate highest.
Without held-out videos it is the first one: the test videos rate trials, but choose none.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from pathlib import Path

from tal_fast.errors import DataError
from tal_fast.study.execution.store import RECORD, load_trial
from tal_fast.study.trial import TrialRecord

__all__ = ["BestCheckpoints", "remove_large_files", "why_not_kept"]

_LARGE = ("checkpoint*.pt", "predictions*.json")

Level = tuple[str, str, str, float]
"""Sampling, budget, mode of averaging and share: a point of a curve."""

Rank = tuple[float, int, int]
"""Held-out score, its sign turned; repetition; training. The least is the best."""


def remove_large_files(directory: Path) -> None:
    """Removes detections and weights of a trial that is to keep its metrics alone."""
    for pattern in _LARGE:
        for path in directory.glob(pattern):
            path.unlink()


def _checkpoints(directory: Path, record: TrialRecord) -> dict[str, Path]:
    """Returns the checkpoint of each mode of averaging that is there."""
    from tal_fast.training.kept_weights import checkpoint_name

    modes = list(record.scores)
    paths = {mode: directory / checkpoint_name(modes, mode) for mode in modes}
    return {mode: path for mode, path in paths.items() if path.exists()}


class BestCheckpoints:
    """The checkpoints of a study whose trials keep those of the best alone.

    Args:
        root: directory that holds the trials.
        finished: records of the trials that are there. Of those that earlier runs were to keep the
            best of, this removes what a killed run left.

    Attributes:
        replaced: names of these trials whose weights went for better ones.
    """

    def __init__(self, root: Path, finished: Iterable[TrialRecord]) -> None:
        self._root = root
        self._best: dict[Level, tuple[Rank, TrialRecord, Path]] = {}
        self._earlier: set[str] = set()
        self.replaced: set[str] = set()
        for record in finished:
            self._earlier.add(record.name)
            self.take(record)

    def take(self, record: TrialRecord) -> None:
        """Takes in a finished trial: of two that are to keep the best, the better stays."""
        trial = record.trial
        for mode, path in _checkpoints(self._root / record.name, record).items():
            level = trial.sampling, trial.budget, mode, trial.fraction
            rated = record.scores[mode].held_out
            rank = (math.inf if rated is None else -rated, trial.repetition, trial.training)
            mine = rank, record, path
            other = self._best.setdefault(level, mine)
            if other[1].name == record.name:
                continue
            self._best[level], worse = (mine, other) if rank < other[0] else (other, mine)
            self._remove(*worse[1:])

    def _remove(self, record: TrialRecord, path: Path) -> None:
        if record.keep != "predictions":
            return
        # One too many does no harm, and the next run tries again.
        with contextlib.suppress(OSError):
            path.unlink()
            if record.name in self._earlier:
                self.replaced.add(record.name)


def why_not_kept(path: Path) -> str | None:
    """Says why a file is not there that its trial was not to keep; None for any other file."""
    if path.exists() or not any(path.match(pattern) for pattern in _LARGE):
        return None
    try:
        record = load_trial(path.parent) if (path.parent / RECORD).is_file() else None
    except DataError:
        return None
    if record is None or record.keep in (None, "all"):
        return None
    again = f"remove {path.parent} and run the study again with --keep"
    if record.keep == "metrics":
        wanted = "all" if path.suffix == ".pt" else "predictions"
        return f"{path}: this trial was run with --keep metrics, which keeps none; {again} {wanted}"
    level = record.name.rpartition("_r")[0]
    found = sorted(path.parent.parent.glob(f"{level}_r*/{path.name}"))
    best = f" ({found[0]})" if found else ""
    return (
        f"{path}: this trial was run with --keep predictions, which keeps the weights of the best "
        f"trial of its level{best}; {again} all"
    )
