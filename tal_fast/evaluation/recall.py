# SPDX-License-Identifier: Apache-2.0
"""Recall: of the best k·n predictions per class and video, and of proposals without classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tal_fast.errors import ConfigError, DataError
from tal_fast.evaluation.problem import Problem, numpy_order
from tal_fast.evaluation.result import EvaluationResult
from tal_fast.typing import Floats, Ints

__all__ = ["AverageRecall", "average_recall", "recall_at_kx"]


@dataclass(frozen=True, eq=False)
class AverageRecall:
    """Recall against the average number of proposals per video. Fractions, 0 to 1.

    Attributes:
        recall: float64 [thresholds, cut-offs].
        average_recall: float64 [cut-offs]; mean over the thresholds: AR.
        proposals_per_video: float64 [cut-offs]; AN.
        auc: area under AR over AN, divided by the largest AN.
        tiou_thresholds: as they were given.
    """

    recall: Floats
    average_recall: Floats
    proposals_per_video: Floats
    auc: float
    tiou_thresholds: tuple[float, ...]

    def at(self, number: int) -> float:
        """Returns AR@``number``: AR at that cut-off, counted from 1."""
        return float(self.average_recall[number - 1])

    def to_dict(self) -> dict[str, Any]:
        """Returns AUC and AR at 1, 5, 10, 100 as far as there are cut-offs."""
        numbers = [n for n in (1, 5, 10, 50, 100) if n <= len(self.average_recall)]
        return {"auc": self.auc, **{f"AR@{n}": self.at(n) for n in numbers}}


def recall_at_kx(result: EvaluationResult, ks: Sequence[int] = (1, 5)) -> Floats:
    """Recall@kx: how many instances the best k·n predictions of their video and class reach.

    In a video with n instances of a class its k·n best predictions of that class are taken; an
    instance is recalled if any of them reaches the threshold. One prediction may recall several.

    Args:
        result: of an evaluation; its thresholds and ties hold.
        ks: the factors.

    Returns:
        float64 [thresholds, len(ks)]; mean over the classes that count, 0 for a class without
        predictions.

    Raises:
        ConfigError: a factor is not a positive integer.
    """
    if not ks or any(isinstance(k, bool) or int(k) != k or k < 1 for k in ks):
        raise ConfigError(f"recall_at_kx: expected positive integers, got {tuple(ks)}")
    source = result.require_source("recall_at_kx")
    group = source.found.video * len(source.classes) + source.found.label
    first = _native_first_hits(source, result.tiou_thresholds, group, by_class=True)  # [G, T]
    own = source.truth.video * len(source.classes) + source.truth.label
    _, inverse, sizes = np.unique(own, return_inverse=True, return_counts=True)
    limit = sizes[inverse][:, None]  # instances of the same video and class
    counted = np.flatnonzero(source.counted)
    total = np.bincount(source.truth.label, minlength=len(source.classes))
    out = np.zeros((len(result.tiou_thresholds), len(ks)))
    for n, k in enumerate(ks):
        reached = first < k * limit
        per_class = np.stack(
            [
                np.bincount(source.truth.label, weights=column, minlength=len(source.classes))
                for column in reached.T.astype(np.float64)
            ],
        )
        out[:, n] = (per_class[:, counted] / np.maximum(total[counted], 1)).mean(axis=1)
    return out


def average_recall(
    result: EvaluationResult,
    tiou_thresholds: Sequence[float] | None = None,
    max_proposals: int = 100,
    *,
    cut_offs: int | None = None,
    single_segments: bool = False,
) -> AverageRecall:
    """AR@AN of ActivityNet's proposal evaluation: labels are ignored.

    The proposals of all videos are cut to ``max_proposals`` per video on average, each video
    keeping the same share of its own (rounded down); the cut-offs are shares of what was kept.

    Args:
        result: of an evaluation.
        tiou_thresholds: default: those of the result. ActivityNet uses 0.5 to 0.95.
        max_proposals: average number of proposals per video that is kept at most.
        cut_offs: number of shares; default ``max_proposals``. mmaction2: always 100.
        single_segments: compute tIoU from float32 segments and round it, as mmaction2 does.

    Raises:
        ConfigError: a number is not positive.
        DataError: there is no proposal, or too few to keep one.
    """
    most_cut_offs = max_proposals if cut_offs is None else cut_offs
    if max_proposals < 1 or most_cut_offs < 1:
        raise ConfigError(
            f"average_recall: expected numbers >= 1, got {max_proposals} and {most_cut_offs}"
        )
    source = result.require_source("average_recall")
    thresholds = tuple(tiou_thresholds) if tiou_thresholds is not None else result.tiou_thresholds
    first = _native_first_hits(
        source, thresholds, source.found.video, by_class=False, single=single_segments
    )
    videos = np.unique(source.truth.video)
    sizes = np.bincount(source.found.video, minlength=source.num_videos)
    total = int(sizes.sum())
    if total == 0:
        raise DataError("average_recall: expected at least one prediction, got none")
    ratio = max_proposals * float(len(videos)) / total
    kept = np.minimum((sizes * ratio).astype(np.int64), sizes)
    retrieved = int(kept[videos].sum())
    if retrieved == 0:
        raise DataError(
            f"average_recall: keeping {max_proposals} per video leaves no prediction of {total}"
        )
    shares = np.arange(1, most_cut_offs + 1) / float(most_cut_offs)
    shares = shares * (max_proposals * float(len(videos)) / retrieved)
    limits = kept[source.truth.video]  # [G]
    # A video whose proposals were all cut has one that reaches nothing.
    limit = np.minimum((limits[:, None] * shares).astype(np.int64), limits[:, None])  # [G, J]
    recall = np.stack(
        [np.count_nonzero(hit[:, None] < limit, axis=0) / len(limits) for hit in first.T]
    )
    average = recall.mean(axis=0)
    proposals = shares * (float(retrieved) / len(videos))
    area = float(np.trapezoid(average, proposals)) if most_cut_offs > 1 else float("nan")
    return AverageRecall(recall, average, proposals, area / float(proposals[-1]), thresholds)


def _native_first_hits(
    source: Problem,
    thresholds: Sequence[float],
    group: Ints,
    *,
    by_class: bool,
    single: bool = False,
) -> Ints:
    order = None
    if source.dialect.score_ties == "numpy" and len(group):
        names, inverse = np.unique(group, return_inverse=True)
        order = numpy_order(source.score, inverse.astype(np.int64), len(names))
    native = source.native(thresholds, order=order, single_segments=single)
    return native.first_hits(by_class)
