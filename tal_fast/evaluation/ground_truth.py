# SPDX-License-Identifier: Apache-2.0
"""Ground truth as the evaluator wants it: flat arrays of one subset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.annotations import Annotations
from tal_fast.errors import DataError, nearest
from tal_fast.evaluation.records import check_times, read_json, segment_columns

__all__ = ["GroundTruth", "GroundTruthSource", "read_ground_truth"]

#: A database JSON (path or content), or annotations that are loaded already.
GroundTruthSource = str | os.PathLike[str] | Mapping[str, Any] | Annotations


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Instances of the videos to evaluate.

    Attributes:
        videos: names of the videos, also of those without an instance.
        other_videos: videos of the database outside the subset.
        classes: all class names of the database, also those without an instance in the subset.
        video: int64 [N], index into ``videos``.
        label: int64 [N], index into ``classes``.
        start: float64 [N] in seconds.
        end: float64 [N] in seconds, >= ``start``.
        origin: where it comes from, for messages.
    """

    videos: tuple[str, ...]
    other_videos: frozenset[str]
    classes: tuple[str, ...]
    video: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    origin: str = "ground truth"


def read_ground_truth(source: GroundTruthSource, subset: str | None = None) -> GroundTruth:
    """Reads the instances of one subset, exactly as they are given.

    Other than :func:`tal_fast.data.load_annotations`, which is for training, nothing but the
    segments is asked for: no duration is needed, segments may lie outside the video, and a
    zero-length segment is an instance (which a detection can hardly match). Duplicates stay.

    Args:
        source: ``{"database": {video: {"subset", "annotations": [{"segment", "label"}]}}}`` as a
            path or a mapping, or :class:`tal_fast.data.Annotations`.
        subset: subset to take (equal names, not substrings); None takes every video.

    Returns:
        The instances. Classes are ordered by ``label_id`` when every annotation carries an integer
        one and no two labels share one, else sorted by name.

    Raises:
        DataError: if the file is missing, truncated or not such a file, no video is in ``subset``,
            or an annotation in it lacks a key, is of another type, reversed or not finite. The
            message names file, video and position.
    """
    if isinstance(source, Annotations):
        return _from_annotations(source, subset)
    origin, content = read_json(source, "ground truth")
    database = content.get("database") if isinstance(content, Mapping) else None
    if not isinstance(database, Mapping):
        mapping = isinstance(content, Mapping)
        found = sorted(map(str, content))[:5] if mapping else type(content).__name__
        raise DataError(f"{origin}: expected an object with an object 'database', got {found}")
    subsets: dict[str, str] = {}
    annotations: dict[str, list[Mapping[str, Any]]] = {}
    for name, entry in database.items():
        subsets[str(name)], annotations[str(name)] = _entry(origin, str(name), entry)
    chosen = _choose(origin, subsets, subset)
    classes = _classes(annotations)
    index = {name: i for i, name in enumerate(classes)}
    owner = [(video, i) for video in chosen for i in range(len(annotations[video]))]
    items = [item for video in chosen for item in annotations[video]]

    def name_of(i: int) -> str:
        return f"{origin}: video {owner[i][0]!r}, annotation {owner[i][1]}"

    for i, item in enumerate(items):
        if "segment" not in item:
            raise DataError(f"{name_of(i)}: no 'segment' among {sorted(map(str, item))}")
    start, end = segment_columns([item["segment"] for item in items], name_of)
    check_times(start, end, name_of)
    sizes = [len(annotations[video]) for video in chosen]
    return GroundTruth(
        videos=chosen,
        other_videos=frozenset(subsets) - frozenset(chosen),
        classes=classes,
        video=np.repeat(np.arange(len(chosen), dtype=np.int64), sizes),
        label=np.array([index[item["label"]] for item in items], dtype=np.int64),
        start=start,
        end=end,
        origin=origin,
    )


def _entry(origin: str, name: str, entry: Any) -> tuple[str, list[Mapping[str, Any]]]:
    """Returns (subset, annotations) of one video; every annotation has a label."""
    where = f"{origin}: video {name!r}"
    if not isinstance(entry, Mapping):
        raise DataError(f"{where}: expected an object, got {type(entry).__name__}")
    items = entry.get("annotations", [])
    if not isinstance(items, (list, tuple)):
        raise DataError(f"{where}: expected a list of annotations, got {type(items).__name__}")
    for i, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise DataError(f"{where}, annotation {i}: expected an object, got {item!r:.60}")
        if not isinstance(item.get("label"), str):
            raise DataError(
                f"{where}, annotation {i}: expected label as a class name, "
                f"got {item.get('label')!r:.60}"
            )
    return str(entry.get("subset", "")), list(items)


def _choose(origin: str, subsets: Mapping[str, str], subset: str | None) -> tuple[str, ...]:
    chosen = tuple(v for v, s in subsets.items() if subset is None or s == subset)
    if subset is not None and not chosen:
        known = sorted(set(subsets.values()))
        raise DataError(
            f"{origin}: expected a subset among {known}, got {subset!r}{nearest(subset, known)}"
        )
    return chosen


def _classes(annotations: Mapping[str, list[Mapping[str, Any]]]) -> tuple[str, ...]:
    ids: dict[str, set[Any]] = {}
    for items in annotations.values():
        for item in items:
            ids.setdefault(item["label"], set()).add(_hashable_id(item.get("label_id")))
    numbers = [next(iter(found)) for found in ids.values() if len(found) == 1]
    ordered = (
        len(numbers) == len(ids)
        and len(set(numbers)) == len(ids)
        and all(type(number) is int for number in numbers)
    )
    return tuple(sorted(ids, key=(lambda name: next(iter(ids[name]))) if ordered else None))


def _hashable_id(value: Any) -> int | None:
    return value if type(value) is int else None


def _from_annotations(annotations: Annotations, subset: str | None) -> GroundTruth:
    chosen = annotations if subset is None else annotations.subset(subset)
    videos = tuple(chosen.videos.values())
    segments = np.concatenate([np.zeros((0, 2)), *(video.segments for video in videos)])
    return GroundTruth(
        videos=tuple(chosen.videos),
        other_videos=frozenset(annotations.videos) - frozenset(chosen.videos),
        classes=annotations.classes,
        video=np.repeat(
            np.arange(len(videos), dtype=np.int64), [len(video.labels) for video in videos]
        ),
        label=np.concatenate([np.zeros(0, np.int64), *(video.labels for video in videos)]),
        start=np.ascontiguousarray(segments[:, 0]),
        end=np.ascontiguousarray(segments[:, 1]),
    )
