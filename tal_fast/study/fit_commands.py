# SPDX-License-Identifier: Apache-2.0
"""What ``tal-fast study fit``, ``extrapolate``, ``calibrate`` and ``plan`` print and write."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tal_fast.data.files import write_text_atomically
from tal_fast.study.curve_families import choose_families
from tal_fast.study.curve_fit import fit_curve
from tal_fast.study.fit_tables import backtest_table, fit_dict, fit_table
from tal_fast.study.learning_curve import read_curve, read_curves

__all__ = ["run_fit"]

_WIDTH = 150  # of tables in a pipe or a log


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


def _notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _show(console: Console, *tables: Table) -> None:
    for table in tables:
        console.print(table)
        console.print()


def _write_json(path: Path | None, content: Any) -> None:
    if path is not None:
        write_text_atomically(path, json.dumps(content, indent=1) + "\n")
        print(f"numbers: {path}")


def _write_picture(path: Path | None, figure: Any) -> None:
    """Writes ``path`` as PNG and SVG, whatever its suffix."""
    if path is not None:
        from tal_fast.study.picture import save_pictures

        name = path.name.removesuffix(".png").removesuffix(".svg")
        for file in save_pictures(figure, path.parent, name):
            print(f"picture: {file}")


def run_fit(
    study: Path,
    *,
    curve: str | None,
    families: Iterable[str] | None,
    draws: int,
    seed: int,
    repetitions: int | None,
    errors: bool,
    json_out: Path | None,
    picture: Path | None,
) -> None:
    """Fits all curves of a study or table, or the one named.

    Args:
        study: see :func:`~tal_fast.study.learning_curve.read_curves`.
        curve: name of the one to fit.
        families: names; None for all.
        draws: bootstrap draws.
        seed: of the draws.
        repetitions: of a table that does not tell.
        errors: also print the backtest's errors q by q.
        json_out: file to write.
        picture: PNG and SVG to write; with several curves, their names are appended.
    """
    chosen = choose_families(families)
    if curve is None:
        curves = read_curves(study, repetitions=repetitions)
    else:
        curves = [read_curve(study, curve, repetitions=repetitions)]
    fits = [fit_curve(one, chosen, replicates=draws, seed=seed) for one in curves]
    console = _console()
    for fit in fits:
        _show(console, fit_table(fit), *([backtest_table(fit)] if errors else []))
        _notes(f"{fit.curve.name}: {note}" for note in fit.notes)
    _write_json(json_out, {"draws": draws, "seed": seed, "fits": [fit_dict(fit) for fit in fits]})
    if picture is not None:
        from tal_fast.study.fit_picture import fit_picture

        stem = picture.with_suffix("")
        for fit in fits:
            named = stem if len(fits) == 1 else stem.with_name(f"{stem.name}-{fit.curve.name}")
            _write_picture(named, fit_picture(fit))
