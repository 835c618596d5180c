# SPDX-License-Identifier: Apache-2.0
"""What ``tal-fast study fit``, ``extrapolate``, ``calibrate`` and ``plan`` print and write."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tal_fast.data.files import write_text_atomically
from tal_fast.errors import ConfigError
from tal_fast.study.fits import extrapolation_tables as tables
from tal_fast.study.fits.calibration import calibrate, calibration_dict
from tal_fast.study.fits.curve_families import choose_families
from tal_fast.study.fits.curve_fit import fit_curve
from tal_fast.study.fits.extrapolation import (
    build_ensemble,
    check_confidence,
    check_times,
    extrapolate,
)
from tal_fast.study.fits.fit_tables import (
    backtest_table,
    extrapolation_dict,
    fit_dict,
    fit_table,
    plain,
)
from tal_fast.study.fits.learning_curve import LearningCurve, read_curve, read_curves
from tal_fast.study.fits.planning import (
    plan_budget,
    plan_target,
    rank_candidates,
    rank_models,
    trial_cost,
)

__all__ = ["run_calibrate", "run_extrapolate", "run_fit", "run_plan"]

_WIDTH = 150  # of tables in a pipe or a log


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


def _notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _show(console: Console, *tables: Table) -> None:
    for table in tables:
        console.print(table)
        console.print()


def _write_json(path: Path | None, content: Any) -> None:
    if path is not None:
        write_text_atomically(path, json.dumps(content, indent=1) + "\n")
        print(f"numbers: {path}")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".png").removesuffix(".svg")


def _write_picture(path: Path | None, figure: Any) -> None:
    """Writes ``path`` as PNG and SVG, whatever its suffix."""
    if path is not None:
        from tal_fast.study.picture import save_pictures

        for file in save_pictures(figure, path.parent, _stem(path)):
            print(f"picture: {file}")


def run_fit(
    study: Path,
    *,
    curve: str | None,
    families: Iterable[str] | None,
    draws: int,
    seed: int,
    repetitions: int | None,
    errors: bool,
    json_out: Path | None,
    picture: Path | None,
) -> None:
    """Fits all curves of a study or table, or the one named.

    Args:
        study: see :func:`~tal_fast.study.fits.learning_curve.read_curves`.
        curve: name of the one to fit.
        families: names; None for all.
        draws: bootstrap draws.
        seed: of the draws.
        repetitions: of a table that does not tell.
        errors: also print the backtest's errors q by q.
        json_out: file to write.
        picture: PNG and SVG to write; with several curves, their names are appended.
    """
    _check_picture(picture)
    chosen = choose_families(families)
    if curve is None:
        curves = read_curves(study, repetitions=repetitions)
    else:
        curves = [read_curve(study, curve, repetitions=repetitions)]
    fits = [fit_curve(one, chosen, replicates=draws, seed=seed) for one in curves]
    console = _console()
    for fit in fits:
        _show(console, fit_table(fit), *([backtest_table(fit)] if errors else []))
        _notes(f"{fit.curve.name}: {note}" for note in fit.notes)
    _write_json(json_out, {"draws": draws, "seed": seed, "fits": [fit_dict(fit) for fit in fits]})
    if picture is not None:
        from tal_fast.study.fits.fit_picture import fit_picture

        for fit in fits:
            # Names of curves are free text.
            words = [_stem(picture), *re.findall(r"[\w.]+", fit.curve.name)]
            named = picture if len(fits) == 1 else picture.with_name("-".join(words))
            _write_picture(named, fit_picture(fit))


def _measured(
    study: Path,
    curve: str | None,
    repetitions: int | None,
    deviation: float | None,
    until: float | None = None,
) -> LearningCurve:
    if deviation is not None and not 0.0 < deviation < math.inf:
        raise ConfigError(f"--deviation: expected points above 0, got {deviation:g}")
    if until is not None and not 0.0 < until < math.inf:
        raise ConfigError(f"--until: expected a share above 0, got {until:g}")
    found = read_curve(study, curve, repetitions=repetitions)
    if deviation is not None:
        found = found.with_deviation(deviation)
    return found if until is None else found.until(100.0 * until)


def _check_picture(path: Path | None) -> None:
    """Checks before any fit that a picture's path names a file.

    Raises:
        ConfigError: it does not.
    """
    if path is not None and not _stem(path):
        raise ConfigError("--picture: expected the name of a file, got none")


def run_extrapolate(
    study: Path,
    times: float,
    *,
    curve: str | None,
    until: float | None,
    families: Iterable[str] | None,
    confidence: float,
    draws: int,
    seed: int,
    repetitions: int | None,
    deviation: float | None,
    json_out: Path | None,
    picture: Path | None,
) -> None:
    """Says what more data would bring.

    Args:
        study: see :func:`~tal_fast.study.fits.learning_curve.read_curves`.
        times: amount of data over the full training set.
        curve: name of the curve, where there are several.
        until: largest p in 0..1 to use; None for all.
        families: names; None for all.
        confidence: of the intervals.
        draws: bootstrap draws per family.
        seed: of the draws.
        repetitions: of a table that does not tell.
        deviation: standard deviation in points where a level has no repetitions.
        json_out: file to write.
        picture: PNG and SVG to write.
    """
    _check_picture(picture)
    measured = _measured(study, curve, repetitions, deviation, until)
    measured.require_rising()
    check_times(measured, times)
    ensemble = build_ensemble(measured, choose_families(families), replicates=draws, seed=seed)
    found = extrapolate(measured, times, confidence=confidence, ensemble=ensemble)
    _show(_console(), tables.extrapolation_table(found))
    print(tables.extrapolation_line(found))
    _notes(found.notes)
    _write_json(json_out, {"draws": draws, "seed": seed, **extrapolation_dict(found)})
    if picture is not None:
        from tal_fast.study.fits.fit_picture import extrapolation_picture

        _write_picture(picture, extrapolation_picture(ensemble, found))


def run_calibrate(
    studies: Sequence[Path],
    *,
    synthetic: int,
    confidence: float,
    draws: int,
    seed: int,
    repetitions: int | None,
    json_out: Path | None,
    progress: Callable[[int, int, str], None],
) -> None:
    """Counts how often the intervals hold what came, over made and measured curves.

    Args:
        studies: studies and tables, all of whose curves are asked.
        synthetic: curves to make per family.
        confidence: of the intervals.
        draws: bootstrap draws per family.
        seed: of everything drawn.
        repetitions: of a table that does not tell.
        json_out: file to write.
        progress: receives (done, total, what comes next).
    """
    if not studies and not synthetic:
        raise ConfigError("--study, --synthetic: expected curves to ask, got none")
    curves = [c for study in studies for c in read_curves(study, repetitions=repetitions)]
    found = calibrate(
        curves,
        synthetic=synthetic,
        confidence=confidence,
        replicates=draws,
        seed=seed,
        progress=progress,
    )
    _show(_console(), *tables.calibration_tables(found))
    _write_json(json_out, plain(calibration_dict(found)))


def run_plan(
    study: Path,
    *,
    curve: str | None,
    until: float | None,
    target: float | None,
    hours: float | None,
    seconds: float | None,
    goal: float | None,
    candidates: Sequence[float],
    against: Path | None,
    against_curve: str | None,
    families: Iterable[str] | None,
    confidence: float,
    draws: int,
    seed: int,
    repetitions: int | None,
    deviation: float | None,
    json_out: Path | None,
    picture: Path | None,
) -> None:
    """Plans from a pilot.

    Args:
        study: the pilot.
        curve: name of the curve, where there are several.
        until: largest p in 0..1 to use; None for all.
        target: mAP in points to reach; None to leave the question out.
        hours: time to spend on further trials; None to leave the question out.
        seconds: time of a training on everything, where the study does not tell.
        goal: amount of data, over the full training set, that further trials are to tell about;
            None for 1, or for 2 where p = 100 % is measured.
        candidates: shares in 0..1 at which trials could be run.
        against: another study or table, to compare with; None to leave the question out.
        against_curve: name of its curve; alone, it names a curve of ``study``.
        families: names; None for all.
        confidence: of the comparison.
        draws: bootstrap draws per family.
        seed: of the draws.
        repetitions: of a table that does not tell.
        deviation: standard deviation in points where a level has no repetitions.
        json_out: file to write.
        picture: PNG and SVG to write of the chance of ``target``.
    """
    if picture is not None and target is None:
        raise ConfigError("--picture: expected --target, whose chance it shows")
    _check_picture(picture)
    check_confidence(confidence, above=0.5)
    measured = _measured(study, curve, repetitions, deviation, until)
    if goal is None:
        goal = 1.0 if measured.share[-1] < 100.0 else 2.0
    check_times(measured, goal, "--goal")
    cost = trial_cost(measured, seconds)
    if hours is not None and not cost.known:
        raise ConfigError("--hours: the study has no times; give that of a full one with --seconds")
    ensemble = build_ensemble(measured, choose_families(families), replicates=draws, seed=seed)
    share = 100.0 * goal
    console = _console()
    notes = list(measured.remarks())
    plan = None if target is None else plan_target(ensemble, target)
    if plan is not None:
        _show(console, tables.target_table(plan))
        notes += plan.notes
    percents = [100.0 * p for p in candidates]
    ranked = rank_candidates(ensemble, percents, share, cost)
    before = ranked[0].deviation + ranked[0].gained
    _show(console, tables.candidate_table(ranked, share, cost, before))
    if ranked[0].gained < 0.02 * before:
        notes.append(
            f"no single trial on the list tells much about mAP at {share:g} %: what is uncertain "
            "there is the shape of the curve, and only more data than was measured shows it"
        )
    budget = None
    if hours is not None:
        budget = plan_budget(ensemble, percents, share, cost, 3600.0 * hours)
        print(tables.budget_line(budget, share, cost) + "\n")
    ranking = None
    if against is not None or against_curve is not None:
        other = _measured(against or study, against_curve, repetitions, deviation)
        ranking = rank_models(measured, other, confidence=confidence)
        _show(console, tables.ranking_table(ranking))
        print(tables.ranking_line(ranking))
    _notes(dict.fromkeys(notes))
    content = tables.plan_dict(
        target=plan, candidates=ranked, budget=budget, ranking=ranking, goal=share, cost=cost
    )
    _write_json(json_out, {"draws": draws, "seed": seed, **content})
    if picture is not None and plan is not None:
        from tal_fast.study.fits.fit_picture import target_picture

        _write_picture(picture, target_picture(plan, measured.name))
