# SPDX-License-Identifier: Apache-2.0
"""Fits of all families to a curve, and a backtest of what they would have predicted.

Fits are least squares weighted by the standard error of each level's mean. A family is judged
twice: by its residuals (RMSE, information criteria), and by a **backtest**: it is fitted to the
levels p <= q and predicts those above, for every q. Only the second says anything about
extrapolation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from tal_fast.curves.families import CEILING, FITTED, Family
from tal_fast.curves.learning_curve import LAST, LearningCurve
from tal_fast.curves.solver import BatchFit, solve_batch
from tal_fast.errors import counted
from tal_fast.typing import Floats, Ints, Mask

__all__ = [
    "LAST",
    "Backtest",
    "CurveFit",
    "FamilyFit",
    "Replicates",
    "draw_curves",
    "fit_curve",
    "fit_families",
    "refine",
]


_FEWEST = 3  # levels that the earliest cut of a backtest keeps


@dataclass(frozen=True)
class Replicates:
    """One family, fitted to the measured curve, to its beginnings, and to bootstrap draws.

    Attributes:
        family: the shape.
        point: the fit of the measured means (one row).
        cuts: numbers of levels kept that this family could be fitted to, in rising order.
        beginnings: the fits of those first levels, a row per cut.
        draws: the fits of the bootstrap draws; no row where none were asked for.
    """

    family: Family
    point: BatchFit
    cuts: tuple[int, ...]
    beginnings: BatchFit
    draws: BatchFit


def draw_curves(curve: LearningCurve, replicates: int, rng: np.random.Generator) -> Floats:
    """Draws means of new repetitions.

    Where the draws of a level are known, they are drawn again with replacement, widened by
    sqrt(n / (n - 1)) so that their variance is that of the sample; where only mean and deviation
    are, or one repetition, from a normal distribution.

    Args:
        curve: the measured curve.
        replicates: R.
        rng: source of randomness.

    Returns:
        Means in points, [R, n], within 0 and 100. Levels of unknown spread do not move.
    """
    result = np.empty((replicates, len(curve)))
    spread = np.nan_to_num(curve.spread, nan=0.0)
    for index, values in enumerate(point.draws for point in curve.points):
        mean, count = curve.mean[index], int(curve.repetitions[index])
        if len(values) > 1:
            widened = mean + (np.array(values) - mean) * math.sqrt(count / (count - 1))
            chosen = rng.integers(0, count, (replicates, count))
            result[:, index] = widened[chosen].mean(axis=1)
        else:
            error = spread[index] / math.sqrt(count)
            result[:, index] = mean + error * rng.standard_normal(replicates)
    return np.clip(result, 0.0, CEILING)


def fit_families(
    curve: LearningCurve,
    families: Sequence[Family] = FITTED,
    *,
    replicates: int = 0,
    rng: np.random.Generator | None = None,
) -> list[Replicates]:
    """Fits every family that the curve has enough levels for.

    Args:
        curve: the measured curve.
        families: which to fit.
        replicates: bootstrap draws per family; all families get the same.
        rng: source of their randomness.

    Returns:
        One entry per family that could be fitted.

    Raises:
        DataError: the curve has fewer than three levels, or does not rise.
    """
    curve.require_rising()
    count = len(curve)
    weight = curve.standard_error**-2
    means = draw_curves(curve, replicates, rng or np.random.default_rng(0))
    result = []
    for family in families:
        if count < family.least:
            continue
        cuts = tuple(range(max(_FEWEST, family.least), count))
        kept = np.arange(count) < np.array((count, *cuts))[:, None]
        y = np.concatenate((np.broadcast_to(curve.mean, kept.shape), means))
        w = np.concatenate((weight * kept, np.broadcast_to(weight, means.shape)))
        fit = solve_batch(family, curve.share, y, w)
        first, beginnings, draws = (
            fit.take(slice(*ends)) for ends in ((0, 1), (1, 1 + len(cuts)), (1 + len(cuts), None))
        )
        result.append(Replicates(family, first, cuts, beginnings, draws))
    return result


@dataclass(frozen=True)
class Backtest:
    """What each family predicted from the levels p <= q.

    Attributes:
        share: p of all levels in percent, [n].
        cuts: numbers of levels kept, [C].
        errors: family -> prediction minus what came, in points, [C, n]; NaN where the level was
            fitted or the family was not. :data:`LAST` is among them.
        standard_error: of the measured means, [n].
    """

    share: Floats
    cuts: Ints
    errors: dict[str, Floats]
    standard_error: Floats

    @property
    def common(self) -> Mask:
        """Cuts from which every family predicted, but for those of dense curves only, [C]."""
        common = np.ones(len(self.cuts), dtype=bool)
        for name, errors in self.errors.items():
            if name != "bnsl1" and not np.isnan(errors).all():
                common &= _predicted(errors)
        return common

    def rmse(self, name: str) -> float:
        """Returns the root mean square error of a family over the common cuts, in points.

        A family that needs more levels than the common cuts keep is measured on its own cuts, and
        its error scaled by how much harder the common ones were for the others (geometric mean).
        NaN if it predicted nothing.
        """
        errors = self.errors[name]
        predicted = _predicted(errors)
        common = self.common
        if not predicted.any() or not common.any():
            return math.nan
        if predicted[common].all():
            return _root_mean_square(errors[common])
        ratios = [
            _root_mean_square(other[common]) / _root_mean_square(other[predicted])
            for key, other in self.errors.items()
            if key not in (name, LAST) and _predicted(other)[common | predicted].all()
        ]
        harder = math.exp(np.mean(np.log(ratios))) if ratios else 1.0
        return _root_mean_square(errors[predicted]) * harder

    def own_cuts(self, name: str) -> int:
        """Returns from how many cuts a family predicted."""
        return int((~np.isnan(self.errors[name]).all(1)).sum())

    def ranking(self) -> list[tuple[str, float]]:
        """Returns (family, RMSE) from the best; families that predicted nothing are left out."""
        scores = [(name, self.rmse(name)) for name in self.errors]
        return sorted((s for s in scores if not math.isnan(s[1])), key=lambda score: score[1])

    @property
    def distance(self) -> Floats:
        """How far each level lies beyond each cut, ln(p / q), [C, n]."""
        return np.log(self.share[None, :] / self.share[self.cuts - 1][:, None])

    @property
    def reach(self) -> float:
        """Largest ratio p / q that the backtest has tried (1 if none), over the common cuts."""
        common = self.cuts[self.common]
        return float(self.share[-1] / self.share[common[0] - 1]) if len(common) else 1.0


def _predicted(errors: Floats) -> Mask:
    """Returns from which cuts a family predicted, [C]."""
    return np.asarray(~np.isnan(errors).all(axis=1), dtype=bool)


def _root_mean_square(errors: Floats) -> float:
    return float(np.sqrt(np.nanmean(errors**2)))


def backtest(curve: LearningCurve, fits: Sequence[Replicates]) -> Backtest:
    """Returns what the fits of a curve's beginnings say about its end."""
    count = len(curve)
    cuts = np.arange(_FEWEST, count)
    held_out = np.arange(count) >= cuts[:, None]
    errors = {LAST: np.where(held_out, curve.mean[cuts - 1][:, None] - curve.mean, math.nan)}
    for fit in fits:
        full = np.full(held_out.shape, math.nan)
        if fit.cuts:
            predicted = np.clip(fit.beginnings(curve.share), 0.0, CEILING) - curve.mean
            full[np.array(fit.cuts) - _FEWEST] = predicted
        errors[fit.family.name] = np.where(held_out, full, math.nan)
    return Backtest(curve.share, cuts, errors, curve.standard_error)


def refine(curve: LearningCurve, fit: BatchFit) -> tuple[Floats, float]:
    """Fits once more with scipy, over all parameters together, from where the batch ended.

    Returns:
        (A, B, θ) as one array (B is left out where the family has none) and the loss.
    """
    family = fit.family
    root = 1.0 / curve.standard_error
    linear = 1 + family.affine

    def parts(vector: Floats) -> tuple[Floats, Floats, Floats]:
        b = vector[1:2] if family.affine else np.zeros(1)
        return vector[:1], b, vector[None, linear:]

    def residuals(vector: Floats) -> Floats:
        return root * (family.evaluate(curve.share, *parts(vector))[0] - curve.mean)

    def jacobian(vector: Floats) -> Floats:
        a, b, theta = parts(vector)
        phi, by = family.shape(curve.share, theta)
        columns = [np.ones_like(phi[0]), -phi[0]] if family.affine else [phi[0]]
        along = -b[0] * by[0] if family.affine else a[0] * by[0]
        return root[:, None] * np.concatenate((np.stack(columns, axis=1), along), axis=1)

    top = CEILING if family.bounded else np.inf
    low = [-np.inf if family.affine else 0.0, *([0.0] if family.affine else [])]
    high = [top, *([np.inf] if family.affine else [])]
    low += [side[0] for side in family.box]
    high += [side[1] for side in family.box]
    start = np.concatenate((fit.a[:1], fit.b[: 1 if family.affine else 0], fit.theta[0]))
    # scipy wants a start strictly inside; one step of rounding is enough.
    start = np.clip(start, np.nextafter(low, np.inf), np.nextafter(high, -np.inf))
    fitted = least_squares(
        residuals,
        start,
        jacobian,
        bounds=(np.array(low), np.array(high)),
        x_scale="jac",
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-12,
        max_nfev=200,
    )
    return fitted.x, float(2.0 * fitted.cost)


@dataclass(frozen=True)
class FamilyFit:
    """One family on one curve.

    Attributes:
        family: the shape.
        parameters: public name -> value, in the family's formula (x in percent, y in points).
        rmse: root mean square residual in points, unweighted.
        chi2: sum of squared residuals over squared standard errors.
        freedom: levels minus parameters.
        aic: Akaike's criterion, the errors' scale being estimated; lower is better.
        aicc: the same, corrected for few levels; NaN where there are too few.
        bic: Bayes' criterion.
        asymptote: mAP in points that the curve tends to; None for a family without one.
        asymptote_interval: 90 % of it over the bootstrap draws; None without draws or asymptote.
        converged: scipy, started where the batch of fits ended, found nothing better.
        draws_converged: share of the bootstrap fits that converged; NaN without draws.
        backtest_rmse: see :meth:`Backtest.rmse`.
        backtest_cuts: from how many q the family predicted.
    """

    family: Family
    parameters: dict[str, float]
    rmse: float
    chi2: float
    freedom: int
    aic: float
    aicc: float
    bic: float
    asymptote: float | None
    asymptote_interval: tuple[float, float] | None
    converged: bool
    draws_converged: float
    backtest_rmse: float
    backtest_cuts: int


@dataclass(frozen=True)
class CurveFit:
    """All families on one curve.

    Attributes:
        curve: the measured curve.
        families: the fits, best RMSE first.
        backtest: what they would have predicted.
        replicates: the fits themselves, in the order of the documentation.
        notes: what a reader has to know: dips, missing repetitions, families left out.
    """

    curve: LearningCurve
    families: tuple[FamilyFit, ...]
    backtest: Backtest
    replicates: tuple[Replicates, ...]
    notes: tuple[str, ...]


def _criteria(chi2: float, levels: int, parameters: int) -> tuple[float, float, float]:
    # The standard errors set the weights; their common scale is one more parameter, because the
    # error of the model, not the spread of the draws, dominates what is left.
    k = parameters + 1
    fit = levels * math.log(max(chi2, 1e-12) / levels)
    aic = fit + 2 * k
    spare = levels - k - 1
    aicc = aic + 2 * k * (k + 1) / spare if spare > 0 else math.nan
    return aic, aicc, fit + k * math.log(levels)


def _summary(curve: LearningCurve, fit: Replicates, tests: Backtest) -> FamilyFit:
    family = fit.family
    vector, loss = refine(curve, fit.point)
    a, b, theta = fit.point.a, fit.point.b, fit.point.theta
    chi2 = float(fit.point.loss[0])
    # Where fits are perfect only rounding is left to compare.
    converged = loss >= chi2 * (1.0 - 1e-5) - 1e-9
    if loss < chi2:
        b = vector[1:2] if family.affine else np.zeros(1)
        a, theta, chi2 = vector[:1], vector[None, 1 + family.affine :], loss
    residual = family.evaluate(curve.share, a, b, theta)[0] - curve.mean
    aic, aicc, bic = _criteria(chi2, len(curve), family.parameters)
    draws = fit.draws.a
    interval = None
    if family.bounded and len(draws):
        low, high = np.quantile(draws, (0.05, 0.95))
        interval = (float(low), float(high))
    public = family.public(float(a[0]), float(b[0]), theta[0])
    return FamilyFit(
        family=family,
        parameters={name: float(value) for name, value in public.items()},
        rmse=_root_mean_square(residual),
        chi2=chi2,
        freedom=len(curve) - family.parameters,
        aic=aic,
        aicc=aicc,
        bic=bic,
        asymptote=float(a[0]) if family.bounded else None,
        asymptote_interval=interval,
        converged=converged,
        draws_converged=float(fit.draws.converged.mean()) if len(draws) else math.nan,
        backtest_rmse=tests.rmse(family.name),
        backtest_cuts=tests.own_cuts(family.name),
    )


def fit_curve(
    curve: LearningCurve,
    families: Sequence[Family] = FITTED,
    *,
    replicates: int = 0,
    seed: int = 0,
) -> CurveFit:
    """Fits all families to a curve and backtests them.

    Args:
        curve: the measured curve.
        families: which to fit; those that need more levels than there are, are left out and named.
        replicates: bootstrap draws per family, for the intervals of the asymptotes.
        seed: of the draws.

    Raises:
        DataError: the curve has fewer than three levels, or does not rise.

    Example:
        >>> from tal_fast.curves import read_curve
        >>> from tal_fast.curves.fit import fit_curve
        >>> fit = fit_curve(read_curve("docs/results/hapt"))
        >>> fit.families[0].family.name
        'mmf4'
    """
    rng = np.random.default_rng(seed)
    fits = fit_families(curve, families, replicates=replicates, rng=rng)
    tests = backtest(curve, fits)
    summaries = [_summary(curve, fit, tests) for fit in fits]
    notes = curve.remarks()
    done = {fit.family.name for fit in fits}
    for family in families:
        if family.name not in done:
            notes.append(
                f"{family.name} is left out: it needs {counted(family.least, 'level')} of p, "
                f"there are {len(curve)}"
            )
    notes += [f"{s.family.name}: the fit did not converge" for s in summaries if not s.converged]
    ranked = tuple(sorted(summaries, key=lambda summary: summary.rmse))
    return CurveFit(curve, ranked, tests, tuple(fits), tuple(notes))
