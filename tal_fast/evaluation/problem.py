# SPDX-License-Identifier: Apache-2.0
"""What is evaluated, as arrays: the rules of a dialect change it, the native library counts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from tal_fast.errors import DataError
from tal_fast.evaluation.dialects import Dialect
from tal_fast.typing import Floats, Ints, Mask

if TYPE_CHECKING:
    from tal_fast import _C

__all__ = ["Note", "NoteKind", "Problem", "Segments", "numpy_order"]


class NoteKind(Enum):
    """What a note is about."""

    #: What a rule of the dialect left out.
    RULE = "rule"
    #: A mistake of the dialect that was put right and would have changed the outcome: a warning.
    MISTAKE = "mistake"
    #: Something odd in the input.
    INPUT = "input"


@dataclass(frozen=True)
class Note:
    """What a user should know about an evaluation.

    Attributes:
        text: one sentence.
        kind: what it is about.
    """

    text: str
    kind: NoteKind = NoteKind.RULE


@dataclass(frozen=True, eq=False)
class Segments:
    """Flat columns of segments; all [N], contiguous."""

    video: Ints
    label: Ints
    start: Floats
    end: Floats

    def __len__(self) -> int:
        return len(self.video)

    def keep(self, which: Any) -> Segments:
        """Returns the rows that a mask or an index array selects."""
        return Segments(
            *(
                np.ascontiguousarray(c[which])
                for c in (self.video, self.label, self.start, self.end)
            )
        )

    def native(self) -> _C.Segments:
        """Returns the columns for the native library, which does not copy them."""
        from tal_fast.ops import _C

        return _C.Segments(video=self.video, label=self.label, start=self.start, end=self.end)


def _no_segments() -> Segments:
    none = np.zeros(0, np.int64)
    return Segments(none, none, np.zeros(0), np.zeros(0))


def _number(i: int) -> str:
    return f"evaluate_arrays: detection {i}"


@dataclass(frozen=True, eq=False)
class Problem:
    """Instances, detections and the rules that hold for them.

    Whoever makes one has checked its values: labels are classes, times and scores are finite, no
    segment is reversed. Every rule (:mod:`tal_fast.evaluation.rules`) takes a problem and returns
    the one that is left.

    Attributes:
        truth: the instances, in the order of the file.
        found: the detections, in the order of the file.
        score: float64 [detections].
        num_videos: videos are numbered below it.
        classes: names.
        dialect: the rules.
        strict: follow its strict-only rules; else they are put right.
        num_threads: 0 chooses.
        videos: names of the videos; None where they have none.
        durations: float64 [num_videos] in seconds, NaN where unknown; None where all are.
        class_ids: numbers of the classes, which a dialect may confuse; None for a class without
            one. Default: 0, 1, ....
        listed: classes that the ground truth lists as such; None where it lists none.
        notes: what the rules changed, and what is odd in the input.
        regions: ambiguous regions; their labels mean nothing.
        absent_counted: bool [classes], those that enter the mean without an instance; None: none.
        found_index: int64 [detections], their positions in the input; None: all, in its order.
        describe: gives the name of detection i of the input, for messages.
    """

    truth: Segments
    found: Segments
    score: Floats
    num_videos: int
    classes: tuple[str, ...]
    dialect: Dialect
    strict: bool = False
    num_threads: int = 0
    videos: tuple[str, ...] | None = None
    durations: Floats | None = None
    class_ids: Sequence[int | None] | None = None
    listed: Sequence[str] | None = None
    notes: tuple[Note, ...] = ()
    regions: Segments = field(default_factory=_no_segments)
    absent_counted: Mask | None = None
    found_index: Ints | None = None
    describe: Callable[[int], str] = field(default=_number, repr=False)

    @property
    def present(self) -> Mask:
        """Which classes have an instance: bool [classes]."""
        present = np.zeros(len(self.classes), dtype=bool)
        present[self.truth.label] = True
        return present

    @property
    def counted(self) -> Mask:
        """Which classes enter the mean: bool [classes]."""
        return self.present if self.absent_counted is None else self.present | self.absent_counted

    def without_input(self) -> Problem:
        """Returns it without what only names records of the input and keeps all of that alive."""
        return replace(self, found_index=None, describe=_number)

    def native(
        self,
        thresholds: Sequence[float],
        *,
        order: Ints | None = None,
        single_segments: bool = False,
    ) -> _C.Evaluation:
        """Returns the native evaluation at some thresholds.

        Args:
            thresholds: tIoU.
            order: permutation by falling score; default: by class as the dialect says.
            single_segments: compute tIoU from float32 segments.

        Raises:
            DataError: naming array and index of a value that cannot be evaluated.
        """
        # Imported here: the native library needs torch loaded, and reading files does not.
        from tal_fast.ops import _C

        dialect = self.dialect
        if order is None and dialect.score_ties == "numpy":
            order = numpy_order(self.score, self.found.label, len(self.classes))
        problem = _C.Problem(
            truth=self.truth.native(),
            found=self.found.native(),
            score=self.score,
            regions=self.regions.native(),
            num_videos=self.num_videos,
            num_classes=len(self.classes),
            order=order,
            tie_order=_tie_order(dialect) if dialect.tiou_ties == "numpy" else None,
        )
        rules = _C.Rules(
            union_rule=getattr(_C.Union, dialect.union.name),
            single_tiou=dialect.single_tiou,
            single_segments=single_segments,
            instances_choose=dialect.instances_choose,
            strictly_above=dialect.strictly_above,
            interpolate=dialect.interpolate,
        )
        try:
            return _C.Evaluation(
                problem, rules, np.array(thresholds, dtype=np.float64), self.num_threads
            )
        except ValueError as error:
            raise DataError(f"evaluate: {error}") from error


def _tie_order(dialect: Dialect) -> Callable[[Floats], Ints]:
    """Returns what puts equal tIoUs in the order of ``argsort(...)[::-1]``."""
    dtype = np.float32 if dialect.single_tiou else np.float64
    return lambda overlaps: np.ascontiguousarray(np.argsort(overlaps.astype(dtype))[::-1])


def numpy_order(score: Floats, group: Ints, num_groups: int) -> Ints:
    """Returns the order by group and falling score that ``argsort(...)[::-1]`` per group gives."""
    by_group = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=num_groups))
    begin = 0
    for end in ends.tolist():
        if end - begin > 1:
            of_group = by_group[begin:end]
            by_group[begin:end] = of_group[np.argsort(score[of_group])[::-1]]
        begin = end
    return by_group
