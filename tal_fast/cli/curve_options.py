# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that know learning curves, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tal_fast.cli.options import OUTPUT, file_to_write

if TYPE_CHECKING:
    from tal_fast.curves import TableForm

__all__ = [
    "Confidence",
    "Curve",
    "BootstrapOptions",
    "FitOptions",
    "Measured",
    "PartOptions",
    "Picture",
    "TableOptions",
]

CURVE, FIT = "The curve", "The fits"

Measured = Annotated[
    Path, typer.Option("--study", help="Directory of a study, its tables, or a table of a paper.")
]
Picture = Annotated[
    Path | None,
    typer.Option(
        "--picture",
        help="Also write this picture, as PNG and SVG.",
        callback=file_to_write,
        rich_help_panel=OUTPUT,
    ),
]
Confidence = Annotated[float, typer.Option("--confidence", help="Confidence of the intervals.")]


@dataclass(frozen=True)
class TableOptions:
    """What a table of a paper leaves open."""

    repetitions: Annotated[
        int | None,
        typer.Option(
            "--repetitions",
            min=1,
            help="Draws per share, if the table has no column n.",
            rich_help_panel=CURVE,
        ),
    ] = None
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table",
            metavar="KEY=VALUE",
            help="What the table of a paper leaves open: units=percent|fraction, spread=sd|se, "
            "videos=N, decimal=comma; may be repeated.",
            rich_help_panel=CURVE,
        ),
    ] = None

    def form(self) -> TableForm:
        """Returns what ``--table`` says."""
        from tal_fast.curves import TableForm

        return TableForm.parse(self.table or ())


@dataclass(frozen=True)
class PartOptions:
    """Which part of a curve is used, and as if how it had been measured."""

    until: Annotated[
        float | None,
        typer.Option(
            "--until",
            help="Largest fraction to use, as if it were the last one measured.",
            rich_help_panel=CURVE,
        ),
    ] = None
    deviation: Annotated[
        float | None,
        typer.Option(
            "--deviation",
            help="Standard deviation in points, for a curve whose p were run once.",
            rich_help_panel=CURVE,
        ),
    ] = None


@dataclass(frozen=True)
class BootstrapOptions:
    """How many bootstrap draws stand behind an interval."""

    draws: Annotated[
        int,
        typer.Option("--draws", min=1, help="Bootstrap draws per family.", rich_help_panel=FIT),
    ] = 1000
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, help="Seed of the bootstrap draws.", rich_help_panel=FIT),
    ] = 0


@dataclass(frozen=True)
class FitOptions(BootstrapOptions):
    """Which families of curves are fitted, and how often."""

    families: Annotated[
        str | None,
        typer.Option(
            "--families",
            help="Families to fit, separated by commas: wbl4,mmf4; all by default.",
            rich_help_panel=FIT,
        ),
    ] = None

    def chosen(self) -> Any:
        """Returns the families."""
        from tal_fast.curves.families import choose_families

        names = self.families
        return choose_families(
            None if names is None else [name.strip() for name in names.split(",")]
        )


Curve = Annotated[
    str | None,
    typer.Option(
        "--curve",
        help="Name of the curve, or labels that no other has: steps,off.",
        rich_help_panel=CURVE,
    ),
]
