# SPDX-License-Identifier: Apache-2.0
"""Commands that make data directories."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tal_fast.cli.app import command, prepare_app, say_next, show
from tal_fast.cli.feature_options import (
    TIMING,
    Features,
    FormOptions,
    PackOptions,
    RepairOptions,
    TimingOptions,
    feature_choice,
    named_subsets,
)
from tal_fast.cli.next_steps import free_place
from tal_fast.cli.options import Out, Overwrite
from tal_fast.errors import ConfigError, counted
from tal_fast.progress import bar

if TYPE_CHECKING:
    from tal_fast.data.prepare import FeatureChoice

SEGMENTS, SPLITS = "The segments", "Splits and classes"

# Of the I3D features that are in use.
_THUMOS = TimingOptions(stride=4, frames=16)
_ACTIVITYNET = TimingOptions(stride=16, frames=16)

Annotation = Annotated[Path, typer.Option(help="Annotation JSON.")]


def _print_report(report: Any, out: Path) -> None:
    show("\n".join(report.lines()))
    say_next("tal-fast", "validate", "--data", out)


@dataclass(frozen=True)
class OwnTimingOptions(TimingOptions):
    """What a row of one's own features is in time."""

    rate: Annotated[
        float | None,
        typer.Option(
            help="Rows of features per second; or say --stride, --frames and --fps.",
        ),
    ] = None


@dataclass(frozen=True)
class SplitOptions:
    """Which videos train and which test."""

    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SUBSET",
            help="Split of a subset that is not called train, val or test; may be repeated.",
            rich_help_panel=SPLITS,
        ),
    ] = None
    test_share: Annotated[
        float | None,
        typer.Option(
            help="Without subsets: share of the videos to draw for the test; default 0.2.",
            rich_help_panel=SPLITS,
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of that draw.", rich_help_panel=SPLITS)] = 0
    classes: Annotated[
        str | None,
        typer.Option(
            help="Classes in their order, separated by commas, or a text file with one a line; "
            "another label is an error.",
            rich_help_panel=SPLITS,
        ),
    ] = None
    overwrite: Overwrite = False

    def arguments(self) -> dict[str, Any]:
        """Returns them as :func:`tal_fast.data.prepare.prepare_csv` takes them."""
        return {
            "splits": named_subsets(self.split),
            "test_share": self.test_share,
            "seed": self.seed,
            "classes": None if self.classes is None else _classes(self.classes),
            "overwrite": self.overwrite,
        }


def _classes(given: str) -> list[str]:
    from tal_fast.data.text_files import not_utf8

    file = Path(given)
    names = given.split(",")
    is_file = os.path.isfile(file)  # Path.is_file fails on a list as long as no path may be
    if given.lower().endswith(".txt") and not is_file:
        raise ConfigError(f"--classes: {file}: no such file")
    if is_file:
        try:
            names = file.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ConfigError(f"--classes: {not_utf8(file, 'text')}") from error
    classes = [name.strip() for name in names if name.strip()]
    if not classes or len(set(classes)) != len(classes):
        raise ConfigError(f"--classes: expected one or more names, each once, got {given!r}")
    return classes


def _own_choice(
    paths: list[Path], form: FormOptions, timing: OwnTimingOptions, packing: PackOptions
) -> FeatureChoice:
    """Returns one's own features.

    Raises:
        ConfigError: it is not said, or said twice, how rows lie in time.
    """
    if timing.rate is None:
        if timing.stride is None:
            raise ConfigError(
                "expected how rows of features lie in time: --rate ROWS_PER_SECOND, or --stride "
                "FRAMES_BETWEEN_ROWS with --frames FRAMES_OF_A_ROW and --fps (clips of 16 frames "
                "every 8 frames of a video of 30 frames per second are --stride 8 --frames 16 "
                "--fps 30)"
            )
        return feature_choice(paths, form, timing, packing)
    for option, value in (
        ("stride", timing.stride),
        ("frames", timing.frames),
        ("fps", timing.fps),
    ):
        if value is not None:
            raise ConfigError(
                f"--{option}: --rate already says how rows lie in time; got {value:g} as well"
            )
    if not 0.0 < timing.rate < math.inf:
        raise ConfigError(f"--rate: expected rows per second above 0, got {timing.rate:g}")
    return feature_choice(paths, form, TimingOptions(1.0, 1.0, timing.rate), packing)


@command(
    prepare_app,
    "csv",
    "tal-fast prepare csv --segments segments.csv --features features --rate 5 --out data/mine",
)
def prepare_csv(
    segments: Annotated[
        Path, typer.Option(help="CSV of segments: columns video, start, end, label, ...")
    ],
    features: Features,
    out: Out,
    timing: OwnTimingOptions,
    splits: SplitOptions,
    form: FormOptions,
    packing: PackOptions,
    repairs: RepairOptions,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=NAME",
            help="Another name of a column, as in label=class; may be repeated.",
            rich_help_panel=SEGMENTS,
        ),
    ] = None,
    unit: Annotated[
        str,
        typer.Option(help="Unit of start and end: seconds or frames.", rich_help_panel=SEGMENTS),
    ] = "seconds",
) -> None:
    """Make a data directory of your own segments (CSV) and features.

    Columns: video, start, end, label; where there are, subset (or split), duration, fps.
    docs/own-data.md walks through it.
    """
    from tal_fast.data.prepare import prepare_csv as prepare

    choice = _own_choice(features, form, timing, packing)
    names: dict[str, str] = {}
    for given in column or ():
        role, equal, name = given.partition("=")
        if not (role and equal and name):
            raise ConfigError(f"--column: expected COLUMN=NAME, got {given!r}")
        names[role] = name
    with bar("packing") as update:
        report = prepare(
            segments,
            choice,
            out,
            columns=names,
            unit=unit,
            repairs=repairs.repairs(),
            progress=update,
            **splits.arguments(),
        )
    _print_report(report, out)


@command(
    prepare_app,
    "json",
    "tal-fast prepare json --annotations annotations.json --features features --rate 5 "
    "--out data/mine",
)
def prepare_json(
    annotations: Annotated[Path, typer.Option(help="Annotations of ActivityNet's form.")],
    features: Features,
    out: Out,
    timing: OwnTimingOptions,
    splits: SplitOptions,
    form: FormOptions,
    packing: PackOptions,
    repairs: RepairOptions,
) -> None:
    """Make a data directory of your own annotations (ActivityNet's JSON) and features."""
    from tal_fast.data.prepare import prepare_json as prepare

    choice = _own_choice(features, form, timing, packing)
    with bar("packing") as update:
        report = prepare(
            annotations,
            choice,
            out,
            repairs=repairs.repairs(),
            progress=update,
            **splits.arguments(),
        )
    _print_report(report, out)


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
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make synthetic THUMOS14-like data: 20 classes whose features carry them, with noise."""
    from tal_fast.data import open_dataset
    from tal_fast.data.synthetic import make_synthetic

    path = make_synthetic(out, size=size, seed=seed, overwrite=overwrite)
    data = open_dataset(path)
    splits = ", ".join(f"{len(videos)} {name}" for name, videos in data.splits.items())
    show(
        f"{counted(len(data.features), 'video')} ({splits}), "
        f"{counted(data.annotations.num_instances, 'instance')} of "
        f"{counted(data.num_classes, 'class')}, {counted(data.channels, 'channel')}\nwritten to "
        f"{path}"
    )
    say_next("tal-fast", "train", "--data", out, "--out", free_place("runs/first"))
