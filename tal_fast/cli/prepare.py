# SPDX-License-Identifier: Apache-2.0
"""Commands that make data directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tal_fast.cli.app import command, prepare_app, say_next
from tal_fast.cli.feature_options import (
    TIMING,
    Features,
    FormOptions,
    PackOptions,
    RepairOptions,
    TimingOptions,
    feature_choice,
)
from tal_fast.cli.options import Out, Overwrite
from tal_fast.progress import bar

# Of the I3D features that are in use.
_THUMOS = TimingOptions(stride=4, frames=16)
_ACTIVITYNET = TimingOptions(stride=16, frames=16)

Annotation = Annotated[Path, typer.Option(help="Annotation JSON.")]


def _print_report(report: Any, out: Path) -> None:
    typer.echo("\n".join(report.lines()))
    say_next("tal-fast", "validate", "--data", out)


@command(prepare_app, "hapt", "tal-fast prepare hapt --archive hapt.zip --out data/hapt")
def prepare_hapt(
    archive: Annotated[Path, typer.Option(help="The UCI archive, as distributed.")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Make a data directory from the UCI HAPT recordings (smartphone motion, 12 activities)."""
    from tal_fast.data.prepare.hapt import prepare_hapt as prepare

    with bar("reading") as update:
        report = prepare(archive, out, overwrite=overwrite, progress=update)
    _print_report(report, out)


@command(prepare_app, "sp-sw-har", "tal-fast prepare sp-sw-har --source DATA --out data/sp-sw-har")
def prepare_sp_sw_har(
    source: Annotated[Path, typer.Option(help="Folder DATA as distributed, or a packed .npz.")],
    out: Out,
    device: Annotated[str, typer.Option(help="sp (phone) or sw (watch).")] = "sp",
    overwrite: Overwrite = False,
) -> None:
    """Make a data directory from the sp-sw-har recordings (phone or watch, 4 activities)."""
    from tal_fast.data.prepare.sp_sw_har import prepare_sp_sw_har as prepare

    with bar("reading") as update:
        report = prepare(source, out, device=device, overwrite=overwrite, progress=update)
    _print_report(report, out)


@command(
    prepare_app,
    "thumos14",
    "tal-fast prepare thumos14 --annotations thumos14.json --features i3d_features "
    "--out-of-range clamp --out data/thumos14",
)
def prepare_thumos14(
    annotations: Annotation,
    features: Features,
    out: Out,
    form: FormOptions,
    packing: PackOptions,
    repairs: RepairOptions,
    timing: TimingOptions = _THUMOS,
    overwrite: Overwrite = False,
) -> None:
    """Make a data directory of THUMOS14: annotations and features of other codebases."""
    from tal_fast.data.prepare.thumos14 import prepare_thumos14 as prepare

    choice = feature_choice(features, form, timing, packing)
    with bar("packing") as update:
        report = prepare(
            annotations,
            choice,
            out,
            repairs=repairs.repairs(),
            overwrite=overwrite,
            progress=update,
        )
    _print_report(report, out)


@command(
    prepare_app,
    "activitynet13",
    "tal-fast prepare activitynet13 --annotations activity_net.v1-3.min.json --features tsp "
    "--fps 15 --non-positive drop --out-of-range clamp --out data/activitynet13",
)
def prepare_activitynet13(
    annotations: Annotation,
    features: Features,
    out: Out,
    form: FormOptions,
    packing: PackOptions,
    repairs: RepairOptions,
    timing: TimingOptions = _ACTIVITYNET,
    subsets: Annotated[
        Path | None, typer.Option(help="video_info_new.csv, for annotations without subsets.")
    ] = None,
    resized: Annotated[
        bool,
        typer.Option(
            "--resized", help="All videos have one number of rows.", rich_help_panel=TIMING
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Make a data directory of ActivityNet-1.3: annotations and features of other codebases."""
    from tal_fast.data.prepare.activitynet13 import prepare_activitynet13 as prepare

    choice = feature_choice(features, form, timing, packing, resized=resized)
    with bar("packing") as update:
        report = prepare(
            annotations,
            choice,
            out,
            subsets=subsets,
            repairs=repairs.repairs(),
            overwrite=overwrite,
            progress=update,
        )
    _print_report(report, out)


@command(prepare_app, "synthetic", "tal-fast prepare synthetic --size demo --out data/demo")
def prepare_synthetic(
    out: Out,
    size: Annotated[str, typer.Option(help="demo, demo-hard, small or thumos14.")] = "demo",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make synthetic THUMOS14-like data: 20 classes whose features carry them, with noise."""
    from tal_fast.data import open_dataset
    from tal_fast.data.synthetic import make_synthetic

    path = make_synthetic(out, size=size, seed=seed, overwrite=overwrite)
    data = open_dataset(path)
    splits = ", ".join(f"{len(videos)} {name}" for name, videos in data.splits.items())
    typer.echo(
        f"{len(data.features)} videos ({splits}), {data.annotations.num_instances} instances of "
        f"{data.num_classes} classes, {data.channels} channels\nwritten to {path}"
    )
    say_next("tal-fast", "train", "--data", out, "--out", "runs/first")
