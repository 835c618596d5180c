# SPDX-License-Identifier: Apache-2.0
"""Ground truth as the evaluator wants it: flat arrays of one subset."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.annotations import Annotations
from tal_fast.errors import DataError, nearest
from tal_fast.evaluation.dialects import TAL_FAST, Dialect
from tal_fast.evaluation.records import check_times, others, read_json, segment_columns

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
        class_ids: number of each class: its ``label_id`` where all have one, else its position.
        listed: the file's own list ``classes``; None without one.
        durations: float64 [videos] in seconds, NaN where unknown; None where all are.
        origin: where it comes from, for messages.
    """

    videos: tuple[str, ...]
    other_videos: frozenset[str]
    classes: tuple[str, ...]
    video: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    class_ids: tuple[int, ...]
    listed: tuple[str, ...] | None = None
    durations: npt.NDArray[np.float64] | None = None
    origin: str = "ground truth"


def read_ground_truth(
    source: GroundTruthSource,
    subset: str | None = None,
    *,
    dialect: Dialect = TAL_FAST,
    strict: bool = False,
) -> GroundTruth:
    """Reads the instances of one subset, exactly as they are given.

    Other than :func:`tal_fast.data.load_annotations`, which is for training, nothing but the
    segments is asked for: no duration is needed, segments may end after the video, and a
    zero-length segment is an instance (which a detection can hardly match). Duplicates stay.

    Args:
        source: ``{"database": {video: {"subset", "annotations": [{"segment", "label"}]}}}`` as a
            path or a mapping, or :class:`tal_fast.data.Annotations`.
        subset: subset to take (equal names, unless the dialect compares otherwise); None takes
            every video.
        dialect: rules, for how subsets and names are compared and what the file looks like.
        strict: follow the dialect's strict-only rules.

    Returns:
        The instances. Classes are ordered by ``label_id`` when every annotation carries an integer
        one and no two labels share one, else sorted by name.

    Raises:
        DataError: if the file is missing, truncated or not such a file, no video is in ``subset``,
            or an annotation in it lacks a key, is of another type, reversed, before 0 or not
            finite. The message names file, video and position.
    """
    if isinstance(source, Annotations):
        return _from_annotations(source, subset)
    origin, content = read_json(source, "ground truth")
    database = content.get("database") if isinstance(content, Mapping) else None
    if dialect.bare_database and isinstance(content, Mapping) and "database" not in content:
        database = content
    if not isinstance(database, Mapping):
        mapping = isinstance(content, Mapping)
        found = sorted(map(str, content))[:5] if mapping else type(content).__name__
        raise DataError(f"{origin}: expected an object with an object 'database', got {found}")
    subsets: dict[str, str] = {}
    annotations: dict[str, list[Mapping[str, Any]]] = {}
    durations: dict[str, float] = {}
    for key, entry in database.items():
        name = _video_name(str(key), dialect, strict)
        if name in subsets:
            raise DataError(f"{origin}: video {key!r}: expected one of its name, got another")
        subsets[name], annotations[name] = _entry(origin, str(key), entry)
        durations[name] = _duration(entry)
    chosen = _choose(origin, subsets, subset, dialect)
    listed = _listed(origin, content)
    classes, class_ids = _classes(annotations, listed)
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
    if not strict and (start < 0).any():
        i = int((start < 0).argmax())
        raise DataError(
            f"{name_of(i)}: expected a start >= 0 s, got {float(start[i])}"
            f"{others(int(np.count_nonzero(start < 0)))}"
        )
    sizes = [len(annotations[video]) for video in chosen]
    return GroundTruth(
        videos=chosen,
        other_videos=frozenset(subsets) - frozenset(chosen),
        classes=classes,
        video=np.repeat(np.arange(len(chosen), dtype=np.int64), sizes),
        label=np.array([index[item["label"]] for item in items], dtype=np.int64),
        start=start,
        end=end,
        class_ids=class_ids,
        listed=listed,
        durations=_some([durations[video] for video in chosen]),
        origin=origin,
    )


def _video_name(name: str, dialect: Dialect, strict: bool) -> str:
    prefix = dialect.id_prefix
    return name[len(prefix) :] if strict or name.startswith(prefix) else name


def _duration(entry: Mapping[str, Any]) -> float:
    value = entry.get("duration", entry.get("duration_second"))
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    return float(value) if known and np.isfinite(value) else float("nan")


def _some(values: list[float]) -> npt.NDArray[np.float64] | None:
    array = np.array(values, dtype=np.float64)
    return None if np.isnan(array).all() else array


def _listed(origin: str, content: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = content.get("classes")
    if names is None or isinstance(names, Mapping):
        return None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{origin}: expected 'classes' as a list of names, got {names!r:.60}")
    return tuple(dict.fromkeys(names))


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


def _choose(
    origin: str, subsets: Mapping[str, str], subset: str | None, dialect: Dialect
) -> tuple[str, ...]:
    fits: Callable[[str], bool] = {
        "equal": lambda name: name == subset,
        "lower": lambda name: name.lower() == subset,
        "within": lambda name: name in (subset or ""),
    }[dialect.subset_match]
    chosen = tuple(v for v, s in subsets.items() if subset is None or fits(s))
    if subset is not None and not chosen:
        known = sorted(set(subsets.values()))
        raise DataError(
            f"{origin}: expected a subset among {known}, got {subset!r}{nearest(subset, known)}"
        )
    return chosen


def _classes(
    annotations: Mapping[str, list[Mapping[str, Any]]], listed: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns all class names and their numbers."""
    ids: dict[str, set[Any]] = {}
    for items in annotations.values():
        for item in items:
            ids.setdefault(item["label"], set()).add(_hashable_id(item.get("label_id")))
    numbers = {name: next(iter(found)) for name, found in ids.items() if len(found) == 1}
    ordered = (
        len(numbers) == len(ids)
        and len(set(numbers.values())) == len(ids)
        and all(type(number) is int for number in numbers.values())
    )
    more = tuple(name for name in listed or () if name not in ids)
    if ordered and not more:
        names = tuple(sorted(ids, key=lambda name: numbers[name]))
        return names, tuple(numbers[name] for name in names)
    if listed is not None:
        names = (*listed, *sorted(name for name in ids if name not in set(listed)))
    else:
        names = tuple(sorted(ids))
    return names, tuple(range(len(names)))


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
        class_ids=tuple(range(len(annotations.classes))),
        durations=_some([video.duration for video in videos]),
    )
