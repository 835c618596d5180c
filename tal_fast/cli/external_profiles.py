# SPDX-License-Identifier: Apache-2.0
"""Commands that train under a profiler of somebody else: profile nsys, ncu and py-spy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tal_fast.cli.app import command, profile_app, say, say_next, show
from tal_fast.cli.options import directory_to_write
from tal_fast.cli.profiles import draw_page

Training = Annotated[
    list[str], typer.Argument(metavar="-- train ...", help="The training, as for tal-fast.")
]
ProfileOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Directory of the profile. Default: OUT/profile.",
        callback=directory_to_write,
    ),
]


def _external(tool: str, training: list[str], out: Path | None) -> None:
    from tal_fast.profiling.external import folder_of, run_external

    folder = folder_of(training, out)
    outcome = run_external(tool, training, folder, show)
    for note in outcome.notes:
        say(f"note: {note}")
    if outcome.reason is not None:
        say(f"note: nothing from {tool}: {outcome.reason}")
    for name, rows in outcome.tables.items():
        show(f"\n{name}")
        for row in rows:
            show("  " + "  ".join(str(cell) for cell in row.values()))
    draw_page(folder)
    say_next("tal-fast", "profile", "machine")


@command(profile_app, "nsys", "tal-fast profile nsys -- train --data data/hapt --out runs/first")
def profile_nsys(training: Training, out: ProfileOut = None) -> None:
    """Train under Nsight Systems: ranges, kernels, calls of CUDA and of the system."""
    _external("nsys", training, out)


@command(profile_app, "ncu", "tal-fast profile ncu -- train --data data/hapt --out runs/first")
def profile_ncu(training: Training, out: ProfileOut = None) -> None:
    """Train under Nsight Compute: what kernels reach of what the GPU can do."""
    _external("ncu", training, out)


@command(
    profile_app, "py-spy", "tal-fast profile py-spy -- train --data data/hapt --out runs/first"
)
def profile_py_spy(training: Training, out: ProfileOut = None) -> None:
    """Train under py-spy: which functions run, in Python and below."""
    _external("py-spy", training, out)
