# SPDX-License-Identifier: Apache-2.0
"""What the finished trials of a study say: tables, pictures, page and notes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tal_fast.averaging import NOTED_START, start_kept
from tal_fast.curves import LearningCurve
from tal_fast.curves.curve_files import curve_csv
from tal_fast.data.files import write_text_atomically
from tal_fast.errors import ConfigError, DataError, MissingExtraError, counted
from tal_fast.study.execution import store
from tal_fast.study.results import build_curves, trials_csv
from tal_fast.study.trial import TrialRecord

__all__ = ["StudyResult", "kept_starts", "report_study", "sum_up"]


@dataclass(frozen=True)
class StudyResult:
    """What a study gave.

    Attributes:
        curves: one per sampling, budget and mode of averaging.
        ran: trials that this call ran.
        reused: trials that were there already.
        files: the files written: curve.csv, trials.csv, and the pictures and page if possible.
        notes: what could not be made, and how to get it; where averaged weights keep their random
            start.
        answer: of an adaptive study: what it found out, what that cost, what would come next.
    """

    curves: list[LearningCurve]
    ran: int
    reused: int
    files: dict[str, Path]
    notes: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        lines = [
            f"{counted(self.ran, 'trial')} run, {self.reused} there already",
            *map(repr, self.curves),
            *(f"{name}: {path}" for name, path in self.files.items()),
        ]
        return "\n  ".join(("StudyResult(", *lines)) + "\n)"


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector from going through thousands of records again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def sum_up(
    out: Path,
    known: Mapping[str, TrialRecord] | None = None,
    *,
    pictures: bool = False,
    fits: int | None = None,
    again: bool = True,
) -> StudyResult:
    """Writes what is to be told of the finished trials; ``reused`` of the result counts them."""
    study = store.read_study(out)
    if study is None:
        raise DataError(f"{out}: no study here (study.yaml is missing)")
    records = list(store.scan_trials(out / store.TRIALS, study["hash"], known).values())
    if not records:
        raise DataError(f"{out}: no trial is complete yet, nothing to report")
    curves = build_curves(records)
    files = {
        "trials": write_text_atomically(out / "trials.csv", trials_csv(records)),
        "curve": write_text_atomically(out / "curve.csv", curve_csv(curves)),
    }
    notes = kept_starts(study, records)
    try:
        from tal_fast.study.report.page import write_report

        chosen: dict[str, Any] = {} if fits is None else {"fits": fits}
        files |= write_report(out, study, curves, records, again=again, **chosen)
    except MissingExtraError as error:
        # After hours of training the tables are worth having without the pictures.
        if pictures:
            raise
        notes.append(str(error))
    return StudyResult(curves, 0, len(records), files, notes)


def kept_starts(study: Mapping[str, Any], records: Sequence[TrialRecord]) -> list[str]:
    """Says where only averages were tested that still keep their random start."""
    decay = study["settings"].get("config", {}).get("training", {}).get("ema_decay")
    if decay is None:  # an experiment of one's own
        return []
    starts = {
        record.trial.fraction: start_kept(decay, steps)
        for record in sorted(records, key=lambda record: record.trial.fraction, reverse=True)
        if set(record.scores) == {"plain"} and (steps := record.told("steps")) is not None
    }
    kept = {p: start for p, start in starts.items() if start > NOTED_START}
    if not kept:
        return []
    p, most = max(kept.items(), key=lambda one: one[1])
    return [
        f"the averaged weights keep more than {100 * NOTED_START:g} % of their random start at "
        f"{len(kept)} of {counted(len(starts), 'share')}, {100 * most:.0f} % at {100 * p:g} % of "
        "the data: "
        "the curve shows short trainings as well as little data. Compare with --ema off,plain or "
        "--budget steps"
    ]


def report_study(out: Path, *, fits: int | None = None) -> StudyResult:
    """Sums up the finished trials of a study again: tables, fits, pictures and page.

    Args:
        out: directory of the study.
        fits: how many curves to fit for the page; None for the usual number. Fits made before of
            curves that have not changed are kept.

    Raises:
        DataError: there is no study, or none of its trials is complete.
        ConfigError: it holds a trial of other settings, or ``fits`` is negative.
        MissingExtraError: matplotlib or jinja2 is not installed; the tables are written then.
    """
    if fits is not None and fits < 0:
        raise ConfigError(f"fits: expected 0 or more, got {fits}")
    return sum_up(Path(out), pictures=True, fits=fits)
