# SPDX-License-Identifier: Apache-2.0
"""The command line ``tal-fast``: parses, calls, prints.

Everything heavy is imported inside the commands, so that ``-h`` answers at once.

Exit status: 0 done, 1 bad data or a failure, 2 wrong usage or settings, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tal_fast.errors import ConfigError, TalFastError

if TYPE_CHECKING:
    from tal_fast.data import TALDataset
    from tal_fast.study import StudyResult

__all__ = ["app", "main"]

_Command = TypeVar("_Command", bound=Callable[..., None])
_OPTIONS = {
    "context_settings": {"help_option_names": ["-h", "--help"]},
    "rich_markup_mode": None,  # plain help needs no rich, whose import is half of what -h may take
    "add_completion": False,
    "no_args_is_help": True,
}

app = typer.Typer(
    name="tal-fast",
    help="Fast temporal action localization, and how much data it needs.",
    epilog="Example: tal-fast study demo --out results/demo",
    **_OPTIONS,  # type: ignore[arg-type]
)
prepare_app = typer.Typer(
    help="Make a data directory.",
    epilog="Example: tal-fast prepare synthetic --out data/demo",
    **_OPTIONS,  # type: ignore[arg-type]
)
study_app = typer.Typer(
    help="Train on growing shares of the data and draw the curve.",
    epilog="Example: tal-fast study run --data data/hapt --out results/hapt",
    **_OPTIONS,  # type: ignore[arg-type]
)
app.add_typer(prepare_app, name="prepare")
app.add_typer(study_app, name="study")

Data = Annotated[Path, typer.Option("--data", help="Prepared data directory.")]
Out = Annotated[Path, typer.Option("--out", help="Directory to write.")]
Model = Annotated[str, typer.Option("--model", help="Preset: tadtr or tadtr-small.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="YAML file of settings over the preset.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="One setting; may be repeated."),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Torch threads.")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Trials at a time, one process each.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
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
Missing = Annotated[str, typer.Option(help="Videos without features: error or skip.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Leave a video out; may be repeated.")]


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _guarded(command: _Command) -> _Command:
    """Turns expected errors into one line and an exit status; bugs keep their traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            _say("interrupted")
            raise typer.Exit(130) from None
        except (TalFastError, OSError) as error:
            if os.environ.get("TAL_FAST_TRACEBACK", "0") not in ("", "0"):
                raise
            if isinstance(error, BrokenPipeError):  # `tal-fast ... | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            text = str(error)
            if not isinstance(error, TalFastError):
                text = f"{error.filename or 'system'}: {error.strerror or error}"
            _say(f"error: {text}")
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None

    return run  # type: ignore[return-value]


def _command(group: typer.Typer, name: str, example: str) -> Callable[[_Command], _Command]:
    def register(function: _Command) -> _Command:
        guarded = _guarded(function)
        group.command(name, epilog=f"Example: {example}")(guarded)
        return guarded

    return register


def _videos(data: TALDataset, which: str, option: str) -> list[str]:
    """Returns the videos of a split, or all."""
    from tal_fast.errors import nearest

    if which == "all":
        return sorted(data.annotations.videos)
    if which not in data.splits:
        known = [*data.splits, "all"]
        raise ConfigError(
            f"{option}: expected one of {', '.join(known)}, got {which!r}{nearest(which, known)}"
        )
    return list(data.splits[which])


@contextlib.contextmanager
def _bar(description: str) -> Iterator[Callable[..., None]]:
    """Shows progress on a terminal, nothing elsewhere; yields update(done, total, note)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:g}/{task.total:g}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(description, total=1, note="")

        def update(done: int, total: int, note: str = "") -> None:
            progress.update(task, completed=done, total=max(1, total), note=note)

        yield update


@_command(app, "info", "tal-fast info")
def info() -> None:
    """Show versions, instruction sets, threads, and why CUDA is off if it is."""
    import yaml

    from tal_fast.info import collect

    typer.echo(yaml.safe_dump(collect(), sort_keys=False).rstrip())


@_command(prepare_app, "hapt", "tal-fast prepare hapt --archive hapt.zip --out data/hapt")
def prepare_hapt(
    archive: Annotated[Path, typer.Option(help="The UCI archive, as distributed.")],
    out: Out,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Make a data directory from the UCI HAPT recordings (smartphone motion, 12 activities)."""
    from tal_fast.data.prepare.hapt import prepare_hapt as prepare

    with _bar("reading") as update:
        report = prepare(archive, out, overwrite=overwrite, progress=update)
    typer.echo("\n".join(report.lines()))


@_command(prepare_app, "sp-sw-har", "tal-fast prepare sp-sw-har --source DATA --out data/sp-sw-har")
def prepare_sp_sw_har(
    source: Annotated[Path, typer.Option(help="Folder DATA as distributed, or a packed .npz.")],
    out: Out,
    device: Annotated[str, typer.Option(help="sp (phone) or sw (watch).")] = "sp",
    overwrite: Overwrite = False,
) -> None:
    """Make a data directory from the sp-sw-har recordings (phone or watch, 4 activities)."""
    from tal_fast.data.prepare.sp_sw_har import prepare_sp_sw_har as prepare

    with _bar("reading") as update:
        report = prepare(source, out, device=device, overwrite=overwrite, progress=update)
    typer.echo("\n".join(report.lines()))


@_command(
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
    with _bar("packing") as update:
        report = prepare(
            annotations, choice, out, repairs=repairs, overwrite=overwrite, progress=update
        )
    typer.echo("\n".join(report.lines()))


@_command(
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
    with _bar("packing") as update:
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


@_command(prepare_app, "synthetic", "tal-fast prepare synthetic --size demo --out data/demo")
def prepare_synthetic(
    out: Out,
    size: Annotated[str, typer.Option(help="demo, small or thumos14.")] = "demo",
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


@_command(app, "pack", "tal-fast pack --features rgb --features flow --out packed --dtype float16")
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
    from tal_fast.data.feature_streams import streams_of
    from tal_fast.data.packing import pack_features, verify_store

    if verify:
        with _bar("comparing") as update:
            count = verify_store(out, update)
        typer.echo(f"{count} videos, all as they were packed")
        return
    if not features:
        raise ConfigError("--features: expected at least one folder or file, got none")
    with _bar("packing") as update:
        report = pack_features(
            streams_of(features, template, key),
            out,
            dtype=dtype,
            layout=layout,  # type: ignore[arg-type]
            rows=rows,  # type: ignore[arg-type]
            shard_bytes=shard_mb << 20,
            allow_pickle=allow_pickle,
            overwrite=overwrite,
            progress=update,
        )
    typer.echo("\n".join(report.lines()))


@_command(app, "validate", "tal-fast validate --data data/hapt --report report")
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
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Do not read the features themselves.")
    ] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write this file.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write a page (index.html) into this directory.")
    ] = None,
) -> None:
    """Check annotations and features, and that they fit each other; exit status 0: may train."""
    import json

    from tal_fast.data import validation
    from tal_fast.data.feature_streams import streams_of
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
    with _bar("reading features") as update:
        options: dict[str, Any] = {
            "group": group,
            "accept": accept or (),
            "content": not headers_only,
            "progress": update,
        }
        if data is not None:
            result = validation.validate_dataset(data, **options)
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


@_command(app, "train", "tal-fast train --data data/hapt --model tadtr-small --out runs/first")
def train(
    data: Data,
    out: Out,
    model: Model = "tadtr-small",
    config: Config = None,
    settings: Settings = None,
    videos: Annotated[
        str, typer.Option(help="Videos to train on: a split of the data (train, ...) or all.")
    ] = "train",
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what is in --out.")
    ] = True,
    seed: Annotated[int | None, typer.Option(min=0, help="Same as --set training.seed=N.")] = None,
    threads: Threads = None,
) -> None:
    """Train a model; Ctrl-C writes a checkpoint, and the same command goes on from there."""
    from tal_fast.data import open_dataset
    from tal_fast.training import load_config
    from tal_fast.training import train as run

    chosen = [*(settings or []), *([] if seed is None else [f"training.seed={seed}"])]
    resolved = load_config(config, preset=model, overrides=chosen)
    dataset = open_dataset(data)
    names = _videos(dataset, videos, "--videos")
    dataset.require_every_class(names, "training")
    with _bar("training") as update:

        def progress(event: Any) -> None:
            loss = event.losses.get("total", event.losses.get("loss"))
            shown = "" if loss is None else f"loss {loss:.3f}, "
            note = f"epoch {event.epoch}, {shown}{event.windows_per_second:.0f} windows/s"
            update(event.step, event.total_steps, note)

        summary = run(
            resolved, dataset, names, out, resume=resume, progress=progress, threads=threads
        )
    typer.echo(
        f"{summary.epochs} epochs, {summary.steps} steps over {summary.windows} windows of "
        f"{len(names)} videos in {summary.seconds:.1f} s\n{summary.checkpoint}"
    )


@_command(
    app,
    "predict",
    "tal-fast predict --checkpoint runs/first/checkpoint.pt --data data/hapt --out results.json",
)
def predict(
    checkpoint: Annotated[Path, typer.Option(help="File written by train.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Results JSON (ActivityNet's form) to write.")],
    split: Annotated[str, typer.Option(help="Videos: a split of the data (test, ...) or all.")] = (
        "test"
    ),
    threads: Threads = None,
) -> None:
    """Detect actions in videos and write them as results JSON."""
    from tal_fast.data import open_dataset
    from tal_fast.training import predict as run

    dataset = open_dataset(data)
    names = _videos(dataset, split, "--split")
    with _bar("predicting") as update:
        found = run(checkpoint, dataset, names, out, progress=update, threads=threads)
    typer.echo(f"{len(found)} detections in {len(names)} videos\n{out}")


@_command(
    app,
    "evaluate",
    "tal-fast evaluate --annotations data/hapt --predictions results.json --subset validation "
    "--report report",
)
def evaluate(
    annotations: Annotated[Path, typer.Option(help="Annotation JSON, or a data directory.")],
    predictions: Annotated[Path, typer.Option(help="Results: JSON or JSON lines, also gzipped.")],
    subset: Annotated[str | None, typer.Option(help="Subset to evaluate; all by default.")] = None,
    tiou: Annotated[str, typer.Option(help="first:last:step, or numbers with commas.")] = (
        "0.3:0.7:0.1"
    ),
    dialect: Annotated[
        str,
        typer.Option(
            help="Whose rules: tal_fast, activitynet, actionformer, tridet, opentad, mmaction2, "
            "tadtr, epic or thumos."
        ),
    ] = "tal_fast",
    strict: Annotated[
        bool, typer.Option("--strict", help="Follow the mistakes of the dialect too.")
    ] = False,
    ties: Annotated[
        str | None, typer.Option(help="stable or numpy; as the dialect says by default.")
    ] = None,
    replicates: Annotated[
        int, typer.Option("--bootstrap", min=0, help="Draws of videos for intervals; 0: none.")
    ] = 0,
    against: Annotated[
        Path | None, typer.Option(help="Other results: is the difference more than noise?")
    ] = None,
    recall: Annotated[
        bool, typer.Option("--recall", help="Also Recall@1x and @5x, AR@AN and its AUC.")
    ] = False,
    errors: Annotated[bool, typer.Option("--errors", help="Also analyse the errors.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write this file.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write a page (index.html) into this directory.")
    ] = None,
    video: Annotated[
        list[str] | None, typer.Option(help="Show its timeline on the page; may be repeated.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read ActionFormer's eval_results.pkl.")
    ] = False,
) -> None:
    """Score predictions: average precision per class and tIoU, by the rules of a dialect."""
    import json
    import warnings

    from tal_fast import evaluation
    from tal_fast.data import open_dataset
    from tal_fast.data.files import write_text_atomically
    from tal_fast.study.sampling import parse_shares

    thresholds = parse_shares("--tiou", tiou)
    # A data directory knows its classes, also those that no annotation shows.
    truth = open_dataset(annotations).annotations if annotations.is_dir() else annotations

    def run(results: Path) -> evaluation.EvaluationResult:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", evaluation.EvaluationWarning)  # printed as notes
            return evaluation.evaluate(
                truth,
                results,
                thresholds,
                subset,
                dialect=dialect,
                strict=strict,
                ties=ties,
                allow_pickle=allow_pickle,
            )

    result = run(predictions)
    typer.echo(result.table())
    content = result.to_dict()
    if replicates:
        found = evaluation.bootstrap(result, replicates=replicates)
        content["bootstrap"] = found.to_dict()
        typer.echo(
            f"\naverage mAP {found.average_map}, {found.confidence:.0%} interval over videos"
        )
    if against is not None:
        difference = evaluation.compare(run(against), result, replicates=replicates or 1000)
        content["against"] = difference.to_dict()
        typer.echo(f"\nagainst {against}: {difference}")
    if recall:
        at_kx = evaluation.recall_at_kx(result, (1, 5))
        proposals = evaluation.average_recall(result).to_dict()
        content["recall_at_kx"] = {f"{k}x": at_kx[:, i].tolist() for i, k in enumerate((1, 5))}
        content["average_recall"] = proposals
        for k, values in content["recall_at_kx"].items():
            each = "  ".join(f"{x:.4f}" for x in [*values, sum(values) / len(values)])
            typer.echo(f"Recall@{k}  {each}")
        typer.echo("  ".join(f"{name} {value:.4f}" for name, value in proposals.items()))
    analysis = evaluation.analyse_errors(result) if errors or report is not None else None
    if analysis is not None:
        content["errors"] = analysis.to_dict()
        if errors:
            typer.echo(f"\n{analysis.table()}")
    for note in result.notes:
        _say(f"note: {note}")
    if report is not None:
        page = evaluation.write_report(
            report,
            result,
            videos=video,
            title=f"Detections of {predictions.name}",
            errors=analysis,
            replicates=replicates or 1000,
        )
        typer.echo(f"\npage: {page}")
    if json_out is not None:
        write_text_atomically(json_out, json.dumps(content, indent=2) + "\n")


def _print_study(result: StudyResult) -> None:
    from rich.console import Console

    from tal_fast.study.display import curve_table

    # A fixed width keeps the table whole in a pipe or a log.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(curve_table(result.points))
    if result.ran == 0:
        typer.echo(f"all {result.reused} trials were there already, nothing was trained")
    for name, path in result.files.items():
        typer.echo(f"{name + ':':8} {path}")
    for note in result.notes:
        _say(f"note: {note}")


@_command(
    study_app,
    "run",
    "tal-fast study run --data data/hapt --model tadtr-small --fractions 0.1:1.0:0.1 "
    "--repetitions 5 --jobs 2 --out results/hapt",
)
def study_run(
    data: Data,
    out: Out,
    model: Model = "tadtr-small",
    fractions: Annotated[
        str, typer.Option(help="Shares of the training videos: first:last:step, or with commas.")
    ] = "0.1:1.0:0.1",
    repetitions: Annotated[int, typer.Option(min=1, help="Draws per share.")] = 5,
    split: Annotated[
        str, typer.Option(help="data: the data's own split; random: 80/20 by video.")
    ] = "data",
    seed: Annotated[int, typer.Option(min=0, help="Of split, samples and trainings.")] = 0,
    config: Config = None,
    settings: Settings = None,
    jobs: Jobs = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Torch threads per trial; default: cores / jobs.")
    ] = None,
) -> None:
    """Run the trials that are missing; then write tables, pictures and a page."""
    from tal_fast.study import StudySpec, parse_fractions, run_study

    spec = StudySpec(
        data=data,
        out=out,
        model=model,
        fractions=parse_fractions(fractions),
        repetitions=repetitions,
        split=split,
        seed=seed,
        config=config,
        overrides=tuple(settings or ()),
        jobs=jobs,
        threads=threads,
    )
    _print_study(run_study(spec))


@_command(study_app, "demo", "tal-fast study demo --out results/demo")
def study_demo(out: Out, jobs: Jobs = 2) -> None:
    """Make synthetic data and run a small study on it: a few minutes on two cores."""
    from tal_fast.study import run_study
    from tal_fast.study.demo import demo_spec, prepare_demo_data

    prepare_demo_data(out)
    _print_study(run_study(demo_spec(out, jobs=jobs)))


@_command(study_app, "report", "tal-fast study report --study results/hapt")
def study_report(
    study: Annotated[Path, typer.Option(help="Directory of a study.")],
) -> None:
    """Write tables, pictures and page again from the finished trials."""
    from tal_fast.study import report_study

    _print_study(report_study(study))


Measured = Annotated[
    Path, typer.Option("--study", help="Directory of a study, its tables, or a table of a paper.")
]
Curve = Annotated[str | None, typer.Option("--curve", help="Which, if there are several.")]
Families = Annotated[
    str | None, typer.Option("--families", help="Names with commas: wbl4,mmf4; all by default.")
]
Draws = Annotated[int, typer.Option("--draws", min=1, help="Bootstrap draws per family.")]
FitSeed = Annotated[int, typer.Option("--seed", min=0, help="Of the draws.")]
Repeated = Annotated[
    int | None, typer.Option("--repetitions", min=1, help="Of a table that has no column n.")
]
JsonOut = Annotated[Path | None, typer.Option("--json", help="Also write this file.")]
Picture = Annotated[Path | None, typer.Option("--picture", help="Also write this PNG and SVG.")]


def _names(families: str | None) -> list[str] | None:
    return None if families is None else [name.strip() for name in families.split(",")]


@_command(study_app, "fit", "tal-fast study fit --study results/hapt --picture fits.png")
def study_fit(
    study: Measured,
    curve: Curve = None,
    families: Families = None,
    draws: Draws = 1000,
    seed: FitSeed = 0,
    repetitions: Repeated = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="Also the backtest's errors, q by q.")
    ] = False,
    json_out: JsonOut = None,
    picture: Picture = None,
) -> None:
    """Fit ten families of curves, and test what each would have predicted."""
    from tal_fast.study.fit_commands import run_fit

    run_fit(
        study,
        curve=curve,
        families=_names(families),
        draws=draws,
        seed=seed,
        repetitions=repetitions,
        errors=errors,
        json_out=json_out,
        picture=picture,
    )


Confidence = Annotated[float, typer.Option("--confidence", help="Of the intervals.")]
Until = Annotated[
    float | None, typer.Option("--until", help="Largest p to use, as if no more were measured.")
]
Deviation = Annotated[
    float | None,
    typer.Option("--deviation", help="Standard deviation, in points, where p was run once."),
]


@_command(study_app, "extrapolate", "tal-fast study extrapolate --study results/hapt --times 3")
def study_extrapolate(
    study: Measured,
    times: Annotated[float, typer.Option(help="Amount of data over the full training set.")],
    curve: Curve = None,
    until: Until = None,
    families: Families = None,
    confidence: Confidence = 0.9,
    draws: Draws = 1000,
    seed: FitSeed = 0,
    repetitions: Repeated = None,
    deviation: Deviation = None,
    json_out: JsonOut = None,
    picture: Picture = None,
) -> None:
    """Say what more data would bring, with an interval that has been tested."""
    from tal_fast.study.fit_commands import run_extrapolate

    run_extrapolate(
        study,
        times,
        curve=curve,
        until=until,
        families=_names(families),
        confidence=confidence,
        draws=draws,
        seed=seed,
        repetitions=repetitions,
        deviation=deviation,
        json_out=json_out,
        picture=picture,
    )


@_command(study_app, "calibrate", "tal-fast study calibrate --study results/hapt --synthetic 20")
def study_calibrate(
    study: Annotated[
        list[Path] | None, typer.Option(help="A study or table; may be repeated.")
    ] = None,
    synthetic: Annotated[int, typer.Option(min=0, help="Curves to make per family.")] = 20,
    confidence: Confidence = 0.9,
    draws: Draws = 200,
    seed: FitSeed = 0,
    repetitions: Repeated = None,
    json_out: JsonOut = None,
) -> None:
    """Count how often the intervals of extrapolate hold what came."""
    from tal_fast.study.fit_commands import run_calibrate

    with _bar("calibrating") as update:
        run_calibrate(
            study or [],
            synthetic=synthetic,
            confidence=confidence,
            draws=draws,
            seed=seed,
            repetitions=repetitions,
            json_out=json_out,
            progress=update,
        )


@_command(study_app, "plan", "tal-fast study plan --study results/pilot --target 60 --hours 2")
def study_plan(
    study: Measured,
    curve: Curve = None,
    until: Until = None,
    target: Annotated[float | None, typer.Option(help="mAP in points to reach.")] = None,
    hours: Annotated[float | None, typer.Option(help="Time for further trials.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Of a trial at p = 1, where the study does not tell.")
    ] = None,
    goal: Annotated[
        float | None,
        typer.Option(help="Data, over the full set, that trials are to tell about; 1 or 2."),
    ] = None,
    candidates: Annotated[
        str, typer.Option(help="p of further trials: first:last:step, or with commas.")
    ] = "0.1:1.0:0.1",
    against: Annotated[
        Path | None, typer.Option(help="Another model's study: which p tells who is better?")
    ] = None,
    against_curve: Annotated[
        str | None, typer.Option("--against-curve", help="Its curve, or another of --study.")
    ] = None,
    families: Families = None,
    confidence: Confidence = 0.9,
    draws: Draws = 1000,
    seed: FitSeed = 0,
    repetitions: Repeated = None,
    deviation: Deviation = None,
    json_out: JsonOut = None,
    picture: Picture = None,
) -> None:
    """Plan from a pilot: data for a target, the next p, what an hour buys, the p that ranks."""
    from tal_fast.study.fit_commands import run_plan
    from tal_fast.study.sampling import parse_shares

    run_plan(
        study,
        curve=curve,
        until=until,
        target=target,
        hours=hours,
        seconds=seconds,
        goal=goal,
        candidates=parse_shares("--candidates", candidates),
        against=against,
        against_curve=against_curve,
        families=_names(families),
        confidence=confidence,
        draws=draws,
        seed=seed,
        repetitions=repetitions,
        deviation=deviation,
        json_out=json_out,
        picture=picture,
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; those of the process when None.

    Returns:
        The exit status.
    """
    try:
        app(args=arguments, prog_name="tal-fast")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:  # while a command was still being imported
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
