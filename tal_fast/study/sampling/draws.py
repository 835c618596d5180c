# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1: which videos train, which test, and which part of the training videos a trial sees.

    D_train, D_test <- split(D, 0.2);  D_s <- sample(D_train, p)

Both choices order names by a hash (:mod:`tal_fast.study.sampling.hash_order`) and take the first
ones. A sample can therefore be recomputed from its trial's settings for as long as SHA-256 exists.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tal_fast.data.clips import ClipSet
from tal_fast.data.windows import windows_of
from tal_fast.errors import ConfigError, DataError, nearest
from tal_fast.study.sampling.hash_order import digest, hash_order
from tal_fast.study.sampling.shares import (
    fractions_of_videos,
    parse_fractions,
    parse_shares,
    rounded,
    sample_size,
)
from tal_fast.study.sampling.stratified import stratified_order
from tal_fast.study.sampling.window_draw import draw_windows, instances_of_windows

__all__ = [
    "SAMPLINGS",
    "Sample",
    "Split",
    "data_split",
    "draw_sample",
    "fractions_of_videos",
    "parse_fractions",
    "parse_samplings",
    "parse_shares",
    "random_split",
    "sample_size",
    "split_videos",
    "trial_seed",
]

#: The ways of drawing a sample; :func:`draw_sample` says what they are.
SAMPLINGS = (
    "video",
    "stratified",
    "window",
    "nested-video",
    "nested-stratified",
    "nested-window",
)


@dataclass(frozen=True)
class Split:
    """The videos that train and those that test.

    Attributes:
        train: names of the training videos, sorted.
        test: names of the test videos, sorted.
        kind: ``"data"`` for the data set's own split, ``"random"`` for the 80/20 draw.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Sample:
    """A drawn part of the training data and what it covers.

    Attributes:
        fraction: the share p that was asked for, in (0, 1].
        repetition: which draw of this share, counted from 0.
        videos: names of the drawn videos, or of those that drawn windows are of, sorted.
        instances: annotated instances in them, or those that are targets of a drawn window, each
            counted once.
        classes: names of the classes that occur among the instances, in the order of the class
            list.
        missing_classes: names of the classes that do not.
        sampling: how it was drawn, among :data:`SAMPLINGS`.
        windows: the drawn windows, as rising positions in the windows of all training videos; None
            unless windows were drawn.
    """

    fraction: float
    repetition: int
    videos: tuple[str, ...]
    instances: int
    classes: tuple[str, ...]
    missing_classes: tuple[str, ...]
    sampling: str = "video"
    windows: tuple[int, ...] | None = None


def _draw(names: Sequence[str], count: int, *key: object) -> tuple[str, ...]:
    return tuple(sorted(names[position] for position in hash_order(names, *key)[:count]))


def data_split(splits: Mapping[str, Sequence[str]]) -> Split:
    """Returns the data set's own split.

    Args:
        splits: ``{"train": [video, ...], "test": [video, ...]}``.

    Raises:
        DataError: one of the two is missing or empty, or they share a video.
    """
    for name in ("train", "test"):
        if not splits.get(name):
            raise DataError(
                f"split: the data set has no {name} videos in its own split; "
                "use the random split (--split random)"
            )
    train, test = set(splits["train"]), set(splits["test"])
    both = sorted(train & test)
    if both:
        raise DataError(f"split: {len(both)} videos both train and test, the first is {both[0]!r}")
    return Split(tuple(sorted(train)), tuple(sorted(test)), "data")


def random_split(videos: Sequence[str], *, seed: int, test_share: float = 0.2) -> Split:
    """Splits by video, ``split(D, 0.2)`` of Algorithm 1.

    Args:
        videos: names of all videos.
        seed: the study's seed.
        test_share: share of the videos that test, in (0, 1).

    Raises:
        ConfigError: ``test_share`` is not in (0, 1).
        DataError: fewer than two videos.
    """
    if not 0.0 < test_share < 1.0:
        raise ConfigError(f"split: expected test_share in (0, 1), got {test_share:g}")
    names = set(videos)
    if len(names) < 2:
        raise DataError(f"split: expected at least 2 videos, got {len(names)}")
    count = min(max(1, round(test_share * len(names))), len(names) - 1)
    test = _draw(sorted(names), count, "split", seed)
    return Split(tuple(sorted(names.difference(test))), test, "random")


def split_videos(dataset: Any, kind: str, seed: int) -> Split:
    """Returns the split of a study.

    Args:
        dataset: an opened data set.
        kind: ``"data"`` or ``"random"``.
        seed: the study's seed.

    Raises:
        ConfigError: ``kind`` is neither.
        DataError: the data set has no such split.
    """
    if kind == "data":
        return data_split(dataset.splits)
    if kind == "random":
        return random_split(list(dataset.annotations.videos), seed=seed)
    raise ConfigError(f"split: expected 'data' or 'random', got {kind!r}")


def parse_samplings(given: str | Sequence[str]) -> tuple[str, ...]:
    """Reads which ways of sampling a study compares.

    Args:
        given: ``"video,window"``, or a sequence of names, among :data:`SAMPLINGS`.

    Returns:
        The names in the order given.

    Raises:
        ConfigError: nothing is given, a name is unknown, or one is given twice.
    """
    items = given.split(",") if isinstance(given, str) else list(given)
    names = tuple(str(item).strip() for item in items)
    if not names:
        raise ConfigError("sampling: expected at least one, got none")
    for position, name in enumerate(names):
        _check_sampling(name)
        if name in names[:position]:
            raise ConfigError(f"sampling: expected each once, got {name!r} more than once")
    return names


def _check_sampling(name: str) -> None:
    if name not in SAMPLINGS:
        raise ConfigError(
            f"sampling: expected one of {', '.join(SAMPLINGS)}, got {name!r}"
            f"{nearest(name, SAMPLINGS)}"
        )


def _training_videos(train: Sequence[str], videos: Mapping[str, Any]) -> list[str]:
    names = sorted(train)
    if not names:
        raise DataError("sampling: expected at least one training video, got none")
    for before, name in itertools.pairwise(names):
        if before == name:
            raise DataError(f"sampling: training video {name!r} is given twice")
    for name in names:
        if name not in videos:
            raise DataError(
                f"sampling: no annotated video {name!r} among {len(videos)}{nearest(name, videos)}"
            )
    return names


def draw_sample(
    sampling: str,
    train: Sequence[str],
    videos: Mapping[str, Any],
    classes: Sequence[str],
    *,
    fraction: float,
    repetition: int,
    seed: int,
    clips: ClipSet | None = None,
) -> Sample:
    """Draws the part of the training data that a trial sees.

    The ways of sampling (:data:`SAMPLINGS`):

    - ``"video"``: ``max(1, round(p * N))`` of the N videos, uniformly without replacement,
      independently for every (seed, repetition, p).
    - ``"stratified"``: as many videos, so that they cover the classes as evenly as they can; the
      rule and its bias are those of :func:`~tal_fast.study.sampling.stratified.stratified_order`.
    - ``"window"``: ``max(1, round(p * W))`` of the W training windows, uniformly. A small share of
      the windows touches nearly every video and class, where the same share of the videos does not:
      curves over the two are not comparable.
    - ``"nested-video"``, ``"nested-stratified"``, ``"nested-window"``: the same, but one order per
      (seed, repetition) of which every p takes the first ones. A smaller sample is a part of every
      larger one of its repetition.

    Args:
        sampling: the way.
        train: names of the N training videos, in any order.
        videos: name -> video with ``labels``, an integer array over ``classes``.
        classes: all class names.
        fraction: the share p in (0, 1].
        repetition: which draw, counted from 0.
        seed: the study's seed.
        clips: the clips of all training videos, as for the training; needed to draw windows,
            ignored otherwise.

    Returns:
        The sample with what it covers. At p = 1 every repetition is the whole training set.

    Raises:
        ConfigError: ``sampling`` is unknown, ``fraction`` is not in (0, 1], or windows are to be
            drawn and the clips are not given or no windows.
        DataError: a training video is given twice or not annotated, there is none, or a window is
            of another video.
    """
    _check_sampling(sampling)
    share = rounded(fraction)
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"sampling: expected a fraction in (0, 1], got {fraction:g}")
    names = _training_videos(train, videos)
    # "sample" alone is what random videos have always been hashed with.
    purpose = "sample" if sampling == "video" else f"sample-{sampling}"
    nested = sampling.startswith("nested-")
    key = (purpose, seed, repetition) if nested else (purpose, seed, repetition, share)
    count = sample_size(share, len(names))
    positions = None
    if sampling.endswith("window"):
        if clips is None:
            raise ConfigError(f"sampling: {sampling!r} needs the windows of the training videos")
        windows = windows_of(clips)
        stray = set(windows.videos).difference(names)
        if stray:
            raise DataError(f"sampling: windows of {min(stray)!r}, which is no training video")
        positions = draw_windows(windows, sample_size(share, len(windows)), *key)
        labels = {
            name: videos[name].labels[sorted(rows)]
            for name, rows in instances_of_windows(windows, positions).items()
        }
    elif sampling.endswith("stratified"):
        mixed = [names[position] for position in hash_order(names, *key)]
        held = [set(videos[name].labels.tolist()) for name in mixed]
        drawn = [mixed[position] for position in stratified_order(held, count)]
        labels = {name: videos[name].labels for name in drawn}
    else:
        labels = {name: videos[name].labels for name in _draw(names, count, *key)}
    present = {label for some in labels.values() for label in some.tolist()}
    return Sample(
        fraction=share,
        repetition=repetition,
        videos=tuple(sorted(labels)),
        instances=sum(len(some) for some in labels.values()),
        classes=tuple(name for label, name in enumerate(classes) if label in present),
        missing_classes=tuple(name for label, name in enumerate(classes) if label not in present),
        sampling=sampling,
        windows=positions,
    )


def trial_seed(seed: int, repetition: int, fraction: float, training: int = 0) -> int:
    """Returns the training seed of a trial, in [0, 2**31).

    It depends on the study's seed, the draw and the number of the training on this draw, but not on
    sampling or budget: trials that differ in these alone start from the same weights.
    """
    further = (training,) if training else ()
    start = digest("train", seed, repetition, rounded(fraction), *further)[:4]
    return int.from_bytes(start, "big") >> 1
