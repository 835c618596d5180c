# SPDX-License-Identifier: Apache-2.0
"""Numbers in (0, 1] as the commands take them, such as the data fractions of a study."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from tal_fast.errors import ConfigError

__all__ = ["fractions_of_videos", "parse_fractions", "parse_shares", "rounded", "sample_size"]

# Fractions are compared and hashed after rounding to this many digits, so that 0.1 + 0.2 and 0.3
# name the same trial.
_DIGITS = 6
_MAX_NUMBERS = 1000


def rounded(fraction: float) -> float:
    """Returns a fraction as it is compared and hashed, to six digits."""
    return round(float(fraction), _DIGITS)


def sample_size(fraction: float, count: int) -> int:
    """Returns how many of ``count`` a fraction draws: ``max(1, round(p * N))``."""
    return max(1, round(rounded(fraction) * count))


def _number(what: str, word: str, whole: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise ConfigError(f"{what}: expected numbers, got {word!r} in {whole!r}") from None
    if not math.isfinite(value):
        raise ConfigError(f"{what}: expected finite numbers, got {word!r} in {whole!r}")
    return value


def _range(what: str, words: str) -> list[float]:
    parts = words.split(":")
    if len(parts) not in (2, 3):
        raise ConfigError(f"{what}: expected first:last or first:last:step, got {words!r}")
    first, last = _number(what, parts[0], words), _number(what, parts[1], words)
    step = _number(what, parts[2], words) if len(parts) == 3 else 0.1
    if step <= 0:
        raise ConfigError(f"{what}: expected a step above 0, got {parts[2]!r} in {words!r}")
    if last < first:
        raise ConfigError(f"{what}: expected first <= last, got {words!r}")
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
    kept = [rounded(value) for value in values]
    for value, share in zip(values, kept, strict=True):
        if not 0.0 < share <= 1.0:
            hint = f"; {value:g} % is {value / 100:g}" if 1.0 < value <= 100.0 else ""
            raise ConfigError(f"{what}: expected values in (0, 1], got {value:g}{hint}")
    if len(set(kept)) != len(kept):
        twice = sorted({share for share in kept if kept.count(share) > 1})
        raise ConfigError(f"{what}: expected each once, got {twice[0]:g} more than once")
    return tuple(sorted(kept))


def parse_fractions(given: str | float | Sequence[float]) -> tuple[float, ...]:
    """Reads the data fractions of a study; see :func:`parse_shares`."""
    return parse_shares("fractions", given)


def _whole(item: object, given: object) -> int:
    try:
        return int(str(item))  # by its text, so that 2.5 is an error and not 2
    except ValueError:
        raise ConfigError(
            f"numbers of videos: expected whole numbers, got {str(item)!r} in {given!r}"
        ) from None


def fractions_of_videos(counts: str | Sequence[int], total: int) -> tuple[float, ...]:
    """Turns numbers of videos into the fractions of which :func:`sample_size` makes them again.

    Args:
        counts: ``"5,10,20"``, or a sequence of whole numbers.
        total: how many videos there are to draw from.

    Returns:
        The fractions in rising order.

    Raises:
        ConfigError: nothing is given, a number is not whole, is below 1 or above ``total``, or is
            given twice, or there are too many videos for a fraction of six digits to tell.
    """
    items: Sequence[object] = counts.split(",") if isinstance(counts, str) else list(counts)
    numbers = sorted(_whole(item, counts) for item in items)
    if not numbers:
        raise ConfigError("numbers of videos: expected at least one, got none")
    for videos in (numbers[0], numbers[-1]):
        if not 1 <= videos <= total:
            raise ConfigError(
                f"numbers of videos: expected 1 to {total}, the training videos, got {videos}"
            )
    for before, videos in itertools.pairwise(numbers):
        if before == videos:
            raise ConfigError(f"numbers of videos: expected each once, got {videos} twice")
    fractions = tuple(rounded(videos / total) for videos in numbers)
    for videos, fraction in zip(numbers, fractions, strict=True):
        if not fraction or sample_size(fraction, total) != videos:
            raise ConfigError(
                f"numbers of videos: {videos} of {total} is no fraction of six digits; "
                "give fractions instead"
            )
    return fractions
