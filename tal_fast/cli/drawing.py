# SPDX-License-Identifier: Apache-2.0
"""The command that draws learning curves for print."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tal_fast.cli.app import command, show, study_app, write_json
from tal_fast.cli.curve_options import BootstrapOptions, Confidence, TableOptions
from tal_fast.cli.curves import show_notes
from tal_fast.cli.next_steps import say_open
from tal_fast.cli.options import JsonOut, file_to_write
from tal_fast.cli.several import check_outputs, told_apart

if TYPE_CHECKING:
    from tal_fast.curves import LearningCurve

LOOK = "Look"


def _chosen(curves: list[LearningCurve], names: list[str] | None) -> list[LearningCurve]:
    """Returns the curves of these names, in their order; all without names."""
    from tal_fast.curves.curve_files import curve_named

    return [curve_named(curves, name, "--curve") for name in names] if names else curves


@dataclass(frozen=True)
class LookOptions:
    """How a picture looks."""

    bars: Annotated[
        str, typer.Option(help="Error bars: sd, se (standard error) or none.", rich_help_panel=LOOK)
    ] = "sd"
    width: Annotated[float, typer.Option(help="Width in inches.", rich_help_panel=LOOK)] = 3.5
    height: Annotated[
        float | None,
        typer.Option(help="Height in inches; default: what suits.", rich_help_panel=LOOK),
    ] = None
    font_size: Annotated[float, typer.Option(help="Font size in points.", rich_help_panel=LOOK)] = (
        8.0
    )
    font: Annotated[
        str | None,
        typer.Option(help="Font, such as serif; default: matplotlib's.", rich_help_panel=LOOK),
    ] = None
    log: Annotated[
        bool, typer.Option("--log", help="Logarithmic axis for p.", rich_help_panel=LOOK)
    ] = False
    map_label: Annotated[str, typer.Option(help="Label of the mAP axis.", rich_help_panel=LOOK)] = (
        "average mAP"
    )


@command(
    study_app, "draw", "tal-fast study draw --study results/hapt --times 2 --picture curves.pdf"
)
def study_draw(
    study: Annotated[
        list[Path],
        typer.Option("--study", help="Study or table, as for fit; several are drawn together."),
    ],
    picture: Annotated[
        list[Path],
        typer.Option(
            "--picture",
            help="File to write: .svg, .pdf or .png; may be repeated.",
            callback=file_to_write,
        ),
    ],
    look: LookOptions,
    table: TableOptions,
    bootstrap: BootstrapOptions,
    curve: Annotated[
        list[str] | None,
        typer.Option("--curve", help="Curves to draw, in this order; all by default."),
    ] = None,
    times: Annotated[
        float | None,
        typer.Option(help="Where lines end, in full training sets; default: with the data."),
    ] = None,
    confidence: Confidence = 0.9,
    json_out: JsonOut = None,
) -> None:
    """Draw curves in one picture for a paper, with what more data would bring."""
    from tal_fast.curves import read_curves
    from tal_fast.curves.drawing import check_file, draw_lines, save_figure
    from tal_fast.curves.drawn import drawn_curves, drawn_dict

    for file in picture:
        check_file(file)
    check_outputs({"--picture": picture, "--json": [json_out]}, study)
    form, repetitions = table.form(), table.repetitions
    read = [(path, read_curves(path, repetitions=repetitions, form=form)) for path in study]
    curves = _chosen(told_apart(read), curve)
    draws, seed = bootstrap.draws, bootstrap.seed
    drawn = drawn_curves(curves, times=times, confidence=confidence, draws=draws, seed=seed)
    figure = draw_lines(drawn, confidence=confidence, **vars(look))
    for file in picture:
        show(f"picture: {save_figure(figure, file)}")
    show_notes(f"{line.curve.name}: {note}" for line in drawn for note in line.notes)
    numbers = {"draws": draws, "seed": seed, "confidence": confidence, "bars": look.bars}
    write_json(json_out, {**numbers, "curves": drawn_dict(drawn)}, indent=1)
    say_open(picture[0])
