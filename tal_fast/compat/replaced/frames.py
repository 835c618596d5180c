# SPDX-License-Identifier: Apache-2.0
"""Tables of instances and detections, as the pandas evaluators have them, and made ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from tal_fast.compat.proof import UnsuitableError
from tal_fast.errors import TalFastError
from tal_fast.evaluation import DIALECTS, Dialect, EvaluationResult, evaluate_arrays
from tal_fast.typing import Floats, Ints

__all__ = ["RULES", "Columns", "columns", "evaluated", "made_tables", "matching_rules"]

#: Dialects whose matching is tried in a proof.
RULES = ("activitynet", "opentad")


@dataclass(frozen=True)
class Columns:
    """Both tables as arrays; videos are numbered by first occurrence."""

    truth_video: Ints
    truth: Floats  # [N, 2]
    video: Ints
    segments: Floats  # [M, 2]
    scores: Any  # [M], of its own dtype


def columns(ground_truth: Any, predictions: Any) -> Columns:
    """Returns the columns of two tables.

    Raises:
        UnsuitableError: something about them that only the original is to decide.
    """
    if len(ground_truth) == 0 or len(predictions) == 0:
        raise UnsuitableError("a table is empty")
    numbers: dict[Hashable, int] = {}
    videos = []
    for table in (ground_truth, predictions):
        names = _column(table, "video-id").tolist()
        if any(name is None or name != name for name in names):
            raise UnsuitableError("a video has no name")
        codes = [numbers.setdefault(name, len(numbers)) for name in names]
        videos.append(np.array(codes, dtype=np.int64))
    return Columns(
        videos[0],
        _segments(ground_truth),
        videos[1],
        _segments(predictions),
        _column(predictions, "score").to_numpy(),
    )


def require_plain_index(*tables: Any) -> None:
    """Refuses tables whose rows are not numbered 0, 1, …: their originals look rows up by label.

    Raises:
        UnsuitableError: one is not.
    """
    for table in tables:
        if not np.array_equal(table.index.to_numpy(), np.arange(len(table))):
            raise UnsuitableError("the rows of a table are not numbered from 0")


@lru_cache
def matching_rules(name: str, score_ties: str) -> Dialect:
    """Returns how a dialect matches, without its rules for reading a file.

    The code around the replaced function reads, renumbers and drops; only matching is ours.
    """
    return replace(
        DIALECTS[name],
        score_ties=score_ties,
        duplicate_tolerance=None,
        drop_empty=False,
        min_length=0.0,
    )


def evaluated(
    given: Columns, order: Ints | None, thresholds: Sequence[float], rules: Dialect
) -> EvaluationResult:
    """Evaluates one class.

    Args:
        given: both tables.
        order: of the detections; None: as they are.
        thresholds: tIoU.
        rules: of matching.

    Raises:
        UnsuitableError: the evaluator refuses a value.
    """
    video, segments, scores = given.video, given.segments, given.scores
    if order is not None:
        video, segments, scores = video[order], segments[order], scores[order]
    try:
        return evaluate_arrays(
            given.truth_video,
            np.zeros(len(given.truth_video), np.int64),
            given.truth,
            video,
            np.zeros(len(video), np.int64),
            segments,
            scores.astype(np.float64),
            classes=1,
            tiou_thresholds=thresholds,
            dialect=rules,
            strict=True,
        )
    except TalFastError as error:
        raise UnsuitableError(str(error)) from error


def made_tables() -> tuple[Any, Any]:
    """Returns instances and detections of seven videos that tell rules of matching apart.

    Among them: segments without length on both sides, equal scores, equal instances, an overlap of
    exactly 0.5, videos that only one table has, several detections of an instance.
    """
    import pandas as pd

    rng = np.random.default_rng(3)

    def make(count: int, videos: Sequence[int]) -> dict[str, Any]:
        start = rng.random(count) * 50
        length = rng.random(count) * 10 + 0.2
        length[: count // 12] = 0
        names = [f"v{i}" for i in rng.choice(videos, count)]
        return {"video-id": names, "t-start": start, "t-end": start + length}

    truth = pd.DataFrame(make(30, range(6)))
    truth = pd.concat([truth, truth.iloc[[5, 9]]], ignore_index=True)
    alone = make(30, range(1, 8))
    near = truth.sample(30, random_state=1).reset_index(drop=True)
    near["t-start"] += rng.normal(size=30) * 0.4
    near["t-end"] = np.maximum(near["t-end"] + rng.normal(size=30) * 0.4, near["t-start"])
    half = truth.iloc[[12]].copy()
    half["t-end"] = half["t-start"] + (half["t-end"] - half["t-start"]) / 2
    empty = truth[truth["t-start"] == truth["t-end"]]
    found = pd.concat([pd.DataFrame(alone), near, half, empty], ignore_index=True)
    found["score"] = (rng.permutation(len(found)) + 1) / (len(found) + 1)
    found.loc[[3, 40, 50], "score"] = 0.5
    return truth, found


def _column(table: Any, name: str) -> Any:
    try:
        return table[name]
    except KeyError:
        raise UnsuitableError(f"a table has no column {name!r}") from None


def _segments(table: Any) -> Floats:
    parts = [_column(table, name).to_numpy() for name in ("t-start", "t-end")]
    for part in parts:
        # Others are compared in their own width by the original.
        if part.dtype not in (np.float64, np.int64):
            raise UnsuitableError(f"times are of dtype {part.dtype}")
    return np.stack([part.astype(np.float64) for part in parts], axis=1)
