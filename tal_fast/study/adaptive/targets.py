# SPDX-License-Identifier: Apache-2.0
"""What an adaptive study is to find out, and how it is said on the command line."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from tal_fast.curves.points import note_on_difference
from tal_fast.errors import ConfigError

__all__ = ["GRAMMAR", "AdaptiveRequest", "Gain", "Level", "Rank", "Target", "parse_target"]

GRAMMAR = (
    '"±1.5 at 100 %" (half of the interval of mAP at p, in points), "gain at 3x ±3" (the same of '
    'the gain at three times the data) or "rank" (the order of the models of --compare-with; '
    '"rank ±0.5": closer than that is a tie)'
)

_MOST_TIMES = 5.0  # as extrapolations: LIMIT of tal_fast.curves.extrapolation
_TIE = 1.0
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"


@dataclass(frozen=True)
class Level:
    """Mean mAP at one share: half the width of its interval, in points, and p in percent."""

    width: float
    share: float

    def __str__(self) -> str:
        return f"±{self.width:g} at {self.share:g} %"


@dataclass(frozen=True)
class Gain:
    """The gain at ``times`` the data: half the width of its interval, in points."""

    width: float
    times: float

    def __str__(self) -> str:
        return f"gain at {self.times:g}x ±{self.width:g}"


@dataclass(frozen=True)
class Rank:
    """The order of models at 100 %; differences within ``tie`` points are none."""

    tie: float = _TIE

    def __str__(self) -> str:
        return f"rank ±{self.tie:g}"


Target = Level | Gain | Rank


def parse_target(words: str) -> Target:
    """Reads a target.

    Raises:
        ConfigError: it is none, or a number is out of range; the message shows the grammar.
    """
    plain = re.sub(r"\s+", "", words.lower().replace("+/-", "±").replace("+-", "±"))
    if match := re.fullmatch(rf"±{_NUMBER}at{_NUMBER}%", plain):
        width, share = map(float, match.groups())
        if not 0.0 < share <= 100.0:
            raise ConfigError(f"--target: expected p above 0 and at most 100 %, got {share:g} %")
        target: Target = Level(width, share)
    elif match := re.fullmatch(rf"gainat{_NUMBER}x±{_NUMBER}", plain):
        times, width = map(float, match.groups())
        if not 1.0 < times <= _MOST_TIMES:
            raise ConfigError(
                f"--target: expected a gain at more than 1 and at most {_MOST_TIMES:g} times the "
                f"data, got {times:g}"
            )
        target = Gain(width, times)
    elif match := re.fullmatch(rf"rank(?:±{_NUMBER})?", plain):
        width = _TIE if match.group(1) is None else float(match.group(1))
        target = Rank(width)
    else:
        raise ConfigError(f"--target: expected {GRAMMAR}, got {words!r}")
    if not width > 0.0:
        raise ConfigError(f"--target: expected points above 0 after ±, got {width:g}")
    return target


@dataclass(frozen=True)
class AdaptiveRequest:
    """What a study is to find out, and what it may spend on that.

    Attributes:
        target: as :func:`parse_target` reads it.
        confidence: of the answer.
        seconds: of training that all trials of the study may take together; None is no limit.
        compare_with: studies of the other models of an order.
    """

    target: str
    confidence: float = 0.9
    seconds: float | None = None
    compare_with: tuple[Path, ...] = ()

    def notes(self) -> list[str]:
        """Returns what may be meant otherwise."""
        target = parse_target(self.target)
        other: Target
        if isinstance(target, Rank):
            width, other = target.tie, Rank(100.0 * target.tie)
        else:
            width, other = target.width, replace(target, width=100.0 * target.width)
        note = note_on_difference("--target", width, f"--target {shlex.quote(str(other))}")
        return [] if note is None else [note]

    def check(self) -> None:
        """Checks what can be told without the data.

        Raises:
            ConfigError: the request makes no sense.
        """
        target = parse_target(self.target)
        if not 0.5 < self.confidence < 1.0:
            raise ConfigError(
                f"--confidence: expected a number between 0.5 and 1, got {self.confidence:g}"
            )
        if self.seconds is not None and not 0.0 < self.seconds < math.inf:
            raise ConfigError(f"--hours: expected a positive time, got {self.seconds / 3600.0:g}")
        if isinstance(target, Rank) and not self.compare_with:
            raise ConfigError(
                "--target rank: expected the studies of the other models; give each with "
                "--compare-with"
            )
        if self.compare_with and not isinstance(target, Rank):
            raise ConfigError(f"--compare-with: is for --target rank, got --target {self.target!r}")

    def options(self) -> list[tuple[str, object]]:
        """Returns the options that ask for it; an empty value is a flag."""
        return [
            ("adaptive", ""),
            ("target", self.target),
            ("confidence", None if self.confidence == 0.9 else f"{self.confidence:g}"),
            ("hours", None if self.seconds is None else f"{self.seconds / 3600.0:.9g}"),
            *(("compare-with", path) for path in self.compare_with),
        ]
