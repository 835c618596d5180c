# SPDX-License-Identifier: Apache-2.0
"""Commands about studies: run, demo, report, fit, extrapolate, calibrate, plan."""

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
    bar,
    command,
    say,
    study_app,
)

if TYPE_CHECKING:
    from tal_fast.study import StudyResult


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


def _words(given: str | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(word.strip() for word in given.split(","))


def _fractions(
    data: Path, fractions: str | None, videos: str | None, *, split: str, seed: int
) -> tuple[float, ...]:
    from tal_fast.data import open_dataset
    from tal_fast.errors import ConfigError
    from tal_fast.study.sampling.draws import fractions_of_videos, parse_fractions, split_videos

    if videos is None:
        return parse_fractions("0.1:1.0:0.1" if fractions is None else fractions)
    if fractions is not None:
        raise ConfigError("--videos: expected either --fractions or --videos, got both")
    total = len(split_videos(open_dataset(data), split, seed).train)
    return fractions_of_videos(videos, total)


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
            help="Shares of the training data: first:last:step, or with commas; default "
            "0.1:1.0:0.1."
        ),
    ] = None,
    videos: Annotated[
        str | None,
        typer.Option(help="Instead of shares: numbers of training videos, with commas."),
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
) -> None:
    """Run the trials that are missing; then write tables, pictures and a page."""
    from tal_fast.study import StudySpec, run_study
    from tal_fast.study.sampling.draws import parse_samplings

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
        overrides=tuple(settings or ()),
        jobs=jobs,
        threads=threads,
        ray=ray,
        gpus_per_trial=gpus_per_trial,
        trust_times=trust_times,
    )
    _print_study(run_study(spec))


@command(study_app, "demo", "tal-fast study demo --out results/demo")
def study_demo(out: Out, jobs: Jobs = 2) -> None:
    """Make synthetic data and run a small study on it: a few minutes on two cores."""
    from tal_fast.study import run_study
    from tal_fast.study.demo import demo_spec, prepare_demo_data

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


@command(study_app, "fit", "tal-fast study fit --study results/hapt --picture fits.png")
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
    from tal_fast.study.fits.fit_commands import run_fit

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


@command(study_app, "extrapolate", "tal-fast study extrapolate --study results/hapt --times 3")
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
    from tal_fast.study.fits.fit_commands import run_extrapolate

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


@command(study_app, "calibrate", "tal-fast study calibrate --study results/hapt --synthetic 20")
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
    from tal_fast.study.fits.fit_commands import run_calibrate

    with bar("calibrating") as update:
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


@command(study_app, "plan", "tal-fast study plan --study results/pilot --target 60 --hours 2")
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
    from tal_fast.study.fits.fit_commands import run_plan
    from tal_fast.study.sampling.draws import parse_shares

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
