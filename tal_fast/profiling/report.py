# SPDX-License-Identifier: Apache-2.0
"""The page of a profile: self-contained, with the pictures, which also lie beside it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tal_fast.curves.figures import draw_svg, page_svg, save_pictures
from tal_fast.data.files import write_text_atomically
from tal_fast.data.json_files import parse_json
from tal_fast.errors import DataError, os_reason
from tal_fast.page import Page
from tal_fast.profiling.drawings import (
    breakdown_picture,
    lengths_picture,
    roofline_picture,
    timeline_picture,
)
from tal_fast.profiling.figures import value_of
from tal_fast.profiling.profile import FORMAT, FORMATS
from tal_fast.profiling.tables import figure_rows, figure_text
from tal_fast.profiling.verdict import verdict_of

__all__ = ["read_profile", "write_page"]

_OPS = 25  # rows of the table of ops
_CAPTIONS = {
    "timeline": "Five samples a second while steps were recorded. Left: cores that this process, "
    "those below it and others kept busy; dashed: what it may use. Right: what it asked files for, "
    "what of that came from storage, and its memory.",
    "roofline": "Each dot is an op of a median step, its area the time that it takes: up is "
    "faster, right is more arithmetic for each byte. Ops without arithmetic that counts are not "
    "drawn. Under the slope memory is the limit, under the flat "
    "part arithmetic; above the slope data came from a cache.",
    "breakdown": "Where a step spends its time: by phase, by the clock; by kind of work, under "
    "torch's profiler, without waiting for data.",
    "lengths": "One clip at a time: medians, the band holds half of the repeats.",
    "training": "Training steps on one clip: medians.",
}


def read_profile(folder: str | Path) -> dict[str, Any]:
    """Returns the content of the ``profile.json`` in a directory.

    Raises:
        DataError: there is none, it is damaged, or of another format.
    """
    path = Path(folder) / "profile.json"
    try:
        profile: Any = parse_json(str(path), path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {os_reason(error)}: expected a profile") from error
    if not isinstance(profile, dict) or profile.get("format") not in FORMATS:
        got = profile.get("format") if isinstance(profile, dict) else type(profile).__name__
        raise DataError(f"{path}: expected a profile of format {FORMAT}, got {got!r}")
    return profile


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_page(folder: str | Path) -> Path:
    """Draws the pictures of a profile and writes ``index.html`` beside it.

    Args:
        folder: of the profile.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        DataError: there is no profile, or the page cannot be written.
    """
    folder = Path(folder)
    page = Page("tal_fast.profiling", "the page of a profile")
    profile = read_profile(folder)
    ops = _rows(folder / "ops.csv")
    pictures = {
        "breakdown": breakdown_picture(profile),
        "timeline": timeline_picture(
            _rows(folder / "timeline.csv"), profile.get("usable_cores", 1)
        ),
        "roofline": roofline_picture(ops, profile),
        "lengths": lengths_picture([(_name(profile), profile)]),
        "training": lengths_picture([(_name(profile), profile)], training=True),
    }
    drawn = []
    for name, picture in pictures.items():
        if picture is not None:
            svg = draw_svg(picture, name)
            save_pictures(picture, folder, name, svg=svg)
            element = page.markup(page_svg(svg, f"figure-{name}"))
            drawn.append({"name": name, "svg": element, "caption": _CAPTIONS[name]})
    html = page.render(
        title=f"Profile of {_name(profile)}",
        profile=profile,
        verdict=verdict_of(profile).lines() if "phases" in profile else [],
        pictures=drawn,
        phases=_phases(profile),
        figures=figure_rows(profile),
        kinds=_kinds(profile),
        ops=[_op(row) for row in ops[:_OPS]],
        hidden_ops=max(0, len(ops) - _OPS),
        tried=_tried(profile),
        lengths=profile.get("lengths") or [],
        trained=any(
            value_of(length, "step") is not None for length in profile.get("lengths") or []
        ),
        external=profile.get("external") or {},
        environment=profile.get("environment") or {},
    )
    return write_text_atomically(folder / "index.html", html + "\n")


def _name(profile: Mapping[str, Any]) -> str:
    for part in ("training", "prediction"):
        if part in profile:
            return str(profile[part]["model"])
    return "a training"


def _shown(figure: Mapping[str, Any]) -> str:
    value = figure["value"]
    return "-" if value is None else f"{value:.1f}"


def _phases(profile: Mapping[str, Any]) -> list[list[str]]:
    named = {
        **profile.get("phases", {}),
        **({"step": profile["step"]} if "step" in profile else {}),
    }
    return [
        [name, *(_shown(figures[key]) for key in ("wall", "thread_cpu", "cpu", "queue_wait")),
         f"{100 * figures['share']['value']:.1f}"]
        for name, figures in named.items()
    ]  # fmt: skip


def _kinds(profile: Mapping[str, Any]) -> list[list[str]]:
    kinds = (profile.get("work") or {}).get("kinds") or {}
    rows = []
    for kind, figures in kinds.items():
        roof = figures["roof"]["value"]
        rows.append(
            [kind, f"{100 * figures['share']['value']:.1f}", _shown(figures["time"]),
             f"{figures['calls']['value']:.0f}", f"{figures['flops']['value'] / 1e9:.3f}",
             f"{figures['bytes']['value'] / 1e6:.1f}", figures["limit"] or "-",
             "-" if roof is None else f"{100 * roof:.0f}"]
        )  # fmt: skip
    return rows


def _op(row: Mapping[str, str]) -> list[str]:
    def number(name: str, scale: float, digits: int) -> str:
        return f"{float(row[name]) * scale:.{digits}f}" if row[name] else "-"

    return [row["op"], row["kind"], number("calls", 1, 0), number("share", 100, 1),
            number("time_ms", 1, 2), number("flops", 1e-9, 3), number("bytes", 1e-6, 2),
            row["limit"] or "-", number("share_of_limit", 100, 0)]  # fmt: skip


def _tried(profile: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, run in ((profile.get("tried") or {}).get("runs") or {}).items():
        if run["wall"]["value"] is None:
            rows.append([name, f"{run['what']}: {figure_text(run['wall'])[1]}", "-", "-", "-"])
            continue
        gain = run["gain"]["value"]
        rows.append([name, run["what"], _shown(run["wall"]), _shown(run["cpu"]),
                     "-" if gain is None else f"{gain:.2f}"])  # fmt: skip
    return rows
