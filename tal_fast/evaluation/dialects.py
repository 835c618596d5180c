# SPDX-License-Identifier: Apache-2.0
"""The rules of the evaluator, as values.

Evaluators of other codebases differ in small rules that move mAP by up to several points. Each set
of rules is one :class:`Dialect` in :data:`DIALECTS`; the code asks a dialect's flags and never its
name. ``docs/dialects.md`` shows what each rule does to a number.

Some of those rules are plainly mistakes: a prediction of a class without ground truth counts as one
of *another* class, a class without ground truth makes the mean NaN, two zero-length segments match.
They are the fields marked "strict only": applied with ``strict=True``, put right and reported
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType

from tal_fast.errors import ConfigError, nearest

__all__ = ["DIALECTS", "TAL_FAST", "Dialect", "EvaluationWarning", "Union", "find_dialect"]


class EvaluationWarning(UserWarning):
    """A rule of the chosen dialect changes the outcome, or would if it were followed strictly."""


class Union(Enum):
    """What becomes of a union of length zero; the names of ``csrc/evaluation/problem.h``."""

    GUARDED = "guarded"
    UNGUARDED = "unguarded"
    CLAMPED = "clamped"


@dataclass(frozen=True)
class Dialect:
    """One set of evaluation rules.

    To change one rule, replace it: ``dataclasses.replace(DIALECTS["tal_fast"],
    duplicate_tolerance=1e-3)`` is a dialect too.

    Attributes:
        name: how a result names the rules it was computed with.
        duplicate_tolerance: an instance is dropped when an earlier kept one of its video and class
            starts and ends within this many seconds of it; None keeps duplicates.
        min_length: shorter instances are dropped.
        drop_empty: instances of length zero are dropped.
        empty_before_duplicates: short and empty instances go before duplicates are looked for, not
            after.
        subset_match: ``equal`` names; ``lower``: the file's name in lower case equals the one asked
            for; ``within``: the file's name is a part of the one asked for.
        ignored_videos: left out of ground truth and predictions.
        ambiguous_label: instances of this label belong to no class. None: it is a class like any.
        ambiguous_regions: a detection over such an instance that hits nothing is removed; else
            such instances are just dropped.
        bare_database: the ground truth may be a mapping of videos without ``database`` around it.
        id_prefix: removed from the front of the ground truth's video names, and of a prediction's
            if it is found so; strict only: its *length* is removed from any name of the ground
            truth, and from no other.
        unknown_label: a predicted class without an instance to evaluate is an ``error``, an
            ``own`` class that counts in no mean, is ``ignored``, or (strict only) ``collides``:
            class number n becomes the n-th class that has instances, if there is one.
        absent_class_counts: strict only: a class of the database without instances enters the mean,
            with NaN if it has predictions and 0 if not.
        skip_videos_without_truth: predictions in a video without an instance are skipped, not
            false positives.
        max_per_video: number of a video's best predictions that count.
        union: what the tIoU of two zero-length segments is; ``UNGUARDED``, which makes it a hit, is
            strict only.
        single_tiou: tIoU is rounded to float32.
        instances_choose: instances choose among detections (THUMOS'14), not the other way round.
        strictly_above: a tIoU must exceed the threshold, not only reach it.
        interpolate: AP is the area under the precision envelope; else the mean precision at the
            instances.
        videos_by_name: of equal scores in different videos the one whose video's name sorts first
            counts first; else the order of the file holds.
        score_ties: which of equal scores comes first: ``stable``: the first of the input;
            ``numpy``: as ``numpy.argsort(...)[::-1]`` has it on this machine.
        tiou_ties: likewise, which of two instances with equal tIoU is tried first.
        unknown_videos_count: strict only: predictions for videos that the ground truth does not
            have are taken like those of a video without instances, instead of being an error.
    """

    name: str
    duplicate_tolerance: float | None = None
    min_length: float = 0.0
    drop_empty: bool = False
    empty_before_duplicates: bool = True
    subset_match: str = "equal"
    ignored_videos: tuple[str, ...] = ()
    ambiguous_label: str | None = None
    ambiguous_regions: bool = False
    bare_database: bool = False
    id_prefix: str = ""
    unknown_label: str = "own"
    absent_class_counts: bool = False
    skip_videos_without_truth: bool = False
    max_per_video: int | None = None
    union: Union = Union.GUARDED
    single_tiou: bool = False
    instances_choose: bool = False
    strictly_above: bool = False
    interpolate: bool = True
    videos_by_name: bool = False
    score_ties: str = "stable"
    tiou_ties: str = "stable"
    unknown_videos_count: bool = True


#: ActivityNet's rules with stable ties and a guarded union.
TAL_FAST = Dialect(name="tal_fast", unknown_videos_count=False)

_ACTIVITYNET = Dialect(
    name="activitynet",
    unknown_label="error",
    union=Union.UNGUARDED,
    score_ties="numpy",
    tiou_ties="numpy",
)

#: By name.
DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (
            TAL_FAST,
            _ACTIVITYNET,
            replace(
                _ACTIVITYNET,
                name="actionformer",
                duplicate_tolerance=1e-3,
                min_length=1e-3,
                subset_match="lower",
                unknown_label="collides",
            ),
            replace(
                _ACTIVITYNET,
                name="tridet",
                duplicate_tolerance=1e-3,
                drop_empty=True,
                empty_before_duplicates=False,
                subset_match="lower",
                unknown_label="collides",
            ),
            replace(
                _ACTIVITYNET,
                name="opentad",
                duplicate_tolerance=1e-3,
                drop_empty=True,
                unknown_label="ignored",
                union=Union.CLAMPED,
            ),
            replace(
                _ACTIVITYNET,
                name="mmaction2",
                bare_database=True,
                id_prefix="v_",
                single_tiou=True,
                score_ties="stable",
            ),
            replace(
                _ACTIVITYNET,
                name="tadtr",
                subset_match="within",
                ignored_videos=(
                    "video_test_0000270",
                    "video_test_0001292",
                    "video_test_0001496",
                ),
                ambiguous_label="Ambiguous",
                unknown_label="own",
                absent_class_counts=True,
                skip_videos_without_truth=True,
                max_per_video=200,
            ),
            replace(_ACTIVITYNET, name="epic", unknown_label="ignored"),
            Dialect(
                name="thumos",
                ambiguous_label="Ambiguous",
                ambiguous_regions=True,
                unknown_label="own",
                instances_choose=True,
                strictly_above=True,
                interpolate=False,
                videos_by_name=True,
            ),
        )
    }
)


def find_dialect(dialect: str | Dialect) -> Dialect:
    """Returns a dialect by name, or the one that was given.

    Raises:
        ConfigError: there is none of that name.
    """
    if isinstance(dialect, Dialect):
        return dialect
    if dialect not in DIALECTS:
        raise ConfigError(
            f"evaluate: expected a dialect among {', '.join(DIALECTS)}, got {dialect!r}"
            f"{nearest(dialect, DIALECTS)}"
        )
    return DIALECTS[dialect]
