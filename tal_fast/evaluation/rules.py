# SPDX-License-Identifier: Apache-2.0
"""The rules of a dialect that are applied before anything is matched, one function each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from tal_fast.errors import DataError, argument, counted, others
from tal_fast.evaluation.dialects import Dialect, Union
from tal_fast.evaluation.problem import Note, NoteKind, Problem, Segments, numpy_order
from tal_fast.typing import Ints, Mask

__all__ = ["apply_rules"]

Rule = Callable[[Problem], Problem]


def apply_rules(problem: Problem) -> Problem:
    """Returns what is left to match and count, with a note on everything that a rule changed.

    Raises:
        DataError: the dialect stops at a class without instances, and ``strict`` asks for that.
    """
    for rule in _in_order(problem.dialect):
        problem = rule(problem)
    return problem.without_input()


def _in_order(dialect: Dialect) -> Iterator[Rule]:
    yield _leave_out_ignored_videos
    yield _set_ambiguous_aside
    yield from (_drop_short, _drop_duplicates)[:: 1 if dialect.empty_before_duplicates else -1]
    yield _skip_videos_without_truth
    yield _keep_best_of_each_video
    yield _order_videos_by_name
    yield _UNKNOWN_LABELS[dialect.unknown_label]
    yield _count_absent_classes
    yield _guard_union


# ---- instances and videos -----------------------------------------------------------------------


def _leave_out_ignored_videos(problem: Problem) -> Problem:
    ignored = problem.dialect.ignored_videos
    if problem.videos is None or not ignored:
        return problem
    kept = np.array([name not in ignored for name in problem.videos], dtype=bool)
    why = "their videos are ignored"
    problem = _keep_truth(problem, kept[problem.truth.video], why)
    return _keep_found(problem, kept[problem.found.video], why)


def _set_ambiguous_aside(problem: Problem) -> Problem:
    label = problem.dialect.ambiguous_label
    if label is None or label not in problem.classes:
        return problem
    ambiguous = problem.truth.label == problem.classes.index(label)
    if problem.dialect.ambiguous_regions:
        problem = replace(problem, regions=problem.truth.keep(ambiguous))
    return _keep_truth(problem, ~ambiguous, f"labelled {label}")


def _drop_short(problem: Problem) -> Problem:
    length = problem.truth.end - problem.truth.start
    kept = length >= problem.dialect.min_length
    if problem.dialect.drop_empty:
        kept &= length > 0
    return _keep_truth(problem, kept, "shorter than the dialect allows")


def _drop_duplicates(problem: Problem) -> Problem:
    truth, tolerance = problem.truth, problem.dialect.duplicate_tolerance
    if tolerance is None or len(truth) < 2:
        return problem
    # Only instances whose neighbour by start is that close can have a duplicate.
    order = np.lexsort((truth.start, truth.label, truth.video))
    near = (
        (np.diff(truth.video[order]) == 0)
        & (np.diff(truth.label[order]) == 0)
        & (np.diff(truth.start[order]) <= 2 * tolerance)
    )
    suspects = np.zeros(len(truth), dtype=bool)
    suspects[order[1:]] |= near
    suspects[order[:-1]] |= near
    kept = np.ones(len(truth), dtype=bool)
    earlier: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for i in np.flatnonzero(suspects).tolist():
        start, end = float(truth.start[i]), float(truth.end[i])
        kept_before = earlier.setdefault((int(truth.video[i]), int(truth.label[i])), [])
        if any(abs(start - s) <= tolerance and abs(end - e) <= tolerance for s, e in kept_before):
            kept[i] = False
        else:
            kept_before.append((start, end))
    return _keep_truth(problem, kept, f"duplicates within {tolerance} s")


# ---- detections ---------------------------------------------------------------------------------


def _skip_videos_without_truth(problem: Problem) -> Problem:
    if not problem.dialect.skip_videos_without_truth:
        return problem
    has_truth = np.zeros(problem.num_videos, dtype=bool)
    has_truth[problem.truth.video] = True
    return _keep_found(problem, has_truth[problem.found.video], "their videos have no instance")


def _keep_best_of_each_video(problem: Problem) -> Problem:
    """Orders the detections by falling score, too; videos stay as their first detections lie."""
    most, video, score = problem.dialect.max_per_video, problem.found.video, problem.score
    if most is None or len(video) == 0:
        return problem
    if problem.dialect.score_ties == "numpy":
        order = numpy_order(score, video, problem.num_videos)
    else:
        order = np.lexsort((-score, video))
    sizes = np.bincount(video, minlength=problem.num_videos)
    begins = np.cumsum(sizes) - sizes
    rank = np.arange(len(order)) - begins[video[order]]
    order = order[rank < most]
    first = np.full(problem.num_videos, len(video))
    np.minimum.at(first, video, np.arange(len(video)))
    order = order[np.argsort(first[video[order]], kind="stable")]
    return _keep_found(problem, order, f"not among the best {most} of their video")


def _order_videos_by_name(problem: Problem) -> Problem:
    names = problem.videos
    if not problem.dialect.videos_by_name or names is None:
        return problem
    place = np.empty(problem.num_videos, dtype=np.int64)
    place[sorted(range(len(names)), key=lambda v: names[v])] = np.arange(problem.num_videos)
    return _keep_found(problem, np.argsort(place[problem.found.video], kind="stable"), "")


# ---- predicted classes without an instance ------------------------------------------------------


def _unknown_labels(problem: Problem) -> tuple[Mask, str]:
    """Returns which detections have a class without an instance, and that in words, if any."""
    unknown = ~problem.present[problem.found.label]
    count = int(np.count_nonzero(unknown))
    if count == 0:
        return unknown, ""
    name = problem.classes[problem.found.label[int(unknown.argmax())]]
    return (
        unknown,
        f"{counted(count, 'prediction', 'have')} a class without instances, the first is {name!r}",
    )


def _stop_at_unknown_labels(problem: Problem) -> Problem:
    unknown, what = _unknown_labels(problem)
    if not what:
        return problem
    name = problem.dialect.name
    if problem.strict:
        i = int(unknown.argmax())
        given = i if problem.found_index is None else int(problem.found_index[i])
        raise DataError(
            f"{problem.describe(given)}: class {problem.classes[problem.found.label[i]]!r} has no "
            f"instance; {name} stops here{others(int(np.count_nonzero(unknown)))}"
        )
    text = f"{what}; {name} stops there ({argument('strict', True)} follows)"
    return _noted(problem, Note(text, NoteKind.MISTAKE))


def _leave_out_unknown_labels(problem: Problem) -> Problem:
    unknown, _ = _unknown_labels(problem)
    return _keep_found(problem, ~unknown, "their class has no instance")


def _confuse_unknown_labels(problem: Problem) -> Problem:
    unknown, what = _unknown_labels(problem)
    if not what:
        return problem
    label, classes = problem.found.label, problem.classes
    other = _confused(problem)
    if not problem.strict:
        victim = other.get(int(label[int(unknown.argmax())]))
        becomes = "" if victim is None else f" (this one as {classes[victim]!r})"
        text = (
            f"{what}; {problem.dialect.name} counts them for other classes{becomes}, here they "
            f"count in no mean ({argument('strict', True)} follows)"
        )
        return _noted(problem, Note(text, NoteKind.MISTAKE))
    renamed = np.arange(len(classes), dtype=np.int64)
    renamed[list(other)] = list(other.values())
    found = replace(problem.found, label=renamed[label])
    return _noted(replace(problem, found=found), Note(f"{what}; they count for other classes"))


def _confused(problem: Problem) -> dict[int, int]:
    """Returns class without an instance -> the one that its number is taken for, if any."""
    present = problem.present
    numbers = range(len(problem.classes)) if problem.class_ids is None else problem.class_ids
    # Without a number there is nothing to confuse; a class with instances always has one.
    ids = [-1 if class_id is None else class_id for class_id in numbers]
    ranked = sorted(np.flatnonzero(present).tolist(), key=lambda c: ids[c])
    # Class number n becomes the n-th class that has instances.
    return {
        c: ranked[ids[c]] for c in np.flatnonzero(~present).tolist() if 0 <= ids[c] < len(ranked)
    }


def _keep_unknown_labels(problem: Problem) -> Problem:
    return problem  # they are classes of their own, which count in no mean


_UNKNOWN_LABELS: Mapping[str, Rule] = {
    "error": _stop_at_unknown_labels,
    "ignored": _leave_out_unknown_labels,
    "collides": _confuse_unknown_labels,
    "own": _keep_unknown_labels,
}


# ---- what counts --------------------------------------------------------------------------------


def _count_absent_classes(problem: Problem) -> Problem:
    if not problem.dialect.absent_class_counts:
        return problem
    # A list of classes need not hold the label of ambiguous instances; without a list that label is
    # a class like any.
    names = set(problem.classes if problem.listed is None else problem.listed)
    absent = ~problem.present & np.array([name in names for name in problem.classes], dtype=bool)
    if problem.strict:
        return replace(problem, absent_counted=absent)
    if not absent.any():
        return problem
    first = problem.classes[int(absent.argmax())]
    text = (
        f"class {first!r}{others(int(absent.sum()))} has no instance; {problem.dialect.name} "
        "counts it into the mean as 0, or NaN if it is predicted, here it is left out "
        f"({argument('strict', True)} follows)"
    )
    return _noted(problem, Note(text, NoteKind.MISTAKE))


def _guard_union(problem: Problem) -> Problem:
    if problem.strict or problem.dialect.union is not Union.UNGUARDED:
        return problem
    name = problem.dialect.name
    problem = replace(problem, dialect=replace(problem.dialect, union=Union.GUARDED))
    hits = _empty_pairs(problem.truth, problem.found)
    if not hits:
        return problem
    text = (
        f"{counted(hits, 'prediction')} of length zero share video and class with an instance of "
        "length zero; "
        f"{name} counts such a pair as a hit wherever they lie, here it is none "
        f"({argument('strict', True)} follows)"
    )
    return _noted(problem, Note(text, NoteKind.MISTAKE))


def _empty_pairs(truth: Segments, detections: Segments) -> int:
    """Number of zero-length detections whose video and class have a zero-length instance."""
    empty = truth.end == truth.start
    if not empty.any():
        return 0
    places = set(zip(truth.video[empty].tolist(), truth.label[empty].tolist(), strict=True))
    point = detections.end == detections.start
    return sum(
        place in places
        for place in zip(
            detections.video[point].tolist(), detections.label[point].tolist(), strict=True
        )
    )


# ---- what all of them do ------------------------------------------------------------------------


def _noted(problem: Problem, note: Note) -> Problem:
    return replace(problem, notes=(*problem.notes, note))


def _keep_truth(problem: Problem, kept: Mask, why: str) -> Problem:
    gone = len(kept) - int(np.count_nonzero(kept))
    if not gone:
        return problem
    problem = replace(problem, truth=problem.truth.keep(kept))
    return _noted(problem, Note(f"{gone} of {counted(len(kept), 'instance')} left out: {why}"))


def _keep_found(problem: Problem, kept: Mask | Ints, why: str) -> Problem:
    """Keeps those that a mask selects, or brings the detections into an order."""
    if kept.dtype == bool and kept.all():
        return problem
    before, index = len(problem.found), problem.found_index
    problem = replace(
        problem,
        found=problem.found.keep(kept),
        score=np.ascontiguousarray(problem.score[kept]),
        found_index=np.arange(before)[kept] if index is None else index[kept],
    )
    gone = before - len(problem.found)
    if not gone:
        return problem
    return _noted(problem, Note(f"{gone} of {counted(before, 'prediction')} left out: {why}"))
