# SPDX-License-Identifier: Apache-2.0
"""Detections, and the files that hold them, first of all ActivityNet's results JSON.

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
from tal_fast.evaluation import fast_json
from tal_fast.evaluation.records import (
    check_times,
    number_column,
    others,
    parse_json,
    read_bytes,
    segment_columns,
)
from tal_fast.evaluation.unpickling import unpickle_arrays

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
        classes: what ``label`` indexes: names, or the ground truth's numbers of classes.
        video: int64 [N], index into ``videos``.
        label: int64 [N], index into ``classes``.
        start: float64 [N] in seconds.
        end: float64 [N] in seconds, >= ``start``.
        score: float64 [N], finite; any range.
        origin: where they come from, for messages.
    """

    videos: tuple[str, ...]
    classes: tuple[str | int, ...]
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
        found.check()
        return found

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

    def check(self) -> None:
        """Checks that times and scores are finite and no segment is reversed.

        Raises:
            DataError: naming the first record at fault.
        """
        check_times(self.start, self.end, self.describe)
        bad = ~np.isfinite(self.score)
        if bad.any():
            i = int(bad.argmax())
            raise DataError(
                f"{self.describe(i)}: expected a finite score, got {float(self.score[i])}"
                f"{others(int(bad.sum()))}"
            )


def read_results(
    source: str | os.PathLike[str] | Mapping[str, Any], *, allow_pickle: bool = False
) -> Detections:
    """Reads and checks predictions.

    Args:
        source: path of a results JSON, plain or gzipped; of JSON lines (``.jsonl``,
            ``.jsonl.gz``), one ``{"video", "segment", "label", "score"}`` per line; or of
            ActionFormer's ``eval_results.pkl``. Or the content of a results JSON, of which only the
            key ``results`` is required, or of such a pickle: columns ``video-id``, ``t-start``,
            ``t-end``, ``label``, ``score``. Labels are names, or numbers of classes.
        allow_pickle: read a pickle. Even then nothing but arrays and plain values is unpickled.

    Returns:
        The detections in the order of the file; ``classes`` are the labels in order of appearance.

    Raises:
        DataError: if the file is missing, truncated or not such a file, or a record lacks a key,
            has a value of another type, is reversed, or holds NaN or infinity. The message names
            file, video and position.
    """
    if isinstance(source, Mapping):
        if "video-id" in source:
            return _from_columns("predictions", source)
        return _from_content("predictions", source)
    origin, text = read_bytes(source, "predictions")
    if origin.endswith((".pkl", ".pickle")):
        if not allow_pickle:
            raise DataError(f"{origin}: a pickle is read only with allow_pickle=True")
        return _from_columns(origin, unpickle_arrays(origin, text))
    if origin.endswith((".jsonl", ".jsonl.gz", ".ndjson")):
        return _from_lines(origin, text)
    return _from_json(origin, text)


def _from_json(origin: str, text: bytes) -> Detections:
    columns = fast_json.read_columns(text)
    if columns is None:
        return _from_content(origin, parse_json(origin, text))
    detections = Detections(*columns, origin=origin)
    detections.check()
    return detections


def _from_content(origin: str, content: Any) -> Detections:
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
    video_index = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    return _from_records(origin, tuple(map(str, results)), video_index, records)


def _from_lines(origin: str, text: bytes) -> Detections:
    records: list[Any] = []
    videos: dict[str, int] = {}
    owners: list[int] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        record = parse_json(f"{origin}, line {number}", line)
        video = record.get("video") if isinstance(record, Mapping) else None
        if not isinstance(video, str):
            raise DataError(
                f"{origin}, line {number}: expected an object with video, segment, label and "
                f"score, got {record!r:.60}"
            )
        owners.append(videos.setdefault(video, len(videos)))
        records.append(record)
    return _from_records(origin, tuple(videos), np.array(owners, dtype=np.int64), records)


def _from_records(
    origin: str, videos: tuple[str, ...], video_index: npt.NDArray[np.int64], records: list[Any]
) -> Detections:
    empty = np.zeros(0)
    # Only `describe` of this one is used: it names records before their values are known.
    names = Detections(videos, (), video_index, video_index, empty, empty, empty, origin)
    labels = _values(records, "label", names)
    if not set(map(type, labels)) <= {str, int}:
        i = next(i for i, label in enumerate(labels) if type(label) not in (str, int))
        raise DataError(
            f"{names.describe(i)}: expected label as a class name or number, got {labels[i]!r:.60}"
        )
    index: dict[str | int, int] = {}
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
    detections.check()
    return detections


def _from_columns(origin: str, content: Any) -> Detections:
    keys = ("video-id", "t-start", "t-end", "label", "score")
    if not isinstance(content, Mapping) or not all(key in content for key in keys):
        found = (
            sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        )
        raise DataError(f"{origin}: expected columns {', '.join(keys)}, got {found}")
    columns = {key: np.asarray(content[key]) for key in keys}
    sizes = {key: list(column.shape) for key, column in columns.items()}
    if any(len(size) != 1 or size != sizes["score"] for size in sizes.values()):
        raise DataError(f"{origin}: expected columns of equal length, got {sizes}")
    kinds = {"video-id": "U", "label": "iu", "t-start": "iuf", "t-end": "iuf", "score": "iuf"}
    for key, column in columns.items():
        if len(column) and column.dtype.kind not in kinds[key]:
            raise DataError(f"{origin}: column {key}: expected another dtype, got {column.dtype}")
    videos: dict[str, int] = {}
    owners = [videos.setdefault(video, len(videos)) for video in columns["video-id"].tolist()]
    labels: dict[str | int, int] = {}
    label = [labels.setdefault(number, len(labels)) for number in columns["label"].tolist()]
    detections = Detections(
        videos=tuple(videos),
        classes=tuple(labels),
        video=np.array(owners, dtype=np.int64),
        label=np.array(label, dtype=np.int64),
        start=columns["t-start"].astype(np.float64),
        end=columns["t-end"].astype(np.float64),
        score=columns["score"].astype(np.float64),
        origin=origin,
    )
    detections.check()
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
