# SPDX-License-Identifier: Apache-2.0
"""Runs a study: validate everything, run what is missing, sum up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from tal_fast.data.files import write_error, write_text_atomically
from tal_fast.errors import ConfigError, DataError, MissingExtraError, TalFastError
from tal_fast.study.curve import CurvePoint, build_curve, curve_csv, trials_csv
from tal_fast.study.display import StudyDisplay
from tal_fast.study.executors import Executor, InProcess, LocalPool, Outcome, threads_per_job
from tal_fast.study.failures import is_environment_error
from tal_fast.study.locks import check_writable, locked_directory
from tal_fast.study.sampling import (
    Split,
    data_split,
    parse_fractions,
    random_split,
    sample_videos,
    trial_seed,
)
from tal_fast.study.settings import (
    StudySpec,
    check_same_settings,
    hash_settings,
    read_study,
    study_settings,
    write_study,
)
from tal_fast.study.trials import (
    EXPERIMENT,
    Trial,
    TrialTask,
    load_experiment,
    scan_trials,
)

__all__ = ["StudyResult", "report_study", "run_study"]

_CONFIG = "config.yaml"
_TRIALS = "trials"


@dataclass(frozen=True)
class StudyResult:
    """What a study gave.

    Attributes:
        points: the curve.
        ran: trials that this call ran.
        reused: trials that were there already.
        files: the files written: curve.csv, trials.csv, and the pictures and page if possible.
        notes: what could not be made, and how to get it.
    """

    points: list[CurvePoint]
    ran: int
    reused: int
    files: dict[str, Path]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Plan:
    """A validated request."""

    spec: StudySpec
    dataset: Any
    split: Split
    settings: dict[str, Any]
    config_text: str
    door: str
    function: Callable[..., Any]
    threads: int

    @property
    def hash(self) -> str:
        return hash_settings(self.settings)


def _door(experiment: str | Callable[..., Any]) -> tuple[str, Callable[..., Any]]:
    if isinstance(experiment, str):
        return experiment, load_experiment(experiment)
    return f"{experiment.__module__}:{getattr(experiment, '__qualname__', '')}", experiment


def _plan(spec: StudySpec, experiment: str | Callable[..., Any]) -> _Plan:
    """Checks the whole request before anything is written or trained."""
    from tal_fast.data import open_dataset
    from tal_fast.training import config_to_dict, load_config

    parse_fractions(spec.fractions)
    if spec.repetitions < 1:
        raise ConfigError(f"repetitions: expected at least 1, got {spec.repetitions}")
    if spec.seed < 0:
        raise ConfigError(f"seed: expected 0 or more, got {spec.seed}")
    if spec.split not in ("data", "random"):
        raise ConfigError(f"split: expected 'data' or 'random', got {spec.split!r}")
    if spec.threads is not None and spec.threads < 1:
        raise ConfigError(f"threads: expected at least 1, got {spec.threads}")
    fair = threads_per_job(spec.jobs)
    for override in spec.overrides:
        if override.partition("=")[0].strip() == "training.seed":
            raise ConfigError(
                "training.seed: a study gives every trial its own seed; use --seed for the study's"
            )
    config = load_config(spec.config, preset=spec.model, overrides=spec.overrides)
    door, function = _door(experiment)
    dataset = open_dataset(spec.data)
    if spec.split == "data":
        split = data_split(dataset.splits)
    else:
        split = random_split(list(dataset.annotations.videos), seed=spec.seed)
    if spec.split == "data":
        # Samples and random splits may miss classes, which is recorded; the data's own may not.
        dataset.require_every_class(split.train, "training")
    resolved = config_to_dict(config)
    settings = study_settings(spec, resolved, dataset, train=len(split.train), test=len(split.test))
    return _Plan(
        spec=spec,
        dataset=dataset,
        split=split,
        settings=settings,
        config_text=yaml.safe_dump(resolved, sort_keys=False),
        door=door,
        function=function,
        threads=spec.threads or fair,
    )


def _tasks(plan: _Plan) -> list[TrialTask]:
    """Returns all trials asked for.

    Repetition by repetition, so that a whole curve is there early, and from large to small samples,
    so that at the end no process waits long for the last one.
    """
    spec, tasks = plan.spec, []
    for repetition in range(spec.repetitions):
        for fraction in sorted(spec.fractions, reverse=True):
            sample = sample_videos(
                plan.split.train,
                plan.dataset.annotations.videos,
                plan.dataset.annotations.classes,
                fraction=fraction,
                repetition=repetition,
                seed=spec.seed,
            )
            seed = trial_seed(spec.seed, repetition, fraction)
            tasks.append(
                TrialTask(
                    trial=Trial(spec.model, sample.fraction, repetition, seed),
                    root=str(spec.out / _TRIALS),
                    settings=plan.hash,
                    data=str(spec.data),
                    config=str(spec.out / _CONFIG),
                    train_videos=sample.videos,
                    test_videos=plan.split.test,
                    coverage={
                        "instances": sample.instances,
                        "classes": list(sample.classes),
                        "missing_classes": list(sample.missing_classes),
                    },
                    threads=plan.threads,
                    experiment=plan.door,
                )
            )
    return tasks


def _executor(plan: _Plan) -> Executor:
    if plan.spec.jobs == 1:
        return InProcess(plan.dataset, plan.function)
    if load_experiment(plan.door) is not plan.function:
        raise ConfigError(f"experiment: {plan.door} cannot be imported by other processes")
    return LocalPool(plan.spec.jobs, threads=plan.threads, logs=plan.spec.out / "logs")


def _keep_traceback(out: Path, outcome: Outcome) -> Path:
    path = out / "logs" / f"{outcome.trial}.txt"
    with contextlib.suppress(OSError, TalFastError):  # the failure itself is what must be told
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, f"{outcome.error}\n\n{outcome.traceback}")
    return path


def _run_trials(
    plan: _Plan, tasks: list[TrialTask], already: int, console: Console
) -> list[Outcome]:
    """Runs the trials; returns the failed ones."""
    failed: list[Outcome] = []
    succeeded = 0
    executor = _executor(plan)
    # Closing the generator is what stops the pool, whatever ends the loop.
    with (
        StudyDisplay(tasks, already=already, console=console) as display,
        contextlib.closing(executor.run(tasks, display.progress)) as outcomes,
    ):
        for outcome in outcomes:
            display.finished(outcome)
            if outcome.error is None:
                succeeded += 1
                continue
            failed.append(outcome)
            _keep_traceback(plan.spec.out, outcome)
            # One broken trial should not cost a night, but a full disk or a mistake that hits the
            # first trial of every process would hit all the others too.
            hopeless = not succeeded and len(failed) >= plan.spec.jobs
            if hopeless or is_environment_error(outcome.error):
                break
    return failed


def _raise_failures(plan: _Plan, failed: list[Outcome]) -> None:
    first = failed[0]
    assert first.error is not None
    where = plan.spec.out / "logs" / f"{first.trial}.txt"
    more = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
    text = (
        f"trial {first.trial} failed: {first.error}{more}; details in {where}; finished trials "
        "are kept, and the same command runs what is missing"
    )
    kind = type(first.error) if isinstance(first.error, (DataError, ConfigError)) else TalFastError
    raise kind(text) from first.error


def run_study(
    spec: StudySpec,
    *,
    experiment: str | Callable[..., Any] = EXPERIMENT,
    console: Console | None = None,
) -> StudyResult:
    """Runs the trials that are missing, then writes tables, pictures and page.

    Args:
        spec: the request.
        experiment: ``"module:function"`` or a function with the interface of ``run_experiment``;
            with several jobs it must be importable.
        console: where progress goes; standard error when None.

    Returns:
        The curve over all finished trials of these settings, also those of earlier requests.

    Raises:
        ConfigError: the request makes no sense, or ``out`` holds a study of other settings.
        DataError: the data is faulty, or ``out`` cannot be written.
        TalFastError: a trial failed, or another process runs this study.
        KeyboardInterrupt: Ctrl-C; finished trials are kept, running ones continue next time.
    """
    console = console or Console(stderr=True)
    plan = _plan(spec, experiment)
    out = spec.out
    check_writable(out)
    busy = f"{out}: another process runs this study"
    with locked_directory(out, wait=1.0, busy=busy):
        study = read_study(out)
        if study is not None:
            check_same_settings(out, study["settings"], plan.settings)
        records = scan_trials(out / _TRIALS, plan.hash)
        runs = [] if study is None else list(study["runs"])
        write_study(out, plan.settings, spec, runs)
        write_text_atomically(out / _CONFIG, plan.config_text)
        tasks = [task for task in _tasks(plan) if task.trial.name not in records]
        asked = len(spec.fractions) * spec.repetitions
        failed: list[Outcome] = []
        if tasks:
            console.print(
                f"{len(tasks)} of {asked} trials to run, {spec.jobs} at a time, "
                f"{plan.threads} {'thread' if plan.threads == 1 else 'threads'} each",
                highlight=False,
            )
            from tal_fast.training.environment import describe_environment

            (out / _TRIALS).mkdir(exist_ok=True)
            run = {
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": 0.0,
                "trials": 0,
                "jobs": spec.jobs,
                "threads": plan.threads,
                "machine": describe_environment(),
            }
            clock = time.perf_counter()
            before = set(records)
            try:
                failed = _run_trials(plan, tasks, asked - len(tasks), console)
            finally:
                # Also after Ctrl-C: the time was spent and its trials are there.
                records = scan_trials(out / _TRIALS, plan.hash)
                run["seconds"] = round(time.perf_counter() - clock, 1)
                run["trials"] = len(set(records) - before)
                if run["trials"]:
                    runs.append(run)
                    with contextlib.suppress(TalFastError):
                        write_study(out, plan.settings, spec, runs)
        if failed:
            # What did work is summed up all the same: a trial may fail whenever it is tried.
            with contextlib.suppress(TalFastError):
                _sum_up(out)
            _raise_failures(plan, failed)
        files, notes, points = _sum_up(out)
        return StudyResult(points, len(tasks), asked - len(tasks), files, notes)


def _sum_up(
    out: Path, *, pictures: bool = False
) -> tuple[dict[str, Path], list[str], list[CurvePoint]]:
    study = read_study(out)
    if study is None:
        raise DataError(f"{out}: no study here (study.yaml is missing)")
    records = list(scan_trials(out / _TRIALS, study["hash"]).values())
    if not records:
        raise DataError(f"{out}: no trial is complete yet, nothing to report")
    points = build_curve(records)
    files = {
        "trials": write_text_atomically(out / "trials.csv", trials_csv(records)),
        "curve": write_text_atomically(out / "curve.csv", curve_csv(points)),
    }
    settings = study["settings"]
    subtitle = f"{settings['model']} on {settings['data']['name']}"
    notes: list[str] = []
    try:
        from tal_fast.study.picture import curve_picture, save_pictures
        from tal_fast.study.report import render_page

        for path in save_pictures(curve_picture(points, model=subtitle), out, "curve"):
            files[path.suffix[1:]] = path
        page = render_page(study, points, records, subtitle=subtitle)
        files["page"] = write_text_atomically(out / "report.html", page)
    except MissingExtraError as error:
        # After hours of training the tables are worth having without the pictures.
        if pictures:
            raise
        notes.append(str(error))
    except OSError as error:
        raise write_error(out, error) from error
    return files, notes, points


def report_study(out: Path) -> StudyResult:
    """Sums up the finished trials of a study again: tables, pictures and page.

    Args:
        out: directory of the study.

    Raises:
        DataError: there is no study, or none of its trials is complete.
        ConfigError: it holds a trial of other settings.
        MissingExtraError: matplotlib or jinja2 is not installed; the tables are written then.
    """
    files, notes, points = _sum_up(Path(out), pictures=True)
    return StudyResult(points, 0, sum(point.n for point in points), files, notes)
