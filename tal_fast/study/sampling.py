# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1: which videos train, which test, and which part of the training videos a trial sees.

    D_train, D_test <- split(D, 0.2);  D_s <- sample(D_train, p)

Both choices order the videos by a hash of (purpose, seed, ..., video name) and take the first ones.
That is a uniform draw without replacement which depends on nothing else: not on the order of a
dictionary, not on the version of a random generator, not on the machine. A sample can therefore be
recomputed from its trial's settings for as long as SHA-256 exists.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tal_fast.errors import ConfigError, DataError

__all__ = [
    "Sample",
    "Split",
    "data_split",
    "parse_fractions",
    "parse_shares",
    "random_split",
    "sample_size",
    "sample_videos",
    "trial_seed",
]

# Fractions are compared and hashed after rounding to this many digits, so that 0.1 + 0.2 and 0.3
# name the same trial.
_DIGITS = 6
_MAX_NUMBERS = 1000


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
    """A drawn part of the training videos and what it covers.

    Attributes:
        fraction: the share p that was asked for, in (0, 1].
        repetition: which draw of this share, counted from 0.
        videos: names of the drawn videos, sorted.
        instances: annotated instances in them.
        classes: names of the classes that occur in them, in the order of the class list.
        missing_classes: names of the classes that do not.
    """

    fraction: float
    repetition: int
    videos: tuple[str, ...]
    instances: int
    classes: tuple[str, ...]
    missing_classes: tuple[str, ...]


def _hash(*parts: object) -> bytes:
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()


def _draw(videos: Iterable[str], count: int, *key: object) -> tuple[str, ...]:
    return tuple(sorted(sorted(videos, key=lambda video: _hash(*key, video))[:count]))


def _number(what: str, text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{what}: expected numbers, got {text!r} in {whole!r}") from None
    if not math.isfinite(value):
        raise ConfigError(f"{what}: expected finite numbers, got {text!r} in {whole!r}")
    return value


def _range(what: str, text: str) -> list[float]:
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise ConfigError(f"{what}: expected first:last or first:last:step, got {text!r}")
    first, last = _number(what, parts[0], text), _number(what, parts[1], text)
    step = _number(what, parts[2], text) if len(parts) == 3 else 0.1
    if step <= 0:
        raise ConfigError(f"{what}: expected a step above 0, got {parts[2]!r} in {text!r}")
    if last < first:
        raise ConfigError(f"{what}: expected first <= last, got {text!r}")
    # The small allowance keeps `last` although 0.1 has no exact binary form.
    count = math.floor((last - first) / step + 1e-6) + 1
    if count > _MAX_NUMBERS:
        raise ConfigError(f"{what}: expected at most {_MAX_NUMBERS} numbers, got {count}")
    return [first + index * step for index in range(count)]


def parse_shares(what: str, given: str | float | Sequence[float]) -> tuple[float, ...]:
    """Reads numbers in (0, 1], such as data fractions or tIoU thresholds.

    Args:
        what: what they are, for the errors.
        given: ``"0.1:1.0:0.1"`` (first:last:step, last included; the step is 0.1 when left out),
            ``"0.1,0.5,1"``, a mix of both separated by commas, a number, or a sequence of numbers.

    Returns:
        The numbers in rising order, each rounded to six digits.

    Raises:
        ConfigError: nothing is given, a part is not a number, a number is not in (0, 1], or one is
            given twice.
    """
    if isinstance(given, str):
        values: list[float] = []
        for part in given.split(","):
            if not part.strip():
                raise ConfigError(f"{what}: expected numbers between the commas, got {given!r}")
            values.extend(_range(what, part) if ":" in part else [_number(what, part, given)])
    else:
        items = list(given) if isinstance(given, Sequence) else [given]
        values = [_number(what, str(item), str(given)) for item in items]
    if not values:
        raise ConfigError(f"{what}: expected at least one, got none")
    rounded = [round(value, _DIGITS) for value in values]
    for value, kept in zip(values, rounded, strict=True):
        if not 0.0 < kept <= 1.0:
            raise ConfigError(f"{what}: expected values in (0, 1], got {value:g}")
    if len(set(rounded)) != len(rounded):
        twice = sorted({value for value in rounded if rounded.count(value) > 1})
        raise ConfigError(f"{what}: expected each once, got {twice[0]:g} more than once")
    return tuple(sorted(rounded))


def parse_fractions(given: str | float | Sequence[float]) -> tuple[float, ...]:
    """Reads the data fractions of a study; see :func:`parse_shares`."""
    return parse_shares("fractions", given)


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
    test = _draw(names, count, "split", seed)
    return Split(tuple(sorted(names.difference(test))), test, "random")


def sample_size(fraction: float, videos: int) -> int:
    """Returns how many of ``videos`` a fraction draws: ``max(1, round(p * N))``."""
    return max(1, round(round(fraction, _DIGITS) * videos))


def sample_videos(
    train: Sequence[str],
    videos: Mapping[str, Any],
    classes: Sequence[str],
    *,
    fraction: float,
    repetition: int,
    seed: int,
) -> Sample:
    """Draws ``max(1, round(p * N))`` training videos uniformly without replacement.

    Args:
        train: names of the N training videos, in any order.
        videos: name -> video with ``labels``, an integer array over ``classes``.
        classes: all class names.
        fraction: the share p in (0, 1].
        repetition: which draw, counted from 0.
        seed: the study's seed; (seed, repetition, p) decide the draw.

    Returns:
        The sample with what it covers. At p = 1 every repetition is the whole training set.
    """
    fraction = round(fraction, _DIGITS)
    drawn = _draw(train, sample_size(fraction, len(train)), "sample", seed, repetition, fraction)
    present: set[int] = set()
    instances = 0
    for name in drawn:
        labels = [int(label) for label in videos[name].labels]
        present.update(labels)
        instances += len(labels)
    covered = tuple(name for index, name in enumerate(classes) if index in present)
    missing = tuple(name for index, name in enumerate(classes) if index not in present)
    return Sample(fraction, repetition, drawn, instances, covered, missing)


def trial_seed(seed: int, repetition: int, fraction: float) -> int:
    """Returns the training seed of a trial, in [0, 2**31), from (study seed, repetition, p)."""
    digest = _hash("train", seed, repetition, round(fraction, _DIGITS))
    return int.from_bytes(digest[:4], "big") >> 1
