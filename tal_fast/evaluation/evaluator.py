# SPDX-License-Identifier: Apache-2.0
"""Mean average precision over classes and tIoU thresholds, computed natively.

The rules are those of the ActivityNet evaluation, ``csrc/evaluation/average_precision.h`` states
them. What ActivityNet leaves to chance is fixed here: predictions of equal score count in input
order (of the file: videos in order, predictions in order within a video), and of two instances with
equal tIoU the first of the file is matched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.errors import ConfigError, DataError, nearest
from tal_fast.evaluation.dialects import TAL_FAST
from tal_fast.evaluation.ground_truth import GroundTruth, GroundTruthSource, read_ground_truth
from tal_fast.evaluation.records import others
from tal_fast.evaluation.result import EvaluationResult
from tal_fast.evaluation.results import Detections, read_results
from tal_fast.ranges import nvtx_range

__all__ = ["DEFAULT_TIOU_THRESHOLDS", "evaluate", "evaluate_arrays"]

DEFAULT_TIOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_Segments = tuple[Ints, Ints, Floats, Floats]  # video, label, start, end; each [N]

_MAX_THRESHOLDS = 64  # one bit each, see csrc/evaluation/average_precision.h


def evaluate(
    ground_truth: GroundTruthSource,
    predictions: str | os.PathLike[str] | Mapping[str, Any] | Detections,
    tiou_thresholds: Sequence[float] = DEFAULT_TIOU_THRESHOLDS,
    subset: str | None = None,
    *,
    num_threads: int = 0,
) -> EvaluationResult:
    """Evaluates the predictions for one subset of an annotated data set.

    Args:
        ground_truth: path or content of a JSON ``{"database": {video: {"subset", "annotations":
            [{"segment": [start, end], "label"}]}}}``, or :class:`tal_fast.data.Annotations`.
        predictions: path or content of a results JSON (:mod:`tal_fast.evaluation.results`), or
            :class:`Detections`. A video without predictions may be missing.
        tiou_thresholds: 1 to 64 different values in (0, 1], in any order, used as they are given
            (0.7 is 0.7, not a sum of steps). A tIoU equal to a threshold reaches it.
        subset: name of the subset to evaluate; None evaluates every video of the database.
        num_threads: 0 chooses. The result does not depend on it.

    Returns:
        The result. A class without instances in the subset has AP NaN and counts in no mean; a
        class without predictions has AP 0.

    Raises:
        DataError: if a file is missing, truncated or malformed, a record is faulty (NaN, infinite,
            reversed, of a wrong type, a key missing), the subset is unknown or holds no instance,
            a predicted label is no class of the database, or a predicted video is not in the
            database **or not in the subset**: predictions for other videos mean that the wrong
            file or subset was given, so they are not skipped silently.
        ConfigError: if a threshold is not in (0, 1], is given twice, or there are none or over 64.
    """
    thresholds = _check_thresholds("evaluate", tiou_thresholds)
    with nvtx_range("tal_fast.evaluate.read"):
        truth = read_ground_truth(ground_truth, subset)
        found = predictions if isinstance(predictions, Detections) else read_results(predictions)
        video, label = _translate(truth, found, subset)
    if len(truth.label) == 0:
        where = "" if subset is None else f" in subset {subset!r}"
        raise DataError(f"{truth.origin}: expected at least one annotation{where}, got none")
    return _run(
        "evaluate",
        (truth.video, truth.label, truth.start, truth.end),
        (video, label, _contiguous(found.start), _contiguous(found.end)),
        _contiguous(found.score),
        len(truth.videos),
        truth.classes,
        thresholds,
        num_threads,
    )


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
    num_threads: int = 0,
) -> EvaluationResult:
    """Evaluates predictions that are arrays already.

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
        num_threads: 0 chooses. The result does not depend on it.

    Returns:
        The result; ``num_videos`` counts the videos that occur.

    Raises:
        DataError: naming array and index, if shapes disagree, a dtype is of the wrong kind, a label
            is out of range, a segment is reversed, a value is NaN or infinite, or N is 0.
        ConfigError: as in :func:`evaluate`.
    """
    thresholds = _check_thresholds("evaluate_arrays", tiou_thresholds)
    truth = _columns("gt_video", gt_video, "gt_label", gt_label, "gt_segments", gt_segments)
    found = _columns("video", video, "label", label, "segments", segments)
    score = _array("scores", scores, np.float64, (len(found[0]),))
    if len(truth[0]) == 0:
        raise DataError("evaluate_arrays: expected at least one instance in gt_video, got none")
    truth_video, found_video, num_videos = _compact(truth[0], found[0])
    if classes is None:
        classes = 1 + max(int(truth[1].max()), int(found[1].max(initial=0)))
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    return _run(
        "evaluate_arrays",
        (truth_video, *truth[1:]),
        (found_video, *found[1:]),
        score,
        num_videos,
        names,
        thresholds,
        num_threads,
    )


def _run(
    function: str,
    truth: _Segments,
    found: _Segments,
    score: Floats,
    num_videos: int,
    classes: tuple[str, ...],
    thresholds: tuple[float, ...],
    num_threads: int,
) -> EvaluationResult:
    # Imported here: the native library needs torch loaded, and reading files does not.
    from tal_fast.ops import _C

    rules = TAL_FAST
    try:
        with nvtx_range("tal_fast.evaluate"):
            ap, true_positives, num_truth, num_found, _ = _C.average_precision(
                *truth,
                *found,
                score,
                num_videos,
                len(classes),
                np.array(thresholds, dtype=np.float64),
                rules.guard_union,
                num_threads,
            )
    except ValueError as error:
        raise DataError(f"{function}: {error}") from error
    per_threshold = ap[num_truth > 0].mean(axis=0)
    return EvaluationResult(
        average_map=float(per_threshold.mean()),
        map_per_threshold=per_threshold,
        ap=ap,
        classes=classes,
        tiou_thresholds=thresholds,
        true_positives=true_positives,
        ground_truth_per_class=num_truth,
        predictions_per_class=num_found,
        num_videos=num_videos,
        dialect=rules.name,
    )


def _check_thresholds(function: str, values: Sequence[float]) -> tuple[float, ...]:
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


def _translate(truth: GroundTruth, found: Detections, subset: str | None) -> tuple[Ints, Ints]:
    """Returns video and label of the predictions as indices of the ground truth's names."""
    video_index = {name: i for i, name in enumerate(truth.videos)}
    unknown = [name for name in found.videos if name not in video_index]
    strangers = [name for name in unknown if name not in truth.other_videos]
    if strangers:
        raise DataError(
            f"{found.origin}: video {strangers[0]!r}{others(len(strangers))} is not in "
            f"{truth.origin}{nearest(strangers[0], video_index)}"
        )
    if unknown:
        raise DataError(
            f"{found.origin}: {len(unknown)} of {len(found.videos)} videos are not in subset "
            f"{subset!r} of {truth.origin}, the first is {unknown[0]!r}; choose the subset that "
            "was predicted, or leave these videos out"
        )
    class_index = {name: i for i, name in enumerate(truth.classes)}
    new_label = np.array([class_index.get(name, -1) for name in found.classes], dtype=np.int64)
    label = new_label[found.label] if len(found) else np.zeros(0, np.int64)
    bad = label < 0
    if bad.any():
        i = int(bad.argmax())
        name = found.classes[found.label[i]]
        raise DataError(
            f"{found.describe(i)}: label {name!r} is not among the {len(class_index)} classes of "
            f"{truth.origin}{nearest(name, class_index)}{others(int(bad.sum()))}"
        )
    new_video = np.array([video_index[name] for name in found.videos], dtype=np.int64)
    return (new_video[found.video] if len(found) else np.zeros(0, np.int64)), label


def _columns(
    video_name: str,
    video: npt.ArrayLike,
    label_name: str,
    label: npt.ArrayLike,
    segments_name: str,
    segments: npt.ArrayLike,
) -> _Segments:
    videos = _array(video_name, video, np.int64, (-1,))
    labels = _array(label_name, label, np.int64, (len(videos),))
    pairs = _array(segments_name, segments, np.float64, (len(videos), 2))
    return videos, labels, np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


def _array(
    name: str, values: npt.ArrayLike, dtype: type[np.int64] | type[np.float64], shape: Sequence[int]
) -> npt.NDArray[Any]:
    """Returns a contiguous array; -1 in ``shape`` takes any length."""
    array = np.asarray(values)
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


def _contiguous(values: Floats) -> Floats:
    return np.ascontiguousarray(values, dtype=np.float64)


def _compact(truth: Ints, found: Ints) -> tuple[Ints, Ints, int]:
    """Returns both video columns renumbered from 0, and the number of different videos."""
    both = np.concatenate([truth, found])
    low, high = int(both.min()), int(both.max())
    # A video number is an index into a table: small ones are renumbered by counting, and only wild
    # ones by sorting, which would take longer than the evaluation itself.
    if low >= 0 and high < 4 * len(both) + 1024:
        used = np.zeros(high + 1, dtype=bool)
        used[both] = True
        number = np.cumsum(used) - 1
        return number[truth], number[found], int(number[-1]) + 1
    names, inverse = np.unique(both, return_inverse=True)
    inverse = inverse.astype(np.int64, copy=False)
    return inverse[: len(truth)], inverse[len(truth) :], len(names)
