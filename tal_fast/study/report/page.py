# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page: opens from a disk, a mail or a server, and needs nothing else."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import tal_fast
from tal_fast.curves import LearningCurve
from tal_fast.curves.figures import draw_svg, page_svg, page_svgs, save_pictures
from tal_fast.curves.learning_curve import percent
from tal_fast.curves.pictures import fits_picture
from tal_fast.curves.tables import duration, number
from tal_fast.data.files import write_text_atomically
from tal_fast.page import Page
from tal_fast.study.report import sections
from tal_fast.study.report.comparison import score_table
from tal_fast.study.report.fits import DRAWS, FITS, FITS_FILE, fit_curves
from tal_fast.study.report.pictures import (
    comparison_picture,
    curve_picture,
    curves_picture,
    shows_all_dots,
    tiou_picture,
)
from tal_fast.study.results import curve_name
from tal_fast.study.trial import TrialRecord

__all__ = ["write_report"]


_PAGE = "report.html"
_HEAD = 4096  # characters of the page within which it says what it was made from

# Pictures that are also written as PNG.
_PAPER = ("curve", "tiou", "fits")


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
        caption = f"figure-{name}"
        if panels:
            self.elements[name] = page_svgs(svg, caption, panels)
        else:
            self.elements[name] = [page_svg(svg, caption)]
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
    content = [tal_fast.__version__, fits, study, repr(curves), trials]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _made_before(out: Path, key: str) -> dict[str, Path] | None:
    """Returns the files of a report that was made from the same; None unless all are there."""
    try:
        with open(out / _PAGE, encoding="utf-8") as file:
            head = file.read(_HEAD)
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(r'<meta name="made-from" content="(\w+) ([^"]+)">', head)
    if found is None or found[1] != key:
        return None
    files = {name: out / name for name in found[2].split()}
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
    found, left_out, file = fit_curves(out, curves, most=fits)
    pictures = _Pictures(out)
    drawn = compared | ({"samplings": samplings["tables"]} if samplings else {})
    _draw(pictures, curves, drawn, found, subtitle)
    text = _render(
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
        summary=sections.summary_rows(curves, found),
        made_from=" ".join([key, file.name, *pictures.files]),
        fits={**sections.fits_section(found, left_out), "draws": DRAWS},
        **compared,
    )
    return {
        **pictures.files,
        "fits": file,
        "page": write_text_atomically(out / _PAGE, text),
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
