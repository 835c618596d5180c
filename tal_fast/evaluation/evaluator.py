# SPDX-License-Identifier: Apache-2.0
"""Mean average precision over classes and tIoU thresholds, computed natively.

The rules are those of a dialect (:mod:`tal_fast.evaluation.dialects`). The default, ``tal_fast``,
is the ActivityNet evaluation as ``csrc/evaluation/average_precision.h`` states it, with what
ActivityNet leaves to chance fixed: predictions of equal score count in input order (of the file:
videos in order, predictions in order within a video), and of two instances with equal tIoU the
first of the file is matched.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast import ranges
from tal_fast.errors import ConfigError, DataError
from tal_fast.evaluation.arrays import as_array
from tal_fast.evaluation.columns import OF_ARRAYS, check_indices, check_scores, check_times
from tal_fast.evaluation.detections import Detections
from tal_fast.evaluation.dialects import TAL_FAST, Dialect, EvaluationWarning, find_dialect
from tal_fast.evaluation.ground_truth import GroundTruth, GroundTruthSource, read_ground_truth
from tal_fast.evaluation.pairing import pair
from tal_fast.evaluation.prediction_files import read_results
from tal_fast.evaluation.problem import NoteKind, Problem, Segments
from tal_fast.evaluation.result import EvaluationResult
from tal_fast.evaluation.rules import apply_rules
from tal_fast.typing import FilePath, Ints

__all__ = ["DEFAULT_TIOU_THRESHOLDS", "check_thresholds", "evaluate", "evaluate_arrays"]

DEFAULT_TIOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)


_MAX_THRESHOLDS = 64  # one bit each, see csrc/evaluation/problem.h
_TIES = ("stable", "numpy")


def evaluate(
    ground_truth: GroundTruthSource | GroundTruth,
    predictions: FilePath | Mapping[str, Any] | Detections,
    tiou_thresholds: Sequence[float] = DEFAULT_TIOU_THRESHOLDS,
    subset: str | None = None,
    *,
    dialect: str | Dialect = TAL_FAST,
    strict: bool = False,
    ties: str | None = None,
    blocked_videos: Collection[str] = (),
    allow_pickle: bool = False,
    strict_times: bool = False,
    num_threads: int = 0,
) -> EvaluationResult:
    """Evaluates the predictions for one subset of an annotated data set.

    Args:
        ground_truth: path or content of a JSON ``{"database": {video: {"subset", "annotations":
            [{"segment": [start, end], "label"}]}}}``, plain or gzipped; a data directory, whose
            features are not needed; or :class:`tal_fast.data.Annotations`.
        predictions: path or content of a results file (JSON or JSON lines, either gzipped; see
            :mod:`tal_fast.evaluation.prediction_files`), or :class:`Detections`, which alone may
            be empty. A video without predictions may be missing. Labels are class names or their
            numbers: the ``label_id`` of the annotations, or, where no annotation has one, the place
            in a list of classes.
        tiou_thresholds: 1 to 64 different values in (0, 1], in any order, used as they are given
            (0.7 is 0.7, not a sum of steps). A tIoU equal to a threshold reaches it.
        subset: name of the subset to evaluate; None evaluates every video of the database.
        dialect: the rules, by name (:data:`tal_fast.evaluation.DIALECTS`) or as a value.
        strict: also follow the rules of the dialect that are mistakes, and take what its evaluator
            takes: predictions for other videos and of unknown classes are no errors then.
        ties: ``stable`` or ``numpy``; default: as the dialect says.
        blocked_videos: left out of ground truth and predictions.
        allow_pickle: read ActionFormer's ``eval_results.pkl`` too.
        strict_times: refuse predictions that start before 0 s. Regression overshoots at the start
            of a video, and the evaluators of other codebases score such a prediction as it is; so
            does this one, with a note, unless told to refuse.
        num_threads: 0 chooses. The result does not depend on it.

    Returns:
        The result. A class without instances in the subset has AP NaN and counts in no mean; a
        class without predictions has AP 0. ``notes`` says what the rules changed.

    Raises:
        DataError: if a file is missing, truncated or malformed, a record is faulty (NaN, infinite,
            reversed, of a wrong type, a key missing), an instance (or, ``strict_times``, a
            prediction) starts before 0 s, there is no prediction at all, the subset is unknown or
            holds no instance, a predicted label is no class of the database, or is a number where
            the annotations' ``label_id`` are missing in part or contradict each other, or a
            predicted video is not in the database **or not in the subset**: predictions for other
            videos mean that the wrong file or subset was given, so they are not skipped silently.
        ConfigError: if a threshold is not in (0, 1], is given twice, or there are none or over 64,
            or a dialect or tie rule is unknown.
    """
    thresholds = check_thresholds("evaluate", tiou_thresholds)
    rules = _choose_rules(dialect, ties, blocked_videos)
    with ranges.range("tal_fast.evaluate.read"):
        if isinstance(ground_truth, GroundTruth):
            truth = ground_truth
            truth.check()
        else:
            truth = read_ground_truth(ground_truth, subset, dialect=rules, strict=strict)
        if isinstance(predictions, Detections):
            detections = predictions
            detections.check()
        else:
            detections = read_results(predictions, allow_pickle=allow_pickle)
        problem = pair(
            truth,
            detections,
            rules,
            subset=subset,
            strict=strict,
            strict_times=strict_times,
            num_threads=num_threads,
        )
    if len(truth.label) == 0:
        where = "" if subset is None else f" in subset {subset!r}"
        raise DataError(f"{truth.origin}: expected at least one annotation{where}, got none")
    if len(detections) == 0 and not isinstance(predictions, Detections) and not strict:
        raise DataError(f"{detections.origin}: expected at least one prediction, got none")
    return _run(problem, thresholds)


def evaluate_arrays(
    gt_video: npt.ArrayLike,
    gt_label: npt.ArrayLike,
    gt_segments: npt.ArrayLike,
    video: npt.ArrayLike,
    label: npt.ArrayLike,
    segments: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    classes: Sequence[str] | int | None = None,
    tiou_thresholds: Sequence[float] = DEFAULT_TIOU_THRESHOLDS,
    dialect: str | Dialect = TAL_FAST,
    strict: bool = False,
    ties: str | None = None,
    num_threads: int = 0,
) -> EvaluationResult:
    """Evaluates predictions that are arrays already.

    Lists and tensors of any kind are converted, and integers may be of any width.

    Args:
        gt_video: int [N], any integer per video.
        gt_label: int [N], class indices from 0.
        gt_segments: float [N, 2], start and end, in the unit of ``segments``.
        video: int [M].
        label: int [M].
        segments: float [M, 2]; computed with in float64.
        scores: float [M].
        classes: class names, or their number; default: the largest label + 1, names are numbers.
        tiou_thresholds: see :func:`evaluate`.
        dialect: see :func:`evaluate`; its rules about names of files, videos and subsets are moot.
        strict: see :func:`evaluate`.
        ties: see :func:`evaluate`.
        num_threads: 0 chooses. The result does not depend on it.

    Returns:
        The result; ``num_videos`` counts the videos that occur.

    Raises:
        DataError: naming array and index, if shapes disagree, a dtype is of the wrong kind, a label
            is out of range, a segment is reversed, a value is NaN or infinite, or N is 0.
        ConfigError: as in :func:`evaluate`.
    """
    thresholds = check_thresholds("evaluate_arrays", tiou_thresholds)
    rules = _choose_rules(dialect, ties, ())
    truth = _segments("gt_", gt_video, gt_label, gt_segments)
    found = _segments("", video, label, segments)
    score = _array("scores", scores, np.float64, (len(found),))
    if len(truth) == 0:
        raise DataError("evaluate_arrays: expected at least one instance in gt_video, got none")
    truth_video, found_video, num_videos = _compact(truth.video, found.video)
    if classes is None:
        classes = 1 + max(int(truth.label.max()), int(found.label.max(initial=0)))
    if isinstance(classes, (int, np.integer)):
        classes = tuple(map(str, range(int(classes))))
    for rows, what in ((truth, "ground truth"), (found, "detection")):
        name = partial("evaluate_arrays: {} {}".format, what)
        check_indices(rows.label, len(classes), name)
        check_times(rows.start, rows.end, name, OF_ARRAYS)
    check_scores(score, partial("evaluate_arrays: detection {}".format))
    problem = Problem(
        truth=replace(truth, video=truth_video),
        found=replace(found, video=found_video),
        score=score,
        num_videos=num_videos,
        classes=tuple(classes),
        dialect=rules,
        strict=strict,
        num_threads=num_threads,
    )
    return _run(problem, thresholds)


def _choose_rules(dialect: str | Dialect, ties: str | None, blocked: Collection[str]) -> Dialect:
    rules = find_dialect(dialect)
    if ties is not None:
        if ties not in _TIES:
            raise ConfigError(f"evaluate: expected ties among {', '.join(_TIES)}, got {ties!r}")
        rules = replace(rules, score_ties=ties, tiou_ties=ties)
    if blocked:
        rules = replace(rules, ignored_videos=(*rules.ignored_videos, *blocked))
    return rules


def _run(given: Problem, thresholds: tuple[float, ...]) -> EvaluationResult:
    with ranges.range("tal_fast.evaluate"):
        problem = apply_rules(given)
        native = problem.native(thresholds)
        ap, true_positives, num_truth, num_found = native.match()
    for note in problem.notes:
        if note.kind is NoteKind.MISTAKE:
            # Of the line that called evaluate() or evaluate_arrays().
            warnings.warn(f"evaluate: {note.text}", EvaluationWarning, stacklevel=3)
    counts = problem.counted
    counted = ap[counts]
    if len(counted) == 0:
        raise DataError("evaluate: the dialect's rules leave no instance to evaluate")
    # A class that counts without an instance (strict): NaN if it is predicted, 0 if not.
    nothing = (num_truth[counts] == 0) & (num_found[counts] == 0)
    counted = np.where(nothing[:, None], 0.0, counted)
    per_threshold = counted.mean(axis=0)
    return EvaluationResult(
        average_map=float(per_threshold.mean()),
        map_per_threshold=per_threshold,
        ap=ap,
        classes=problem.classes,
        tiou_thresholds=thresholds,
        true_positives=true_positives,
        ground_truth_per_class=num_truth,
        predictions_per_class=num_found,
        num_videos=problem.num_videos,
        dialect=problem.dialect.name,
        notes=tuple(note.text for note in problem.notes),
        source=problem,
        native=native,
    )


def check_thresholds(function: str, values: Sequence[float]) -> tuple[float, ...]:
    """Returns the thresholds as floats.

    Raises:
        ConfigError: they are no numbers in (0, 1], equal, or not 1 to 64; names ``function``.
    """
    try:
        thresholds = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{function}: expected tiou_thresholds as a sequence of numbers, got {values!r}"
        ) from None
    if not 1 <= len(thresholds) <= _MAX_THRESHOLDS:
        raise ConfigError(
            f"{function}: expected 1 to {_MAX_THRESHOLDS} tiou_thresholds, got {len(thresholds)}"
        )
    for threshold in thresholds:
        if not 0 < threshold <= 1:
            raise ConfigError(f"{function}: expected tiou_thresholds in (0, 1], got {threshold}")
    if len(set(thresholds)) != len(thresholds):
        raise ConfigError(f"{function}: expected different tiou_thresholds, got {thresholds}")
    return thresholds


def _segments(
    prefix: str, video: npt.ArrayLike, label: npt.ArrayLike, segments: npt.ArrayLike
) -> Segments:
    videos = _array(f"{prefix}video", video, np.int64, (-1,))
    labels = _array(f"{prefix}label", label, np.int64, (len(videos),))
    pairs = _array(f"{prefix}segments", segments, np.float64, (len(videos), 2))
    return Segments(
        videos, labels, np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    )


def _array(
    name: str, values: npt.ArrayLike, dtype: type[np.int64] | type[np.float64], shape: Sequence[int]
) -> npt.NDArray[Any]:
    """Returns a contiguous array; -1 in ``shape`` takes any length."""
    array = as_array(f"evaluate_arrays: {name}", values)
    if array.size == 0 and array.ndim == 1:
        # An empty list has neither the dtype nor the columns that it would have with a value.
        array = np.zeros((0, *shape[1:]), dtype)
    kinds = "iu" if dtype is np.int64 else "iuf"
    if array.dtype.kind not in kinds:
        what = "integers" if dtype is np.int64 else "numbers"
        raise DataError(f"evaluate_arrays: expected {name} of {what}, got dtype {array.dtype}")
    fits = array.ndim == len(shape) and all(
        want in (-1, have) for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("N" if size == -1 else str(size) for size in shape)
        raise DataError(
            f"evaluate_arrays: expected {name} of shape [{wanted}], got {list(array.shape)}"
        )
    return np.ascontiguousarray(array, dtype=dtype)


def _compact(truth: Ints, detected: Ints) -> tuple[Ints, Ints, int]:
    """Returns both video columns renumbered from 0, and the number of different videos."""
    both = np.concatenate([truth, detected])
    low, high = int(both.min()), int(both.max())
    # A video number is an index into a table: small ones are renumbered by counting, and only wild
    # ones by sorting, which would take longer than the evaluation itself.
    if low >= 0 and high < 4 * len(both) + 1024:
        used = np.zeros(high + 1, dtype=bool)
        used[both] = True
        position = np.cumsum(used) - 1
        return position[truth], position[detected], int(position[-1]) + 1
    names, inverse = np.unique(both, return_inverse=True)
    inverse = inverse.astype(np.int64, copy=False)
    return inverse[: len(truth)], inverse[len(truth) :], len(names)
