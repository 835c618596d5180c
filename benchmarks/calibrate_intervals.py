# SPDX-License-Identifier: Apache-2.0
"""How often do the intervals hold what came, and which factor follows?

Two kinds of curves answer, and choose the factor of the intervals together. **Measured** ones are
cut at every level and asked for every later level that was measured. **Synthetic** ones are drawn
from each family, so that their truth beyond the data is known; they are asked with all families at
hand, and once more with the family that made them left out, since no real curve is made by a
family. Nothing of a user's own study changes by it: it is the evidence for docs/curve-fits.md, to
be made again when families, weights or curves change.

Curves of one ``--study`` and model are one group: they share trainings, or data and recipe. Further
directories after the same ``--study`` join it.

    python benchmarks/calibrate_intervals.py --study docs/results/hapt --synthetic 20 --json c.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from interval_tallies import BANDS, GRID, Choice, Tally, choose_factor
from numpy.typing import NDArray
from rich.console import Console
from synthetic_curves import synthetic_curve

from tal_fast.curves import LearningCurve, read_curves
from tal_fast.curves.ensemble import Ensemble, build_ensemble, join_families, weighted_quantiles
from tal_fast.curves.extrapolation import LIMIT, check_confidence
from tal_fast.curves.families import FITTED, Family
from tal_fast.curves.fit import backtest
from tal_fast.curves.tables import plain
from tal_fast.data.files import write_text_atomically
from tal_fast.errors import DataError, TalFastError

__all__ = ["Calibration", "calibrate", "read_groups"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Tallies over many curves.

    Attributes:
        confidence: what the intervals promise.
        replicates: bootstrap draws per family.
        seed: of everything drawn.
        tallies: one per family that made curves, then one per group of measured ones.
        choice: of the factor, from the measured ones; None for fewer than two groups.
    """

    confidence: float
    replicates: int
    seed: int
    tallies: tuple[Tally, ...]
    choice: Choice | None

    def of(self, synthetic: bool) -> list[Tally]:
        """Returns the tallies of synthetic, or of measured, curves that were asked anything."""
        return [one for one in self.tallies if one.synthetic is synthetic and one.ratio]

    def pooled(self, synthetic: bool) -> Tally:
        """Returns all synthetic, or all measured, tallies as one."""
        total = Tally("synthetic" if synthetic else "measured", synthetic)
        for tally in self.of(synthetic):
            total.add(tally)
        return total


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

    def holds(answer: Floats) -> list[bool]:
        held: list[bool] = ((answer[0] <= came) & (came <= answer[2])).tolist()
        return held

    # The same noise for all ways to answer, so that only these differ.
    noise = error * rng.standard_normal((len(ensemble.draw_weights), len(share)))
    count = ensemble.noise.shape[1]

    def joint(asked: Ensemble, **rule: Any) -> Floats:
        draws = asked.sample(share, **rule)
        return weighted_quantiles(draws + noise[: len(draws)], asked.draw_weights, levels)

    alone = [
        np.quantile(ensemble.family(i, share) + noise[:count], levels, axis=0)
        for i in range(len(ensemble.fits))
    ]
    curve = ensemble.curve
    residual = [
        float(np.sqrt(np.mean((fit.point(curve.share)[0] - curve.mean) ** 2)))
        for fit in ensemble.fits
    ]
    answers = {
        "best": alone[int(np.argmin(residual))],
        "families": joint(ensemble, anchored=False, drift=False, factor=1.0),
        "before": joint(ensemble, anchored=False, drift=True, factor=1.0),
        "ensemble": joint(ensemble),
    }
    if without is not None:
        answers["left_out"] = joint(without)
    tally.curves += 1
    tally.ratio += (share / curve.share[-1]).tolist()
    for method, answer in answers.items():
        tally.held.setdefault(method, []).extend(holds(answer))
        tally.width.setdefault(method, []).extend((answer[2] - answer[0]).tolist())
    for factor in GRID:
        tally.factors.setdefault(factor, []).extend(
            holds(joint(without or ensemble, factor=factor))
        )
    for fit, answer in zip(ensemble.fits, alone, strict=True):
        tally.alone.setdefault(fit.family.name, []).extend(holds(answer))
    tally.above += (came > answers["ensemble"][2]).tolist()
    tally.error += np.abs(answers["ensemble"][1] - came).tolist()
    tally.last_error += np.abs(curve.mean[-1] - came).tolist()


def _without(ensemble: Ensemble, family: Family, rng: np.random.Generator) -> Ensemble:
    rest = [fit for fit in ensemble.fits if fit.family.name != family.name]
    return join_families(ensemble.curve, rest, backtest(ensemble.curve, rest), rng)


def _ask_beginning(
    tally: Tally,
    curve: LearningCurve,
    count: int,
    replicates: int,
    confidence: float,
    rng: np.random.Generator,
) -> None:
    """Asks the first ``count`` levels of a curve for the later ones within :data:`LIMIT`."""
    head = curve.head(count)
    later = (curve.share > head.share[-1]) & (curve.share <= LIMIT * head.share[-1])
    if not later.any():
        return
    seed = int(rng.integers(2**31))
    try:
        ensemble = build_ensemble(head, replicates=replicates, seed=seed)
    except DataError as problem:  # as a user would be told
        tally.refused.append(str(problem))
        return
    error = (curve.spread / np.sqrt(curve.repetitions))[later]
    _ask(tally, ensemble, curve.share[later], curve.mean[later], error, confidence, rng)


def calibrate(
    measured: Mapping[str, Sequence[LearningCurve]] | None = None,
    *,
    synthetic: int = 0,
    confidence: float = 0.9,
    replicates: int = 200,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Calibration:
    """Asks many curves for what is known of them and counts how often the intervals hold it.

    Args:
        measured: curves by group, to cut at every level but the last, from the fourth on; each
            beginning is asked for all later levels within :data:`LIMIT` times its largest p.
        synthetic: curves to make per family.
        confidence: of the intervals.
        replicates: bootstrap draws per family.
        seed: of everything drawn; the answer for a source does not depend on the other sources.
        progress: receives (done, total, what comes next).

    Raises:
        ConfigError: the confidence is not between 0 and 1.
    """
    check_confidence(confidence)
    groups = measured or {}
    beginnings = sum(max(0, len(curve) - 4) for some in groups.values() for curve in some)
    total = beginnings + synthetic * len(FITTED)
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
            share = curve.share[-1] * np.array(BANDS)
            _ask(
                tally, ensemble, share, truth(share), np.zeros(len(share)), confidence, rng,
                _without(ensemble, family, rng),
            )  # fmt: skip
        tallies.append(tally)
    for name, curves in groups.items():
        tally = Tally(name, synthetic=False)
        for curve in curves:
            rng = np.random.default_rng((seed, len(FITTED)))
            for count in range(4, len(curve)):
                tell(f"{name}: {curve.name}")
                _ask_beginning(tally, curve, count, replicates, confidence, rng)
        tallies.append(tally)
    if progress is not None:
        progress(total, total, "")
    choice = choose_factor(tallies)
    for tally in tallies:
        factor = None if choice is None else choice.without.get(tally.source)
        if factor is not None and not tally.synthetic:
            tally.held["left_out"] = tally.factors[factor]
    return Calibration(confidence, replicates, seed, tuple(tallies), choice)


def read_groups(
    studies: Sequence[Sequence[Path]], repetitions: int | None = None
) -> dict[str, list[LearningCurve]]:
    """Reads curves by group: one per model of every sequence of studies.

    A group has the name of the model, and of the first study where several have the model.

    Raises:
        DataError: a study cannot be read.
    """
    found: list[tuple[str, str, list[LearningCurve]]] = []
    for paths in studies:
        models: dict[str, list[LearningCurve]] = {}
        for path in paths:
            for curve in read_curves(path, repetitions=repetitions):
                model = curve.labels.get("model") or curve.name
                models.setdefault(model, []).append(curve)
        found += [(model, paths[0].stem, curves) for model, curves in models.items()]
    names = [model for model, _, _ in found]
    return {
        model if names.count(model) == 1 else f"{model}, {study}": curves
        for model, study, curves in found
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Counts how often the intervals hold what came; returns the exit status."""
    from calibration_page import write_tables
    from calibration_tables import calibration_dict, calibration_tables

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--study", action="append", nargs="+", type=Path, default=[],
        help="curves of one origin; may be repeated",
    )  # fmt: skip
    parser.add_argument("--synthetic", type=int, default=20, help="curves to make per family")
    parser.add_argument("--confidence", type=float, default=0.9, help="of the intervals")
    parser.add_argument("--draws", type=int, default=200, help="bootstrap draws per family")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn")
    parser.add_argument("--repetitions", type=int, help="of a table that has no column n")
    parser.add_argument("--json", type=Path, help="also write this file")
    parser.add_argument("--page", type=Path, help="also put the tables into this page")
    given = parser.parse_args(arguments)
    if given.page is not None and not given.page.is_file():
        parser.error(f"--page: expected a file, got {given.page}")
    if not given.study and not given.synthetic:
        parser.error("--study, --synthetic: expected curves to ask, got none")
    try:
        found = calibrate(
            read_groups(given.study, given.repetitions),
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
    for tally in found.tallies:
        for problem in tally.refused:
            print(f"note: {tally.source}: left out a beginning: {problem}", file=sys.stderr)
    content = plain(calibration_dict(found))
    if given.json is not None:
        write_text_atomically(given.json, json.dumps(content, indent=1) + "\n")
        print(f"numbers: {given.json}")
    if given.page is not None:
        try:
            write_tables(content, given.page)
        except TalFastError as error:
            parser.error(str(error))
        print(f"tables: {given.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
