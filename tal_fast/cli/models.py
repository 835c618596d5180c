# SPDX-License-Identifier: Apache-2.0
"""Commands about models: train, predict, evaluate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tal_fast.cli.app import (
    Config,
    Data,
    JsonOut,
    Model,
    Out,
    Settings,
    Threads,
    TrainVideos,
    TrustTimes,
    app,
    bar,
    command,
    say,
    videos_of,
)
from tal_fast.errors import ConfigError

if TYPE_CHECKING:
    from tal_fast.profiling.recording import Recording
    from tal_fast.training import ExperimentConfig


def _require_kept(file: Path) -> None:
    """Checks that a file is not one that a study was told not to keep.

    Raises:
        DataError: it is.
    """
    if not file.exists():
        from tal_fast.errors import DataError
        from tal_fast.study.execution.run_trial import why_not_kept

        why = why_not_kept(file)
        if why is not None:
            raise DataError(why)


@contextlib.contextmanager
def _profiled(
    out: Path, config: ExperimentConfig, threads: int | None, steps: int | None
) -> Iterator[Recording | None]:
    """Records the training that the block runs, if it is to."""
    if steps is None:
        yield None
        return
    import torch

    from tal_fast.profiling.recording import Setting, recorded

    if threads is not None:  # before anything is said of them
        torch.set_num_threads(threads)
    with recorded(out / "profile", Setting.of(config), steps=steps) as recording:
        yield recording
    seen = recording.steps.seen
    if not recording.steps.records:
        say(f"note: no profile: the training ended within its warm-up, after {seen} steps")


@command(
    app,
    "train",
    "tal-fast train --data data/hapt --model tadtr-small --out runs/first",
    several=True,
)
def train(
    data: Data,
    out: Out,
    model: Model = "tadtr-small",
    config: Config = None,
    settings: Settings = None,
    videos: TrainVideos = "train",
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what is in --out.")
    ] = True,
    seed: Annotated[int | None, typer.Option(min=0, help="Same as --set training.seed=N.")] = None,
    threads: Threads = None,
    trust_times: TrustTimes = False,
    profile: Annotated[
        int | None,
        typer.Option(
            "--profile",
            metavar="[STEPS]",
            min=1,
            help="Record so many steps (50 if none are given) after 10, into OUT/profile.",
        ),
    ] = None,
) -> None:
    """Train a model; Ctrl-C writes a checkpoint, and the same command goes on from there.

    For several processes: torchrun --nproc-per-node 2 -m tal_fast train ...
    """
    from tal_fast.data import WindowSet, open_dataset, require_learnable
    from tal_fast.models import detector_of
    from tal_fast.training import load_config
    from tal_fast.training import train as run
    from tal_fast.training.distributed import launched

    place = launched()
    first = place is None or place.rank == 0
    if first:
        _refuse_finished(out, resume)

    chosen = [*(settings or []), *([] if seed is None else [f"training.seed={seed}"])]
    resolved = load_config(config, preset=model, overrides=chosen)
    dataset = open_dataset(data)
    names = videos_of(dataset, videos, "--videos")
    dataset.require_every_class(names, "training")
    clips = detector_of(resolved.name).clips(resolved.detector, dataset, names, training=True)
    items = "windows" if isinstance(clips, WindowSet) else "clips"
    notes = [*dataset.notes(), *require_learnable(clips)]
    for note in notes if first else ():
        say(f"note: {note}")
    recording = _profiled(out, resolved, threads, profile if first else None)
    with bar("training", shown=first) as update, recording as found:

        def progress(event: Any) -> None:
            loss = event.losses.get("total", event.losses.get("loss"))
            shown = "" if loss is None else f"loss {loss:.3f}, "
            note = f"epoch {event.epoch}, {shown}{event.clips_per_second:.0f} {items}/s"
            update(event.step, event.total_steps, note)

        summary = run(
            resolved,
            dataset,
            names,
            out,
            resume=resume,
            progress=progress,
            threads=threads,
            trust_times=trust_times,
        )
    if not first:
        return
    typer.echo(
        f"{summary.epochs} epochs, {summary.steps} steps over {summary.windows} {items} of "
        f"{len(names)} videos in {summary.seconds:.1f} s\n{summary.checkpoint}"
    )
    if found is not None and found.steps.records:
        from tal_fast.cli.profiles import print_profile

        print_profile(out / "profile")


def _refuse_finished(out: Path, resume: bool) -> None:
    """Refuses a directory whose training has ended: one more would replace its weights.

    A trial of a study may have none, and is finished all the same.
    """
    for name in ("study.yaml", "trial.json"):
        if (out / name).exists():
            raise ConfigError(f"--out: {out} is a folder of a study ({name}); use another")
    if resume and (out / "checkpoint.pt").exists() and not (out / "resume.pt").exists():
        raise ConfigError(
            f"--out: {out} holds a training that has ended; use another directory, or replace it "
            "with --no-resume"
        )


@command(
    app,
    "import-checkpoint",
    "tal-fast import-checkpoint epoch_034.pth.tar --preset actionformer --data data/thumos14 "
    "--out runs/official",
)
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="Checkpoint of the model's official code.")],
    data: Data,
    out: Out,
    preset: Annotated[str, typer.Option(help="Model and sizes of the checkpoint.")],
    settings: Settings = None,
    weights: Annotated[
        str | None,
        typer.Option(help="ema or raw; the average where there is one by default."),
    ] = None,
) -> None:
    """Turn an official checkpoint into one that predict takes.

    The data gives the names of the classes, which such a checkpoint lacks; their order must be that
    of its outputs.
    """
    from tal_fast.data import dataset_annotations
    from tal_fast.training import import_checkpoint as run
    from tal_fast.training import load_config

    config = load_config(preset=preset, overrides=settings or [])
    classes = dataset_annotations(data).classes
    typer.echo(run(file, config, classes, out, weights=weights))


@command(
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

    _require_kept(checkpoint)
    dataset = open_dataset(data)
    names = videos_of(dataset, split, "--split")
    for note in dataset.notes():
        say(f"note: {note}")
    with bar("predicting") as update:
        found = run(checkpoint, dataset, names, out, progress=update, threads=threads)
    typer.echo(f"{len(found)} detections in {len(names)} videos\n{out}")


@command(
    app,
    "evaluate",
    "tal-fast evaluate --annotations data/hapt --predictions results.json --subset validation "
    "--report report",
)
def evaluate(
    annotations: Annotated[
        Path, typer.Option(help="Annotation JSON, also gzipped, or a data directory.")
    ],
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
        int, typer.Option("--bootstrap", min=0, help="Bootstrap draws of videos, for intervals.")
    ] = 0,
    against: Annotated[
        Path | None, typer.Option(help="Other results: is the difference more than noise?")
    ] = None,
    recall: Annotated[
        bool, typer.Option("--recall", help="Also Recall@1x and @5x, AR@AN and its AUC.")
    ] = False,
    errors: Annotated[bool, typer.Option("--errors", help="Also analyse the errors.")] = False,
    json_out: JsonOut = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write a page (index.html) into this directory.")
    ] = None,
    video: Annotated[
        list[str] | None, typer.Option(help="Show its timeline on the page; may be repeated.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read ActionFormer's eval_results.pkl.")
    ] = False,
    strict_times: Annotated[
        bool, typer.Option("--strict-times", help="Refuse predictions that start before 0 s.")
    ] = False,
) -> None:
    """Score predictions: average precision per class and tIoU, by the rules of a dialect."""
    import json
    import warnings

    from tal_fast import evaluation
    from tal_fast.data.files import write_text_atomically
    from tal_fast.study.shares import parse_shares

    thresholds = parse_shares("--tiou", tiou)

    def run(results: Path) -> evaluation.EvaluationResult:
        _require_kept(results)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", evaluation.EvaluationWarning)  # printed as notes
            return evaluation.evaluate(
                annotations,
                results,
                thresholds,
                subset,
                dialect=dialect,
                strict=strict,
                ties=ties,
                allow_pickle=allow_pickle,
                strict_times=strict_times,
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
        say(f"note: {note}")
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
