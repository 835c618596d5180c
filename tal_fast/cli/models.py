# SPDX-License-Identifier: Apache-2.0
"""Commands about models: train, predict, evaluate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tal_fast.cli.app import (
    MODELS,
    Kept,
    app,
    command,
    say,
    say_next,
    show,
    write_json,
    written_since,
)
from tal_fast.cli.next_steps import free_place, given_options, say_open, say_study
from tal_fast.cli.options import (
    OUTPUT,
    Data,
    JsonOut,
    MachineOptions,
    ModelOfConfig,
    Out,
    Overwrite,
    SettingOptions,
    Threads,
    TrainVideos,
    directory_to_write,
    file_to_write,
)
from tal_fast.errors import counted

if TYPE_CHECKING:
    from tal_fast import evaluation
    from tal_fast.profiling.recording import Recording
    from tal_fast.training import ExperimentConfig

RULES, MORE = "Rules", "More numbers"


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
        say(
            "note: no profile: the training ended within its warm-up, after "
            f"{counted(seen, 'step')}"
        )


@contextlib.contextmanager
def _watched(threads: int | None) -> Iterator[Callable[[], None] | None]:
    """Gives what looks after every step whether other programs leave too few cores, and says so.

    Not beside other processes of the same training, which would be taken for others' programs.
    """
    from tal_fast.training.distributed import launched

    if launched() is not None:
        yield None
        return
    import torch

    from tal_fast.profiling.crowding import Crowding
    from tal_fast.training.environment import usable_cores

    crowding = Crowding(threads or torch.get_num_threads(), usable_cores())

    def watch() -> None:
        note = crowding.after_step()
        if note is not None:
            say(f"note: {note}")

    try:
        yield watch
    finally:
        crowding.close()


def _kept_of_training(options: dict[str, Any], since: float) -> Kept | None:
    """Says where the state of a training is; None where this one has written none."""
    state, weights = options["out"] / "resume.pt", options["out"] / "checkpoint.pt"
    # A file from before may be what this training was to replace.
    ours = [path for path in (state, weights) if options["resume"] or written_since(path, since)]
    if state in ours and state.exists():
        return Kept(f"the training is saved in {state}")
    if weights in ours and weights.exists():
        return Kept(f"the training had ended, its weights are in {weights}", goes_on=False)
    return None


@command(
    app,
    "train",
    "tal-fast train --data data/hapt --model tadtr-small --out runs/first",
    panel=MODELS,
    several=True,
    kept=_kept_of_training,
)
def train(
    data: Data,
    out: Out,
    settings: SettingOptions,
    machine: MachineOptions,
    model: ModelOfConfig = None,
    videos: TrainVideos = "train",
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Continue an interrupted training in --out."),
    ] = True,
    seed: Annotated[int | None, typer.Option(min=0, help="Same as --set training.seed=N.")] = None,
    profile: Annotated[
        int | None,
        typer.Option(
            "--profile",
            metavar="[STEPS]",
            min=1,
            help="Record this many steps (50 if no number is given), after the first 10, in "
            "OUT/profile.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Train a model; Ctrl-C or SIGTERM writes a checkpoint, and the same command goes on from it.

    For several processes: torchrun --nproc-per-node 2 -m tal_fast train ...
    """
    from tal_fast import api

    plan = api.plan_training(
        data,
        out,
        model=model,
        videos=videos,
        config=settings.config,
        settings=settings.settings or (),
        seed=seed,
        resume=resume,
    )
    steps = profile if plan.first else None
    with (
        _profiled(out, plan.config, machine.threads, steps) as recording,
        _watched(machine.threads) as watch,
    ):
        summary = plan.run(threads=machine.threads, trust_times=machine.trust_times, watch=watch)
    if not plan.first:
        return
    show(summary)
    for note in plan.notes_after(summary):
        say(f"note: {note}")
    if recording is not None and recording.steps.records:
        from tal_fast.cli.profiles import print_profile

        print_profile(out / "profile")
    _say_predict(summary.checkpoint, data, plan.data.splits)


def _say_predict(checkpoint: Path, data: Path, splits: Iterable[str]) -> None:
    results = free_place(checkpoint.with_name("results.json"))
    chosen = () if "test" in splits else ("--split", "all")
    say_next("tal-fast", "predict", "--checkpoint", checkpoint, "--data", data, *chosen,
             "--out", results)  # fmt: skip


@command(
    app,
    "predict",
    "tal-fast predict --checkpoint runs/first/checkpoint.pt --data data/hapt --out results.json",
    panel=MODELS,
)
def predict(
    checkpoint: Annotated[Path, typer.Option(help="File or directory written by train.")],
    data: Data,
    out: Annotated[
        Path,
        typer.Option(help="Results JSON (ActivityNet's form) to write.", callback=file_to_write),
    ],
    split: Annotated[str, typer.Option(help="Videos: a split of the data (test, ...) or all.")] = (
        "test"
    ),
    other_rows: Annotated[
        bool,
        typer.Option(
            "--other-rows",
            help="Predict although rows lie in time otherwise than those of the training.",
        ),
    ] = False,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Detect actions in videos and write them as results JSON."""
    from tal_fast import api

    dataset = api.open_dataset(data)
    names = dataset.videos_of(split, "--split")
    detections = api.predict(
        checkpoint,
        dataset,
        out,
        videos=names,
        threads=threads,
        other_rows=other_rows,
        overwrite=overwrite,
    )
    show(
        f"{counted(len(detections), 'detection')} in "
        f"{counted(len(detections.videos), 'video')}\n{out}"
    )
    if any(len(dataset.annotations.videos[name].labels) for name in names):
        say_next("tal-fast", "evaluate", "--annotations", data, "--split", split,
                 "--predictions", out)  # fmt: skip
    else:
        say(f"next: read {out}; without annotated segments there is nothing to score by")


@dataclass(frozen=True)
class RuleOptions:
    """By whose rules predictions are scored."""

    dialect: Annotated[
        str,
        typer.Option(
            help="Whose rules: tal_fast, activitynet, actionformer, tridet, opentad, mmaction2, "
            "tadtr, epic or thumos.",
            rich_help_panel=RULES,
        ),
    ] = "tal_fast"
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Follow the mistakes of the dialect too.", rich_help_panel=RULES
        ),
    ] = False
    ties: Annotated[
        str | None,
        typer.Option(
            help="Order of equal scores: stable or numpy; default: the dialect's.",
            rich_help_panel=RULES,
        ),
    ] = None
    strict_times: Annotated[
        bool,
        typer.Option(
            "--strict-times",
            help="Refuse predictions that start before 0 s.",
            rich_help_panel=RULES,
        ),
    ] = False
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Read ActionFormer's eval_results.pkl.",
            rich_help_panel=RULES,
        ),
    ] = False


@dataclass(frozen=True)
class ReportOptions:
    """What is told beyond average precision."""

    replicates: Annotated[
        int,
        typer.Option(
            "--bootstrap",
            min=0,
            help="Bootstrap draws of videos, for intervals.",
            rich_help_panel=MORE,
        ),
    ] = 0
    against: Annotated[
        Path | None,
        typer.Option(
            help="Other results to compare with: is the difference noise?", rich_help_panel=MORE
        ),
    ] = None
    recall: Annotated[
        bool,
        typer.Option(
            "--recall", help="Also Recall@1x and @5x, AR@AN and its AUC.", rich_help_panel=MORE
        ),
    ] = False
    errors: Annotated[
        bool, typer.Option("--errors", help="Also analyse the errors.", rich_help_panel=MORE)
    ] = False
    json_out: JsonOut = None
    report: Annotated[
        Path | None,
        typer.Option(
            help="Also write a page (index.html) into this directory.",
            callback=directory_to_write,
            rich_help_panel=OUTPUT,
        ),
    ] = None
    video: Annotated[
        list[str] | None,
        typer.Option(
            help="Show its timeline on the page; may be repeated.", rich_help_panel=OUTPUT
        ),
    ] = None


@command(
    app,
    "evaluate",
    "tal-fast evaluate --annotations data/hapt --split test --predictions results.json "
    "--report report",
    panel=MODELS,
)
def evaluate(
    annotations: Annotated[
        Path, typer.Option(help="Annotation JSON, also gzipped, or a data directory.")
    ],
    predictions: Annotated[Path, typer.Option(help="Results: JSON or JSON lines, also gzipped.")],
    rules: RuleOptions,
    more: ReportOptions,
    split: Annotated[
        str | None,
        typer.Option(help="Split of a data directory to score, or all; default test."),
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Subset of an annotation file to score; default: all videos.")
    ] = None,
    tiou: Annotated[
        str,
        typer.Option(help="first:last:step (without a step, 0.1), or numbers separated by commas."),
    ] = "0.3:0.7:0.1",
) -> None:
    """Score predictions: average precision per class and tIoU, by the rules of a dialect."""
    import warnings

    from tal_fast import api, evaluation
    from tal_fast.data.dataset_spec import is_dataset
    from tal_fast.study.shares import parse_shares

    thresholds = parse_shares("--tiou", tiou)

    def run(results: Path) -> evaluation.EvaluationResult:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", evaluation.EvaluationWarning)  # printed as notes
            return api.evaluate(
                annotations,
                results,
                thresholds,
                split=split,
                subset=subset,
                dialect=rules.dialect,
                strict=rules.strict,
                ties=rules.ties,
                allow_pickle=rules.allow_pickle,
                strict_times=rules.strict_times,
            )

    result = run(predictions)
    show(result.table())
    scores = result.to_dict()
    other = None if more.against is None else run(more.against)
    _more_numbers(result, other, more, scores)
    analysis = None
    if more.errors or more.report is not None:
        analysis = evaluation.analyse_errors(result)
        scores["errors"] = analysis.to_dict()
        if more.errors:
            show(f"\n{analysis.table()}")
    for note in result.notes:
        say(f"note: {note}")
    if more.report is not None:
        page = evaluation.write_report(
            more.report,
            result,
            videos=more.video,
            title=f"Detections of {predictions.name}",
            errors=analysis,
            replicates=more.replicates or 1000,
        )
        show(f"\npage: {page}")
    write_json(more.json_out, scores)
    # Predictions of other codes have no model that a study could train.
    model = evaluation.predicting_model(predictions) if is_dataset(annotations) else None
    if model is not None:
        say_study(annotations, model)
    elif more.report is None:
        given = ("--annotations", annotations, "--predictions", predictions)
        chosen = () if subset is None else ("--subset", subset)
        chosen = chosen if split is None else ("--split", split)
        say_next("tal-fast", "evaluate", *given, *chosen, "--tiou", tiou, *given_options(rules),
                 "--report", free_place("report"))  # fmt: skip
    else:
        say_open(more.report / "index.html")


def _more_numbers(
    result: evaluation.EvaluationResult,
    other: evaluation.EvaluationResult | None,
    more: ReportOptions,
    scores: dict[str, Any],
) -> None:
    """Prints intervals, a comparison and recall as far as asked for, and adds them to the JSON.

    In points; the JSON has 0..1.
    """
    from tal_fast import evaluation
    from tal_fast.evaluation.result import points

    if more.replicates:
        interval = evaluation.bootstrap(result, replicates=more.replicates)
        scores["bootstrap"] = interval.to_dict()
        show(
            f"\naverage mAP {interval.average_map}, {interval.confidence:.0%} interval over videos"
        )
    if other is not None:
        difference = evaluation.compare(other, result, replicates=more.replicates or 1000)
        scores["against"] = difference.to_dict()
        show(f"\nagainst {more.against}: {difference}")
    if more.recall:
        at_kx = evaluation.recall_at_kx(result, (1, 5))
        proposals = evaluation.average_recall(result).to_dict()
        scores["recall_at_kx"] = {f"{k}x": at_kx[:, i].tolist() for i, k in enumerate((1, 5))}
        scores["average_recall"] = proposals
        for k, values in scores["recall_at_kx"].items():
            each = "  ".join(map(points, [*values, sum(values) / len(values)]))
            show(f"Recall@{k}  {each}")
        show("  ".join(f"{name} {points(value)}" for name, value in proposals.items()))


@command(
    app,
    "import-checkpoint",
    "tal-fast import-checkpoint epoch_034.pth.tar --preset actionformer --data data/thumos14 "
    "--out runs/official",
    panel=MODELS,
)
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="Checkpoint of the model's official code.")],
    data: Data,
    out: Out,
    preset: Annotated[str, typer.Option(help="Model and sizes of the checkpoint.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="One setting; may be repeated."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="ema or raw; default: the moving average if there is one."),
    ] = None,
) -> None:
    """Turn an official checkpoint into one that predict takes.

    The data gives the names of the classes, which such a checkpoint lacks; their order must be that
    of its outputs.
    """
    from tal_fast.data import dataset_annotations
    from tal_fast.data.dataset_spec import load_spec, spec_file
    from tal_fast.training import import_checkpoint as run
    from tal_fast.training import load_config

    config = load_config(preset=preset, overrides=settings or [])
    classes = dataset_annotations(data).classes
    checkpoint = run(file, config, classes, out, weights=weights)
    show(checkpoint)
    _say_predict(Path(checkpoint), data, load_spec(spec_file(data)).splits)
