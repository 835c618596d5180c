# SPDX-License-Identifier: Apache-2.0
"""Fits as tables for a terminal and as JSON."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from tal_fast.study.fits.curve_fit import LAST, CurveFit
from tal_fast.study.fits.extrapolation import Extrapolation
from tal_fast.study.fits.learning_curve import LearningCurve

__all__ = [
    "backtest_table",
    "curve_dict",
    "extrapolation_dict",
    "fit_dict",
    "fit_table",
    "number",
    "plain",
]


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
    table = Table(
        title=f"{curve.name}: {len(curve)} levels from {curve.share[0]:g} to "
        f"{curve.share[-1]:g} %, mAP in points",
        title_justify="left",
        caption="RMSE: residuals; backtest: RMSE of predicting the rest from p <= q, over every q",
        caption_justify="left",
    )
    for name in ("family", "RMSE", "chi2/dof", "AIC", "AICc", "BIC", "asymptote", "90 %"):
        table.add_column(name, justify="left" if name == "family" else "right", no_wrap=True)
    table.add_column("backtest", justify="right", no_wrap=True)
    table.add_column("q", justify="right", no_wrap=True)
    table.add_column("parameters", no_wrap=False)
    for one in fit.families:
        interval = one.asymptote_interval
        span = "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"
        table.add_row(
            one.family.title,
            number(one.rmse),
            number(one.chi2 / one.freedom, 1),
            number(one.aic, 1),
            number(one.aicc, 1),
            number(one.bic, 1),
            number(one.asymptote, 1),
            span,
            number(one.backtest_rmse),
            str(one.backtest_cuts),
            ", ".join(f"{key} {value:.4g}" for key, value in one.parameters.items()),
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
    table = Table(
        title=f"backtest: error at p = {curve.share[-1]:g} % in points, fitted to p <= q; "
        "best of a row in brackets",
        title_justify="left",
    )
    table.add_column("q (%)", justify="right")
    names = [name for name, _ in tests.ranking()]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
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
                    "family": one.family.name,
                    "formula": one.family.formula,
                    "parameters": one.parameters,
                    "rmse": one.rmse,
                    "chi2": one.chi2,
                    "degrees_of_freedom": one.freedom,
                    "aic": one.aic,
                    "aicc": one.aicc,
                    "bic": one.bic,
                    "asymptote": one.asymptote,
                    "asymptote_interval_90": one.asymptote_interval,
                    "converged": one.converged,
                    "draws_converged": one.draws_converged,
                    "backtest_rmse": one.backtest_rmse,
                    "backtest_cuts": one.backtest_cuts,
                }
            )
            for one in fit.families
        ],
        "backtest": {
            "q": [float(fit.curve.share[count - 1]) for count in tests.cuts],
            "ranking": plain([{"family": name, "rmse": rmse} for name, rmse in tests.ranking()]),
            "errors": {name: plain(errors.tolist()) for name, errors in tests.errors.items()},
        },
        "notes": list(fit.notes),
    }


def extrapolation_dict(found: Extrapolation) -> dict[str, Any]:
    """Returns an extrapolation for JSON."""
    return plain(
        {
            "curve": curve_dict(found.curve),
            "share": found.share,
            "confidence": found.confidence,
            "map": found.value,
            "interval": found.interval,
            "gain": found.gain,
            "gain_interval": found.gain_interval,
            "last_value": found.last,
            "last_value_standard_error": found.last_error,
            "drift": found.drift,
            "times_largest_p": found.ratio,
            "backtest_reaches": found.reach,
            "families": [
                {
                    "family": member.family.name,
                    "weight": member.weight,
                    "map": member.value,
                    "bootstrap_interval": member.interval,
                    "backtest_rmse": member.backtest_rmse,
                }
                for member in found.members
            ],
            "notes": found.notes,
        }
    )
