# SPDX-License-Identifier: Apache-2.0
"""Evaluation of predictions that come video by video, from one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.annotation_values import plain
from tal_fast.errors import ConfigError, DataError, others
from tal_fast.evaluation.arrays import as_labels
from tal_fast.evaluation.detections import Detections
from tal_fast.evaluation.dialects import TAL_FAST, find_dialect
from tal_fast.evaluation.evaluator import DEFAULT_TIOU_THRESHOLDS, check_thresholds, evaluate
from tal_fast.evaluation.ground_truth import GroundTruth, GroundTruthSource, read_ground_truth
from tal_fast.evaluation.result import EvaluationResult

__all__ = ["Evaluator"]


class Evaluator:
    """Collects predictions video by video and evaluates them at the end.

    The result does not depend on the order of :meth:`add` and :meth:`merge`: predictions of equal
    score count in the order of the ground truth's videos. An evaluator can be pickled, so that
    processes can each fill one and send it home to be merged.

    Args:
        ground_truth: as in :func:`evaluate`.
        tiou_thresholds: as in :func:`evaluate`.
        subset: as in :func:`evaluate`.
        classes: what integer labels index; default: the ground truth's class numbers.
        options: the other arguments of :func:`evaluate`.

    Example:
        >>> truth = {"database": {"a": {"annotations": [{"segment": [0, 10], "label": "run"}]}}}
        >>> first, second = Evaluator(truth), Evaluator(truth)
        >>> first.add("a", [[0, 9]], ["run"], [0.8])
        >>> first.merge(second)
        >>> first.result().average_map
        1.0
    """

    def __init__(
        self,
        ground_truth: GroundTruthSource | GroundTruth,
        tiou_thresholds: Sequence[float] = DEFAULT_TIOU_THRESHOLDS,
        subset: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        self._thresholds = check_thresholds("Evaluator", tiou_thresholds)
        self._subset = subset
        self._options = options
        self._truth = (
            ground_truth
            if isinstance(ground_truth, GroundTruth)
            else read_ground_truth(
                ground_truth,
                subset,
                dialect=find_dialect(options.get("dialect", TAL_FAST)),
                strict=options.get("strict", False),
            )
        )
        self._classes = tuple(classes) if classes is not None else None
        self._found: dict[str, Detections] = {}

    def __len__(self) -> int:
        return sum(map(len, self._found.values()))

    def add(
        self,
        video: str,
        segments: npt.ArrayLike,
        labels: Sequence[str] | npt.ArrayLike,
        scores: npt.ArrayLike,
    ) -> None:
        """Adds all predictions of one video.

        Args:
            video: its name.
            segments: float [n, 2] in seconds.
            labels: [n] names, or integers (see ``classes``).
            scores: float [n].

        Raises:
            DataError: the video was added before, or a value is bad; the message names it.
        """
        if video in self._found:
            raise DataError(f"Evaluator: expected each video once, got {video!r} again")
        names: Any = self._classes
        if names is None:  # names and numbers stand for themselves
            names_or_numbers = as_labels(f"predictions: video {video!r}", labels)
            names = (
                ()
                if np.ndim(names_or_numbers) != 1
                else tuple(dict.fromkeys(plain(names_or_numbers)))
            )
            index = {name: i for i, name in enumerate(names)}
            labels = (
                [index[name] for name in plain(names_or_numbers)] if names else names_or_numbers
            )
        self._found[video] = Detections.from_videos({video: (segments, labels, scores)}, names)

    def merge(self, other: Evaluator) -> None:
        """Takes over what another evaluator has collected for the same ground truth.

        Raises:
            DataError: both have predictions for a video.
            ConfigError: the other evaluates something else.
        """
        mine = (self._thresholds, self._subset, self._options, self._truth.videos)
        if mine != (other._thresholds, other._subset, other._options, other._truth.videos):
            raise ConfigError(
                "Evaluator: expected an evaluator of the same ground truth, subset, thresholds and "
                "options to merge with, got another"
            )
        both = [video for video in other._found if video in self._found]
        if both:
            raise DataError(
                f"Evaluator: expected each video once, got {both[0]!r} from both{others(len(both))}"
            )
        self._found.update(other._found)

    def result(self) -> EvaluationResult:
        """Evaluates what was collected so far; more may be added afterwards.

        Raises:
            DataError: as :func:`evaluate`.
        """
        place = {video: i for i, video in enumerate(self._truth.videos)}
        names = sorted(self._found, key=lambda video: (place.get(video, len(place)), video))
        detections = Detections.concatenate([self._found[name] for name in names])
        return evaluate(self._truth, detections, self._thresholds, self._subset, **self._options)
