# SPDX-License-Identifier: Apache-2.0
"""Commands about data: prepare, pack, validate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tal_fast.cli.app import JsonOut, Out, Overwrite, app, bar, command, prepare_app
from tal_fast.errors import ConfigError

Features = Annotated[
    list[Path],
    typer.Option("--features", help="Folder or file of features; repeated: streams side by side."),
]
Template = Annotated[
    list[str] | None,
    typer.Option(help="File or array name with %s for the video; one, or one per --features."),
]
Key = Annotated[
    list[str] | None, typer.Option(help="Array in each video's file, if that holds several.")
]
Layout = Annotated[str, typer.Option(help="TC for arrays [T, C], CT for [C, T].")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read pickles: of arrays, nothing else.")
]
Annotation = Annotated[Path, typer.Option(help="Annotation JSON.")]
Fps = Annotated[float | None, typer.Option(help="Of all videos; each video's own by default.")]
Pack = Annotated[
    str | None,
    typer.Option(help="Convert into a store: float32, float16 or bfloat16; else left in place."),
]
OutOfRange = Annotated[str, typer.Option(help="Segments beyond their video: error, clamp or keep.")]
NonPositive = Annotated[str, typer.Option(help="Segments without length: error or drop.")]
Missing = Annotated[
    str, typer.Option(help="Videos without features: error, or skip in training and prediction.")
]
Exclude = Annotated[list[str] | None, typer.Option(help="Leave a video out; may be repeated.")]


@command(prepare_app, "hapt", "tal-fast prepare hapt --archive hapt.zip --out data/hapt")
def prepare_hapt(
    archive: Annotated[Path, typer.Option(help="The UCI archive, as distributed.")],
    out: Out,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Make a data directory from the UCI HAPT recordings (smartphone motion, 12 activities)."""
    from tal_fast.data.prepare.hapt import prepare_hapt as prepare

    with bar("reading") as update:
        report = prepare(archive, out, overwrite=overwrite, progress=update)
    typer.echo("\n".join(report.lines()))


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
    typer.echo("\n".join(report.lines()))


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
    template: Template = None,
    key: Key = None,
    layout: Layout = "TC",
    stride: Annotated[float, typer.Option(help="Frames between two rows.")] = 4,
    frames: Annotated[float, typer.Option(help="Frames that a row sees.")] = 16,
    fps: Fps = None,
    pack: Pack = None,
    allow_pickle: AllowPickle = False,
    out_of_range: OutOfRange = "error",
    non_positive: NonPositive = "error",
    missing: Missing = "error",
    exclude: Exclude = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a data directory of THUMOS14: annotations and features of other codebases."""
    from tal_fast.data.prepare import FeatureChoice, Repairs
    from tal_fast.data.prepare.thumos14 import prepare_thumos14 as prepare

    choice = FeatureChoice(
        features,
        template,
        key,
        layout,
        stride=stride,
        frames=frames,
        fps=fps,
        pack=pack,
        allow_pickle=allow_pickle,
    )
    repairs = Repairs(out_of_range, non_positive, missing, exclude or ())
    with bar("packing") as update:
        report = prepare(
            annotations, choice, out, repairs=repairs, overwrite=overwrite, progress=update
        )
    typer.echo("\n".join(report.lines()))


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
    subsets: Annotated[
        Path | None, typer.Option(help="video_info_new.csv, for annotations without subsets.")
    ] = None,
    template: Template = None,
    key: Key = None,
    layout: Layout = "TC",
    stride: Annotated[float, typer.Option(help="Frames between two rows.")] = 16,
    frames: Annotated[float, typer.Option(help="Frames that a row sees.")] = 16,
    fps: Fps = None,
    resized: Annotated[
        bool, typer.Option("--resized", help="All videos have one number of rows.")
    ] = False,
    pack: Pack = None,
    allow_pickle: AllowPickle = False,
    out_of_range: OutOfRange = "error",
    non_positive: NonPositive = "error",
    missing: Missing = "error",
    exclude: Exclude = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a data directory of ActivityNet-1.3: annotations and features of other codebases."""
    from tal_fast.data.prepare import FeatureChoice, Repairs
    from tal_fast.data.prepare.activitynet13 import prepare_activitynet13 as prepare

    choice = FeatureChoice(
        features,
        template,
        key,
        layout,
        stride=stride,
        frames=frames,
        fps=fps,
        resized=resized,
        pack=pack,
        allow_pickle=allow_pickle,
    )
    repairs = Repairs(out_of_range, non_positive, missing, exclude or ())
    with bar("packing") as update:
        report = prepare(
            annotations,
            choice,
            out,
            subsets=subsets,
            repairs=repairs,
            overwrite=overwrite,
            progress=update,
        )
    typer.echo("\n".join(report.lines()))


@command(prepare_app, "synthetic", "tal-fast prepare synthetic --size demo --out data/demo")
def prepare_synthetic(
    out: Out,
    size: Annotated[str, typer.Option(help="demo, demo-hard, small or thumos14.")] = "demo",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
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


@command(app, "pack", "tal-fast pack --features rgb --features flow --out packed --dtype float16")
def pack(
    out: Annotated[Path, typer.Option(help="Store to write, or to check with --verify.")],
    features: Annotated[
        list[Path] | None,
        typer.Option(help="Folder or file of features; repeated: streams side by side."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    template: Template = None,
    key: Key = None,
    layout: Layout = "TC",
    rows: Annotated[
        str, typer.Option(help="Streams of unequal rows: equal (an error) or shortest.")
    ] = "equal",
    reduce: Annotated[
        str | None,
        typer.Option(help="Features [T, N, C] of N crops: mean, or the number of one, from 0 on."),
    ] = None,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard; memory is as much.")] = 256,
    allow_pickle: AllowPickle = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew instead of going on.")
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
        typer.echo(f"{count} videos, all as they were packed")
        return
    if not features:
        raise ConfigError("--features: expected at least one folder or file, got none")
    with bar("packing") as update:
        report = pack_features(
            streams_of(features, template, key),
            out,
            dtype=dtype,
            layout=layout,  # type: ignore[arg-type]
            rows=rows,  # type: ignore[arg-type]
            reduce=int(reduce) if reduce and reduce.isdecimal() else reduce,  # type: ignore[arg-type]
            shard_bytes=shard_mb << 20,
            allow_pickle=allow_pickle,
            overwrite=overwrite,
            progress=update,
        )
    typer.echo("\n".join(report.lines()))


@command(app, "validate", "tal-fast validate --data data/hapt --report report")
def validate(
    data: Annotated[
        Path | None, typer.Option("--data", help="Prepared data directory; or the options below.")
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="Annotation JSON.")] = None,
    features: Annotated[
        list[Path] | None,
        typer.Option(help="Folder or file of features; repeated: streams side by side."),
    ] = None,
    template: Template = None,
    key: Key = None,
    layout: Layout = "TC",
    stride: Annotated[float | None, typer.Option(help="Frames between two rows.")] = None,
    frames: Annotated[
        float | None, typer.Option(help="Frames that a row sees; as the stride by default.")
    ] = None,
    fps: Fps = None,
    channels: Annotated[int | None, typer.Option(min=1, help="Expected channels.")] = None,
    subsets: Annotated[
        Path | None, typer.Option(help="CSV of subsets, for annotations without them.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SUBSET", help="A split; may be repeated.")
    ] = None,
    ignore_label: Annotated[list[str] | None, typer.Option(help="Label that is left out.")] = None,
    out_of_range: OutOfRange = "error",
    group: Annotated[
        str | None, typer.Option(help="Expression for what must stay in one split: 'user(\\d+)'.")
    ] = None,
    accept: Annotated[
        list[str] | None, typer.Option(metavar="CHECK", help="Errors that do not count.")
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="Rows of a training window.")] = 128,
    overlap: Annotated[
        float, typer.Option(help="Part of a training window that the next one repeats.")
    ] = 0.75,
    min_inside: Annotated[
        float, typer.Option(help="Part of an instance that a window must hold to own it.")
    ] = 0.75,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Do not read the features themselves.")
    ] = False,
    json_out: JsonOut = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write a page (index.html) into this directory.")
    ] = None,
) -> None:
    """Check annotations and features, and that they fit each other; exit status 0: may train."""
    import json

    from tal_fast.data import WindowRule, streams_of, validation
    from tal_fast.data.files import write_text_atomically

    if (data is None) == (annotations is None):
        raise ConfigError("validate: expected --data or --annotations")
    if data is not None and features:
        raise ConfigError("validate: --data says where the features are; expected no --features")
    if features and stride is None:
        raise ConfigError("--stride: expected the frames between two feature rows, got none")
    pairs = [text.partition("=") for text in split or ()]
    for name, equal, subset in pairs:
        if not (name and equal and subset):
            raise ConfigError(f"--split: expected NAME=SUBSET, got {name + equal + subset!r}")
    splits: dict[str, list[str]] = {}
    for name, _, subset in pairs:
        splits.setdefault(name, []).append(subset)
    windows = WindowRule(window, overlap, min_inside)
    with bar("reading features") as update:
        options: dict[str, Any] = {
            "group": group,
            "accept": accept or (),
            "content": not headers_only,
            "progress": update,
        }
        if data is not None:
            result = validation.validate_dataset(data, windows=windows, **options)
        else:
            assert annotations is not None
            question = None
            if features:
                assert stride is not None
                question = validation.FeatureQuestion(
                    streams_of(features, template, key),
                    stride,
                    stride if frames is None else frames,
                    fps,
                    layout,  # type: ignore[arg-type]
                    channels,
                    windows,
                )
            result = validation.validate(
                annotations,
                question,
                subsets=subsets,
                splits=splits or None,
                ignore_labels=ignore_label or (),
                out_of_range=out_of_range,
                **options,
            )
    typer.echo(result.table())
    if report is not None:
        typer.echo(f"\npage: {validation.write_report(report, result)}")
    if json_out is not None:
        write_text_atomically(json_out, json.dumps(result.to_dict(), indent=2) + "\n")
    if not result.ok:
        raise typer.Exit(1)
