# SPDX-License-Identifier: Apache-2.0
"""Commands about studies: run, demo, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tal_fast.cli.app import (
    MOST_THREADS,
    Config,
    Data,
    Jobs,
    Model,
    Out,
    Settings,
    TrustTimes,
    command,
    say,
    study_app,
)

if TYPE_CHECKING:
    from tal_fast.study import StudyResult
    from tal_fast.study.adaptive.targets import AdaptiveRequest


def _print_study(result: StudyResult) -> None:
    from rich.console import Console

    from tal_fast.study.display import curve_tables

    # A fixed width keeps the table whole in a pipe or a log.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    for table in curve_tables(result.curves):
        console.print(table)
    if result.ran == 0:
        typer.echo(f"all {result.reused} trials were there already, nothing was trained")
    for name, path in result.files.items():
        typer.echo(f"{name + ':':15} {path}")
    for note in result.notes:
        say(f"note: {note}")
    for line in result.answer:
        typer.echo(line)


def _words(given: str | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(word.strip() for word in given.split(","))


def _fractions(
    data: Path, fractions: str | None, videos: str | None, *, split: str, seed: int
) -> tuple[float, ...]:
    from tal_fast.data import open_dataset
    from tal_fast.errors import ConfigError
    from tal_fast.study.sampling import split_videos
    from tal_fast.study.shares import fractions_of_videos, parse_fractions

    if videos is None:
        return parse_fractions("0.1:1.0:0.1" if fractions is None else fractions)
    if fractions is not None:
        raise ConfigError("--videos: expected either --fractions or --videos, got both")
    total = len(split_videos(open_dataset(data), split, seed).train)
    return fractions_of_videos(videos, total)


def _adaptive(
    wanted: bool,
    target: str | None,
    confidence: float | None,
    hours: float | None,
    compare_with: list[Path] | None,
) -> AdaptiveRequest | None:
    from tal_fast.errors import ConfigError
    from tal_fast.study.adaptive.targets import GRAMMAR, AdaptiveRequest

    of_adaptive = {
        "--target": target,
        "--confidence": confidence,
        "--hours": hours,
        "--compare-with": compare_with or None,
    }
    if not wanted:
        for name, value in of_adaptive.items():
            if value is not None:
                raise ConfigError(f"{name}: is for a study with --adaptive")
        return None
    if target is None:
        raise ConfigError(f"--adaptive: expected --target {GRAMMAR}")
    return AdaptiveRequest(
        target=target,
        confidence=0.9 if confidence is None else confidence,
        seconds=None if hours is None else 3600.0 * hours,
        compare_with=tuple(compare_with or ()),
    )


@command(
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
        str | None,
        typer.Option(
            help="Fractions of the training data, up to 1: first:last:step, or with commas; "
            "default 0.1:1.0:0.1."
        ),
    ] = None,
    videos: Annotated[
        str | None,
        typer.Option(help="Instead of fractions: numbers of training videos, with commas."),
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Draws per share.")] = 5,
    seeds: Annotated[
        int,
        typer.Option(min=1, help="Trainings per draw: their spread is told from that of draws."),
    ] = 1,
    sampling: Annotated[
        str,
        typer.Option(
            help="What is drawn: video, stratified (classes evenly covered), window; nested-video "
            "and so on: small samples are parts of large ones. Several with commas."
        ),
    ] = "video",
    budget: Annotated[
        str | None,
        typer.Option(
            help="What ends a training: epochs, steps, wall-clock, convergence; several with "
            "commas. Default: training.budget."
        ),
    ] = None,
    ema: Annotated[
        str | None,
        typer.Option(
            help="Averages of the weights to test, all after one training: off, plain, warmup, "
            "corrected; several with commas. Default: training.ema."
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="data: the data's own split; random: 80/20 by video.")
    ] = "data",
    seed: Annotated[int, typer.Option(min=0, help="Of split, samples and trainings.")] = 0,
    config: Config = None,
    settings: Settings = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials at a time, one process each; default 1, on a cluster as many as fit.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_THREADS,
            help="Torch threads per trial; default: cores / jobs, on a cluster 1.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Run on a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local for one of "
            "this machine."
        ),
    ] = None,
    gpus_per_trial: Annotated[
        float | None,
        typer.Option(help="On a cluster: GPUs of each trial; 0.25 lets four share one."),
    ] = None,
    trust_times: TrustTimes = False,
    keep: Annotated[
        str,
        typer.Option(
            help="Files that stay of the trials that this call runs. metrics: no detections, no "
            "weights. predictions: detections, and the weights of the best trial of each level (a "
            "share of a curve), by held-out videos, else of the first. all: every file. Of trials "
            "of earlier calls, only weights that also came under predictions go for better ones."
        ),
    ] = "predictions",
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive", help="Choose among these trials until --target is known; not all of them."
        ),
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            help="Of --adaptive: '±1.5 at 100 %', 'gain at 3x ±3' (half of the interval, points) "
            "or 'rank' (the order of this model and those of --compare-with)."
        ),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Of the answer of --adaptive; default 0.9.")
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(help="Of --adaptive: training time that all trials may take together."),
    ] = None,
    compare_with: Annotated[
        list[Path] | None,
        typer.Option(help="Of --target rank: another model's study; repeat for more."),
    ] = None,
) -> None:
    """Run the trials that are missing; then write tables, pictures and a page."""
    from tal_fast.study import StudySpec, run_study
    from tal_fast.study.sampling import parse_samplings
    from tal_fast.training.config import parse_overrides

    spec = StudySpec(
        data=data,
        out=out,
        model=model,
        fractions=_fractions(data, fractions, videos, split=split, seed=seed),
        repetitions=repetitions,
        seeds=seeds,
        samplings=parse_samplings(sampling),
        budgets=_words(budget),
        ema=_words(ema),
        split=split,
        seed=seed,
        config=config,
        overrides=parse_overrides(settings or ()),
        jobs=jobs,
        threads=threads,
        ray=ray,
        gpus_per_trial=gpus_per_trial,
        trust_times=trust_times,
        keep=keep,
        adaptive=_adaptive(adaptive, target, confidence, hours, compare_with),
    )
    _print_study(run_study(spec))


@command(study_app, "demo", "tal-fast study demo --out results/demo")
def study_demo(out: Out, jobs: Jobs = 2) -> None:
    """Make synthetic data and run a small study on it: a few minutes on two cores."""
    from tal_fast.study import run_study
    from tal_fast.study.spec import demo_spec, prepare_demo_data

    prepare_demo_data(out)
    _print_study(run_study(demo_spec(out, jobs=jobs)))


@command(study_app, "report", "tal-fast study report --study results/hapt")
def study_report(
    study: Annotated[Path, typer.Option(help="Directory of a study.")],
    fits: Annotated[
        int, typer.Option(help="Curves to fit for the page; fits of unchanged curves are kept.")
    ] = 4,
) -> None:
    """Write tables, fits, pictures and page again from the finished trials."""
    from tal_fast.study import report_study

    _print_study(report_study(study, fits=fits))
