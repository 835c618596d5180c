# SPDX-License-Identifier: Apache-2.0
"""Runs a study: validate everything, run what is missing, sum up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from tal_fast.data.files import write_text_atomically
from tal_fast.errors import ConfigError, DataError, MissingExtraError, TalFastError, nearest
from tal_fast.study.curve import Curve, build_curves, curve_csv, trials_csv
from tal_fast.study.display import StudyDisplay, trial_cost
from tal_fast.study.executors import Executor, InProcess, LocalPool, Outcome, threads_per_job
from tal_fast.study.failures import is_environment_error
from tal_fast.study.locks import check_writable, locked_directory
from tal_fast.study.sampling import (
    Split,
    draw_sample,
    parse_fractions,
    parse_samplings,
    split_videos,
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

if TYPE_CHECKING:
    from tal_fast.data import WindowSet
    from tal_fast.training import ExperimentConfig

__all__ = ["StudyResult", "report_study", "run_study"]

_CONFIG = "config.yaml"
_TRIALS = "trials"
_BUDGETS = ("epochs", "steps", "wall-clock", "convergence")
# Convergence needs held-out videos; where the settings keep none back, its trials keep this share.
_HOLDOUT = 0.2


@dataclass(frozen=True)
class StudyResult:
    """What a study gave.

    Attributes:
        curves: one per sampling, budget and mode of averaging.
        ran: trials that this call ran.
        reused: trials that were there already.
        files: the files written: curve.csv, trials.csv, and the pictures and page if possible.
        notes: what could not be made, and how to get it.
    """

    curves: list[Curve]
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
    windows: WindowSet
    budgets: tuple[str, ...]
    holdout: float
    settings: dict[str, Any]
    config_text: str
    door: str
    function: Callable[..., Any]
    threads: int

    @property
    def hash(self) -> str:
        return hash_settings(self.settings)

    def trials(self) -> list[Trial]:
        """Returns all trials asked for, in the order in which to run them.

        Repetition by repetition, so that whole curves are there early, and long trials before short
        ones, so that at the end no process waits long for the last one.
        """
        spec = self.spec
        found = []
        for repetition in range(spec.repetitions):
            for training in range(spec.seeds):
                some = [
                    Trial(
                        model=spec.model,
                        fraction=fraction,
                        repetition=repetition,
                        seed=trial_seed(spec.seed, repetition, fraction, training),
                        sampling=sampling,
                        budget=budget,
                        training=training,
                        options=self._options(budget),
                    )
                    for fraction in spec.fractions
                    for sampling in spec.samplings
                    for budget in self.budgets
                ]
                found += sorted(some, key=trial_cost, reverse=True)
        return found

    def _options(self, budget: str) -> dict[str, Any]:
        missing = budget == "convergence" and self.holdout == 0.0
        return {"training.holdout": _HOLDOUT} if missing else {}


def _door(experiment: str | Callable[..., Any]) -> tuple[str, Callable[..., Any]]:
    if isinstance(experiment, str):
        return experiment, load_experiment(experiment)
    return f"{experiment.__module__}:{getattr(experiment, '__qualname__', '')}", experiment


def _plan(spec: StudySpec, experiment: str | Callable[..., Any]) -> _Plan:
    """Checks the whole request before anything is written or trained."""
    from tal_fast.data import WindowSet, open_dataset
    from tal_fast.training import config_to_dict, load_config

    parse_fractions(spec.fractions)
    parse_samplings(spec.samplings)
    if spec.seeds < 1:
        raise ConfigError(f"seeds: expected at least 1, got {spec.seeds}")
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
    overrides = spec.overrides
    if spec.ema is not None:
        overrides = (*overrides, f"training.ema={','.join(spec.ema)}")
    config = load_config(spec.config, preset=spec.model, overrides=overrides)
    budgets = _budgets(spec, config)
    door, function = _door(experiment)
    dataset = open_dataset(spec.data)
    split = split_videos(dataset, spec.split, spec.seed)
    if spec.split == "data":
        # Samples and random splits may miss classes, which is recorded; the data's own may not.
        dataset.require_every_class(split.train, "training")
    windows = WindowSet(
        dataset,
        split.train,
        length=config.data.window,
        overlap=config.data.train_overlap,
        min_inside=config.data.min_inside,
        drop_empty=True,
    )
    resolved = config_to_dict(config)
    # Always written out, so that a study of epochs can be extended by one of steps.
    resolved["training"]["steps"] = config.training.steps or config.training.epochs * max(
        1, len(windows) // config.training.batch_size
    )
    settings = study_settings(spec, resolved, dataset, train=len(split.train), test=len(split.test))
    return _Plan(
        spec=spec,
        dataset=dataset,
        split=split,
        windows=windows,
        budgets=budgets,
        holdout=config.training.holdout,
        settings=settings,
        config_text=yaml.safe_dump(resolved, sort_keys=False),
        door=door,
        function=function,
        threads=spec.threads or fair,
    )


def _budgets(spec: StudySpec, config: ExperimentConfig) -> tuple[str, ...]:
    """Returns the budgets to cross, which must make sense with settings and samplings."""
    budgets = (config.training.budget,) if spec.budgets is None else tuple(spec.budgets)
    if not budgets:
        raise ConfigError("budget: expected at least one, got none")
    for position, budget in enumerate(budgets):
        if budget not in _BUDGETS:
            raise ConfigError(
                f"budget: expected one of {', '.join(_BUDGETS)}, got {budget!r}"
                f"{nearest(budget, _BUDGETS)}"
            )
        if budget in budgets[:position]:
            raise ConfigError(f"budget: expected each once, got {budget!r} more than once")
    if "wall-clock" in budgets and config.training.seconds is None:
        raise ConfigError(
            "budget wall-clock: expected the time of a training; give it with "
            "--set training.seconds=SECONDS"
        )
    windows = [sampling for sampling in spec.samplings if sampling.endswith("window")]
    if windows and ("convergence" in budgets or config.training.holdout > 0.0):
        raise ConfigError(
            f"sampling {windows[0]}: cannot be crossed with held-out videos (training.holdout, "
            "budget convergence): a sample of windows has no whole video to keep back"
        )
    return budgets


def _task(plan: _Plan, trial: Trial) -> TrialTask:
    spec = plan.spec
    sample = draw_sample(
        trial.sampling,
        plan.split.train,
        plan.dataset.annotations.videos,
        plan.dataset.annotations.classes,
        fraction=trial.fraction,
        repetition=trial.repetition,
        seed=spec.seed,
        windows=plan.windows,
    )
    coverage: dict[str, Any] = {
        "videos": list(sample.videos),
        "instances": sample.instances,
        "classes": list(sample.classes),
        "missing_classes": list(sample.missing_classes),
    }
    if sample.windows is not None:
        coverage["windows"] = len(sample.windows)
    return TrialTask(
        trial=trial,
        root=str(spec.out / _TRIALS),
        settings=plan.hash,
        data=str(spec.data),
        config=str(spec.out / _CONFIG),
        train_videos=sample.videos if sample.windows is None else plan.split.train,
        test_videos=plan.split.test,
        coverage=coverage,
        threads=plan.threads,
        experiment=plan.door,
        positions=sample.windows,
    )


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
        wanted = plan.trials()
        asked = len(wanted)

        def note_runs() -> None:
            write_study(out, plan.settings, spec, runs, budgets=plan.budgets, trials=asked)

        note_runs()
        write_text_atomically(out / _CONFIG, plan.config_text)
        tasks = [_task(plan, trial) for trial in wanted if trial.name not in records]
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
                "command": spec.command(),
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
                        note_runs()
        if failed:
            # What did work is summed up all the same: a trial may fail whenever it is tried.
            with contextlib.suppress(TalFastError):
                _sum_up(out)
            _raise_failures(plan, failed)
        files, notes, curves = _sum_up(out)
        return StudyResult(curves, len(tasks), asked - len(tasks), files, notes)


def _sum_up(
    out: Path, *, pictures: bool = False, fits: int | None = None
) -> tuple[dict[str, Path], list[str], list[Curve]]:
    study = read_study(out)
    if study is None:
        raise DataError(f"{out}: no study here (study.yaml is missing)")
    records = list(scan_trials(out / _TRIALS, study["hash"]).values())
    if not records:
        raise DataError(f"{out}: no trial is complete yet, nothing to report")
    curves = build_curves(records)
    files = {
        "trials": write_text_atomically(out / "trials.csv", trials_csv(records)),
        "curve": write_text_atomically(out / "curve.csv", curve_csv(curves)),
    }
    notes: list[str] = []
    try:
        from tal_fast.study.report import write_report

        chosen = {} if fits is None else {"fits": fits}
        files |= write_report(out, study, curves, records, **chosen)
    except MissingExtraError as error:
        # After hours of training the tables are worth having without the pictures.
        if pictures:
            raise
        notes.append(str(error))
    return files, notes, curves


def report_study(out: Path, *, fits: int | None = None) -> StudyResult:
    """Sums up the finished trials of a study again: tables, fits, pictures and page.

    Args:
        out: directory of the study.
        fits: how many curves to fit for the page; None for the usual number. Fits made before of
            curves that have not changed are kept.

    Raises:
        DataError: there is no study, or none of its trials is complete.
        ConfigError: it holds a trial of other settings, or ``fits`` is negative.
        MissingExtraError: matplotlib or jinja2 is not installed; the tables are written then.
    """
    if fits is not None and fits < 0:
        raise ConfigError(f"fits: expected 0 or more, got {fits}")
    files, notes, curves = _sum_up(Path(out), pictures=True, fits=fits)
    # Modes of averaging are of the same trials.
    first = [curve for curve in curves if curve.ema == curves[0].ema]
    trials = sum(point.trials for curve in first for point in curve.points)
    return StudyResult(curves, 0, trials, files, notes)
