# SPDX-License-Identifier: Apache-2.0
"""Ground truth as the evaluator wants it: flat arrays of one subset."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.annotation_values import finite_or_none, listed_classes, plain, subset_name
from tal_fast.data.annotations import Annotations
from tal_fast.data.class_ids import ClassIds, collect_class_ids
from tal_fast.data.dataset import dataset_annotations
from tal_fast.data.dataset_spec import is_dataset
from tal_fast.data.json_files import read_json
from tal_fast.errors import DataError, nearest, others
from tal_fast.evaluation.columns import check_times, segment_columns
from tal_fast.evaluation.dialects import TAL_FAST, Dialect

__all__ = ["GroundTruth", "GroundTruthSource", "read_ground_truth"]

#: A database JSON (path or content), a data directory, or annotations that are loaded already.
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
        class_ids: number of each class: its ``label_id``, or its position in a list of classes;
            None for a class without one. Positions where ``no_numbers`` says why there are none.
        listed: the file's own list ``classes``; None without one.
        durations: float64 [videos] in seconds, NaN where unknown; None where all are.
        origin: where it comes from, for messages.
        no_numbers: why predictions may not name classes by number; empty where they may.
    """

    videos: tuple[str, ...]
    other_videos: frozenset[str]
    classes: tuple[str, ...]
    video: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    class_ids: tuple[int | None, ...]
    listed: tuple[str, ...] | None = None
    durations: npt.NDArray[np.float64] | None = None
    origin: str = "ground truth"
    no_numbers: str = ""

    def describe(self, index: int) -> str:
        """Returns the name of an instance for messages: source, video, position in the video."""
        video = self.video[index]
        position = int(np.count_nonzero(self.video[:index] == video))
        return f"{self.origin}: video {self.videos[video]!r}, annotation {position}"

    def check(self) -> None:
        """Checks that times are finite and no segment is reversed.

        Raises:
            DataError: naming the first instance at fault.
        """
        check_times(self.start, self.end, self.describe)


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
            path or a mapping; a data directory or its ``dataset.yaml``, whose features are not
            looked at and whose segments are taken uncut
            (:func:`tal_fast.data.dataset.dataset_annotations`); or
            :class:`tal_fast.data.Annotations`.
        subset: subset to take (equal names, unless the dialect compares otherwise); None takes
            every video.
        dialect: rules, for how subsets and names are compared and what the file looks like.
        strict: follow the dialect's strict-only rules.

    Returns:
        The instances. Classes are ordered by ``label_id`` when every annotation carries an integer
        one and no two labels share one, else sorted by name.

    Raises:
        DataError: if the file is missing, truncated or not such a file, holds a video or another
            key twice, no video is in ``subset``, or an annotation in it lacks a key, is of another
            type, reversed, before 0 or not finite. The message names file, video and position.
    """
    if isinstance(source, (str, os.PathLike)) and is_dataset(source):
        origin = os.fspath(source)
        return _from_annotations(dataset_annotations(source), subset, dialect, strict, origin)
    if isinstance(source, Annotations):
        return _from_annotations(source, subset, dialect, strict, "ground truth")
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
    classes, class_ids, no_numbers = _classes(annotations, listed)
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
        label=np.array([index[plain(item["label"])] for item in items], dtype=np.int64),
        start=start,
        end=end,
        class_ids=class_ids,
        listed=listed,
        durations=_some([durations[video] for video in chosen]),
        origin=origin,
        no_numbers=no_numbers,
    )


def _video_name(name: str, dialect: Dialect, strict: bool) -> str:
    prefix = dialect.id_prefix
    return name[len(prefix) :] if strict or name.startswith(prefix) else name


def _duration(entry: Mapping[str, Any]) -> float:
    value = finite_or_none(entry.get("duration", entry.get("duration_second")))
    return value if value is not None and value > 0 else float("nan")


def _some(values: list[float]) -> npt.NDArray[np.float64] | None:
    array = np.array(values, dtype=np.float64)
    return None if np.isnan(array).all() else array


def _listed(origin: str, content: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = content.get("classes")
    listed = listed_classes(content)
    if listed is None and names is not None and not isinstance(names, Mapping):
        raise DataError(f"{origin}: expected 'classes' as a list of names, got {names!r:.60}")
    return listed


def _entry(origin: str, name: str, entry: Any) -> tuple[str, list[Mapping[str, Any]]]:
    """Returns (subset, annotations) of one video; every annotation has a label."""
    where = f"{origin}: video {name!r}"
    if not isinstance(entry, Mapping):
        raise DataError(f"{where}: expected an object, got {type(entry).__name__}")
    items = plain(entry.get("annotations", []))
    if not isinstance(items, (list, tuple)):
        raise DataError(f"{where}: expected a list of annotations, got {type(items).__name__}")
    for i, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise DataError(f"{where}, annotation {i}: expected an object, got {item!r:.60}")
        if not isinstance(plain(item.get("label")), str):
            raise DataError(
                f"{where}, annotation {i}: expected label as a class name, "
                f"got {item.get('label')!r:.60}"
            )
    return subset_name(where, entry), list(items)


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
) -> tuple[tuple[str, ...], tuple[int | None, ...], str]:
    """Returns all class names, their numbers, and why those may not be used."""
    class_ids = collect_class_ids(
        (
            (video, i, plain(item["label"]), item.get("label_id"))
            for video, items in annotations.items()
            for i, item in enumerate(items)
        ),
        listed,
    )
    found = {plain(item["label"]) for items in annotations.values() for item in items}
    if class_ids.complete and found.issuperset(listed or ()):
        names = tuple(sorted(found, key=class_ids.numbers.__getitem__))
    else:
        names = (*(listed or ()), *sorted(found.difference(listed or ())))
    return names, *_numbers(names, class_ids)


def _numbers(
    names: tuple[str, ...], class_ids: ClassIds | None
) -> tuple[tuple[int | None, ...], str]:
    """Returns the number of each class, and why predictions may not use them."""
    if class_ids is None:
        return tuple(range(len(names))), ""
    if class_ids.fault:  # dialects that confuse classes go by position then
        return tuple(range(len(names))), class_ids.fault
    return tuple(class_ids.numbers.get(name) for name in names), ""


def _from_annotations(
    annotations: Annotations, subset: str | None, dialect: Dialect, strict: bool, origin: str
) -> GroundTruth:
    named = {_video_name(key, dialect, strict): v for key, v in annotations.videos.items()}
    if len(named) < len(annotations.videos):
        raise DataError(f"{origin}: expected video names that differ without {dialect.id_prefix!r}")
    chosen = _choose(origin, {name: v.subset for name, v in named.items()}, subset, dialect)
    videos = [named[name] for name in chosen]
    listed = annotations.listed
    # Labels are indices into the classes of the annotations: what only the list names comes after.
    classes = tuple(dict.fromkeys((*annotations.classes, *(listed or ()))))
    class_ids, no_numbers = _numbers(classes, annotations.class_ids)
    segments = np.concatenate([np.zeros((0, 2)), *(video.segments for video in videos)])
    return GroundTruth(
        videos=chosen,
        other_videos=frozenset(named) - frozenset(chosen),
        classes=classes,
        video=np.repeat(
            np.arange(len(videos), dtype=np.int64), [len(video.labels) for video in videos]
        ),
        label=np.concatenate([np.zeros(0, np.int64), *(video.labels for video in videos)]),
        start=np.ascontiguousarray(segments[:, 0]),
        end=np.ascontiguousarray(segments[:, 1]),
        class_ids=class_ids,
        listed=listed,
        durations=_some([video.duration for video in videos]),
        origin=origin,
        no_numbers=no_numbers,
    )
