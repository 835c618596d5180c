# SPDX-License-Identifier: Apache-2.0
"""Detections of many videos as flat arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.annotation_values import plain
from tal_fast.errors import DataError, counted, nearest
from tal_fast.evaluation.arrays import as_labels, as_numbers
from tal_fast.evaluation.columns import check_indices, check_scores, check_times
from tal_fast.typing import Floats, Ints

__all__ = ["Detections", "VideoDetections"]

#: Segments [n, 2] in seconds, labels [n] as names or class indices, scores [n] of one video.
VideoDetections = tuple[npt.ArrayLike, Sequence[str] | npt.ArrayLike, npt.ArrayLike]


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of many videos as flat arrays.

    :func:`read_results` and :meth:`from_videos` make them and check them; the constructor only
    stores.

    Attributes:
        videos: names; every video of the source, also those without a detection.
        classes: what ``label`` indexes: names, or the ground truth's numbers of classes
            (``label_id``).
        video: int64 [N], index into ``videos``.
        label: int64 [N], index into ``classes``.
        start: float64 [N] in seconds.
        end: float64 [N] in seconds, >= ``start``.
        score: float64 [N], finite; any range.
        origin: where they come from, for messages.
    """

    videos: tuple[str, ...]
    classes: tuple[str | int, ...]
    video: Ints
    label: Ints
    start: Floats
    end: Floats
    score: Floats
    origin: str = "predictions"

    def __len__(self) -> int:
        return len(self.score)

    def __repr__(self) -> str:
        return (
            f"Detections({len(self)} of {counted(len(self.classes), 'class')} in "
            f"{counted(len(self.videos), 'video')})"
        )

    def describe(self, index: int) -> str:
        """Returns the name of a record for messages: file, video, position within the video."""
        video = self.video[index]
        position = int(np.count_nonzero(self.video[:index] == video))
        return f"{self.origin}: video {self.videos[video]!r}, prediction {position}"

    @classmethod
    def from_videos(
        cls,
        detections: Mapping[str, VideoDetections],
        classes: Sequence[str] | Sequence[int] | npt.ArrayLike,
        *,
        origin: str = "predictions",
    ) -> Detections:
        """Gathers per-video arrays.

        Args:
            detections: video name to (segments [n, 2] in seconds, labels [n], scores [n]): lists,
                arrays, tensors or columns of a table. Labels are names or indices into
                ``classes``; numbers are of any width.
            classes: class names, or the ground truth's numbers of classes (``label_id``).
            origin: where the detections come from, for messages.

        Raises:
            DataError: naming video and position, if shapes disagree, a label is unknown, a segment
                is reversed, or a value is NaN or infinite; or if a class is neither a name nor an
                integer.
        """
        names = _class_names(origin, classes)
        index = {name: i for i, name in enumerate(names)}
        columns = [
            _video_columns(f"{origin}: video {v!r}", d, index) for v, d in detections.items()
        ]
        sizes = [len(label) for label, _, _ in columns]
        segments = _join([s for _, s, _ in columns], np.float64, 2)
        joined = cls(
            videos=tuple(detections),
            classes=names,
            video=np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
            label=_join([label for label, _, _ in columns], np.int64),
            start=np.ascontiguousarray(segments[:, 0]),
            end=np.ascontiguousarray(segments[:, 1]),
            score=_join([score for _, _, score in columns], np.float64),
            origin=origin,
        )
        joined.check()
        return joined

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """Joins detections of different videos, in this order."""
        classes: dict[str | int, int] = {}
        for part in parts:
            for name in part.classes:
                classes.setdefault(name, len(classes))
        offsets = np.cumsum([0, *(len(part.videos) for part in parts)]).tolist()
        renamed = [
            np.array([classes[name] for name in part.classes], dtype=np.int64)[part.label]
            for part in parts
            if len(part)
        ]
        return cls(
            videos=tuple(name for part in parts for name in part.videos),
            classes=tuple(classes),
            video=_join(
                [p.video + at for p, at in zip(parts, offsets[:-1], strict=True)], np.int64
            ),
            label=_join(renamed, np.int64),
            start=_join([part.start for part in parts], np.float64),
            end=_join([part.end for part in parts], np.float64),
            score=_join([part.score for part in parts], np.float64),
        )

    def to_results(self, *, version: str = "tal_fast", model: str = "") -> dict[str, Any]:
        """Returns the content of a results JSON; order within a video is kept.

        Args:
            version: value of the key ``version``.
            model: value of the key ``model``, which is not there without one.
        """
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in self.videos}
        names = self.videos
        for video, label, start, end, score in zip(
            self.video.tolist(),
            self.label.tolist(),
            self.start.tolist(),
            self.end.tolist(),
            self.score.tolist(),
            strict=True,
        ):
            results[names[video]].append(
                {"segment": [start, end], "label": self.classes[label], "score": score}
            )
        begin = {"version": version, **({"model": model} if model else {})}
        return {**begin, "results": results, "external_data": {}}

    def check(self) -> None:
        """Checks that times and scores are finite and no segment is reversed.

        Raises:
            DataError: naming the first record at fault.
        """
        check_times(self.start, self.end, self.describe)
        check_scores(self.score, self.describe)


def _video_columns(
    where: str, detections: VideoDetections, index: Mapping[str | int, int]
) -> tuple[Ints, Floats, Floats]:
    """Returns (labels [n], segments [n, 2], scores [n]) of one video."""
    try:
        raw_segments, raw_labels, raw_scores = detections
    except (TypeError, ValueError):
        raise DataError(
            f"{where}: expected (segments, labels, scores), got {type(detections).__name__}"
        ) from None
    segments = as_numbers(f"{where}: segments", raw_segments)
    scores = as_numbers(f"{where}: scores", raw_scores)
    labels = as_labels(where, raw_labels)
    shape = [len(labels)] if isinstance(labels, list) else list(labels.shape)
    if segments.size == 0 and 0 in shape and scores.size == 0:
        return np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros(0)
    if scores.ndim != 1 or segments.shape != (len(scores), 2) or shape != [len(scores)]:
        raise DataError(
            f"{where}: expected segments [n, 2], labels [n] and scores [n], got "
            f"{list(segments.shape)}, {shape} and {list(scores.shape)}"
        )
    if isinstance(labels, list):
        named = [_label(where, i, name, index) for i, name in enumerate(labels)]
        return np.array(named, dtype=np.int64), segments, scores
    check_indices(labels, len(index), lambda i: f"{where}, prediction {i}")
    return labels.astype(np.int64), segments, scores


def _class_names(origin: str, classes: Any) -> tuple[str | int, ...]:
    names = [plain(name) for name in plain(classes)]
    for name in names:
        if isinstance(name, bool) or not isinstance(name, (str, int)):
            raise DataError(
                f"{origin}: expected classes as names or their numbers, got {name!r:.60}"
            )
    return tuple(str(name) if isinstance(name, str) else name for name in names)


def _label(where: str, position: int, name: str | int, index: Mapping[str | int, int]) -> int:
    if name not in index:
        hint = nearest(name, map(str, index)) if isinstance(name, str) else ""
        raise DataError(
            f"{where}, prediction {position}: label {name!r} is not among the "
            f"{counted(len(index), 'class')}{hint}"
        )
    return index[name]


def _join(parts: list[npt.NDArray[Any]], dtype: Any, columns: int = 0) -> npt.NDArray[Any]:
    empty = np.zeros((0, columns) if columns else 0, dtype)
    return np.concatenate([empty, *parts])
