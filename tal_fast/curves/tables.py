# SPDX-License-Identifier: Apache-2.0
"""Fits, extrapolations and plans as tables for a terminal and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tal_fast.curves.learning_curve import LAST, LearningCurve, percent
from tal_fast.errors import counted
from tal_fast.progress import duration

if TYPE_CHECKING:  # scipy comes with them, and a study needs none for its own tables
    from tal_fast.curves.extrapolation import Extrapolation
    from tal_fast.curves.fit import CurveFit
    from tal_fast.curves.planning import Budget, Candidate, TargetPlan, TrialCost

__all__ = [
    "backtest_table",
    "band_name",
    "budget_line",
    "candidate_table",
    "curve_dict",
    "energy",
    "extrapolation_dict",
    "extrapolation_line",
    "extrapolation_table",
    "fit_dict",
    "fit_table",
    "number",
    "plain",
    "plan_dict",
    "share_cell",
    "table_of",
    "target_table",
]


def table_of(title: str, left: Sequence[str], right: Sequence[str], caption: str = "") -> Table:
    """Returns an empty table with some columns on the left, and the numbers right of them."""
    table = Table(
        title=title, title_justify="left", caption=caption or None, caption_justify="left"
    )
    for justify, names in (("left", left), ("right", right)):
        for name in names:
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def band_name(confidence: float) -> str:
    """Returns a confidence in 0..1 as the name of an interval: ``90 %``."""
    return f"{percent(confidence):.0f} %"


def energy(joules: float) -> str:
    """Returns an amount of energy as people say it: ``740 J``, ``0.21 kWh``."""
    return f"{joules:.0f} J" if joules < 36_000 else f"{joules / 3.6e6:.3g} kWh"


def number(value: float | None, digits: int = 2) -> str:
    """Returns a number for a table, a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def plain(value: Any) -> Any:
    """Returns a value as JSON can hold it: NaN and infinity become None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def curve_dict(curve: LearningCurve) -> dict[str, Any]:
    """Returns the measured levels for JSON: p in percent, mAP in points."""
    return plain(
        {
            "name": curve.name,
            "videos": curve.videos,
            "p": curve.share.tolist(),
            "mean": curve.mean.tolist(),
            "deviation": curve.deviation.tolist(),
            "standard_error": curve.standard_error.tolist(),
            "repetitions": curve.repetitions.tolist(),
        }
    )


def fit_table(fit: CurveFit) -> Table:
    """Returns the families on one curve, the best residual first."""
    curve = fit.curve
    table = table_of(
        f"{curve.name}: {counted(len(curve), 'level')} from {curve.share[0]:g} to "
        f"{curve.share[-1]:g} %, mAP in points",
        ["family"],
        ["RMSE", "chi2/dof", "AIC", "AICc", "BIC", "asymptote", "90 %", "backtest", "q"],
        "RMSE: residuals; backtest: RMSE of predicting the rest from p <= q, over every q",
    )
    table.add_column("parameters", no_wrap=False)
    for family_fit in fit.families:
        interval = family_fit.asymptote_interval
        span = "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"
        table.add_row(
            family_fit.family.title,
            number(family_fit.rmse),
            number(family_fit.chi2 / family_fit.freedom, 1),
            number(family_fit.aic, 1),
            number(family_fit.aicc, 1),
            number(family_fit.bic, 1),
            number(family_fit.asymptote, 1),
            span,
            number(family_fit.backtest_rmse),
            str(family_fit.backtest_cuts),
            ", ".join(f"{key} {value:.4g}" for key, value in family_fit.parameters.items()),
        )
    table.add_section()
    last = fit.backtest
    table.add_row(
        "last value", *["-"] * 5, number(float(curve.mean[-1]), 1), "-",
        number(last.rmse(LAST)), str(last.own_cuts(LAST)), "",
    )  # fmt: skip
    return table


def backtest_table(fit: CurveFit) -> Table:
    """Returns the error at the largest p, predicted from every beginning of the curve."""
    tests, curve = fit.backtest, fit.curve
    names = [name for name, _ in tests.ranking()]
    table = table_of(
        f"backtest: error at p = {curve.share[-1]:g} % in points, fitted to p <= q; "
        "best of a row in brackets",
        [],
        ["q (%)", *names],
    )
    for index, count in enumerate(tests.cuts):
        row = [float(tests.errors[name][index, -1]) for name in names]
        known = [abs(error) for error in row if not math.isnan(error)]
        best = min(known, default=math.nan)
        table.add_row(
            f"{curve.share[count - 1]:g}",
            *(
                "-" if math.isnan(e) else f"({e:+.1f})" if abs(e) == best else f"{e:+.1f}"
                for e in row
            ),
        )
    return table


def fit_dict(fit: CurveFit) -> dict[str, Any]:
    """Returns a fit for JSON."""
    tests = fit.backtest
    return {
        "curve": curve_dict(fit.curve),
        "families": [
            plain(
                {
                    "family": family_fit.family.name,
                    "formula": family_fit.family.formula,
                    "parameters": family_fit.parameters,
                    "rmse": family_fit.rmse,
                    "chi2": family_fit.chi2,
                    "degrees_of_freedom": family_fit.freedom,
                    "aic": family_fit.aic,
                    "aicc": family_fit.aicc,
                    "bic": family_fit.bic,
                    "asymptote": family_fit.asymptote,
                    "asymptote_interval_90": family_fit.asymptote_interval,
                    "converged": family_fit.converged,
                    "draws_converged": family_fit.draws_converged,
                    "backtest_rmse": family_fit.backtest_rmse,
                    "backtest_cuts": family_fit.backtest_cuts,
                }
            )
            for family_fit in fit.families
        ],
        "backtest": {
            "q": [float(fit.curve.share[count - 1]) for count in tests.cuts],
            "ranking": plain([{"family": name, "rmse": rmse} for name, rmse in tests.ranking()]),
            "errors": {name: plain(errors.tolist()) for name, errors in tests.errors.items()},
        },
        "notes": list(fit.notes),
    }


def extrapolation_dict(extrapolation: Extrapolation) -> dict[str, Any]:
    """Returns an extrapolation for JSON."""
    return plain(
        {
            "curve": curve_dict(extrapolation.curve),
            "share": extrapolation.share,
            "confidence": extrapolation.confidence,
            "map": extrapolation.value,
            "interval": extrapolation.interval,
            "gain": extrapolation.gain,
            "gain_interval": extrapolation.gain_interval,
            "last_value": extrapolation.last,
            "last_value_standard_error": extrapolation.last_error,
            "factor": extrapolation.factor,
            "drift": extrapolation.drift,
            "times_largest_p": extrapolation.ratio,
            "backtest_reaches": extrapolation.reach,
            "families": [
                {
                    "family": member.family.name,
                    "weight": member.weight,
                    "map": member.value,
                    "bootstrap_interval": member.interval,
                    "backtest_rmse": member.backtest_rmse,
                }
                for member in extrapolation.members
            ],
            "notes": extrapolation.notes,
        }
    )


def extrapolation_line(extrapolation: Extrapolation) -> str:
    """Returns the answer in words."""
    (low, high), (gain_low, gain_high) = extrapolation.interval, extrapolation.gain_interval
    return (
        f"{extrapolation.curve.name} at {extrapolation.share:g} % of the data: mAP "
        f"{extrapolation.value:.1f}, "
        f"{extrapolation.confidence:.0%} interval {low:.1f} to {high:.1f}; a gain of "
        f"{extrapolation.gain:+.1f} "
        f"({gain_low:+.1f} to {gain_high:+.1f}) over the last value, {extrapolation.last:.1f} "
        f"at {extrapolation.curve.share[-1]:g} %"
    )


def extrapolation_table(extrapolation: Extrapolation) -> Table:
    """Returns what each family says, the heaviest first, and all together."""
    table = table_of(
        f"{extrapolation.curve.name} at {extrapolation.share:g} % of the data "
        f"({extrapolation.ratio:.3g} times the "
        f"largest p; own backtest reaches {extrapolation.reach:.3g} times), mAP in points",
        ["family"],
        ["weight", "backtest RMSE", "mAP", band_name(extrapolation.confidence), "gain"],
        "a family's interval: its bootstrap alone; all: with the differences between families, "
        + (
            f"and a drift of {extrapolation.drift:.2f} points per unit of ln(p / q)"
            if extrapolation.factor == 1.0
            else f"drawn to the last value and times {extrapolation.factor:g}, as calibrated"
        ),
    )
    for member in extrapolation.members:
        table.add_row(
            member.family.title,
            f"{member.weight:.2f}",
            number(member.backtest_rmse),
            f"{member.value:.1f}",
            f"{member.interval[0]:.1f} to {member.interval[1]:.1f}",
            f"{member.value - extrapolation.last:+.1f}",
        )
    table.add_section()
    table.add_row(
        "all", "1.00", "", f"{extrapolation.value:.1f}",
        f"{extrapolation.interval[0]:.1f} to "
        f"{extrapolation.interval[1]:.1f}", f"{extrapolation.gain:+.1f}",
    )  # fmt: skip
    table.add_row(
        "last value",
        "",
        "",
        f"{extrapolation.last:.1f}",
        f"± {extrapolation.last_error:.2f} (s.e.)",
        "+0.0",
    )
    return table


def share_cell(value: float) -> str:
    """Returns a share in 0..1 for a table, a dash where there is none."""
    return "-" if math.isnan(value) else f"{percent(value):.0f} %"


def target_table(plan: TargetPlan) -> Table:
    """Returns how much data a target takes."""
    table = table_of(
        f"for mAP {plan.target:g} (largest measured p: {plan.largest:g} %)",
        [],
        ["confidence", "data", "videos", "more than measured"],
        f"chance at {plan.share[-1]:g} %, the most that is looked at: "
        f"{plan.probability[-1]:.0%}; chance that no amount of data is enough: "
        f"{plan.out_of_reach:.0%}",
    )
    for chance, share in plan.needed.items():
        videos, more = plan.videos_needed(chance), plan.more_videos(chance)
        table.add_row(
            f"{chance:.0%}",
            f"more than {plan.share[-1]:g} %" if share is None else f"{share:.0f} %",
            "-" if videos is None else str(videos),
            "-" if more is None else f"+{more}",
        )
    return table


def _price(cost: TrialCost, value: float) -> str:
    return duration(value) if cost.known else f"{value:.2f} trainings"


def candidate_table(
    candidates: Sequence[Candidate], goal: float, cost: TrialCost, before: float
) -> Table:
    """Returns which next trial tells most about the goal."""
    unit = "hour" if cost.known else "full training"
    table = table_of(
        f"one more trial, by what it tells about mAP at {goal:g} % per {unit} "
        f"(standard deviation now: {before:.2f} points)",
        [],
        ["p", "cost", "deviation after", "gained", f"per {unit}"],
    )
    for candidate in candidates:
        table.add_row(
            f"{candidate.share:g} %", _price(cost, candidate.cost), f"{candidate.deviation:.2f}",
            f"{candidate.gained:.3f}", f"{candidate.per_cost:.2f}",
        )  # fmt: skip
    return table


def budget_line(budget: Budget, goal: float, cost: TrialCost) -> str:
    """Returns in words what a time buys."""
    given = _price(cost, budget.seconds)
    if not budget.trials:
        return (
            f"{given}: no trial on the list that fits tells anything about mAP at {goal:g} % "
            f"(standard deviation {budget.before:.2f} points)"
        )
    trials = ", ".join(f"{count} at {share:g} %" for share, count in budget.trials.items())
    return (
        f"{given} buys {trials} ({_price(cost, budget.spent)}): the standard deviation of mAP at "
        f"{goal:g} % goes from {budget.before:.2f} to {budget.after:.2f} points"
    )


def plan_dict(
    *,
    target: TargetPlan | None,
    candidates: Sequence[Candidate],
    budget: Budget | None,
    goal: float,
    cost: TrialCost,
) -> dict[str, Any]:
    """Returns a plan for JSON."""
    fields: dict[str, Any] = {
        "goal": goal,
        "cost_unit": "seconds" if cost.known else "full trainings",
        "candidates": [vars(candidate) for candidate in candidates],
    }
    if target is not None:
        fields["target"] = {
            "map": target.target,
            "share": target.share.tolist(),
            "probability": target.probability.tolist(),
            "out_of_reach": target.out_of_reach,
            "needed": {
                f"{chance:g}": {
                    "share": share,
                    "videos": target.videos_needed(chance),
                    "more_videos": target.more_videos(chance),
                }
                for chance, share in target.needed.items()
            },
            "notes": target.notes,
        }
    if budget is not None:
        fields["budget"] = {
            **vars(budget),
            "trials": {f"{share:g}": count for share, count in budget.trials.items()},
        }
    return plain(fields)
