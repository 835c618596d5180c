# SPDX-License-Identifier: Apache-2.0
"""Commands about learning curves of studies and others: fit, extrapolate, plan."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tal_fast.cli.app import command, say, say_next, show, study_app, write_json
from tal_fast.cli.curve_options import (
    Confidence,
    Curve,
    FitOptions,
    Measured,
    PartOptions,
    Picture,
    TableOptions,
)
from tal_fast.cli.next_steps import given_options, say_after_curves, say_draw
from tal_fast.cli.options import JsonOut
from tal_fast.cli.several import check_compared, check_outputs, told_apart
from tal_fast.cli.whole_tables import print_tables
from tal_fast.errors import counted

if TYPE_CHECKING:
    from tal_fast.curves import LearningCurve
    from tal_fast.curves.ensemble import Ensemble
    from tal_fast.curves.planning import TargetPlan, TrialCost

_PICTURES = (".png", ".svg")
_WIDTH = 150  # of tables in a pipe or a log, at least


def show_notes(notes: Iterable[str]) -> None:
    """Prints notes beside the results, each once."""
    for note in dict.fromkeys(notes):
        say(f"note: {note}")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".png").removesuffix(".svg")


def _check_picture(path: Path | None) -> None:
    """Checks before any fit that a picture's path names a file.

    Raises:
        ConfigError: it does not.
    """
    from tal_fast.errors import ConfigError

    if path is not None and not _stem(path):
        raise ConfigError("--picture: expected the name of a file, got none")


def _files_of_picture(path: Path | None) -> list[Path]:
    """Returns what :func:`_write_picture` writes."""
    return [] if path is None else [path.with_name(f"{_stem(path)}{end}") for end in _PICTURES]


def _write_picture(path: Path, figure: Any) -> None:
    """Writes ``path`` as PNG and SVG, whatever its suffix."""
    from tal_fast.curves.figures import save_pictures

    for file in save_pictures(figure, path.parent, _stem(path)):
        show(f"picture: {file}")


def _measured(
    study: Path, curve: str | None, table: TableOptions, part: PartOptions
) -> LearningCurve:
    from tal_fast.curves import read_curve
    from tal_fast.curves.learning_curve import percent
    from tal_fast.curves.points import note_on_difference
    from tal_fast.errors import ConfigError

    deviation, until = part.deviation, part.until
    if deviation is not None and not 0.0 < deviation < math.inf:
        raise ConfigError(f"--deviation: expected points above 0, got {deviation:g}")
    if until is not None and not 0.0 < until <= 1.0:
        raise ConfigError(f"--until: expected a fraction above 0 and at most 1, got {until:g}")
    measured = read_curve(study, curve, repetitions=table.repetitions, form=table.form())
    if deviation is not None:
        measured = measured.with_deviation(deviation)
        note = note_on_difference("--deviation", deviation)
        if note is not None:
            say(f"note: {note}")
    return measured if until is None else measured.until(percent(until))


def _of(curve: str | None) -> tuple[str, ...]:
    """Returns the option that names a curve again."""
    return () if curve is None else ("--curve", curve)


def _named_curve(named: str) -> tuple[Path, str | None]:
    """Returns study and curve of ``STUDY:CURVE``; a path that is there is all study."""
    study, colon, curve = named.rpartition(":")
    if not colon or os.path.exists(named):
        return Path(named), None
    return Path(study), curve


@command(study_app, "fit", "tal-fast study fit --study results/hapt --picture fits.png")
def study_fit(
    study: Measured,
    table: TableOptions,
    fit: FitOptions,
    curve: Curve = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="Also the backtest's errors, q by q.")
    ] = False,
    json_out: JsonOut = None,
    picture: Picture = None,
) -> None:
    """Fit ten families of curves, and test what each would have predicted."""
    from tal_fast.curves import read_curve, read_curves
    from tal_fast.curves.fit import fit_curve
    from tal_fast.curves.tables import backtest_table, fit_dict, fit_table
    from tal_fast.errors import DataError

    _check_picture(picture)
    check_outputs({"--picture": _files_of_picture(picture), "--json": [json_out]}, [study])
    chosen = fit.chosen()
    form = table.form()
    if curve is None:
        curves = read_curves(study, repetitions=table.repetitions, form=form)
    else:
        curves = [read_curve(study, curve, repetitions=table.repetitions, form=form)]
    fits, failures = [], {}
    for measured in curves:
        try:
            fits.append(fit_curve(measured, chosen, replicates=fit.draws, seed=fit.seed))
        except DataError as error:
            failures[measured.name] = str(error)
    for fitted in fits:
        print_tables(
            fit_table(fitted), *([backtest_table(fitted)] if errors else []), width=_WIDTH, gap=True
        )
        show_notes(f"{fitted.curve.name}: {note}" for note in fitted.notes)
    if fits:
        numbers = {"fits": [fit_dict(fitted) for fitted in fits], "failures": failures}
        write_json(json_out, {"draws": fit.draws, "seed": fit.seed, **numbers}, indent=1)
    if picture is not None:
        from tal_fast.curves.pictures import fit_picture

        for fitted in fits:
            # With several curves their names are appended, which are free text.
            words = [_stem(picture), *re.findall(r"[\w.]+", fitted.curve.name)]
            named = picture if len(curves) == 1 else picture.with_name("-".join(words))
            _write_picture(named, fit_picture(fitted))
    if failures:
        told = "; ".join(failures.values())
        if len(curves) > 1:
            told = f"{len(failures)} of {counted(len(curves), 'curve')} could not be fitted: {told}"
        raise DataError(told)
    if not say_after_curves(study, curves, [*_of(curve), *given_options(table, fit)]):
        say_draw(study, [*_of(curve), *given_options(table)])


@command(study_app, "extrapolate", "tal-fast study extrapolate --study results/hapt --times 3")
def study_extrapolate(
    study: Measured,
    times: Annotated[
        float, typer.Option(help="Amount of data to ask about: 3 is three full training sets.")
    ],
    table: TableOptions,
    part: PartOptions,
    fit: FitOptions,
    curve: Curve = None,
    confidence: Confidence = 0.9,
    json_out: JsonOut = None,
    picture: Picture = None,
) -> None:
    """Say what more data would bring, with an interval that has been tested."""
    from tal_fast.curves import tables
    from tal_fast.curves.ensemble import build_ensemble
    from tal_fast.curves.extrapolation import check_times, extrapolate

    _check_picture(picture)
    check_outputs({"--picture": _files_of_picture(picture), "--json": [json_out]}, [study])
    measured = _measured(study, curve, table, part)
    measured.require_rising()
    check_times(measured, times)
    ensemble = build_ensemble(measured, fit.chosen(), replicates=fit.draws, seed=fit.seed)
    extrapolation = extrapolate(measured, times, confidence=confidence, ensemble=ensemble)
    print_tables(tables.extrapolation_table(extrapolation), width=_WIDTH, gap=True)
    show(tables.extrapolation_line(extrapolation))
    show_notes(extrapolation.notes)
    numbers = tables.extrapolation_dict(extrapolation)
    write_json(json_out, {"draws": fit.draws, "seed": fit.seed, **numbers}, indent=1)
    if picture is not None:
        from tal_fast.curves.pictures import extrapolation_picture

        _write_picture(picture, extrapolation_picture(ensemble, numbers))
    given = given_options(table, part, fit)
    say_next("tal-fast", "study", "plan", "--study", study, *_of(curve), "--goal", f"{times:g}",
             *given)  # fmt: skip


def _cost(pilot: LearningCurve, hours: float | None, seconds: float | None) -> TrialCost:
    from tal_fast.curves.planning import trial_cost
    from tal_fast.errors import ConfigError

    cost = trial_cost(pilot, seconds)
    if hours is not None and not cost.known:
        raise ConfigError("--hours: the study has no times; give that of a full one with --seconds")
    return cost


def _plan_trials(
    ensemble: Ensemble, share: float, percents: list[float], cost: TrialCost, hours: float | None
) -> tuple[dict[str, Any], list[str]]:
    """Shows which trials tell most about mAP at ``share`` percent, and what a time buys.

    Returns:
        What :func:`~tal_fast.curves.tables.plan_dict` takes of that, and notes.
    """
    from tal_fast.curves import planning, tables

    ranked = planning.rank_candidates(ensemble, percents, share, cost)
    before = ranked[0].deviation + ranked[0].gained
    print_tables(tables.candidate_table(ranked, share, cost, before), width=_WIDTH, gap=True)
    notes = []
    if ranked[0].gained < 0.02 * before:
        notes.append(
            f"no single trial on the list tells much about mAP at {share:g} %: what is uncertain "
            "there is the shape of the curve, and only more data than was measured shows it"
        )
    budget = None
    if hours is not None:
        budget = planning.plan_budget(ensemble, percents, share, cost, 3600.0 * hours)
        show(tables.budget_line(budget, share, cost) + "\n")
    return {"goal": share, "cost": cost, "candidates": ranked, "budget": budget}, notes


def _picture_of_target(picture: Path | None, plan: TargetPlan | None, name: str) -> None:
    if picture is not None and plan is not None:
        from tal_fast.curves.pictures import target_picture

        _write_picture(picture, target_picture(plan, name))


@command(study_app, "plan", "tal-fast study plan --study results/pilot --target 60 --hours 2")
def study_plan(
    study: Measured,
    table: TableOptions,
    part: PartOptions,
    fit: FitOptions,
    curve: Curve = None,
    target: Annotated[float | None, typer.Option(help="mAP in points to reach.")] = None,
    hours: Annotated[float | None, typer.Option(help="Hours for further trials.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of a trial at p = 1, if the study has no times.")
    ] = None,
    goal: Annotated[
        float | None,
        typer.Option(
            help="Amount of data at which mAP is wanted, in full sets; default 1, or 2 after p = 1."
        ),
    ] = None,
    candidates: Annotated[
        str,
        typer.Option(
            help="Fractions of further trials: first:last:step (0.1), or separated by commas."
        ),
    ] = "0.1:1.0:0.1",
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Another model's pilot, STUDY or STUDY:CURVE; repeat for more. Ranks the models "
            "and finds the smallest study that would."
        ),
    ] = None,
    confidence: Confidence = 0.9,
    json_out: JsonOut = None,
    picture: Picture = None,
) -> None:
    """Plan from a pilot: data for a target, the next p, what an hour buys, the p that ranks."""
    from tal_fast.curves import planning, ranking_tables, tables
    from tal_fast.curves.ensemble import build_ensemble
    from tal_fast.curves.extrapolation import check_confidence, check_times
    from tal_fast.curves.learning_curve import percent
    from tal_fast.curves.points import require_level
    from tal_fast.curves.ranking import rank_models
    from tal_fast.errors import ConfigError
    from tal_fast.study.shares import parse_shares

    if picture is not None and target is None:
        raise ConfigError("--picture: expected --target, whose chance it shows")
    if target is not None:
        require_level("--target", target)
    _check_picture(picture)
    check_outputs({"--picture": _files_of_picture(picture), "--json": [json_out]}, [study])
    for option, value in (("--hours", hours), ("--seconds", seconds)):
        if value is not None and not 0.0 < value < math.inf:
            raise ConfigError(f"{option}: expected a positive time, got {value:g}")
    percents = [percent(p) for p in parse_shares("--candidates", candidates)]
    check_confidence(confidence, above=0.5)
    pilot = _measured(study, curve, table, part)
    compared = [(study, curve), *map(_named_curve, compare or ())]
    others = [_measured(path, name, table, part) for path, name in compared[1:]]
    check_compared(compared, [pilot, *others])
    if others:
        pairs = zip(compared, [pilot, *others], strict=True)
        pilot, *others = told_apart([(path, [pilot_curve]) for (path, _), pilot_curve in pairs])
    if goal is None:
        goal = 1.0 if pilot.share[-1] < 100.0 else 2.0
    check_times(pilot, goal, "--goal")
    cost = _cost(pilot, hours, seconds)
    ensemble = build_ensemble(pilot, fit.chosen(), replicates=fit.draws, seed=fit.seed)
    plan = None if target is None else planning.plan_target(ensemble, target)
    if plan is not None:
        print_tables(tables.target_table(plan), width=_WIDTH, gap=True)
    trials, notes = _plan_trials(ensemble, percent(goal), percents, cost, hours)
    ranking = None
    if others:
        known = {0: ensemble} if pilot.share[-1] < 100.0 else {}
        ranking = rank_models(
            [pilot, *others],
            confidence=confidence,
            forecasts=known,
            replicates=fit.draws,
            seed=fit.seed,
        )
        print_tables(*ranking_tables.ranking_tables(ranking), width=_WIDTH, gap=True)
        show("\n".join(ranking_tables.ranking_lines(ranking)))
        notes += ranking.notes
    show_notes([*pilot.remarks(), *(plan.notes if plan else ()), *notes])
    numbers = tables.plan_dict(target=plan, **trials)
    if ranking is not None:
        numbers["ranking"] = ranking_tables.ranking_dict(ranking)
    write_json(json_out, {"draws": fit.draws, "seed": fit.seed, **numbers}, indent=1)
    _picture_of_target(picture, plan, pilot.name)
    say_draw(study, [*_of(curve), *given_options(table)])
