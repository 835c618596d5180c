# SPDX-License-Identifier: Apache-2.0
"""Ground truth as the evaluator wants it: flat arrays of one subset."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tal_fast.data.annotation_file import (
    AnnotatedInstance,
    AnnotatedVideo,
    AnnotationFile,
    Bare,
    read_annotation_file,
)
from tal_fast.data.annotations import AnnotationReport, Annotations, Video
from tal_fast.data.class_ids import ClassIds, ordered_classes
from tal_fast.data.dataset import dataset_annotations
from tal_fast.data.dataset_spec import is_dataset
from tal_fast.data.json_files import without_collector
from tal_fast.errors import DataError, counted, nearest, others
from tal_fast.evaluation.columns import check_times, segment_columns
from tal_fast.evaluation.dialects import TAL_FAST, Dialect
from tal_fast.typing import FilePath, Floats, Ints

__all__ = ["GroundTruth", "GroundTruthSource", "read_ground_truth"]

#: A database JSON (path or content), a data directory, or annotations that are loaded already.
GroundTruthSource = FilePath | Mapping[str, Any] | Annotations


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Instances of the videos to evaluate.

    Attributes:
        videos: names of the videos, also of those without an instance.
        other_videos: videos of the database outside the subset -> where they are, in words.
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
        beyond: how segments beyond the video count; empty where there are none, or nobody looked.
    """

    videos: tuple[str, ...]
    other_videos: Mapping[str, str]
    classes: tuple[str, ...]
    video: Ints
    label: Ints
    start: Floats
    end: Floats
    class_ids: tuple[int | None, ...]
    listed: tuple[str, ...] | None = None
    durations: Floats | None = None
    origin: str = "ground truth"
    no_numbers: str = ""
    beyond: str = ""

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
        origin = source.origin or "ground truth"
        return _from_annotations(source, subset, dialect, strict, origin)
    bare: Bare = "any" if dialect.bare_database else "no"
    with without_collector():  # what is read goes before anyone else could drop it
        file = read_annotation_file(source, "ground truth", bare=bare)
        return _from_file(file, subset, dialect, strict)


def _from_file(
    file: AnnotationFile, subset: str | None, dialect: Dialect, strict: bool
) -> GroundTruth:
    named: dict[str, AnnotatedVideo] = {}
    for video in file.videos:
        name = _video_name(video.name, dialect, strict)
        if name in named:
            raise DataError(
                f"{file.origin}: video {video.name!r}: expected one of its name, got another"
            )
        named[name] = video
    file.refuse("annotations", "null annotations")
    _require_labels(file)
    chosen = _choose(file.origin, {n: video.subset for n, video in named.items()}, subset, dialect)
    if file.listed_fault:
        raise DataError(f"{file.origin}: {file.listed_fault}")
    class_ids = file.class_ids()
    classes = ordered_classes(file.labels(), class_ids, file.listed)
    index = {name: i for i, name in enumerate(classes)}
    items = [item for name in chosen for item in named[name].instances]
    sizes = [len(named[name].instances) for name in chosen]

    def describe(i: int) -> str:
        owner = chosen[int(np.searchsorted(np.cumsum(sizes), i, side="right"))]
        return f"{file.origin}: video {owner!r}, annotation {items[i].position}"

    start, end = _times(items, describe)
    check_times(start, end, describe)
    if not strict and (start < 0).any():
        i = int((start < 0).argmax())
        raise DataError(
            f"{describe(i)}: expected a start >= 0 s, got {float(start[i])}"
            f"{others(int(np.count_nonzero(start < 0)))}"
        )
    numbers, no_numbers = _numbers(classes, class_ids)
    return GroundTruth(
        videos=chosen,
        other_videos=_elsewhere({n: video.subset for n, video in named.items()}, chosen),
        classes=classes,
        video=_repeated(sizes),
        label=np.array([index[item.label or ""] for item in items], dtype=np.int64),
        start=start,
        end=end,
        class_ids=numbers,
        listed=file.listed,
        durations=_some([named[name].duration for name in chosen]),
        origin=file.origin,
        no_numbers=no_numbers,
    )


def _require_labels(file: AnnotationFile) -> None:
    for video in file.videos:
        for item in video.instances:
            if item.label is None:
                where = f"{file.origin}: video {video.name!r}, annotation {item.position}"
                if not isinstance(item.given, Mapping):
                    raise DataError(f"{where}: expected an object, got {item.given!r:.60}")
                raise DataError(
                    f"{where}: expected label as a class name, got {item.given.get('label')!r:.60}"
                )


def _times(
    items: Sequence[AnnotatedInstance], describe: Callable[[int], str]
) -> tuple[Floats, Floats]:
    """Returns starts and ends."""
    segments = [item.segment for item in items if item.segment is not None]
    if len(segments) == len(items):
        start, end = ([segment[side] for segment in segments] for side in (0, 1))
        return np.array(start, dtype=np.float64), np.array(end, dtype=np.float64)
    for i, item in enumerate(items):
        if "segment" not in item.given:
            raise DataError(f"{describe(i)}: no 'segment' among {sorted(map(str, item.given))}")
    # Which of them is none, and why, is told as it is of a prediction.
    return segment_columns([item.given["segment"] for item in items], describe)


def _video_name(name: str, dialect: Dialect, strict: bool) -> str:
    prefix = dialect.id_prefix
    return name[len(prefix) :] if strict or name.startswith(prefix) else name


def _some(values: Sequence[float | None]) -> Floats | None:
    array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return None if np.isnan(array).all() else array


def _repeated(sizes: Sequence[int]) -> Ints:
    """Returns the number of the video of each instance."""
    return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)


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


def _elsewhere(subsets: Mapping[str, str], chosen: Sequence[str]) -> dict[str, str]:
    """Returns the videos that are not chosen -> in which subset they are."""
    inside = set(chosen)
    return {name: f"subset {s!r}" for name, s in subsets.items() if name not in inside}


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
        other_videos={
            **{
                _video_name(name, dialect, strict): where
                for name, where in annotations.elsewhere.items()
            },
            **_elsewhere({n: video.subset for n, video in named.items()}, chosen),
        },
        classes=classes,
        video=_repeated([len(video.labels) for video in videos]),
        label=np.concatenate([np.zeros(0, np.int64), *(video.labels for video in videos)]),
        start=np.ascontiguousarray(segments[:, 0]),
        end=np.ascontiguousarray(segments[:, 1]),
        class_ids=class_ids,
        listed=listed,
        durations=_some([video.duration for video in videos]),
        origin=origin,
        no_numbers=no_numbers,
        beyond=_beyond(annotations.report, videos),
    )


def _beyond(report: AnnotationReport, videos: Sequence[Video]) -> str:
    """Says how segments beyond the video count, of annotations that were checked for that."""
    if report.clamped or report.dropped:
        return (
            f"{counted(report.out_of_range, 'segment', 'reach')} beyond the video: "
            f"{report.clamped} cut to it and {report.dropped} left out when they were loaded"
        )
    beyond = sum(video.beyond for video in videos) if report.out_of_range else 0
    if not beyond:
        return ""
    return (
        f"{counted(beyond, 'segment', 'reach')} beyond the video; they are scored as the "
        "annotations have them"
    )
