# SPDX-License-Identifier: Apache-2.0
"""Commands that convert and check data: pack, validate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tal_fast.cli.app import (
    DATA,
    Kept,
    app,
    command,
    say,
    say_next,
    show,
    write_json,
    written_since,
)
from tal_fast.cli.feature_options import (
    AllowPickle,
    FormOptions,
    OutOfRange,
    SomeFeatures,
    TimingOptions,
    named_subsets,
)
from tal_fast.cli.next_steps import free_place
from tal_fast.cli.options import OUTPUT, JsonOut, directory_to_write
from tal_fast.errors import ConfigError, counted
from tal_fast.progress import bar

WITHOUT = "Instead of a data directory"
WINDOWS = "Training windows"


def _kept_of_store(options: dict[str, Any], since: float) -> Kept | None:
    """Says where the shards of a store are; None where this packing has not begun."""
    from tal_fast.data.packing.store import SETTINGS

    out = options["out"]
    # A store from before may be what this one was to replace.
    begun = written_since(out / SETTINGS, since if options["overwrite"] else 0.0)
    if options["verify"] or not begun:
        return None
    return Kept(f"the finished shards are in {out}")


@command(
    app,
    "pack",
    "tal-fast pack --features rgb --features flow --out packed --dtype float16",
    panel=DATA,
    kept=_kept_of_store,
)
def pack(
    out: Annotated[
        Path,
        typer.Option(
            help="Store to write, or to check with --verify.", callback=directory_to_write
        ),
    ],
    form: FormOptions,
    features: SomeFeatures = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    rows: Annotated[
        str, typer.Option(help="Streams of unequal rows: equal (an error) or shortest.")
    ] = "equal",
    reduce: Annotated[
        str | None,
        typer.Option(help="Features [T, N, C] of N crops: mean, or the number of one, from 0 on."),
    ] = None,
    shard_mb: Annotated[
        int, typer.Option(min=1, help="Size of a shard in MB, and of the memory that it takes.")
    ] = 256,
    allow_pickle: AllowPickle = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over instead of continuing.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only compare a store with its checksums.")
    ] = False,
) -> None:
    """Convert features of any format into one store that is read in place.

    Run it again after an interruption: it goes on after the last shard. The store is safetensors
    with a tensor [T, C] per video; every shard is read back and compared.
    """
    from tal_fast.data import streams_of
    from tal_fast.data.packing import pack_features, verify_store

    if verify:
        with bar("comparing") as update:
            count = verify_store(out, update)
        show(f"{counted(count, 'video')}, all as they were packed")
        say(f"next: name {out} under `features` in dataset.yaml")
        return
    if not features:
        raise ConfigError("--features: expected at least one folder or file, got none")
    with bar("packing") as update:
        report = pack_features(
            streams_of(features, form.template, form.key),
            out,
            dtype=dtype,
            layout=form.layout,  # type: ignore[arg-type]
            rows=rows,  # type: ignore[arg-type]
            reduce=int(reduce) if reduce and reduce.isdecimal() else reduce,  # type: ignore[arg-type]
            shard_bytes=shard_mb << 20,
            allow_pickle=allow_pickle,
            overwrite=overwrite,
            progress=update,
        )
    show("\n".join(report.lines()))
    say_next("tal-fast", "pack", "--verify", "--out", out)


@dataclass(frozen=True)
class FileOptions:
    """Annotations and features that are no data directory yet."""

    annotations: Annotated[
        Path | None, typer.Option(help="Annotation JSON.", rich_help_panel=WITHOUT)
    ] = None
    features: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder or file of features; repeated: streams side by side.",
            rich_help_panel=WITHOUT,
        ),
    ] = None
    subsets: Annotated[
        Path | None,
        typer.Option(help="CSV of subsets, for annotations without them.", rich_help_panel=WITHOUT),
    ] = None
    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SUBSET", help="A split; may be repeated.", rich_help_panel=WITHOUT
        ),
    ] = None
    channels: Annotated[
        int | None, typer.Option(min=1, help="Expected channels.", rich_help_panel=WITHOUT)
    ] = None
    ignore_label: Annotated[
        list[str] | None, typer.Option(help="Label that is left out.", rich_help_panel=WITHOUT)
    ] = None


@dataclass(frozen=True)
class WindowOptions:
    """Which instances a training would see."""

    window: Annotated[
        int, typer.Option(min=1, help="Rows of a training window.", rich_help_panel=WINDOWS)
    ] = 128
    overlap: Annotated[
        float,
        typer.Option(
            help="Share of a training window that the next one repeats.", rich_help_panel=WINDOWS
        ),
    ] = 0.75
    min_inside: Annotated[
        float,
        typer.Option(
            help="Share of an instance that a window must hold to learn it.",
            rich_help_panel=WINDOWS,
        ),
    ] = 0.75


@command(app, "validate", "tal-fast validate --data data/hapt --report report", panel=DATA)
def validate(
    files: FileOptions,
    form: FormOptions,
    timing: TimingOptions,
    windows: WindowOptions,
    data: Annotated[
        Path | None, typer.Option("--data", help="Prepared data directory; or the options below.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Regular expression for what must stay in one split: 'user(\\d+)'."),
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK", help="Check whose errors are accepted; may be repeated."),
    ] = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Do not read the features themselves.")
    ] = False,
    out_of_range: OutOfRange = "error",
    json_out: JsonOut = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Also write a page (index.html) into this directory.",
            callback=directory_to_write,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Check annotations and features, and that they fit each other; exit status 0: may train."""
    from tal_fast.data import WindowRule, streams_of, validation

    if (data is None) == (files.annotations is None):
        raise ConfigError("validate: expected --data or --annotations")
    if data is not None and files.features:
        raise ConfigError("validate: --data says where the features are; expected no --features")
    if files.features and timing.stride is None:
        raise ConfigError("--stride: expected the frames between two feature rows, got none")
    splits = named_subsets(files.split)
    rule = WindowRule(windows.window, windows.overlap, windows.min_inside)
    with bar("reading features") as update:
        options: dict[str, Any] = {
            "group": group,
            "accept": accept or (),
            "content": not headers_only,
            "progress": update,
        }
        if data is not None:
            result = validation.validate_dataset(data, windows=rule, **options)
        else:
            assert files.annotations is not None
            question = None
            if files.features:
                assert timing.stride is not None
                question = validation.FeatureQuestion(
                    streams_of(files.features, form.template, form.key),
                    timing.stride,
                    timing.stride if timing.frames is None else timing.frames,
                    timing.fps,
                    form.layout,  # type: ignore[arg-type]
                    files.channels,
                    rule,
                )
            result = validation.validate(
                files.annotations,
                question,
                subsets=files.subsets,
                splits=splits,
                ignore_labels=files.ignore_label or (),
                out_of_range=out_of_range,
                **options,
            )
    show(result.table())
    if report is not None:
        show(f"\npage: {validation.write_report(report, result)}")
    write_json(json_out, result.to_dict())
    if not result.ok:
        raise typer.Exit(1)
    if data is not None:
        say_next("tal-fast", "train", "--data", data, "--out", free_place("runs/first"))
    else:
        say_next("tal-fast", "prepare", "json", "-h")
