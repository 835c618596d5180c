# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page: opens from a disk, a mail or a server, and needs nothing else.

Fitting takes longer than all else of a report, and most reports are of trials that have not
changed. So fits, backtests and extrapolations lie in ``fits.json``, beside a hash of the numbers
that they were found from, and are found again only where those changed. What the page needs to show
and draw of them is all in that file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

import tal_fast
from tal_fast.curves import LearningCurve
from tal_fast.curves.figures import draw_svg, page_svg, page_svgs, save_pictures
from tal_fast.curves.learning_curve import part, percent
from tal_fast.curves.pictures import fits_picture, lines_of
from tal_fast.curves.tables import extrapolation_dict, fit_dict, number
from tal_fast.data.files import write_text_atomically
from tal_fast.errors import TalFastError
from tal_fast.page import Page
from tal_fast.progress import duration
from tal_fast.study.report import sections
from tal_fast.study.report.comparison import score_table
from tal_fast.study.report.pictures import (
    comparison_picture,
    curve_picture,
    curves_picture,
    shows_all_dots,
    tiou_picture,
)
from tal_fast.study.results import curve_name
from tal_fast.study.trial import TrialRecord

if TYPE_CHECKING:
    from tal_fast.curves.fit import CurveFit, Replicates

__all__ = ["DRAWS", "FITS", "FITS_FILE", "fit_curves", "fitting_order", "write_report"]

FITS = 4
"""Curves that a report fits by itself; more take longer than a report should."""

_FITS_FORMAT = 2
FITS_FILE = "fits.json"
DRAWS = 200
"""Bootstrap draws per family."""

_TIMES = 3.0
_CONFIDENCE = 0.9
_FAMILIES_DRAWN = 3

_PAGE = "report.html"
_HEAD = 4096  # characters of the page within which it says what it was made from

# Pictures that are also written as PNG.
_PAPER = ("curve", "tiou", "fits")


def fitting_order(curves: Sequence[LearningCurve]) -> list[LearningCurve]:
    """Returns the curves in the order in which they are worth fitting.

    First that of the first mode of averaging of every sampling and budget, then those of the next.
    """
    modes = list(dict.fromkeys(curve.labels["ema"] for curve in curves))
    return sorted(curves, key=lambda curve: modes.index(curve.labels["ema"]))


def _fit_key(curve: LearningCurve) -> str:
    key_parts = [
        [curve.name, tal_fast.__version__, _FITS_FORMAT, DRAWS, _TIMES],
        [[point.share, *point.draws] for point in curve.points],
    ]
    return hashlib.sha256(json.dumps(key_parts).encode()).hexdigest()


def _rounded(value: Any) -> Any:
    """Returns a value with numbers of six digits: what a page shows, and the same everywhere."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def _best_families(fit: CurveFit) -> list[Replicates]:
    """Returns the families to draw: those that predicted best, then those that fit best."""
    ranks = {name: rank for rank, (name, _) in enumerate(fit.backtest.ranking())}
    best = sorted(
        fit.families,
        key=lambda replicate: (ranks.get(replicate.family.name, len(ranks)), replicate.rmse),
    )
    fits = {replicate.family.name: replicate for replicate in fit.replicates}
    return [fits[replicate.family.name] for replicate in best[:_FAMILIES_DRAWN]]


def _fit(curve: LearningCurve) -> dict[str, Any]:
    """Returns what is to be told of a curve, or why nothing is."""
    from tal_fast.curves.ensemble import join_families, require_spread
    from tal_fast.curves.extrapolation import extrapolate
    from tal_fast.curves.fit import fit_curve

    fitted: dict[str, Any] = {"fit": None, "extrapolation": None, "problems": [], "drawing": None}
    ensemble = None
    share = last = float(curve.share[-1])
    try:
        fit = fit_curve(curve, replicates=DRAWS)
        fitted["fit"] = fit_dict(fit)
        titles = {family_fit.family.name: family_fit.family.title for family_fit in fit.families}
        for row in fitted["fit"]["families"]:
            row["title"] = titles[row["family"]]
        require_spread(curve)
        ensemble = join_families(curve, fit.replicates, fit.backtest, np.random.default_rng(1))
        result = extrapolate(curve, _TIMES * part(last), confidence=_CONFIDENCE, ensemble=ensemble)
        fitted["extrapolation"] = extrapolation_dict(result)
        share = result.share
    except TalFastError as error:
        fitted["problems"].append(str(error))
    if fitted["fit"] is not None:
        fitted["drawing"] = lines_of(curve, _best_families(fit), ensemble, share, _CONFIDENCE)
    return _rounded(fitted)


def _read_fits(path: Path) -> dict[str, Any]:
    """Returns the fits found before by key; none where the file is not there or of another kind."""
    try:
        kept_fits = json.loads(path.read_text(encoding="utf-8"))
        if kept_fits["format"] == _FITS_FORMAT:
            return {entry["key"]: entry for entry in kept_fits["curves"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # it holds nothing that cannot be found again
    return {}


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
    before = _read_fits(path)
    results: dict[str, Mapping[str, Any]] = {}
    left_out = []
    for index, curve in enumerate(fitting_order(curves)):
        name = curve_name(curve, curves)
        key = _fit_key(curve)
        if key in before:
            results[name] = before[key]
        elif index < most:
            results[name] = {"key": key, "name": curve.name, **_fit(curve)}
        else:
            left_out.append(name)
    file_content = {
        "format": _FITS_FORMAT,
        "draws": DRAWS,
        "confidence": _CONFIDENCE,
        "curves": list(results.values()),
    }
    write_text_atomically(path, json.dumps(file_content) + "\n")
    return results, left_out, path


class _Pictures:
    """Draws each picture once, for a file and for the page.

    Args:
        out: directory of the files.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self.files: dict[str, Path] = {}
        #: The pictures of the page by name, as ``<svg>`` elements.
        self.elements: dict[str, list[str]] = {}

    def add(self, name: str, figure: Any, panels: Sequence[str] = ()) -> None:
        """Draws a figure, or one of panels, to files and for the page."""
        svg = draw_svg(figure, name)
        ids = f"f{len(self.elements)}"
        if panels:
            self.elements[name] = page_svgs(svg, ids, panels)
        else:
            self.elements[name] = [page_svg(svg, f"figure-{name}", ids=ids)]
        png = name in _PAPER
        for path in save_pictures(figure, self._out, name, svg=svg, png=png):
            self.files[path.name] = path


def _share(value: float) -> str:
    """Returns a share in percent, with digits where it is small."""
    share = percent(value)
    return f"{share:.0f} %" if share >= 9.95 else f"{share:.2g} %"


def _key(
    study: Mapping[str, Any],
    curves: Sequence[LearningCurve],
    records: Sequence[TrialRecord],
    fits: int,
) -> str:
    """Returns a hash of all that a report is made from."""
    trials = [[record.name, record.seconds, record.sample.missing_classes] for record in records]
    key_parts = [tal_fast.__version__, fits, study, repr(curves), trials]
    return hashlib.sha256(json.dumps(key_parts).encode()).hexdigest()


def _made_before(out: Path, key: str) -> dict[str, Path] | None:
    """Returns the files of a report that was made from the same; None unless all are there."""
    try:
        with open(out / _PAGE, encoding="utf-8") as file:
            head = file.read(_HEAD)
    except (OSError, UnicodeDecodeError):
        return None
    mark = re.search(r'<meta name="made-from" content="(\w+) ([^"]+)">', head)
    if mark is None or mark[1] != key:
        return None
    files = {name: out / name for name in mark[2].split()}
    if not all(path.is_file() for path in files.values()):
        return None
    return {("fits" if name == FITS_FILE else name): path for name, path in files.items()} | {
        "page": out / _PAGE
    }


def _draw(
    pictures: _Pictures,
    curves: Sequence[LearningCurve],
    compared: Mapping[str, Sequence[Mapping[str, Any]]],
    fits: Mapping[str, Mapping[str, Any]],
    subtitle: str,
) -> None:
    if len(curves) == 1:
        pictures.add("curve", curve_picture(curves[0].points, model=subtitle))
    else:
        pictures.add("curve", *curves_picture(curves, model=subtitle))
    pictures.add("tiou", tiou_picture(curves[0].points, model=subtitle))
    for name, parts in compared.items():
        if parts:
            panels = [(part["title"] or subtitle, part["label"], part["lines"]) for part in parts]
            titles = [f"{part['label']} against p: {part['title']}" for part in parts]
            # The mode that the averages are compared with has the first style.
            figure = comparison_picture(panels, first=int(name == "averages"))
            pictures.add(name, figure, titles)
    by_name = {curve_name(curve, curves): curve for curve in curves}
    fitted = [
        (name or subtitle, by_name[name], found) for name, found in fits.items() if found["drawing"]
    ]
    if fitted:
        pictures.add("fits", *fits_picture(fitted))


def write_report(
    out: Path,
    study: Mapping[str, Any],
    curves: Sequence[LearningCurve],
    records: Sequence[TrialRecord],
    *,
    fits: int = FITS,
    again: bool = True,
) -> dict[str, Path]:
    """Writes the fits, the pictures and the page of a study.

    Args:
        out: directory of the study.
        study: content of ``study.yaml``.
        curves: built from the records; not empty.
        records: the trials.
        fits: how many curves to fit.
        again: also when the page that is there was made from the same trials.

    Returns:
        The files by name.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        DataError: a file cannot be written.
    """
    key = _key(study, curves, records, fits)
    if not again:
        files = _made_before(out, key)
        if files is not None:
            return files
    page = Page(
        "tal_fast.study.report",
        "the HTML page",
        {"duration": duration, "share": _share, "number": number, "percent": percent},
    )
    settings = study["settings"]
    subtitle = f"{settings['model']} on {settings['data']['name']}"
    decay = settings["config"].get("training", {}).get("ema_decay")
    scores = score_table(records)
    compared: dict[str, list[dict[str, Any]]] = {
        "budgets": sections.budgets_section(scores, curves),
        "averages": sections.averages_section(scores, curves, decay),
    }
    samplings = sections.samplings_section(scores, curves)
    made, left_out, file = fit_curves(out, curves, most=fits)
    pictures = _Pictures(out)
    drawn = compared | ({"samplings": samplings["tables"]} if samplings else {})
    _draw(pictures, curves, drawn, made, subtitle)
    html = _render(
        page,
        study,
        curves,
        records,
        subtitle=subtitle,
        pictures={
            # The drawings are ours: nothing in them comes from outside but escaped text.
            name: [page.markup(svg) for svg in svgs]
            for name, svgs in pictures.elements.items()
        },
        samplings=samplings,
        decay=decay,
        summary=sections.summary_rows(curves, made),
        made_from=" ".join([key, file.name, *pictures.files]),
        fits={**sections.fits_section(made, left_out), "draws": DRAWS},
        **compared,
    )
    return {
        **pictures.files,
        "fits": file,
        "page": write_text_atomically(out / _PAGE, html),
    }


def _render(
    page: Page,
    study: Mapping[str, Any],
    curves: Sequence[LearningCurve],
    records: Sequence[TrialRecord],
    **values: Any,
) -> str:
    settings, runs = study["settings"], list(study["runs"])
    groups = sections.groups_of(curves)
    wall = math.fsum(float(run["seconds"]) for run in runs)
    done = sum(int(run["trials"]) for run in runs)
    return page.render(
        title=f"How much data does {settings['model']} need?",
        curves=curves,
        best=max(values["summary"], key=lambda row: row["last"].mean),
        groups=groups,
        tiou_of=curve_name(curves[0], curves),
        budget_texts=sections.budget_texts(curves),
        all_dots=shows_all_dots(curves),
        full=next((point for point in curves[0].points if point.share == 100.0), None),
        coverage=sections.coverage_section(records, curves),
        costs=sections.cost_rows(records, groups),
        compute_seconds=math.fsum(record.seconds or 0.0 for record in records),
        wall_seconds=wall,
        trials_per_hour=3600.0 * done / wall if wall and done else None,
        energy=sections.energy_of(runs),
        trials=len(records),
        requested=study["request"]["trials"],
        runs=runs,
        machines=sections.machines_of(runs),
        settings=settings,
        study=study,
        config=yaml.safe_dump(settings["config"], sort_keys=False).strip(),
        command=study.get("command", ""),
        hash=study["hash"],
        **values,
    )
