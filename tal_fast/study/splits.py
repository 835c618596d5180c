# SPDX-License-Identifier: Apache-2.0
"""Which videos train and which test: the data's own split, or 80/20 by video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tal_fast.errors import ConfigError, DataError, argument, counted
from tal_fast.study.sampling import draw_names

__all__ = ["Split", "data_split", "random_split", "split_videos"]


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
                f"draw one with {argument('split', 'random')}"
            )
    train, test = set(splits["train"]), set(splits["test"])
    both = sorted(train & test)
    if both:
        raise DataError(
            f"split: {counted(len(both), 'video')} both train and test, the first is {both[0]!r}"
        )
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
    test = draw_names(sorted(names), count, "split", seed)
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
