# SPDX-License-Identifier: Apache-2.0
"""Predictions with the ground truth that they belong to: names of videos and classes as numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from tal_fast.data.dataset import shown_names
from tal_fast.errors import DataError, argument, counted, listing, nearest, others
from tal_fast.evaluation.detections import Detections
from tal_fast.evaluation.dialects import Dialect
from tal_fast.evaluation.ground_truth import GroundTruth
from tal_fast.evaluation.problem import Note, NoteKind, Problem, Segments
from tal_fast.typing import Floats, Ints, Mask

__all__ = ["pair"]


def pair(
    truth: GroundTruth,
    detections: Detections,
    dialect: Dialect,
    *,
    subset: str | None = None,
    strict: bool = False,
    strict_times: bool = False,
    num_threads: int = 0,
) -> Problem:
    """Returns what is to be evaluated.

    Videos that only ``detections`` has come after those of the ground truth, and so do classes.

    Args:
        truth: the instances, checked.
        detections: the detections, checked.
        dialect: the rules, here for names that one side lacks.
        subset: of the ground truth, for messages.
        strict: follow the dialect's strict-only rules.
        strict_times: refuse detections that start before 0 s, which otherwise give a note.
        num_threads: 0 chooses.

    Raises:
        DataError: a video or a class of a detection is not in the ground truth, unless ``strict``
            and the dialect take such, a class is named by a number that the ground truth leaves in
            doubt, or (``strict_times``) a detection starts before 0 s.
    """
    videos, new_video = _videos(truth, detections, dialect, subset, strict)
    classes, class_ids, new_label = _classes(truth, detections, dialect, strict)
    durations = truth.durations
    if durations is not None:
        durations = np.concatenate([durations, np.full(len(videos) - len(durations), np.nan)])
    return Problem(
        truth=Segments(truth.video, truth.label, truth.start, truth.end),
        found=Segments(
            new_video[detections.video] if len(detections) else np.zeros(0, np.int64),
            new_label[detections.label] if len(detections) else np.zeros(0, np.int64),
            _contiguous(detections.start),
            _contiguous(detections.end),
        ),
        score=_contiguous(detections.score),
        num_videos=len(videos),
        classes=classes,
        dialect=dialect,
        strict=strict,
        num_threads=num_threads,
        videos=videos,
        durations=durations,
        class_ids=class_ids,
        listed=truth.listed,
        notes=(
            *_beyond(truth),
            *_unpredicted(truth, new_video, dialect),
            *_early(detections, strict_times),
            *_late(detections, new_video, durations),
        ),
        describe=detections.describe,
    )


def _videos(
    truth: GroundTruth, detections: Detections, dialect: Dialect, subset: str | None, strict: bool
) -> tuple[tuple[str, ...], Ints]:
    """Returns all videos, and the number of each one that ``detections`` has."""
    index = {name: i for i, name in enumerate(truth.videos)}
    if dialect.id_prefix and not strict:  # on both sides or one
        for name in detections.videos:
            short = name.removeprefix(dialect.id_prefix)
            if short != name and short in index:
                index.setdefault(name, index[short])
    more = [name for name in detections.videos if name not in index]
    if not (strict and dialect.unknown_videos_count):
        blocked = set(dialect.ignored_videos)
        _refuse_videos(
            [name for name in more if name not in blocked], truth, detections, index, subset
        )
    index.update((name, len(truth.videos) + n) for n, name in enumerate(more))
    return (*truth.videos, *more), np.array(
        [index[name] for name in detections.videos], dtype=np.int64
    )


def _refuse_videos(
    unknown: list[str],
    truth: GroundTruth,
    detections: Detections,
    known: dict[str, int],
    subset: str | None,
) -> None:
    strangers = [name for name in unknown if name not in truth.other_videos]
    if strangers:
        raise DataError(
            f"{detections.origin}: video {strangers[0]!r}{others(len(strangers))} is not in "
            f"{truth.origin}{nearest(strangers[0], known, numbered=True)}"
        )
    if unknown:
        counts = Counter(truth.other_videos[name] for name in unknown)
        of_which = listing([f"{count} of {where}" for where, count in counts.items()])
        chosen = f" subset {subset!r} of" if subset is not None else ""
        raise DataError(
            f"{detections.origin}: {len(unknown)} of "
            f"{counted(len(detections.videos), 'predicted video')} not in{chosen} {truth.origin}, "
            f"but {of_which}, the first is {unknown[0]!r}; {_score_these(counts)}leave these "
            "videos out of the predictions"
        )


def _score_these(places: Iterable[str]) -> str:
    """Returns how to score the videos of the one split or subset that was predicted."""
    named = [re.fullmatch(r"(split|subset) '(.*)'", place) for place in places]
    if len(named) != 1 or named[0] is None:
        return ""
    kind, name = named[0].groups()
    return f"score what was predicted with {argument(kind, name)}, or "


def _classes(
    truth: GroundTruth, detections: Detections, dialect: Dialect, strict: bool
) -> tuple[tuple[str, ...], tuple[int | None, ...], Ints]:
    """Returns all classes, their own numbers, and the index of each one that ``detections`` has."""
    classes, ids = truth.classes, truth.class_ids
    index: dict[str | int, int] = {name: i for i, name in enumerate(classes)}
    if not truth.no_numbers:
        index.update((class_id, i) for i, class_id in enumerate(ids) if class_id is not None)
    known = np.array([name in index for name in detections.classes], dtype=bool)
    used = ~known[detections.label] if len(detections) else np.zeros(0, dtype=bool)
    if used.any():
        _refuse_classes(used, truth, detections, lenient=strict and dialect.unknown_videos_count
                        and dialect.unknown_label != "error")  # fmt: skip
        # Each becomes a class of its own, without an instance.
        new = [name for name in detections.classes if name not in index]
        index.update((name, len(classes) + n) for n, name in enumerate(new))
        classes = (*classes, *map(str, new))
        ids = (*ids, *(name if isinstance(name, int) else None for name in new))
    # A class that no detection has may be unknown: nothing asks for its index.
    return (
        classes,
        ids,
        np.array([index.get(name, -1) for name in detections.classes], dtype=np.int64),
    )


def _refuse_classes(
    unknown: Mask, truth: GroundTruth, detections: Detections, *, lenient: bool
) -> None:
    """Refuses what is no class, and numbers where the ground truth does not say whose they are."""
    doubt = ""
    if truth.no_numbers:
        numbers = np.array([isinstance(name, int) for name in detections.classes], dtype=bool)
        if numbers[detections.label].any():
            unknown, doubt = numbers[detections.label], f": {truth.no_numbers}; expected names"
    if lenient and not doubt:
        return
    i = int(unknown.argmax())
    name = detections.classes[detections.label[i]]
    hint = nearest(name, truth.classes) if isinstance(name, str) else ""
    raise DataError(
        f"{detections.describe(i)}: label {name!r} is not among the "
        f"{counted(len(truth.classes), 'class')} of "
        f"{truth.origin}{doubt or hint}{others(int(np.count_nonzero(unknown)))}"
    )


def _beyond(truth: GroundTruth) -> tuple[Note, ...]:
    return (Note(truth.beyond, NoteKind.INPUT),) if truth.beyond else ()


def _unpredicted(truth: GroundTruth, predicted: Ints, dialect: Dialect) -> tuple[Note, ...]:
    """Returns a note about videos that the predictions do not even list: a part of them forgotten?

    A video with an empty list was looked at, and is no such one.

    Args:
        truth: the instances.
        predicted: number of each predicted video.
        dialect: says which videos are ignored.
    """
    scored = np.array([name not in dialect.ignored_videos for name in truth.videos], dtype=bool)
    absent = scored.copy()
    absent[predicted[predicted < len(absent)]] = False
    count = int(np.count_nonzero(absent))
    if count == 0:
        return ()
    names = [truth.videos[i] for i in np.flatnonzero(absent)]
    missed = int(np.count_nonzero(absent[truth.video]))
    counts = f", and their {counted(missed, 'instance', 'count')} as missed" if missed else ""
    text = (
        f"{count} of {counted(int(np.count_nonzero(scored)), 'video', 'are')} not in the "
        f"predictions{counts}: {shown_names(names)}"
    )
    return (Note(text, NoteKind.INPUT),)


def _early(detections: Detections, strict_times: bool) -> tuple[Note, ...]:
    """Returns a note about predictions that start before their video does."""
    early = detections.start < 0
    count = int(np.count_nonzero(early))
    if count == 0:
        return ()
    if strict_times:
        i = int(early.argmax())
        raise DataError(
            f"{detections.describe(i)}: expected a start >= 0 s, got {float(detections.start[i])}"
            f"{others(count)}"
        )
    text = (
        f"{count} of {counted(len(detections), 'prediction', 'start')} before 0 s, the earliest at "
        f"{float(detections.start.min()):g} s; they are scored as they are (strict_times refuses)"
    )
    return (Note(text, NoteKind.INPUT),)


def _late(detections: Detections, video: Ints, durations: Floats | None) -> tuple[Note, ...]:
    """Returns a note about predictions that start after their video has ended: other units?

    Args:
        detections: what was predicted.
        video: number of each predicted video among ``durations``.
        durations: in seconds, NaN where unknown; None where all are.
    """
    if durations is None or len(detections) == 0:
        return ()
    ends = durations[video[detections.video]]
    late = detections.start >= ends  # no NaN is
    count = int(np.count_nonzero(late))
    if count == 0:
        return ()
    i = int(late.argmax())
    text = (
        f"{count} of {counted(len(detections), 'prediction', 'start')} after the end of their "
        f"video, the first is {detections.describe(i)}: at {float(detections.start[i]):g} of "
        f"{float(ends[i]):g} s; times are in seconds"
    )
    return (Note(text, NoteKind.INPUT),)


def _contiguous(values: Floats) -> Floats:
    return np.ascontiguousarray(values, dtype=np.float64)
