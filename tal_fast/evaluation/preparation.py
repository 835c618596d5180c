# SPDX-License-Identifier: Apache-2.0
"""From arrays and a dialect to the arrays that the native evaluator counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tal_fast.errors import DataError
from tal_fast.evaluation.dialects import Dialect, EvaluationWarning, Union
from tal_fast.evaluation.prepared import Note, Prepared, Segments, numpy_order
from tal_fast.evaluation.records import others

__all__ = ["prepare"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def prepare(
    truth: Segments,
    found: Segments,
    score: Floats,
    *,
    num_videos: int,
    videos: tuple[str, ...] | None,
    classes: tuple[str, ...],
    class_ids: Sequence[int | None] | None,
    listed: Sequence[str] | None,
    durations: Floats | None,
    dialect: Dialect,
    strict: bool,
    num_threads: int,
    describe: Callable[[int], str],
    notes: Sequence[Note] = (),
) -> Prepared:
    """Applies the dialect's rules to arrays that have passed all checks.

    Args:
        truth: instances, in the order of the file.
        found: detections, in the order of the file.
        score: float64 [detections].
        num_videos: number of videos.
        videos: their names; None where they have none.
        classes: class names.
        class_ids: numbers that a dialect may confuse, None for a class without one; default 0, 1,
            ....
        listed: classes that the ground truth lists as such; None where it lists none.
        durations: of the videos; None where unknown.
        dialect: the rules.
        strict: follow its strict-only rules.
        num_threads: 0 chooses.
        describe: gives the name of detection i, for messages.
        notes: those that the input gave rise to.

    Raises:
        DataError: the dialect stops at a class without instances, and strict asks for that.
    """
    _check_values(truth, found, score, len(classes))
    notes = list(notes)
    truth_index = np.arange(len(truth), dtype=np.int64)
    found_index = np.arange(len(found), dtype=np.int64)
    regions = truth.keep(slice(0, 0))

    def narrow_truth(kept: Mask, why: str) -> None:
        nonlocal truth, truth_index
        gone = len(kept) - int(np.count_nonzero(kept))
        if gone:
            truth, truth_index = truth.keep(kept), truth_index[kept]
            notes.append(Note(f"{gone} of {len(kept)} instances left out: {why}"))

    def narrow_found(kept: Mask | Ints, why: str) -> None:
        nonlocal found, found_index, score
        before = len(found)
        found, found_index = found.keep(kept), found_index[kept]
        score = np.ascontiguousarray(score[kept])
        if len(found) < before:
            gone = before - len(found)
            notes.append(Note(f"{gone} of {before} predictions left out: {why}"))

    if videos is not None and dialect.ignored_videos:
        out = np.array([name in dialect.ignored_videos for name in videos], dtype=bool)
        if out.any():
            narrow_truth(~out[truth.video], "their videos are ignored")
            narrow_found(~out[found.video], "their videos are ignored")
    if dialect.ambiguous_label in classes:
        ambiguous = truth.label == classes.index(dialect.ambiguous_label or "")
        if dialect.ambiguous_regions:
            regions = truth.keep(ambiguous)
        narrow_truth(~ambiguous, f"labelled {dialect.ambiguous_label}")
    for step in (_lengths, _duplicates)[:: 1 if dialect.empty_before_duplicates else -1]:
        narrow_truth(*step(truth, dialect))

    if dialect.skip_videos_without_truth:
        has_truth = np.zeros(num_videos, dtype=bool)
        has_truth[truth.video] = True
        narrow_found(has_truth[found.video], "their videos have no instance")
    if dialect.max_per_video is not None and len(found):
        narrow_found(
            _best_per_video(found.video, score, num_videos, dialect),
            f"not among the best {dialect.max_per_video} of their video",
        )
    if dialect.videos_by_name and videos is not None:
        place = np.empty(num_videos, dtype=np.int64)
        place[sorted(range(len(videos)), key=lambda v: videos[v])] = np.arange(num_videos)
        narrow_found(np.argsort(place[found.video], kind="stable"), "")

    present = np.zeros(len(classes), dtype=bool)
    present[truth.label] = True
    kept, label, found_notes = _unknown_labels(
        found, present, classes, class_ids, dialect, strict, lambda i: describe(int(found_index[i]))
    )
    notes += found_notes
    if label is not None:
        found = replace(found, label=label)
    if kept is not None:
        narrow_found(kept, "their class has no instance")

    counted = present.copy()
    if dialect.absent_class_counts:
        # A list of classes need not hold the label of ambiguous instances; without a list that
        # label is a class like any.
        names = set(classes if listed is None else listed)
        absent = ~present & np.array([name in names for name in classes], dtype=bool)
        if strict:
            counted |= absent
        elif absent.any():
            first = classes[int(absent.argmax())]
            text = (
                f"class {first!r}{others(int(absent.sum()))} has no instance; {dialect.name} "
                "counts it into the mean as 0, or NaN if it is predicted, here it is left out "
                "(strict=True follows)"
            )
            notes.append(Note(text, "mistake"))
    rules = dialect
    if dialect.union is Union.UNGUARDED and not strict:
        rules = replace(dialect, union=Union.GUARDED)
        hits = _empty_pairs(truth, found)
        if hits:
            text = (
                f"{hits} predictions of length zero share video and class with an instance of "
                f"length zero; {dialect.name} counts such a pair as a hit wherever they lie, here "
                "it is none (strict=True follows)"
            )
            notes.append(Note(text, "mistake"))
    for note in notes:
        if note.kind == "mistake":
            warnings.warn(f"evaluate: {note.text}", EvaluationWarning, stacklevel=4)
    return Prepared(
        truth=truth,
        found=found,
        score=score,
        regions=regions,
        truth_index=truth_index,
        found_index=found_index,
        num_videos=num_videos,
        videos=videos,
        durations=durations,
        classes=classes,
        counted=counted,
        dialect=rules,
        notes=tuple(notes),
        num_threads=num_threads,
    )


def _check_values(truth: Segments, found: Segments, score: Floats, limit: int) -> None:
    """Checks what the rules look at, in the input's own numbering."""
    for name, rows in (("ground truth", truth), ("detection", found)):
        bad = (rows.label < 0) | (rows.label >= limit)
        if bad.any():
            i = int(bad.argmax())
            raise DataError(
                f"evaluate: {name} {i}: expected a label in [0, {limit}), got {rows.label[i]}"
            )
        finite = np.isfinite(rows.start) & np.isfinite(rows.end)
        bad = ~(finite & (rows.end >= rows.start))
        if bad.any():
            i = int(bad.argmax())
            what = "end >= start" if finite[i] else "finite times"
            raise DataError(
                f"evaluate: {name} {i}: expected {what}, got "
                f"[{float(rows.start[i])}, {float(rows.end[i])}]"
            )
    if not np.isfinite(score).all():
        i = int((~np.isfinite(score)).argmax())
        raise DataError(f"evaluate: detection {i}: expected a finite score, got {score[i]}")


def _lengths(truth: Segments, dialect: Dialect) -> tuple[Mask, str]:
    length = truth.end - truth.start
    kept = length >= dialect.min_length
    if dialect.drop_empty:
        kept &= length > 0
    return kept, "shorter than the dialect allows"


def _duplicates(truth: Segments, dialect: Dialect) -> tuple[Mask, str]:
    kept = np.ones(len(truth), dtype=bool)
    tolerance = dialect.duplicate_tolerance
    why = f"duplicates within {tolerance} s"
    if tolerance is None or len(truth) < 2:
        return kept, why
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
    earlier: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for i in np.flatnonzero(suspects).tolist():
        start, end = float(truth.start[i]), float(truth.end[i])
        own = earlier.setdefault((int(truth.video[i]), int(truth.label[i])), [])
        if any(abs(start - s) <= tolerance and abs(end - e) <= tolerance for s, e in own):
            kept[i] = False
        else:
            own.append((start, end))
    return kept, why


def _best_per_video(video: Ints, score: Floats, num_videos: int, dialect: Dialect) -> Ints:
    """Returns the detections to keep: of each video the best, by falling score.

    The videos keep the order of their first detection.
    """
    if dialect.score_ties == "numpy":
        order = numpy_order(score, video, num_videos)
    else:
        order = np.lexsort((-score, video))
    sizes = np.bincount(video, minlength=num_videos)
    begins = np.cumsum(sizes) - sizes
    rank = np.arange(len(order)) - begins[video[order]]
    order = order[rank < (dialect.max_per_video or 0)]
    first = np.full(num_videos, len(video))
    np.minimum.at(first, video, np.arange(len(video)))
    return order[np.argsort(first[video[order]], kind="stable")]


def _unknown_labels(
    found: Segments,
    present: Mask,
    classes: tuple[str, ...],
    class_ids: Sequence[int | None] | None,
    dialect: Dialect,
    strict: bool,
    describe: Callable[[int], str],
) -> tuple[Mask | None, Ints | None, list[Note]]:
    """Returns (detections to keep, new labels, notes) for classes without an instance."""
    unknown = ~present[found.label]
    count = int(np.count_nonzero(unknown))
    if count == 0:
        return None, None, []
    i = int(unknown.argmax())
    name = classes[found.label[i]]
    what = f"{count} predictions have a class without instances, the first is {name!r}"
    if dialect.unknown_label == "error":
        if strict:
            raise DataError(
                f"{describe(i)}: class {name!r} has no instance; {dialect.name} stops here"
                f"{others(count)}"
            )
        text = f"{what}; {dialect.name} stops there (strict=True follows)"
        return None, None, [Note(text, "mistake")]
    if dialect.unknown_label == "ignored":
        return ~unknown, None, []
    if dialect.unknown_label == "collides":
        numbers = range(len(classes)) if class_ids is None else class_ids
        # Without a number there is nothing to confuse; a class with instances always has one.
        ids = [-1 if number is None else number for number in numbers]
        ranked = sorted(np.flatnonzero(present).tolist(), key=lambda c: ids[c])
        # Class number n becomes the n-th class that has instances.
        other = {
            c: ranked[ids[c]]
            for c in np.flatnonzero(~present).tolist()
            if 0 <= ids[c] < len(ranked)
        }
        if not strict:
            victim = other.get(int(found.label[i]))
            becomes = "" if victim is None else f" (this one as {classes[victim]!r})"
            text = (
                f"{what}; {dialect.name} counts them for other classes{becomes}, here they count "
                "in no mean (strict=True follows)"
            )
            return None, None, [Note(text, "mistake")]
        renamed = np.arange(len(classes), dtype=np.int64)
        for c, becomes_class in other.items():
            renamed[c] = becomes_class
        return None, renamed[found.label], [Note(f"{what}; they count for other classes")]
    return None, None, []


def _empty_pairs(truth: Segments, found: Segments) -> int:
    """Number of zero-length detections whose video and class have a zero-length instance."""
    empty = truth.end == truth.start
    if not empty.any():
        return 0
    places = set(zip(truth.video[empty].tolist(), truth.label[empty].tolist(), strict=True))
    point = found.end == found.start
    return sum(
        place in places
        for place in zip(found.video[point].tolist(), found.label[point].tolist(), strict=True)
    )
