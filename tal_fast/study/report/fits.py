# SPDX-License-Identifier: Apache-2.0
"""Fits, backtests and extrapolations for a study's page, kept in ``fits.json``.

Fitting takes longer than all else of a report, and most reports are of trials that have not
changed. So what was found lies beside a hash of the numbers that it was found from, and is found
again only where they changed. What the page needs to show and draw is all in the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tal_fast
from tal_fast.curves import LearningCurve
from tal_fast.data.files import write_text_atomically
from tal_fast.errors import TalFastError
from tal_fast.study.results import curve_name

if TYPE_CHECKING:
    from tal_fast.curves.fit import CurveFit, Replicates

__all__ = ["DRAWS", "FITS", "FITS_FILE", "fit_curves", "fitting_order"]

FITS = 4
"""Curves that a report fits by itself; more take longer than a report should."""

_FORMAT = 1
FITS_FILE = "fits.json"
DRAWS = 200
"""Bootstrap draws per family."""

_TIMES = 3.0
_CONFIDENCE = 0.9
_FAMILIES_DRAWN = 3


def fitting_order(curves: Sequence[LearningCurve]) -> list[LearningCurve]:
    """Returns the curves in the order in which they are worth fitting.

    First that of the first mode of averaging of every sampling and budget, then those of the next.
    """
    modes = list(dict.fromkeys(curve.labels["ema"] for curve in curves))
    return sorted(curves, key=lambda curve: modes.index(curve.labels["ema"]))


def _key(curve: LearningCurve) -> str:
    content = [
        [curve.name, tal_fast.__version__, _FORMAT, DRAWS, _TIMES],
        [[point.share, *point.draws] for point in curve.points],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _rounded(value: Any) -> Any:
    """Returns a value with numbers of six digits: what a page shows, and the same everywhere."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def _best(fit: CurveFit) -> list[Replicates]:
    """Returns the families to draw: those that predicted best, then those that fit best."""
    ranks = {name: rank for rank, (name, _) in enumerate(fit.backtest.ranking())}
    best = sorted(fit.families, key=lambda one: (ranks.get(one.family.name, len(ranks)), one.rmse))
    fits = {one.family.name: one for one in fit.replicates}
    return [fits[one.family.name] for one in best[:_FAMILIES_DRAWN]]


def _fit(curve: LearningCurve) -> dict[str, Any]:
    """Returns what is to be told of a curve, or why nothing is."""
    import numpy as np

    from tal_fast.curves.extrapolation import extrapolate, join_families, require_spread
    from tal_fast.curves.fit import fit_curve
    from tal_fast.curves.learning_curve import part
    from tal_fast.curves.pictures import lines_of
    from tal_fast.curves.tables import extrapolation_dict, fit_dict

    found: dict[str, Any] = {"fit": None, "extrapolation": None, "problems": [], "drawing": None}
    ensemble = None
    share = last = float(curve.share[-1])
    try:
        fit = fit_curve(curve, replicates=DRAWS)
        found["fit"] = fit_dict(fit)
        titles = {one.family.name: one.family.title for one in fit.families}
        for row in found["fit"]["families"]:
            row["title"] = titles[row["family"]]
        require_spread(curve)
        ensemble = join_families(curve, fit.replicates, np.random.default_rng(1))
        result = extrapolate(curve, _TIMES * part(last), confidence=_CONFIDENCE, ensemble=ensemble)
        found["extrapolation"] = extrapolation_dict(result)
        share = result.share
    except TalFastError as error:
        found["problems"].append(str(error))
    if found["fit"] is not None:
        found["drawing"] = lines_of(curve, _best(fit), ensemble, share, _CONFIDENCE)
    return _rounded(found)


def _read(path: Path) -> dict[str, Any]:
    """Returns the fits found before by key; none where the file is not there or of another kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return (
            {one["key"]: one for one in content["curves"]} if content["format"] == _FORMAT else {}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # it holds nothing that cannot be found again


def fit_curves(
    out: Path, curves: Sequence[LearningCurve], *, most: int = FITS
) -> tuple[dict[str, Mapping[str, Any]], list[str], Path]:
    """Fits the curves of a study, or takes the fits that are there already.

    Args:
        out: directory of the study.
        curves: of the study.
        most: curves to fit; fits of further ones are kept as long as those stay as they are.

    Returns:
        Name of the curve (:func:`~tal_fast.study.results.curve_name`) -> ``fit``,
        ``extrapolation``, ``drawing`` (each None where there is none) and ``problems``, which tell
        why; the names of the curves that were not fitted; the file.

    Raises:
        DataError: the file cannot be written.
    """
    path = out / FITS_FILE
    before = _read(path)
    results: dict[str, Mapping[str, Any]] = {}
    left_out = []
    for index, curve in enumerate(fitting_order(curves)):
        name = curve_name(curve, curves)
        key = _key(curve)
        if key in before:
            results[name] = before[key]
        elif index < most:
            results[name] = {"key": key, "name": curve.name, **_fit(curve)}
        else:
            left_out.append(name)
    content = {
        "format": _FORMAT,
        "draws": DRAWS,
        "confidence": _CONFIDENCE,
        "curves": list(results.values()),
    }
    write_text_atomically(path, json.dumps(content) + "\n")
    return results, left_out, path
