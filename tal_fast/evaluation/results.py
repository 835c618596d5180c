# SPDX-License-Identifier: Apache-2.0
"""Detections, and the ActivityNet results JSON that holds them.

The file is ``{"version": ..., "results": {video: [{"segment": [start, end], "label": name,
"score": s}]}, "external_data": {}}`` with times in seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.files import write_text_atomically
from tal_fast.errors import DataError, nearest
from tal_fast.evaluation.records import (
    check_times,
    number_column,
    others,
    read_json,
    segment_columns,
)

__all__ = ["Detections", "read_results", "write_results"]

#: Segments [n, 2] in seconds, labels [n] as names or class indices, scores [n] of one video.
VideoDetections = tuple[npt.ArrayLike, Sequence[str] | npt.ArrayLike, npt.ArrayLike]


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of many videos as flat arrays.

    :func:`read_results` and :meth:`from_videos` make them and check them; the constructor only
    stores.

    Attributes:
        videos: names; every video of the source, also those without a detection.
        classes: names that ``label`` indexes.
        video: int64 [N], index into ``videos``.
        label: int64 [N], index into ``classes``.
        start: float64 [N] in seconds.
        end: float64 [N] in seconds, >= ``start``.
        score: float64 [N], finite; any range.
        origin: where they come from, for messages.
    """

    videos: tuple[str, ...]
    classes: tuple[str, ...]
    video: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]
    origin: str = "predictions"

    def __len__(self) -> int:
        return len(self.score)

    def describe(self, index: int) -> str:
        """Returns the name of a record for messages: file, video, position within the video."""
        video = self.video[index]
        position = int(np.count_nonzero(self.video[:index] == video))
        return f"{self.origin}: video {self.videos[video]!r}, prediction {position}"

    @classmethod
    def from_videos(
        cls,
        detections: Mapping[str, VideoDetections],
        classes: Sequence[str],
        *,
        origin: str = "predictions",
    ) -> Detections:
        """Gathers per-video arrays.

        Args:
            detections: video name to (segments [n, 2] in seconds, labels [n], scores [n]). Labels
                are names or indices into ``classes``.
            classes: class names.
            origin: where the detections come from, for messages.

        Raises:
            DataError: naming video and position, if shapes disagree, a label is unknown, a segment
                is reversed, or a value is NaN or infinite.
        """
        names = tuple(classes)
        index = {name: i for i, name in enumerate(names)}
        columns = [
            _video_columns(f"{origin}: video {v!r}", d, index) for v, d in detections.items()
        ]
        sizes = [len(label) for label, _, _ in columns]
        segments = _join([s for _, s, _ in columns], np.float64, 2)
        found = cls(
            videos=tuple(detections),
            classes=names,
            video=np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
            label=_join([label for label, _, _ in columns], np.int64),
            start=np.ascontiguousarray(segments[:, 0]),
            end=np.ascontiguousarray(segments[:, 1]),
            score=_join([score for _, _, score in columns], np.float64),
            origin=origin,
        )
        found._check()
        return found

    def to_results(self, *, version: str = "tal_fast") -> dict[str, Any]:
        """Returns the content of a results JSON; order within a video is kept."""
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
        return {"version": version, "results": results, "external_data": {}}

    def _check(self) -> None:
        check_times(self.start, self.end, self.describe)
        bad = ~np.isfinite(self.score)
        if bad.any():
            i = int(bad.argmax())
            raise DataError(
                f"{self.describe(i)}: expected a finite score, got {float(self.score[i])}"
                f"{others(int(bad.sum()))}"
            )


def read_results(source: str | os.PathLike[str] | Mapping[str, Any]) -> Detections:
    """Reads and checks a results JSON.

    Args:
        source: path, or the content as a mapping. Only the key ``results`` is required.

    Returns:
        The detections in the order of the file; ``classes`` are the labels in order of appearance.

    Raises:
        DataError: if the file is missing, truncated or not such a file, or a record lacks a key,
            has a value of another type, is reversed, or holds NaN or infinity. The message names
            file, video and position.
    """
    origin, content = read_json(source, "predictions")
    results = content.get("results") if isinstance(content, Mapping) else None
    if not isinstance(results, Mapping):
        mapping = isinstance(content, Mapping)
        found = sorted(map(str, content))[:5] if mapping else type(content).__name__
        raise DataError(f"{origin}: expected an object with an object 'results', got {found}")
    records: list[Any] = []
    sizes: list[int] = []
    for video, entries in results.items():
        if not isinstance(entries, (list, tuple)):
            raise DataError(
                f"{origin}: video {video!r}: expected a list of predictions, "
                f"got {type(entries).__name__}"
            )
        records.extend(entries)
        sizes.append(len(entries))
    videos = tuple(map(str, results))
    video_index = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    empty = np.zeros(0)
    # Only `describe` of this one is used: it names records before their values are known.
    names = Detections(videos, (), video_index, video_index, empty, empty, empty, origin)

    labels = _values(records, "label", names)
    if not set(map(type, labels)) <= {str}:
        i = next(i for i, label in enumerate(labels) if type(label) is not str)
        raise DataError(
            f"{names.describe(i)}: expected label as a class name, got {labels[i]!r:.60}"
        )
    index: dict[str, int] = {}
    label_index = [index.setdefault(label, len(index)) for label in labels]
    start, end = segment_columns(_values(records, "segment", names), names.describe)
    detections = Detections(
        videos=videos,
        classes=tuple(index),
        video=video_index,
        label=np.array(label_index, dtype=np.int64),
        start=start,
        end=end,
        score=number_column(_values(records, "score", names), "score", names.describe),
        origin=origin,
    )
    detections._check()
    return detections


def write_results(
    path: str | os.PathLike[str],
    detections: Mapping[str, VideoDetections] | Detections,
    classes: Sequence[str] | None = None,
    *,
    version: str = "tal_fast",
) -> Path:
    """Writes a results JSON, whole or not at all.

    Numbers are written as float64 in the shortest form that reads back to the same bits.

    Args:
        path: file to write; an existing one is replaced in one step.
        detections: video name to (segments [n, 2] in seconds, labels [n] as names or indices,
            scores [n]), or :class:`Detections`.
        classes: class names, needed with a mapping.
        version: value of the file's key ``version``.

    Returns:
        The path.

    Raises:
        DataError: if a record is bad (see :meth:`Detections.from_videos`), or the file cannot be
            written.
    """
    if not isinstance(detections, Detections):
        if classes is None:
            raise DataError(f"{os.fspath(path)}: expected classes with a mapping, got None")
        detections = Detections.from_videos(detections, classes, origin=os.fspath(path))
    content = detections.to_results(version=version)
    return write_text_atomically(path, json.dumps(content, allow_nan=False) + "\n")


def _values(records: list[Any], key: str, names: Detections) -> list[Any]:
    try:
        return [record[key] for record in records]
    except (KeyError, TypeError, IndexError):
        pass
    for i, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise DataError(
                f"{names.describe(i)}: expected an object with segment, label and score, "
                f"got {record!r:.60}"
            )
        if key not in record:
            raise DataError(f"{names.describe(i)}: no {key!r} among {sorted(map(str, record))}")
    raise AssertionError("a column of records was refused")  # pragma: no cover


def _video_columns(
    where: str, detections: VideoDetections, index: Mapping[str, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns (labels [n], segments [n, 2], scores [n]) of one video."""
    try:
        raw_segments, raw_labels, raw_scores = detections
    except (TypeError, ValueError):
        raise DataError(
            f"{where}: expected (segments, labels, scores), got {type(detections).__name__}"
        ) from None
    try:
        segments = np.asarray(raw_segments, dtype=np.float64)
        scores = np.asarray(raw_scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected numbers in segments and scores: {error}") from error
    labels = np.asarray(raw_labels)
    if segments.size == 0 and labels.size == 0 and scores.size == 0:
        return np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros(0)
    if scores.ndim != 1 or segments.shape != (len(scores), 2) or labels.shape != (len(scores),):
        raise DataError(
            f"{where}: expected segments [n, 2], labels [n] and scores [n], got "
            f"{list(segments.shape)}, {list(labels.shape)} and {list(scores.shape)}"
        )
    if labels.dtype.kind == "U":
        named = [_label(where, i, name, index) for i, name in enumerate(labels.tolist())]
        return np.array(named, dtype=np.int64), segments, scores
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: expected labels as names or integers, got {labels.dtype}")
    bad = (labels < 0) | (labels >= len(index))
    if bad.any():
        i = int(bad.argmax())
        raise DataError(
            f"{where}, prediction {i}: expected a label in [0, {len(index)}), got {labels[i]}"
        )
    return labels.astype(np.int64), segments, scores


def _label(where: str, position: int, name: str, index: Mapping[str, int]) -> int:
    if name not in index:
        raise DataError(
            f"{where}, prediction {position}: label {name!r} is not among the {len(index)} "
            f"classes{nearest(name, index)}"
        )
    return index[name]


def _join(parts: list[npt.NDArray[Any]], dtype: Any, columns: int = 0) -> npt.NDArray[Any]:
    empty = np.zeros((0, columns) if columns else 0, dtype)
    return np.concatenate([empty, *parts])
