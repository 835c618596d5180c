# SPDX-License-Identifier: Apache-2.0
"""The arrays that are evaluated, and the native evaluation of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tal_fast.errors import DataError
from tal_fast.evaluation.dialects import Dialect

if TYPE_CHECKING:
    from tal_fast._C import Evaluation

__all__ = ["Note", "Prepared", "Segments", "numpy_order"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Note(NamedTuple):
    """What a user should know about an evaluation.

    Attributes:
        text: one sentence.
        kind: ``"rule"``: what a rule of the dialect left out; ``"mistake"``: a mistake of the
            dialect that was put right and would have changed the outcome, worth a warning;
            ``"input"``: something odd in the input.
    """

    text: str
    kind: Literal["rule", "mistake", "input"] = "rule"


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


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is evaluated, after the rules of the dialect.

    Attributes:
        truth: the instances that count.
        found: the detections that count.
        score: float64 [detections].
        regions: ambiguous regions; their labels mean nothing.
        truth_index: int64 [instances], position in the ground truth as given.
        found_index: int64 [detections], position in the predictions as given.
        num_videos: videos are numbered below it.
        videos: their names, where they have some.
        durations: float64 [num_videos] in seconds, NaN where unknown; None where all are.
        classes: names.
        counted: bool [classes], which of them enter the mean.
        dialect: the rules; with strict-only rules put right unless they were asked for.
        notes: what these rules changed, and what is odd in the input.
        num_threads: 0 chooses.
    """

    truth: Segments
    found: Segments
    score: Floats
    regions: Segments
    truth_index: Ints
    found_index: Ints
    num_videos: int
    videos: tuple[str, ...] | None
    durations: Floats | None
    classes: tuple[str, ...]
    counted: Mask
    dialect: Dialect
    notes: tuple[Note, ...]
    num_threads: int

    def native(
        self,
        thresholds: Sequence[float],
        *,
        order: Ints | None = None,
        single_segments: bool = False,
    ) -> Evaluation:
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

        rules = self.dialect
        if order is None and rules.score_ties == "numpy":
            order = numpy_order(self.score, self.found.label, len(self.classes))
        tie_order: Callable[[Floats], Ints] | None = None
        if rules.tiou_ties == "numpy":
            dtype = np.float32 if rules.single_tiou else np.float64

            def tie_order(overlaps: Floats) -> Ints:
                return np.ascontiguousarray(np.argsort(overlaps.astype(dtype))[::-1])

        try:
            return _C.Evaluation(
                self.truth.video,
                self.truth.label,
                self.truth.start,
                self.truth.end,
                self.found.video,
                self.found.label,
                self.found.start,
                self.found.end,
                self.score,
                self.regions.video,
                self.regions.start,
                self.regions.end,
                self.num_videos,
                len(self.classes),
                np.array(thresholds, dtype=np.float64),
                int(rules.union),
                rules.single_tiou,
                single_segments,
                rules.instances_choose,
                rules.strictly_above,
                rules.interpolate,
                order,
                tie_order,
                self.num_threads,
            )
        except ValueError as error:
            raise DataError(f"evaluate: {error}") from error


def numpy_order(score: Floats, group: Ints, num_groups: int) -> Ints:
    """Returns the order by group and falling score that ``argsort(...)[::-1]`` per group gives."""
    by_group = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=num_groups))
    begin = 0
    for end in ends.tolist():
        if end - begin > 1:
            own = by_group[begin:end]
            by_group[begin:end] = own[np.argsort(score[own])[::-1]]
        begin = end
    return by_group
