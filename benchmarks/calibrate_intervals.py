# SPDX-License-Identifier: Apache-2.0
"""How often do the intervals hold what came?

Two kinds of curves answer. **Synthetic** ones are drawn from each family, so that their truth
beyond the data is known; they are asked with all families at hand, and once more with the family
that made them left out, since no real curve is made by a family. **Measured** ones are cut at every
level and asked for every later level that was measured. Nothing of a user's own study changes by
it: it is the evidence for docs/curve-fits.md, to be made again when families or weights change.

    python benchmarks/calibrate_intervals.py --study docs/results/hapt --synthetic 20 --json c.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tal_fast.curves import CurvePoint, LearningCurve, read_curves
from tal_fast.curves.extrapolation import (
    LIMIT,
    Ensemble,
    build_ensemble,
    check_confidence,
    join_families,
    weighted_quantiles,
)
from tal_fast.curves.families import CEILING, FITTED, Family
from tal_fast.curves.fit import backtest
from tal_fast.curves.tables import band_name, number, plain, share_cell
from tal_fast.data.files import write_text_atomically
from tal_fast.errors import TalFastError

__all__ = [
    "METHODS",
    "RATIOS",
    "Calibration",
    "Tally",
    "calibrate",
    "calibration_dict",
    "synthetic_curve",
]

Floats = NDArray[np.float64]

RATIOS = (1.5, 2.0, 3.0, LIMIT)
"""Amounts of data, in times the largest measured p, that synthetic curves are asked about."""

METHODS = ("best", "families", "ensemble", "left_out")
"""``best``: bootstrap of the family of the lowest RMSE alone. ``families``: all, weighted by the
backtest. ``ensemble``: with the drift, what `extrapolate` says. ``left_out``: as ``ensemble``,
without the family that made the curve (synthetic curves only)."""

# Ranges from which the shapes of synthetic curves are drawn, in the coordinates of the families'
# public formulas but s and k for scales in percent: curves that rise between p = 1 and 100 %.
_SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "pow3": ((0.1, 1.5),),
    "pow4": ((0.2, 3.0), (1.0, 60.0)),
    "log2": (),
    "exp3": ((0.01, 0.1),),
    "wbl4": ((2.0, 80.0), (0.4, 1.5)),
    "mmf4": ((5.0, 60.0), (0.6, 2.5)),
    "hill": ((5.0, 60.0), (0.6, 2.5)),
    "logistic": ((0.03, 0.12), (5.0, 50.0)),
    "gompertz": ((1.0, 8.0), (0.02, 0.1)),
    "bnsl1": ((0.1, 0.6), (0.3, 3.0), (15.0, 80.0), (0.1, 0.8)),
}
_LEVELS = np.arange(10.0, 101.0, 10.0)
_REPETITIONS = 5


def synthetic_curve(
    family: Family, rng: np.random.Generator
) -> tuple[LearningCurve, Callable[[Floats], Floats]]:
    """Draws a curve of a family and measures it.

    At p = 100 % it stands at 40 to 85 points, at 10 % between 3 points and 70 % of that; ten levels
    of five draws each, whose standard deviation is between 0.5 and 2.5 points.

    Returns:
        The measured curve, and the truth as a function of p in percent.
    """
    anchors = np.array([10.0, 100.0])
    while True:
        drawn = [math.exp(rng.uniform(*np.log(side))) for side in _SHAPES[family.name]]
        theta = np.log(np.array(drawn)).reshape(1, -1)
        if family.name == "logistic":
            theta[0, 1] = drawn[1]  # the only coordinate that is not a logarithm
        phi = family.shape(anchors, theta)[0][0]
        full = rng.uniform(40.0, 85.0)
        tenth = rng.uniform(3.0, 0.7 * full)
        b = (full - tenth) / (phi[0] - phi[1]) if family.affine else 0.0
        a = full + b * phi[1] if family.affine else full / phi[1]
        if not family.affine:
            tenth = a * phi[0]
        if (a <= CEILING or not family.bounded) and 3.0 <= tenth <= 0.7 * full:
            break

    def truth(share: Floats) -> Floats:
        y = family.evaluate(np.asarray(share), np.array([a]), np.array([b]), theta)[0]
        return np.clip(y, 0.0, CEILING)

    deviation = rng.uniform(0.5, 2.5)
    noise = deviation * rng.standard_normal((len(_LEVELS), _REPETITIONS))
    values = np.clip(truth(_LEVELS)[:, None] + noise, 0.0, CEILING)
    points = (
        CurvePoint.of_draws(float(share), [[value] for value in level])
        for share, level in zip(_LEVELS, values.tolist(), strict=True)
    )
    curve = LearningCurve(f"synthetic {family.name}", tuple(points))
    return curve, truth


@dataclass
class Tally:
    """Questions asked of one source of curves, and how the answers fared.

    Attributes:
        source: where the curves come from.
        synthetic: they were made here.
        curves: curves, or beginnings of a curve, that were asked.
        ratio: amount of data asked about over the largest p known, per question.
        held: method -> did the interval hold what came, per question.
        width: method -> width of the interval in points, per question.
        error: distance of the ensemble's median from what came, points, per question.
        last_error: distance of the last value from what came, points, per question.
        alone: family -> did the interval of its bootstrap alone hold what came.
    """

    source: str
    synthetic: bool
    curves: int = 0
    ratio: list[float] = field(default_factory=list)
    held: dict[str, list[bool]] = field(default_factory=dict)
    width: dict[str, list[float]] = field(default_factory=dict)
    error: list[float] = field(default_factory=list)
    last_error: list[float] = field(default_factory=list)
    alone: dict[str, list[bool]] = field(default_factory=dict)

    def coverage(self, method: str) -> float:
        """Returns the share of questions whose answer held, NaN if none was asked."""
        held = self.held.get(method, [])
        return sum(held) / len(held) if held else math.nan

    def median_width(self, method: str) -> float:
        """Returns the median width in points, NaN if none was asked."""
        width = self.width.get(method, [])
        return float(np.median(width)) if width else math.nan


@dataclass(frozen=True)
class Calibration:
    """Tallies over many curves.

    Attributes:
        confidence: what the intervals promise.
        replicates: bootstrap draws per family.
        seed: of everything drawn.
        tallies: one per family that made curves, then one per measured curve.
    """

    confidence: float
    replicates: int
    seed: int
    tallies: tuple[Tally, ...]

    def pooled(self, synthetic: bool) -> Tally:
        """Returns all synthetic, or all measured, tallies as one."""
        total = Tally("synthetic" if synthetic else "measured", synthetic)
        for tally in self.tallies:
            if tally.synthetic != synthetic:
                continue
            total.curves += tally.curves
            total.ratio += tally.ratio
            total.error += tally.error
            total.last_error += tally.last_error
            for mine, theirs in ((total.held, tally.held), (total.alone, tally.alone)):
                for key, held in theirs.items():
                    mine.setdefault(key, []).extend(held)
            for key, width in tally.width.items():
                total.width.setdefault(key, []).extend(width)
        return total

    def by_ratio(self, synthetic: bool) -> list[tuple[str, int, float]]:
        """Returns (range of the ratio, questions, coverage of the ensemble)."""
        total = self.pooled(synthetic)
        ratio, held = np.array(total.ratio), np.array(total.held.get("ensemble", []), dtype=bool)
        rows = []
        for low, high in zip((1.0, *RATIOS), RATIOS, strict=False):
            inside = (ratio > low + 1e-9) & (ratio <= high + 1e-9)
            if inside.any():
                name = f"x{low:g} to x{high:g}"
                rows.append((name, int(inside.sum()), float(held[inside].mean())))
        return rows


def _ask(
    tally: Tally,
    ensemble: Ensemble,
    share: Floats,
    came: Floats,
    error: Floats,
    confidence: float,
    rng: np.random.Generator,
    without: Ensemble | None = None,
) -> None:
    """Asks an ensemble for mAP at ``share``, and notes how it fares against what came.

    Args:
        tally: where to note it.
        ensemble: of the curve's beginning.
        share: p in percent, [n].
        came: mAP in points, [n].
        error: standard error of what came; the intervals are for a measurement of that error.
        confidence: of the intervals.
        rng: source of randomness.
        without: the ensemble without the true family.
    """
    tail = (1.0 - confidence) / 2.0
    levels = (tail, 0.5, 1.0 - tail)

    def measured(values: Floats) -> Floats:
        return values + error * rng.standard_normal(values.shape)

    alone = [
        np.quantile(measured(ensemble.family(i, share, drift=False)), levels, axis=0)
        for i in range(len(ensemble.fits))
    ]
    curve = ensemble.curve
    residual = [
        float(np.sqrt(np.mean((fit.point(curve.share)[0] - curve.mean) ** 2)))
        for fit in ensemble.fits
    ]
    answers = {"best": alone[int(np.argmin(residual))]}
    for method, asked, drift in (
        ("families", ensemble, False), ("ensemble", ensemble, True), ("left_out", without, True)
    ):  # fmt: skip
        if asked is not None:
            draws = measured(asked.sample(share, drift=drift))
            answers[method] = weighted_quantiles(draws, asked.draw_weights, levels)
    tally.curves += 1
    tally.ratio += (share / curve.share[-1]).tolist()
    for method, (low, _, high) in answers.items():
        tally.held.setdefault(method, []).extend(((low <= came) & (came <= high)).tolist())
        tally.width.setdefault(method, []).extend((high - low).tolist())
    for fit, (low, _, high) in zip(ensemble.fits, alone, strict=True):
        held = ((low <= came) & (came <= high)).tolist()
        tally.alone.setdefault(fit.family.name, []).extend(held)
    tally.error += np.abs(answers["ensemble"][1] - came).tolist()
    tally.last_error += np.abs(curve.mean[-1] - came).tolist()


def _without(ensemble: Ensemble, family: Family, rng: np.random.Generator) -> Ensemble:
    rest = [fit for fit in ensemble.fits if fit.family.name != family.name]
    return join_families(ensemble.curve, rest, backtest(ensemble.curve, rest), rng)


def calibrate(
    measured: Sequence[LearningCurve] = (),
    *,
    synthetic: int = 0,
    confidence: float = 0.9,
    replicates: int = 200,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Calibration:
    """Asks many curves for what is known of them and counts how often the intervals hold it.

    Args:
        measured: curves to cut at every level but the last, from the fourth on; each beginning is
            asked for all later levels within :data:`LIMIT` times its largest p.
        synthetic: curves to make per family.
        confidence: of the intervals.
        replicates: bootstrap draws per family.
        seed: of everything drawn; the answer for a source does not depend on the other sources.
        progress: receives (done, total, what comes next).

    Raises:
        ConfigError: the confidence is not between 0 and 1.
        DataError: a measured curve, or a beginning of it, cannot be fitted.
    """
    check_confidence(confidence)
    beginnings = [
        (curve, count) for curve in measured for count in range(4, len(curve))
    ]  # fmt: skip
    total = len(beginnings) + synthetic * len(FITTED)
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, what)
        done += 1

    tallies = []
    for index, family in enumerate(FITTED if synthetic else ()):
        rng = np.random.default_rng((seed, index))
        tally = Tally(family.name, synthetic=True)
        for _ in range(synthetic):
            tell(f"synthetic {family.name}")
            curve, truth = synthetic_curve(family, rng)
            ensemble = build_ensemble(
                curve, replicates=replicates, seed=int(rng.integers(2**31))
            )  # fmt: skip
            share = curve.share[-1] * np.array(RATIOS)
            _ask(
                tally, ensemble, share, truth(share), np.zeros(len(share)), confidence, rng,
                _without(ensemble, family, rng),
            )  # fmt: skip
        tallies.append(tally)
    for curve in measured:
        rng = np.random.default_rng((seed, len(FITTED)))
        tally = Tally(curve.name, synthetic=False)
        for count in (count for owner, count in beginnings if owner is curve):
            tell(curve.name)
            head = curve.head(count)
            later = (curve.share > head.share[-1]) & (curve.share <= LIMIT * head.share[-1])
            ensemble = build_ensemble(head, replicates=replicates, seed=int(rng.integers(2**31)))
            error = (curve.spread / np.sqrt(curve.repetitions))[later]
            _ask(tally, ensemble, curve.share[later], curve.mean[later], error, confidence, rng)
        tallies.append(tally)
    if progress is not None:
        progress(total, total, "")
    return Calibration(confidence, replicates, seed, tuple(tallies))


def calibration_dict(found: Calibration) -> dict[str, Any]:
    """Returns a calibration for JSON: per source, pooled, and by ratio."""

    def row(tally: Tally) -> dict[str, Any]:
        return {
            "source": tally.source,
            "synthetic": tally.synthetic,
            "curves": tally.curves,
            "questions": len(tally.ratio),
            "coverage": {m: tally.coverage(m) for m in METHODS if m in tally.held},
            "median_width": {m: tally.median_width(m) for m in METHODS if m in tally.width},
            "mean_absolute_error": float(np.mean(tally.error)) if tally.error else math.nan,
            "mean_absolute_error_of_last_value": (
                float(np.mean(tally.last_error)) if tally.last_error else math.nan
            ),
            "coverage_of_family_alone": {
                name: sum(held) / len(held) for name, held in tally.alone.items()
            },
        }

    kinds = [kind for kind in (True, False) if any(t.synthetic is kind for t in found.tallies)]
    return {
        "confidence": found.confidence,
        "replicates": found.replicates,
        "seed": found.seed,
        "sources": [row(tally) for tally in found.tallies],
        "pooled": [row(found.pooled(kind)) for kind in kinds],
        "by_ratio": {
            ("synthetic" if kind else "measured"): [
                {"ratio": name, "questions": count, "coverage": share}
                for name, count, share in found.by_ratio(kind)
            ]
            for kind in kinds
        },
    }


_METHOD_TITLES = {
    "best": "best fit alone",
    "families": "all families",
    "ensemble": "extrapolate",
    "left_out": "true family left out",
}


def _calibration_row(table: Table, tally: Tally) -> None:
    if not tally.ratio:
        table.add_row(tally.source, str(tally.curves), "0", *["-"] * (len(METHODS) + 3))
        return
    table.add_row(
        tally.source,
        str(tally.curves),
        str(len(tally.ratio)),
        *(share_cell(tally.coverage(method)) for method in METHODS),
        number(tally.median_width("ensemble"), 1),
        number(float(np.mean(tally.error)), 1),
        number(float(np.mean(tally.last_error)), 1),
    )


def calibration_tables(found: Calibration) -> list[Table]:
    """Returns coverage per source, per family alone, and by how far ahead was asked."""
    table = Table(
        title=f"how often {band_name(found.confidence)} intervals hold what came",
        title_justify="left",
        caption="curves: made ones, or beginnings of a measured one; in points: median width of "
        "the intervals of extrapolate, mean error of its median, mean error of the last value",
        caption_justify="left",
    )
    table.add_column("source", no_wrap=True)
    for name in ("curves", "questions", *(_METHOD_TITLES[m] for m in METHODS)):
        table.add_column(name, justify="right")
    for name in ("width", "error", "error of last value"):
        table.add_column(name, justify="right")
    pooled = []
    for synthetic in (True, False):
        group = [tally for tally in found.tallies if tally.synthetic is synthetic]
        if not group:
            continue
        for tally in group:
            _calibration_row(table, tally)
        table.add_section()
        pooled.append(found.pooled(synthetic))
        _calibration_row(table, pooled[-1])
        table.add_section()
    alone = Table(title="the bootstrap of one family alone", title_justify="left")
    alone.add_column("curves", no_wrap=True)
    names = list(dict.fromkeys(name for total in pooled for name in total.alone))
    for name in names:
        alone.add_column(name, justify="right", no_wrap=True)
    for total in pooled:
        cells = [total.alone.get(name, []) for name in names]
        alone.add_row(
            total.source, *(share_cell(sum(c) / len(c)) if c else "-" for c in cells)
        )  # fmt: skip
    ratio = Table(
        title="extrapolate, by the amount of data asked about over the largest p known",
        title_justify="left",
    )
    for name in ("curves", "ratio", "questions", "held"):
        ratio.add_column(name, justify="right", no_wrap=True)
    for total in pooled:
        for name, count, share in found.by_ratio(total.synthetic):
            ratio.add_row(total.source, name, str(count), share_cell(share))
    return [table, alone, ratio]


def main(arguments: Sequence[str] | None = None) -> int:
    """Counts how often the intervals hold what came; returns the exit status."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--study", action="append", type=Path, default=[], help="may be repeated")
    parser.add_argument("--synthetic", type=int, default=20, help="curves to make per family")
    parser.add_argument("--confidence", type=float, default=0.9, help="of the intervals")
    parser.add_argument("--draws", type=int, default=200, help="bootstrap draws per family")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn")
    parser.add_argument("--repetitions", type=int, help="of a table that has no column n")
    parser.add_argument("--json", type=Path, help="also write this file")
    given = parser.parse_args(arguments)
    if not given.study and not given.synthetic:
        parser.error("--study, --synthetic: expected curves to ask, got none")
    try:
        measured = [
            curve
            for study in given.study
            for curve in read_curves(study, repetitions=given.repetitions)
        ]
        found = calibrate(
            measured,
            synthetic=given.synthetic,
            confidence=given.confidence,
            replicates=given.draws,
            seed=given.seed,
            progress=lambda done, total, name: print(f"{done}/{total} {name}", file=sys.stderr),
        )
    except TalFastError as error:
        parser.error(str(error))
    console = Console() if sys.stdout.isatty() else Console(width=150)
    for table in calibration_tables(found):
        console.print(table)
    if given.json is not None:
        write_text_atomically(given.json, json.dumps(plain(calibration_dict(found)), indent=1))
        print(f"numbers: {given.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
