# SPDX-License-Identifier: Apache-2.0
"""Measured learning curves, read from studies and from tables of others."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tal_fast.errors import ConfigError, DataError, nearest

__all__ = ["DEVIATION_FLOOR", "LearningCurve", "read_curve", "read_curves"]

Floats = NDArray[np.float64]

DEVIATION_FLOOR = 0.5
"""Smallest standard deviation, in points, that weights go by: five trainings that agree by chance
must not outweigh the rest of the curve."""

# Columns of trials.csv that tell the curves of one study apart.
_SETTINGS = ("model", "sampling", "budget", "ema")
_DIP = 3.0  # standard errors of a difference from which a fall is told


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """mAP at rising shares of the training data.

    Attributes:
        name: what was trained.
        share: p in percent, rising, in (0, 100], [n].
        mean: mean mAP in points over the repetitions, [n].
        deviation: sample standard deviation in points, NaN where there is none, [n].
        repetitions: draws per level, [n].
        values: mAP of each draw, per level; empty where only mean and deviation are known.
        videos: number of training videos at p = 100 %, None where it is not known.
        seconds: mean time of a trial in seconds, NaN where it is not known, [n].
    """

    name: str
    share: Floats
    mean: Floats
    deviation: Floats
    repetitions: NDArray[np.int64]
    values: tuple[tuple[float, ...], ...]
    videos: float | None = None
    seconds: Floats | None = None

    def __post_init__(self) -> None:
        sizes = {len(self.share), len(self.mean), len(self.deviation), len(self.repetitions)}
        if len(sizes) != 1 or len(self.values) != len(self.share):
            raise DataError(f"{self.name}: expected one value per level of p, got {sorted(sizes)}")
        for share, mean, deviation, repetitions in zip(
            self.share, self.mean, self.deviation, self.repetitions, strict=True
        ):
            if not 0.0 < share <= 100.0:
                raise DataError(
                    f"{self.name}: expected p above 0 and at most 1 (100 %), got {share:g} %"
                )
            if not 0.0 <= mean <= 100.0:
                raise DataError(
                    f"{self.name}: expected mAP of 0 to 100 points at p = {share:g} %, got {mean:g}"
                )
            if deviation < 0.0 or math.isinf(deviation):
                raise DataError(
                    f"{self.name}: expected a standard deviation of at least 0 "
                    f"at p = {share:g} %, got {deviation:g}"
                )
            if repetitions < 1:
                raise DataError(
                    f"{self.name}: expected at least one repetition at p = {share:g} %, "
                    f"got {repetitions}"
                )
        steps = np.diff(self.share)
        if len(steps) and steps.min() <= 0.0:
            where = self.share[int(np.argmin(steps)) + 1]
            raise DataError(f"{self.name}: expected each p once and rising, got {where:g} % again")

    def __len__(self) -> int:
        return len(self.share)

    @property
    def pooled_deviation(self) -> float:
        """Standard deviation over all levels that have one (NaN if none has)."""
        known = ~np.isnan(self.deviation)
        if not known.any():
            return math.nan
        freedom = np.maximum(self.repetitions[known] - 1, 1)
        return float(np.sqrt(np.average(self.deviation[known] ** 2, weights=freedom)))

    @property
    def spread(self) -> Floats:
        """Standard deviation of each level; the pooled one where a level has none, [n]."""
        return np.where(np.isnan(self.deviation), self.pooled_deviation, self.deviation)

    @property
    def standard_error(self) -> Floats:
        """Standard error of each mean, of deviations not below the floor, [n].

        Without any repetition all are alike, as if the deviation were the floor.
        """
        spread = np.nan_to_num(self.spread, nan=DEVIATION_FLOOR)
        return np.maximum(spread, DEVIATION_FLOOR) / np.sqrt(self.repetitions)

    def until(self, share: float) -> LearningCurve:
        """Returns the levels up to ``share`` percent."""
        count = int(np.searchsorted(self.share, share, side="right"))
        return self.head(count)

    def head(self, count: int) -> LearningCurve:
        """Returns the first ``count`` levels."""
        return replace(
            self,
            share=self.share[:count],
            mean=self.mean[:count],
            deviation=self.deviation[:count],
            repetitions=self.repetitions[:count],
            values=self.values[:count],
            seconds=None if self.seconds is None else self.seconds[:count],
        )

    def with_deviation(self, deviation: float) -> LearningCurve:
        """Returns the curve with ``deviation``, in points, at levels that have none."""
        return replace(
            self, deviation=np.where(np.isnan(self.deviation), deviation, self.deviation)
        )

    def remarks(self) -> list[str]:
        """Returns what a reader of a fit has to know about the data."""
        found = []
        missing = [f"{x:g}" for x in self.share[np.isnan(self.deviation)]]
        if len(missing) == len(self):
            found.append(
                "no level has repetitions: all weigh the same, and nothing tells how far a draw "
                "of the data moves the curve"
            )
        elif missing:
            found.append(
                f"no repetitions at p = {', '.join(missing)} %: the pooled standard deviation of "
                f"the other levels ({self.pooled_deviation:.2f}) stands in"
            )
        flat = [f"{x:g}" for x in self.share[self.deviation == 0.0]]
        if flat:
            found.append(
                f"zero spread at p = {', '.join(flat)} %: weighted with a standard deviation of "
                f"{DEVIATION_FLOOR:g}"
            )
        counts = np.unique(self.repetitions)
        if len(counts) > 1:
            found.append(f"repetitions differ between levels, from {counts[0]} to {counts[-1]}")
        for index in range(1, len(self)):
            fall = self.mean[index - 1] - self.mean[index]
            error = math.hypot(self.standard_error[index - 1], self.standard_error[index])
            if fall > _DIP * error:
                found.append(
                    f"mAP falls by {fall:.2f} from p = {self.share[index - 1]:g} to "
                    f"{self.share[index]:g} %, {fall / error:.1f} standard errors: no family here "
                    "can fall"
                )
        return found

    def require_rising(self) -> None:
        """Checks that a rising shape can be laid through the curve.

        Raises:
            DataError: there are fewer than three levels, or mAP does not rise.
        """
        if len(self) < 3:
            raise DataError(
                f"{self.name}: expected at least 3 levels of p, got {len(self)}; two points fix a "
                "line and test nothing"
            )
        if np.ptp(self.mean) == 0.0:
            raise DataError(
                f"{self.name}: mAP is {self.mean[0]:g} at every p: there is no curve to fit"
            )
        # The slope over ln p, as the least that more data should bring.
        weight = self.standard_error**-2
        log_share = np.log(self.share)
        centred = log_share - np.average(log_share, weights=weight)
        if float((weight * centred * self.mean).sum()) <= 0.0:
            raise DataError(
                f"{self.name}: mAP does not rise with p (from {self.mean[0]:.2f} at "
                f"{self.share[0]:g} % to {self.mean[-1]:.2f} at {self.share[-1]:g} %): no family "
                "here can fall"
            )


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}, line {line}: expected a number in column {column}, got {text!r}")
    return value


def _optional(path: Path, line: int, column: str, text: str | None) -> float:
    return math.nan if not text else _number(path, line, column, text)


Row = tuple[int, Mapping[str, str]]


def _from_trials(path: Path, name: str, rows: Sequence[Row]) -> LearningCurve:
    """One curve from rows of trials; seeds of one draw are averaged first."""
    levels: dict[float, dict[str, list[float]]] = {}
    seconds: dict[float, list[float]] = {}
    sizes: dict[float, list[float]] = {}
    for line, row in rows:
        share = 100.0 * _number(path, line, "p", row["p"])
        value = 100.0 * _number(path, line, "average_map", row["average_map"])
        levels.setdefault(share, {}).setdefault(row["repetition"], []).append(value)
        seconds.setdefault(share, []).append(
            _optional(path, line, "total_seconds", row.get("total_seconds"))
        )
        sizes.setdefault(share, []).append(_optional(path, line, "videos", row.get("videos")))
    shares = sorted(levels)
    values = tuple(
        tuple(math.fsum(seeds) / len(seeds) for seeds in levels[share].values()) for share in shares
    )
    # The largest sample tells best: rounding to whole videos matters least there.
    count = float(np.mean(sizes[shares[-1]])) * 100.0 / shares[-1]
    return LearningCurve(
        name=name,
        share=np.round(np.array(shares), 9),
        mean=np.array([np.mean(level) for level in values]),
        deviation=np.array(
            [np.std(level, ddof=1) if len(level) > 1 else math.nan for level in values]
        ),
        repetitions=np.array([len(level) for level in values]),
        values=values,
        videos=None if math.isnan(count) else count,
        seconds=np.array([np.mean(seconds[share]) for share in shares]),
    )


def _from_levels(
    path: Path, name: str, rows: Sequence[Row], repetitions: int | None, columns: Sequence[str]
) -> LearningCurve:
    """One curve from rows of levels: share, mean, deviation, and number of repetitions."""
    share_column, mean_column, deviation_column = columns
    scale = 100.0 if share_column == "p" else 1.0
    shares, means, deviations, counts, videos = [], [], [], [], math.nan
    for line, row in rows:
        share = scale * _number(path, line, share_column, row[share_column])
        shares.append(share)
        means.append(scale * _number(path, line, mean_column, row[mean_column]))
        deviation = _optional(path, line, deviation_column, row.get(deviation_column))
        given = _optional(path, line, "n", row.get("n"))
        if math.isnan(given):
            if repetitions is None:
                raise DataError(
                    f"{path}, line {line}: expected a column n, the repetitions of a level; "
                    "give their number with --repetitions"
                )
            given = float(repetitions)
        if given != round(given) or given < 1:
            raise DataError(
                f"{path}, line {line}: expected a whole number of repetitions, got {given:g}"
            )
        counts.append(int(given))
        deviations.append(scale * deviation if given > 1 else math.nan)
        size = _optional(path, line, "videos", row.get("videos"))
        if not math.isnan(size) and share > 0.0:
            videos = size * 100.0 / share
    order = np.argsort(np.array(shares), kind="stable")
    return LearningCurve(
        name=name,
        share=np.round(np.array(shares)[order], 9),
        mean=np.array(means)[order],
        deviation=np.array(deviations)[order],
        repetitions=np.array(counts)[order],
        values=((),) * len(shares),
        videos=None if math.isnan(videos) else videos,
        seconds=None,
    )


def _source(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("trials.csv", "curve.csv"):
        if (path / name).is_file():
            return path / name
    raise DataError(
        f"{path}: expected a study with trials.csv, found none (tal-fast study report writes it)"
    )


def read_curves(path: str | Path, *, repetitions: int | None = None) -> list[LearningCurve]:
    """Reads the learning curves of a study or a table.

    Args:
        path: the directory of a study, its ``trials.csv`` or ``curve.csv`` (p and mAP in 0..1), or
            a table with the columns ``percent``, ``map_mean``, ``map_std`` (in percent and points)
            and, if it has several curves, ``model``.
        repetitions: repetitions of each level, for a table without a column ``n``.

    Returns:
        The curves in the order of the file; those of a study differ in model or settings.

    Raises:
        DataError: the file is none of these, or a value is missing or impossible.

    Example:
        >>> from tal_fast.study.fits.learning_curve import read_curves
        >>> [curve.name for curve in read_curves("docs/results/hapt")]
        ['tadtr-small']
    """
    source = _source(Path(path))
    try:
        with source.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            rows: list[Row] = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise DataError(f"{source}: no such file or study") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source}: expected a table (CSV), got {error}") from error
    kinds = (
        ("p", "average_map", "repetition"),
        ("p", "mean", "sd"),
        ("percent", "map_mean", "map_std"),
    )
    columns = next((kind for kind in kinds if set(kind) <= set(header)), None)
    if columns is None:
        expected = " or ".join(", ".join(kind) for kind in kinds)
        raise DataError(f"{source}: expected the columns {expected}; got {', '.join(header)}")
    if not rows:
        raise DataError(f"{source}: expected at least one row, got none")
    for line, row in rows:
        if any(row[column] is None for column in columns):
            raise DataError(f"{source}, line {line}: expected {len(header)} values, got fewer")
    groups: dict[tuple[str, ...], list[Row]] = {}
    settings = [column for column in _SETTINGS if column in header]
    for line, row in rows:
        groups.setdefault(tuple(row[column] for column in settings), []).append((line, row))
    # What all curves share tells none of them apart; the model is named all the same.
    shared = [len({key[i] for key in groups}) == 1 for i in range(len(settings))]
    curves = []
    for key, group in groups.items():
        words = [
            word
            for word, column, same in zip(key, settings, shared, strict=True)
            if word and (column == "model" or not same)
        ]
        name = ", ".join(words) or (source.parent.name or source.stem)
        if columns == kinds[0]:
            curves.append(_from_trials(source, name, group))
        else:
            curves.append(_from_levels(source, name, group, repetitions, columns))
    return curves


def read_curve(
    path: str | Path, name: str | None = None, *, repetitions: int | None = None
) -> LearningCurve:
    """Reads one curve; ``name`` chooses it where there are several.

    Raises:
        DataError: as :func:`read_curves`.
        ConfigError: there is no curve of this name, or several and no name.
    """
    curves = read_curves(path, repetitions=repetitions)
    names = [curve.name for curve in curves]
    if name is None and len(curves) == 1:
        return curves[0]
    if name is None:
        raise ConfigError(f"{path}: has the curves {', '.join(names)}; choose one with --curve")
    if name not in names:
        raise ConfigError(
            f"{path}: expected one of {', '.join(names)}, got {name!r}{nearest(name, names)}"
        )
    return curves[names.index(name)]
