# SPDX-License-Identifier: Apache-2.0
"""Extrapolations, calibrations and plans as tables for a terminal and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from tal_fast.study.display import duration
from tal_fast.study.fits.calibration import METHODS, Calibration, Tally
from tal_fast.study.fits.extrapolation import Extrapolation
from tal_fast.study.fits.fit_tables import number, plain
from tal_fast.study.fits.planning import Budget, Candidate, Ranking, TargetPlan, TrialCost

__all__ = [
    "budget_line",
    "calibration_tables",
    "candidate_table",
    "extrapolation_line",
    "extrapolation_table",
    "plan_dict",
    "ranking_line",
    "ranking_table",
    "target_table",
]

_METHOD_TITLES = {
    "best": "best fit alone",
    "families": "all families",
    "ensemble": "extrapolate",
    "left_out": "true family left out",
}


def extrapolation_line(found: Extrapolation) -> str:
    """Returns the answer in words."""
    (low, high), (gain_low, gain_high) = found.interval, found.gain_interval
    return (
        f"{found.curve.name} at {found.share:g} % of the data: mAP {found.value:.1f}, "
        f"{found.confidence:.0%} interval {low:.1f} to {high:.1f}; a gain of {found.gain:+.1f} "
        f"({gain_low:+.1f} to {gain_high:+.1f}) over the last value, {found.last:.1f} "
        f"at {found.curve.share[-1]:g} %"
    )


def extrapolation_table(found: Extrapolation) -> Table:
    """Returns what each family says, the heaviest first, and all together."""
    percent = f"{found.confidence:.0%}".replace("%", " %")
    table = Table(
        title=f"{found.curve.name} at {found.share:g} % of the data ({found.ratio:.3g} times the "
        f"largest p; own backtest reaches {found.reach:.3g} times), mAP in points",
        title_justify="left",
        caption="a family's interval: its bootstrap alone; all: with the differences between "
        f"families and a drift of {found.drift:.2f} points per unit of ln(p / q)",
        caption_justify="left",
    )
    table.add_column("family", no_wrap=True)
    for name in ("weight", "backtest RMSE", "mAP", percent, "gain"):
        table.add_column(name, justify="right", no_wrap=True)
    for member in found.members:
        table.add_row(
            member.family.title,
            f"{member.weight:.2f}",
            number(member.backtest_rmse),
            f"{member.value:.1f}",
            f"{member.interval[0]:.1f} to {member.interval[1]:.1f}",
            f"{member.value - found.last:+.1f}",
        )
    table.add_section()
    table.add_row(
        "all", "1.00", "", f"{found.value:.1f}",
        f"{found.interval[0]:.1f} to {found.interval[1]:.1f}", f"{found.gain:+.1f}",
    )  # fmt: skip
    table.add_row(
        "last value", "", "", f"{found.last:.1f}", f"± {found.last_error:.2f} (s.e.)", "+0.0"
    )
    return table


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.0f} %"


def _calibration_row(table: Table, tally: Tally) -> None:
    if not tally.ratio:
        table.add_row(tally.source, str(tally.curves), "0", *["-"] * (len(METHODS) + 3))
        return
    table.add_row(
        tally.source,
        str(tally.curves),
        str(len(tally.ratio)),
        *(_share(tally.coverage(method)) for method in METHODS),
        number(tally.median_width("ensemble"), 1),
        number(float(np.mean(tally.error)), 1),
        number(float(np.mean(tally.last_error)), 1),
    )


def calibration_tables(found: Calibration) -> list[Table]:
    """Returns coverage per source, per family alone, and by how far ahead was asked."""
    table = Table(
        title=f"how often {found.confidence:.0%} intervals hold what came".replace("%", " %"),
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
            total.source, *(_share(sum(c) / len(c)) if c else "-" for c in cells)
        )  # fmt: skip
    ratio = Table(
        title="extrapolate, by the amount of data asked about over the largest p known",
        title_justify="left",
    )
    for name in ("curves", "ratio", "questions", "held"):
        ratio.add_column(name, justify="right", no_wrap=True)
    for total in pooled:
        for name, count, share in found.by_ratio(total.synthetic):
            ratio.add_row(total.source, name, str(count), _share(share))
    return [table, alone, ratio]


def target_table(plan: TargetPlan) -> Table:
    """Returns how much data a target takes."""
    table = Table(
        title=f"for mAP {plan.target:g} (largest measured p: {plan.largest:g} %)",
        title_justify="left",
        caption=f"chance at {plan.share[-1]:g} %, the most that is looked at: "
        f"{plan.probability[-1]:.0%}; chance that no amount of data is enough: "
        f"{plan.out_of_reach:.0%}",
        caption_justify="left",
    )
    for name in ("confidence", "data", "videos", "more than measured"):
        table.add_column(name, justify="right", no_wrap=True)
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
    table = Table(
        title=f"one more trial, by what it tells about mAP at {goal:g} % per {unit} "
        f"(standard deviation now: {before:.2f} points)",
        title_justify="left",
    )
    for name in ("p", "cost", "deviation after", "gained", f"per {unit}"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in candidates:
        table.add_row(
            f"{one.share:g} %", _price(cost, one.cost), f"{one.deviation:.2f}",
            f"{one.gained:.3f}", f"{one.per_cost:.2f}",
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


def ranking_table(found: Ranking) -> Table:
    """Returns how two models compare at every common p."""
    table = Table(title=f"{found.first} minus {found.second}, mAP in points", title_justify="left")
    for name in ("p", "difference", "s.e.", "ranks as at the largest p"):
        table.add_column(name, justify="right", no_wrap=True)
    for level in found.levels:
        table.add_row(
            f"{level.share:g} %", f"{level.difference:+.2f}", f"{level.error:.2f}",
            _share(level.agreement),
        )  # fmt: skip
    return table


def ranking_line(found: Ranking) -> str:
    """Returns the answer in words."""
    last = found.levels[-1]
    better = found.first if last.difference >= 0 else found.second
    if found.certainty < found.confidence:
        return (
            f"at {last.share:g} % the two cannot be told apart: {better} leads by "
            f"{abs(last.difference):.2f} ± {last.error:.2f} (s.e.), the right order with "
            f"{found.certainty:.0%}"
        )
    if found.enough is None or found.enough == last.share:
        return f"{better} leads at {last.share:g} %, and no smaller p ranks them so for certain"
    return (
        f"{better} leads at {last.share:g} %, and from p = {found.enough:g} % on every level ranks "
        f"them so with at least {found.confidence:.0%}"
    )


def plan_dict(
    *,
    target: TargetPlan | None,
    candidates: Sequence[Candidate],
    budget: Budget | None,
    ranking: Ranking | None,
    goal: float,
    cost: TrialCost,
) -> dict[str, Any]:
    """Returns a plan for JSON."""
    content: dict[str, Any] = {
        "goal": goal,
        "cost_unit": "seconds" if cost.known else "full trainings",
        "candidates": [vars(candidate) for candidate in candidates],
    }
    if target is not None:
        content["target"] = {
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
        content["budget"] = {
            **vars(budget),
            "trials": {f"{share:g}": count for share, count in budget.trials.items()},
        }
    if ranking is not None:
        content["ranking"] = {
            **vars(ranking),
            "levels": [vars(level) for level in ranking.levels],
        }
    return plain(content)
