# SPDX-License-Identifier: Apache-2.0
"""Commands about studies: run, demo, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tal_fast.cli.app import Kept, command, say, show, study_app
from tal_fast.cli.next_steps import say_after_study
from tal_fast.cli.options import (
    MACHINE,
    MOST_THREADS,
    Data,
    Jobs,
    ModelOfConfig,
    Out,
    SettingOptions,
    TrustTimes,
)
from tal_fast.cli.whole_tables import print_tables
from tal_fast.errors import counted

if TYPE_CHECKING:
    from tal_fast.study import StudyResult
    from tal_fast.study.adaptive.targets import AdaptiveRequest

DRAWS, ADAPTIVE = "What is drawn and trained", "Adaptive studies"


def _print_study(result: StudyResult, out: Path) -> None:
    from tal_fast.study.display import curve_tables

    print_tables(*curve_tables(result.curves), width=120)
    if result.ran == 0:
        show(f"all {counted(result.reused, 'trial', 'were')} there already, nothing was trained")
    for name, path in result.files.items():
        show(f"{name + ':':15} {path}")
    for note in result.notes:
        say(f"note: {note}")
    for line in result.answer:
        show(line)
    if result.curves:
        say_after_study(out, result.files.get("page"))


@dataclass(frozen=True)
class DrawOptions:
    """Which trials a study consists of."""

    fractions: Annotated[
        str | None,
        typer.Option(
            help="Fractions of the training data, up to 1: first:last:step (without a step, 0.1) "
            "or separated by commas; default 0.1:1.0:0.1."
        ),
    ] = None
    repetitions: Annotated[int, typer.Option(min=1, help="Draws per share.")] = 5
    videos: Annotated[
        str | None,
        typer.Option(
            help="Instead of fractions: numbers of training videos, separated by commas.",
            rich_help_panel=DRAWS,
        ),
    ] = None
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Trainings per draw, to tell their spread from that of the draws.",
            rich_help_panel=DRAWS,
        ),
    ] = 1
    sampling: Annotated[
        str,
        typer.Option(
            help="What is drawn: video, stratified (classes evenly covered), window; nested-video "
            "and so on: small samples are parts of large ones. Several are separated by commas.",
            rich_help_panel=DRAWS,
        ),
    ] = "video"
    budget: Annotated[
        str | None,
        typer.Option(
            help="What ends a training: epochs, steps, wall-clock, convergence; several with "
            "commas. Default: training.budget.",
            rich_help_panel=DRAWS,
        ),
    ] = None
    ema: Annotated[
        str | None,
        typer.Option(
            help="Averages of the weights to test, all after one training: off, plain, warmup, "
            "corrected; several are separated by commas. Default: training.ema.",
            rich_help_panel=DRAWS,
        ),
    ] = None
    split: Annotated[
        str,
        typer.Option(
            help="data: the data's own split; random: 80/20 by video.", rich_help_panel=DRAWS
        ),
    ] = "data"
    seed: Annotated[
        int,
        typer.Option(min=0, help="Seed of split, samples and trainings.", rich_help_panel=DRAWS),
    ] = 0


@dataclass(frozen=True)
class TrialOptions:
    """Where trials run, and what stays of them."""

    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials at a time, one process each; default 1, on a cluster as many as fit.",
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_THREADS,
            help="Torch threads per trial; default: cores / jobs, on a cluster 1.",
            rich_help_panel=MACHINE,
        ),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(
            help="Run on a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local for one of "
            "this machine.",
            rich_help_panel=MACHINE,
        ),
    ] = None
    gpus_per_trial: Annotated[
        float | None,
        typer.Option(
            help="On a cluster: GPUs of each trial; 0.25 lets four share one.",
            rich_help_panel=MACHINE,
        ),
    ] = None
    trust_times: TrustTimes = False
    keep: Annotated[
        str,
        typer.Option(
            help="Which files of the trials of this call to keep. metrics: neither detections nor "
            "weights. predictions: detections, and the weights of the best trial of each level (a "
            "share of a curve), by held-out videos, else of the first. all: every file. Trials of "
            "earlier calls keep theirs, except weights that better ones replace.",
            rich_help_panel=MACHINE,
        ),
    ] = "predictions"


@dataclass(frozen=True)
class AdaptiveOptions:
    """What an adaptive study is to find out."""

    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive",
            help="Choose among these trials until --target is known; not all of them.",
            rich_help_panel=ADAPTIVE,
        ),
    ] = False
    target: Annotated[
        str | None,
        typer.Option(
            help="With --adaptive: '±1.5 at 100 %', 'gain at 3x ±3' (half of the interval, points) "
            "or 'rank' (the order of this model and those of --compare-with).",
            rich_help_panel=ADAPTIVE,
        ),
    ] = None
    confidence: Annotated[
        float | None,
        typer.Option(
            help="With --adaptive: confidence of the answer; default 0.9.", rich_help_panel=ADAPTIVE
        ),
    ] = None
    hours: Annotated[
        float | None,
        typer.Option(
            help="With --adaptive: hours of training that all trials may take together.",
            rich_help_panel=ADAPTIVE,
        ),
    ] = None
    compare_with: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --target rank: another model's study; repeat for more.",
            rich_help_panel=ADAPTIVE,
        ),
    ] = None

    def request(self) -> AdaptiveRequest | None:
        """Returns what is to be found out; None where all trials are to be run.

        Raises:
            ConfigError: an option is of an adaptive study and this is none, or has no target.
        """
        from tal_fast.errors import ConfigError
        from tal_fast.study.adaptive.targets import GRAMMAR, AdaptiveRequest

        of_adaptive = {
            "--target": self.target,
            "--confidence": self.confidence,
            "--hours": self.hours,
            "--compare-with": self.compare_with or None,
        }
        if not self.adaptive:
            for name, value in of_adaptive.items():
                if value is not None:
                    raise ConfigError(f"{name}: only a study with --adaptive has it")
            return None
        if self.target is None:
            raise ConfigError(f"--adaptive: expected --target {GRAMMAR}")
        return AdaptiveRequest(
            target=self.target,
            confidence=0.9 if self.confidence is None else self.confidence,
            seconds=None if self.hours is None else 3600.0 * self.hours,
            compare_with=tuple(self.compare_with or ()),
        )


def _kept_of_study(options: dict[str, Any], since: float) -> Kept | None:
    """Says where the trials of a study are; None where it has not begun."""
    out = options["out"]
    if not (out / "study.yaml").exists():
        return None
    return Kept(f"finished trials and the saved states of running ones are in {out / 'trials'}")


@command(
    study_app,
    "run",
    "tal-fast study run --data data/hapt --model tadtr-small --fractions 0.1:1.0:0.1 "
    "--repetitions 5 --jobs 2 --out results/hapt",
    kept=_kept_of_study,
)
def study_run(
    data: Data,
    out: Out,
    draws: DrawOptions,
    trials: TrialOptions,
    settings: SettingOptions,
    adaptive: AdaptiveOptions,
    model: ModelOfConfig = None,
) -> None:
    """Run the trials that are missing; then write tables, pictures and a page."""
    from tal_fast import api

    result = api.run_study(
        data,
        out,
        model=model,
        fractions=draws.fractions,
        videos=draws.videos,
        repetitions=draws.repetitions,
        seeds=draws.seeds,
        sampling=draws.sampling,
        budgets=draws.budget,
        ema=draws.ema,
        split=draws.split,
        seed=draws.seed,
        config=settings.config,
        settings=settings.settings or (),
        jobs=trials.jobs,
        threads=trials.threads,
        ray=trials.ray,
        gpus_per_trial=trials.gpus_per_trial,
        trust_times=trials.trust_times,
        keep=trials.keep,
        adaptive=adaptive.request(),
    )
    _print_study(result, out)


@command(study_app, "demo", "tal-fast study demo --out results/demo", kept=_kept_of_study)
def study_demo(out: Out, jobs: Jobs = 2) -> None:
    """Make synthetic data and run a small study on it: a few minutes on two cores."""
    from tal_fast.study import run_study
    from tal_fast.study.spec import demo_spec, prepare_demo_data

    prepare_demo_data(out)
    _print_study(run_study(demo_spec(out, jobs=jobs)), out)


@command(study_app, "report", "tal-fast study report --study results/hapt")
def study_report(
    study: Annotated[Path, typer.Option(help="Directory of a study.")],
    fits: Annotated[
        int, typer.Option(help="Curves to fit for the page; fits of unchanged curves are kept.")
    ] = 4,
) -> None:
    """Write tables, fits, pictures and page again from the finished trials."""
    from tal_fast.study import report_study

    _print_study(report_study(study, fits=fits), study)
