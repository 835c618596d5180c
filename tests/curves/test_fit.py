# SPDX-License-Identifier: Apache-2.0
"""Families, the batch solver against scipy, backtest, and the published curves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from made_curves import LEVELS, curve
from scipy.optimize import approx_fprime, least_squares

from tal_fast import cli
from tal_fast.curves import CurvePoint, LearningCurve, read_curve
from tal_fast.curves.families import CEILING, FAMILIES, FITTED, choose_families
from tal_fast.curves.fit import LAST, draw_curves, fit_curve, fit_families, refine
from tal_fast.curves.solver import solve_batch
from tal_fast.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]


def weibull(x):
    return 60.0 - 70.0 * np.exp(-0.3 * x**0.6)


class TestFamilies:
    @pytest.mark.parametrize("family", FITTED, ids=lambda f: f.name)
    def test_derivatives(self, family):
        rng = np.random.default_rng(0)
        x = np.array([1.0, 7.0, 30.0, 100.0])
        low, high = (np.array(side) for side in zip(*family.box, strict=True)) if family.box else (
            np.zeros(0), np.zeros(0)
        )  # fmt: skip
        for _ in range(20):
            theta = low + (high - low) * rng.uniform(0.2, 0.8, len(low))
            phi, by = family.shape(x, theta[None])
            assert phi.shape == (1, 4)
            assert by.shape == (1, 4, len(theta))
            for index in range(len(x) if len(theta) else 0):
                numeric = approx_fprime(theta, lambda t, i=index: family.shape(x, t[None])[0][0, i])
                assert by[0, index] == pytest.approx(numeric, rel=2e-4, abs=2e-6)

    @pytest.mark.parametrize("family", FITTED, ids=lambda f: f.name)
    def test_public_parameters_reproduce_the_curve(self, family):
        x = np.array([1.0, 7.0, 30.0, 100.0])
        formulas = {
            "pow3": lambda a, b, c: a - b * x**-c,
            "pow4": lambda a, b, c, d: a - b * (x + d) ** -c,
            "log2": lambda a, b: a + b * np.log(x),
            "exp3": lambda a, b, c: a - b * np.exp(-c * x),
            "wbl4": lambda a, b, c, d: c - b * np.exp(-a * x**d),
            "mmf4": lambda a, b, c, d: (a * b + c * x**d) / (b + x**d),
            "hill": lambda a, k, h: a * x**h / (k**h + x**h),
            "logistic": lambda a, k, m: a / (1 + np.exp(-k * (x - m))),
            "gompertz": lambda a, b, c: a * np.exp(-b * np.exp(-c * x)),
            "bnsl1": lambda a, b, c0, c1, d, f: (
                a + b * x**-c0 * (1 + (x / d) ** (1 / f)) ** (-c1 * f)
            ),
        }
        theta = np.array([low + 0.45 * (high - low) for low, high in family.box])
        b = 40.0 if family.affine else 0.0
        y = family.evaluate(x, np.array([70.0]), np.array([b]), theta[None])[0]
        public = family.public(70.0, b, theta)
        assert formulas[family.name](**public) == pytest.approx(y, rel=1e-9)

    @pytest.mark.parametrize("family", FITTED, ids=lambda f: f.name)
    def test_no_curve_falls_or_passes_the_ceiling(self, family):
        x = np.geomspace(1.0, 1e5, 60)
        theta = family.grid if family.box else np.zeros((1, 0))
        a, b = np.full(len(theta), CEILING), np.full(len(theta), 30.0)
        y = family.evaluate(x, a, b, theta)
        assert np.diff(y, axis=1).min() >= -1e-9
        if family.bounded:
            assert y.max() <= CEILING + 1e-9

    def test_choice(self):
        assert [f.name for f in choose_families(["hill", "pow3"])] == ["pow3", "hill"]
        assert choose_families(None) == FITTED
        with pytest.raises(ConfigError, match="got 'wbl'; did you mean 'wbl4'"):
            choose_families(["wbl"])
        with pytest.raises(ConfigError, match="at least one"):
            choose_families([LAST])


def scipy_loss(family, x, y, w) -> float:
    """The best loss of scipy over all parameters together, from many random starts."""
    rng = np.random.default_rng(1)
    linear = 1 + family.affine
    low = np.array([-np.inf if family.affine else 0.0, *([0.0] if family.affine else [])])
    low = np.concatenate((low, [side[0] for side in family.box]))
    top = CEILING if family.bounded else np.inf
    high = np.concatenate(
        ([top, *([np.inf] if family.affine else [])], [side[1] for side in family.box])
    )

    def residuals(v):
        b = v[1:2] if family.affine else np.zeros(1)
        return np.sqrt(w) * (family.evaluate(x, v[:1], b, v[None, linear:])[0] - y)

    best = math.inf
    for _ in range(30):
        theta = [rng.uniform(*side) for side in family.box]
        start = [y.max() * 1.05, *([y.max()] if family.affine else []), *theta]
        start = np.clip(start, np.nextafter(low, np.inf), np.nextafter(high, -np.inf))
        found = least_squares(residuals, start, bounds=(low, high), x_scale="jac", max_nfev=300)
        best = min(best, 2 * found.cost)
    return best


class TestSolver:
    @pytest.mark.parametrize("family", FITTED, ids=lambda f: f.name)
    def test_as_good_as_scipy(self, family):
        rng = np.random.default_rng(5)
        x = np.concatenate(([1.0, 2.0, 5.0], LEVELS))
        w = rng.uniform(0.5, 3.0, (3, len(x)))
        shapes = (weibull(x), 70 * x**2 / (20**2 + x**2), 20 + 9 * np.log(x))
        y = np.clip(np.array(shapes) + rng.normal(0, 0.8, (3, len(x))), 0, 100)
        fit = solve_batch(family, x, y, w)
        for index in range(3):
            residual = y[index] - fit(x)[index]
            assert fit.loss[index] == pytest.approx((w[index] * residual**2).sum(), rel=1e-9)
            assert fit.loss[index] <= scipy_loss(family, x, y[index], w[index]) * (1 + 1e-4)

    @pytest.mark.parametrize("family", FITTED, ids=lambda f: f.name)
    def test_finds_what_made_the_curve(self, family):
        x = np.concatenate(([1.0, 2.0, 5.0], LEVELS))
        theta = np.array([[0.55 * low + 0.45 * high for low, high in family.box]])
        if family.name == "logistic":
            theta[0, 1] = 30.0
        b = np.array([30.0 if family.affine else 0.0])
        y = family.evaluate(x, np.array([80.0]), b, theta)
        assert y.min() >= 0
        fit = solve_batch(family, x, y, np.ones_like(y))
        assert np.abs(fit(x) - y).max() < 1e-3

    def test_rows_do_not_depend_on_each_other(self):
        rng = np.random.default_rng(0)
        y = np.clip(weibull(LEVELS) + rng.normal(0, 1, (300, 10)), 0, 100)
        together = solve_batch(FAMILIES["wbl4"], LEVELS, y, np.ones_like(y))
        alone = solve_batch(FAMILIES["wbl4"], LEVELS, y[277:278], np.ones((1, 10)))
        assert together.loss[277] == pytest.approx(alone.loss[0], rel=1e-7)
        assert together(LEVELS)[277] == pytest.approx(alone(LEVELS)[0], abs=1e-4)

    def test_weight_zero_leaves_a_point_out(self):
        y = weibull(LEVELS)[None].copy()
        w = np.ones_like(y)
        w[0, 7:] = 0
        cut = solve_batch(FAMILIES["hill"], LEVELS[:7], y[:, :7], w[:, :7])
        y[0, 7:] = 3.0
        assert solve_batch(FAMILIES["hill"], LEVELS, y, w).loss[0] == pytest.approx(cut.loss[0])

    def test_the_asymptote_stays_below_100(self):
        y = np.minimum(30.0 + 0.7 * LEVELS, 100)[None]
        for family in FITTED:
            fit = solve_batch(family, LEVELS, y, np.ones_like(y))
            if family.bounded:
                assert fit.a[0] <= CEILING

    def test_bad_shapes(self):
        with pytest.raises(ValueError, match=r"x \[n\] and y \[R, n\]"):
            solve_batch(FAMILIES["hill"], LEVELS, np.ones((2, 9)), np.ones((2, 9)))
        with pytest.raises(ValueError, match="at least 4 points for wbl4, got 3"):
            solve_batch(FAMILIES["wbl4"], LEVELS[:3], np.ones((2, 3)), np.ones((2, 3)))


class TestFit:
    def test_the_right_family_wins(self):
        fit = fit_curve(curve(weibull(LEVELS)))
        assert fit.families[0].family.name == "wbl4"
        assert fit.families[0].rmse < 1e-4
        found = fit.families[0].parameters
        assert found == pytest.approx({"a": 0.3, "b": 70, "c": 60, "d": 0.6}, rel=1e-3)
        assert [s.rmse for s in fit.families] == sorted(s.rmse for s in fit.families)
        assert all(summary.converged for summary in fit.families)

    def test_criteria_by_hand(self):
        noisy = weibull(LEVELS) + np.array([1, -1, 1, -1, 1, -1, 1, -1, 1, -1])
        (summary,) = fit_curve(curve(noisy), choose_families(["log2"])).families
        slope, start = np.polyfit(np.log(LEVELS), noisy, 1)
        residual = noisy - start - slope * np.log(LEVELS)
        assert summary.parameters == pytest.approx({"a": start, "b": slope})
        assert summary.rmse == pytest.approx(np.sqrt((residual**2).mean()))
        assert summary.chi2 == pytest.approx((residual**2).sum() * 5)  # se = 1 / sqrt(5)
        scale = 10 * math.log(summary.chi2 / 10)
        assert summary.aic == pytest.approx(scale + 2 * 3)
        assert summary.aicc == pytest.approx(scale + 2 * 3 + 2 * 3 * 4 / 6)
        assert summary.bic == pytest.approx(scale + 3 * math.log(10))
        assert summary.asymptote is None

    def test_backtest_by_hand(self):
        y = 10 + 12 * np.log(LEVELS) + np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 3.0])
        tests = fit_curve(curve(y), choose_families(["log2"])).backtest
        assert tests.cuts.tolist() == list(range(3, 10))
        errors = tests.errors["log2"]
        assert np.isnan(errors[0, :3]).all()
        assert errors[0, 3:9] == pytest.approx(0, abs=1e-9)
        assert errors[:, 9] == pytest.approx(-3)
        assert tests.errors[LAST][0, 9] == pytest.approx(y[2] - y[9])
        assert tests.rmse("log2") == pytest.approx(math.sqrt(9 * 7 / (7 + 6 + 5 + 4 + 3 + 2 + 1)))
        assert [name for name, _ in tests.ranking()] == ["log2", LAST]
        assert tests.reach == pytest.approx(100 / 30)

    def test_backtest_fits_only_the_beginning(self):
        whole = fit_families(curve(weibull(LEVELS)), choose_families(["hill"]))[0]
        part = fit_families(curve(weibull(LEVELS)).until(50.0), choose_families(["hill"]))[0]
        index = whole.cuts.index(5)
        assert whole.beginnings(LEVELS)[index] == pytest.approx(part.point(LEVELS)[0], abs=1e-4)

    def test_scipy_agrees_on_the_point(self):
        noisy = weibull(LEVELS) + np.array([1, -1, 0, 1, -1, 0, 1, 0, -1, 0])
        for fit in fit_families(curve(noisy)):
            _, loss = refine(curve(noisy), fit.point)
            assert fit.point.loss[0] <= loss * (1 + 1e-5)

    def test_bootstrap_spread_is_the_standard_error(self):
        known = curve(weibull(LEVELS), deviation=2.0)
        means = draw_curves(known, 20000, np.random.default_rng(0))
        assert means.std(axis=0) == pytest.approx(2 / math.sqrt(5), rel=0.03)
        points = (
            CurvePoint.of_draws(p, [[m + d] for d in (-2.0, -1.0, 0.0, 1.0, 2.0)])
            for p, m in zip(LEVELS, weibull(LEVELS), strict=True)
        )
        drawn = LearningCurve("toy", tuple(points))
        means = draw_curves(drawn, 20000, np.random.default_rng(0))
        assert means.std(axis=0) == pytest.approx(drawn.deviation / math.sqrt(5), rel=0.03)
        assert means.mean(axis=0) == pytest.approx(drawn.mean, abs=0.05)

    def test_same_seed_same_interval(self):
        first, again = (fit_curve(curve(weibull(LEVELS)), replicates=50, seed=3) for _ in range(2))
        intervals = [summary.asymptote_interval for summary in first.families]
        assert intervals == [summary.asymptote_interval for summary in again.families]
        low, high = next(i for i in intervals if i is not None)
        assert low < high


class TestBadInput:
    @pytest.mark.parametrize(
        ("share", "mean", "message"),
        [
            ([100], [50], "at least 3 levels of p, got 1"),
            ([50, 100], [40, 50], "at least 3 levels of p, got 2"),
            (LEVELS, np.full(10, 40.0), "mAP is 40 at every p"),
            (LEVELS, weibull(LEVELS)[::-1], "does not rise with p"),
        ],
    )
    def test_no_fit(self, share, mean, message):
        with pytest.raises(DataError, match=message):
            fit_curve(curve(mean, share))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"share": [10, 50, 101]}, r"p above 0 and at most 1 \(100 %\), got 101 %"),
            ({"share": [0, 50, 100]}, "p above 0"),
            ({"share": [10, 10, 100]}, "each p once and rising, got 10 % again"),
            ({"mean": [1, 2, 101]}, "mAP of 0 to 100 points at p = 100 %, got 101"),
            ({"mean": [1, math.nan, 3]}, "mAP of 0 to 100 points at p = 50 %"),
            ({"deviation": -1}, "standard deviation of at least 0"),
            ({"repetitions": 0}, "at least one repetition"),
        ],
    )
    def test_impossible_values(self, changes, message):
        with pytest.raises(DataError, match=message):
            curve(**{"mean": [1, 2, 3], "share": [10, 50, 100], **changes})

    def test_a_dip_is_told(self):
        y = weibull(LEVELS)
        y[5] -= 8
        notes = " ".join(fit_curve(curve(y)).notes)
        assert "mAP falls by" in notes
        assert "from p = 50 to 60 %" in notes
        assert not any("falls" in note for note in fit_curve(curve(weibull(LEVELS))).notes)

    def test_zero_variance_is_told_and_floored(self):
        known = curve(weibull(LEVELS), deviation=[0, *[1] * 9])
        assert "zero spread at p = 10 %" in " ".join(known.remarks())
        assert known.standard_error[0] == pytest.approx(0.5 / math.sqrt(5))

    def test_missing_repetitions_are_told(self):
        some = curve(weibull(LEVELS), deviation=[math.nan, *[2.0] * 9])
        assert "no repetitions at p = 10 %: the pooled" in " ".join(some.remarks())
        assert some.spread[0] == pytest.approx(2.0)
        none = curve(weibull(LEVELS), deviation=math.nan, repetitions=1)
        assert "no level has repetitions" in " ".join(fit_curve(none).notes)

    def test_families_left_out_are_told(self):
        notes = fit_curve(curve(weibull(LEVELS[:4]), LEVELS[:4])).notes
        assert "wbl4 is left out: it needs 5 levels of p, there are 4" in notes


# Root mean square residuals and gains from p = 100 to 300 %, from an analysis by other code.
TADTR = {
    "wbl4": (0.59, 1.3),
    "mmf4": (0.66, 3.0),
    "pow4": (0.68, 3.3),
    "hill": (0.90, 2.0),
    "pow3": (1.32, 7.2),
    "exp3": (1.87, 0.0),
    "log2": (2.41, 12.4),
    "gompertz": (2.57, 0.0),
    "logistic": (2.99, 0.0),
}
# pow3 is not among them: from p <= 50 % it wants an asymptote above 100.
AT_100 = {
    "wbl4": 55.9, "mmf4": 57.2, "pow4": 57.7, "hill": 54.8, "exp3": 50.8, "log2": 64.0,
    "gompertz": 50.1, "logistic": 49.8,
}  # fmt: skip


class TestPublished:
    def test_tadtr(self, published):
        fit = fit_curve(read_curve(published, "TadTR", repetitions=5))
        rmse = {s.family.name: s.rmse for s in fit.families}
        order = [name for name in rmse if name != "bnsl1"]
        assert order == list(TADTR)
        for name, (expected, gain) in TADTR.items():
            assert rmse[name] == pytest.approx(expected, abs=0.1)
            found = next(r for r in fit.replicates if r.family.name == name).point
            now, later = found(np.array([100.0, 300.0]))[0]
            assert later - now == pytest.approx(gain, abs=0.1)
        best = fit.families[order.index("wbl4") + ("bnsl1" in list(rmse)[:1])]
        assert best.chi2 == pytest.approx(152, abs=1)
        assert best.parameters == pytest.approx(
            {"a": 0.463, "b": 84.19, "c": 57.36, "d": 0.473}, rel=2e-3
        )

    def test_tadtr_backtest_at_half(self, published):
        measured = read_curve(published, "TadTR", repetitions=5)
        tests = fit_curve(measured).backtest
        cut = int(np.searchsorted(measured.share[tests.cuts - 1], 50.0))
        for name, expected in AT_100.items():
            assert tests.errors[name][cut, -1] + measured.mean[-1] == pytest.approx(
                expected, abs=0.15
            )

    def test_every_bootstrap_fit_converges(self, published):
        fit = fit_curve(read_curve(published, "TadTR", repetitions=5), replicates=200)
        assert {s.family.name: s.draws_converged for s in fit.families} == dict.fromkeys(
            FAMILIES, 1.0
        )


class TestCommand:
    def test_table_json_and_picture(self, tmp_path, capsys):
        study = ROOT / "docs/results/hapt"
        arguments = ["study", "fit", "--study", study, "--draws", 50, "--errors"]
        arguments += ["--json", tmp_path / "fit.json", "--picture", tmp_path / "fit.png"]
        assert cli.main([str(a) for a in arguments]) == 0
        captured = capsys.readouterr()
        assert "Weibull" in captured.out
        assert "backtest: error at p = 100 %" in captured.out
        assert "bnsl1 is left out" in captured.err
        content = json.loads((tmp_path / "fit.json").read_text())
        (fit,) = content["fits"]
        assert fit["curve"]["videos"] == 42
        assert {f["family"] for f in fit["families"]} == set(FAMILIES) - {"bnsl1"}
        assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "fit.svg").is_file()

    def test_a_picture_per_curve(self, tmp_path, capsys):
        rows = ["model,percent,map_mean,map_std,n"]
        rows += [f"{m},{p:g},{weibull(p):.3f},1,5" for m in ("A/b", "C") for p in LEVELS]
        (tmp_path / "table.csv").write_text("\n".join(rows))
        arguments = ["--study", tmp_path / "table.csv", "--picture", tmp_path / "fits.png"]
        arguments += ["--draws", 5, "--families", "hill,wbl4"]
        assert cli.main(["study", "fit", *(str(a) for a in arguments)]) == 0
        assert "A/b: 10 levels" in capsys.readouterr().out
        assert sorted(path.name for path in tmp_path.glob("*.png")) == [
            "fits-A-b.png",
            "fits-C.png",
        ]

    def test_errors(self, tmp_path, capsys):
        study = str(ROOT / "docs/results/hapt")
        assert cli.main(["study", "fit", "--study", study, "--families", "wbl"]) == 2
        assert "did you mean 'wbl4'" in capsys.readouterr().err
        assert cli.main(["study", "fit", "--study", study, "--curve", "tadtr"]) == 2
        assert "expected one of 'tadtr-small', got 'tadtr'" in capsys.readouterr().err
        assert cli.main(["study", "fit", "--study", str(tmp_path)]) == 1
        assert "expected a study with trials.csv" in capsys.readouterr().err
