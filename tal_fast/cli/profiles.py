# SPDX-License-Identifier: Apache-2.0
"""Commands about cost: profile model, machine, train, predict and compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tal_fast.cli.app import command, profile_app, say, say_next, show, write_json
from tal_fast.cli.next_steps import (
    free_place,
    given_options,
    say_after_prediction,
)
from tal_fast.cli.options import (
    OUTPUT,
    SETTINGS,
    Data,
    JsonOut,
    Model,
    ModelOfConfig,
    Out,
    SettingOptions,
    Threads,
    TrainVideos,
    directory_to_write,
)
from tal_fast.cli.whole_tables import widen
from tal_fast.errors import ConfigError, MissingExtraError

# What a table needs; a narrower terminal breaks its lines.
_WIDTH = 140
_NARROW = 100
_MOST_LENGTHS = 100
CLIPS, SECONDS = "The clips", "Rows and seconds"

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        help="One setting; may be repeated.",
        rich_help_panel=SETTINGS,
    ),
]


@dataclass(frozen=True)
class SecondsOptions:
    """What a row of features is in time."""

    fps: Annotated[
        float | None,
        typer.Option(
            help="Frames per second, for numbers per minute of video. Default: the preset's.",
            rich_help_panel=SECONDS,
        ),
    ] = None
    stride: Annotated[
        float | None,
        typer.Option(
            help="Frames between two rows. Default: the preset's.", rich_help_panel=SECONDS
        ),
    ] = None


def _lengths(text: str) -> list[int]:
    """Reads ``128,2304`` or ``first:last:step``."""
    wrong = ConfigError(
        f"--lengths: expected rows as in 128,2304 or first:last:step, at most {_MOST_LENGTHS}, "
        f"got {text!r}"
    )
    try:
        if ":" in text:
            first, last, step = (int(part) for part in text.split(":"))
            lengths = list(range(first, last + 1, step))
        else:
            lengths = [int(part) for part in text.split(",")]
    except ValueError:
        raise wrong from None
    if not 0 < len(lengths) <= _MOST_LENGTHS:
        raise wrong
    return lengths


def _overrides(settings: list[str] | None) -> list[str]:
    return [word for setting in settings or () for word in ("--set", setting)]


def print_profile(folder: Path) -> None:
    """Prints the profile in a directory: what limits it first, then the tables; draws its page."""
    from rich.console import Console

    from tal_fast.profiling.profile import summary
    from tal_fast.profiling.report import read_profile
    from tal_fast.profiling.tables import profile_tables
    from tal_fast.profiling.verdict import verdict_of

    profile = read_profile(folder)
    if "phases" in profile:
        show("\n" + "\n".join([*verdict_of(profile).lines(), summary(profile)]))
    console = Console()
    console.width = max(console.width, _NARROW if "phases" in profile else _WIDTH)
    for table in profile_tables(profile):
        if "phases" not in profile:
            widen(console, table)
        console.print(table)
    draw_page(folder)


def draw_page(folder: Path) -> None:
    """Writes the page of a profile, where its pictures can be drawn, and says where it is."""
    from tal_fast.profiling.report import write_page

    try:
        show(write_page(folder))
    except MissingExtraError as error:
        say(f"note: no page: {error}")
        show(folder / "profile.json")


@command(
    profile_app,
    "model",
    "tal-fast profile model --model tadtr --channels 2048 --classes 20 --lengths 128,2304",
)
def profile_model(
    channels: Annotated[int, typer.Option(min=1, help="Channels of a feature row.")],
    classes: Annotated[int, typer.Option(min=1, help="Number of classes.")],
    seconds: SecondsOptions,
    model: Model = "tadtr",
    lengths: Annotated[
        str | None,
        typer.Option(help="Rows of a clip: 128,2304 or first:last:step. Default: the recipe's."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Clips of a training step. Default: the preset's.")
    ] = None,
    settings: Overrides = None,
    json_out: JsonOut = None,
) -> None:
    """Count what a model costs: no data, no weights, no arithmetic.

    Multiply-adds, bytes, calls and what is saved for the backward, by part.
    """
    asked = [] if lengths is None else _lengths(lengths)

    from rich.console import Console

    from tal_fast.profiling import model_cost
    from tal_fast.profiling.model_report import cost_dict, cost_tables, headline

    cost = model_cost(
        model,
        channels=channels,
        classes=classes,
        lengths=asked,
        batch=batch,
        settings=settings or [],
        fps=seconds.fps,
        stride=seconds.stride,
    )
    console = Console()
    console.width = max(console.width, _WIDTH)
    show(headline(cost))
    for table in cost_tables(cost):
        console.print(table)
    write_json(json_out, cost_dict(cost))
    sizes = ("--channels", channels, "--classes", classes)
    say_next("tal-fast", "profile", "predict", "--model", model, *sizes,
             *given_options(seconds), *_overrides(settings),
             "--lengths", lengths or "200:3000:200", "--out", "profiles/lengths")  # fmt: skip


@command(profile_app, "machine", "tal-fast profile machine")
def profile_machine(
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again, even if it was done within a day.")
    ] = False,
    json_out: JsonOut = None,
) -> None:
    """Measure what this machine can do at most: products, memory, calls, files."""
    from rich.console import Console

    from tal_fast.profiling.ceilings import ceiling_table, machine_ceilings

    ceilings = machine_ceilings(fresh=fresh)
    Console().print(ceiling_table(ceilings))
    write_json(json_out, ceilings)
    say_next(
        "tal-fast", "profile", "model", "--model", "tadtr", "--channels", 2048, "--classes", 20
    )


@command(
    profile_app,
    "train",
    "tal-fast profile train --data data/hapt --model tadtr-small --out profiles/first",
)
def profile_train(
    data: Data,
    out: Out,
    settings: SettingOptions,
    model: ModelOfConfig = None,
    videos: TrainVideos = "train",
    steps: Annotated[int, typer.Option(min=1, help="Steps to record.")] = 50,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only record; do not train without the suspects.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Say what limits a training and what would lift that; what is learned is thrown away.

    Records steps, then trains without each suspect in turn: loading, batch size, threads,
    precision. Takes about two minutes at most.
    """
    from tal_fast.data import open_dataset
    from tal_fast.profiling.training_profile import profile_training
    from tal_fast.training import load_config
    from tal_fast.training.plan import DEFAULT_MODEL

    chosen = settings.settings or []
    resolved = load_config(settings.config, preset=model, overrides=chosen, fallback=DEFAULT_MODEL)
    dataset = open_dataset(data)
    names = dataset.videos_of(videos, "--videos")
    for note in dataset.notes():
        say(f"note: {note}")
    profile_training(
        resolved, dataset, names, out, steps=steps, quick=quick, threads=threads, said=say
    )
    print_profile(out)
    say_next("tal-fast", "train", "--data", data, "--model", resolved.name,
             *given_options(settings), *(() if videos == "train" else ("--videos", videos)),
             "--out", free_place("runs/first"))  # fmt: skip


@command(
    profile_app,
    "predict",
    "tal-fast profile predict --model tadtr --lengths 200:3000:200 --out profiles/tadtr",
)
def profile_predict(
    out: Out,
    seconds: SecondsOptions,
    model: Annotated[
        str | None, typer.Option("--model", help="Preset or own model, with fresh weights.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Or a checkpoint written by train.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Take clips of this data directory.", rich_help_panel=CLIPS),
    ] = None,
    split: Annotated[
        str,
        typer.Option(help="Videos: a split of the data (test, ...) or all.", rich_help_panel=CLIPS),
    ] = ("test"),
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Or clips of noise of so many rows: 128,2304 or first:last:step.",
            rich_help_panel=CLIPS,
        ),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(min=1, help="Channels of noise; default 2048.", rich_help_panel=CLIPS),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(min=1, help="Classes of fresh models; default 20.", rich_help_panel=CLIPS),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Also time a training step on each clip.")
    ] = False,
    settings: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="5 repeats instead of 25.")] = False,
    threads: Threads = None,
) -> None:
    """Time prediction by the length of a clip: network, candidates, suppression, memory."""
    if (model is None) == (checkpoint is None):
        raise ConfigError("expected one of --model and --checkpoint")
    if (data is None) == (lengths is None):
        raise ConfigError("expected one of --data and --lengths")
    given = {"--channels": channels, "--classes": classes}
    known = "--checkpoint" if checkpoint is not None else "--data" if data is not None else None
    for option, value in given.items():
        if known is not None and value is not None:
            raise ConfigError(f"{option}: {known} already tells the number; got {value} as well")
    asked = None if lengths is None else _lengths(lengths)

    from tal_fast.data import open_dataset
    from tal_fast.models import detector_of
    from tal_fast.profiling.model_cost import timing_of
    from tal_fast.profiling.prediction_profile import (
        clips_of_data,
        made_clips,
        profile_prediction,
        ready_model,
    )

    dataset = None if data is None else open_dataset(data)
    sizes = (channels or 2048, classes or 20)
    if dataset is not None:
        sizes = dataset.channels, dataset.num_classes
    network, config = ready_model(model, checkpoint, sizes, settings or [])
    timing = timing_of(detector_of(config.name), config.name, seconds.fps, seconds.stride)
    if dataset is not None:
        clips = clips_of_data(network, dataset, dataset.videos_of(split, "--split"))
    else:
        clips = made_clips(network, asked or [])
    profile_prediction(
        network,
        config,
        clips,
        out,
        weights="fresh" if checkpoint is None else "trained",
        timing=timing,
        training=training,
        quick=quick,
        threads=threads,
        said=say,
    )
    print_profile(out)
    say_after_prediction(out)


@command(profile_app, "compare", "tal-fast profile compare profiles/tadtr profiles/tridet")
def profile_compare(
    folders: Annotated[list[Path], typer.Argument(help="Directories of two or more profiles.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write tables and picture into this directory.",
            callback=directory_to_write,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also compare different machines, by shares of their ceilings alone."
        ),
    ] = False,
) -> None:
    """Put profiles side by side: trainings by step, predictions by length and minute of video."""
    from rich.console import Console

    from tal_fast.profiling.compare import compare, comparison_tables, write_comparison

    comparison = compare(folders, force=force)
    console = Console()
    for table in comparison_tables(comparison):
        widen(console, table)
        console.print(table)
    if out is not None:
        for path in write_comparison(comparison, out):
            show(path)
    say_next("tal-fast", "profile", "machine")
