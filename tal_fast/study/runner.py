# SPDX-License-Identifier: Apache-2.0
"""Runs a study: validate everything, run what is missing, sum up."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tal_fast.data.files import write_text_atomically
from tal_fast.data.fingerprint import data_facts, data_fingerprint
from tal_fast.errors import ConfigError, DataError, MissingExtraError, TalFastError
from tal_fast.study.curve import Curve, build_curves, curve_csv, curves_by_training, trials_csv
from tal_fast.study.display import StudyDisplay
from tal_fast.study.execution.energy import EnergyMeter
from tal_fast.study.execution.executors import Executor, InProcess, LocalPool, Outcome
from tal_fast.study.execution.failures import is_environment_error
from tal_fast.study.execution.locks import check_writable, locked_directory
from tal_fast.study.execution.trials import EXPERIMENT, TrialTask, load_experiment, scan_trials
from tal_fast.study.request import CONFIG, TRIALS, Request, check_request
from tal_fast.study.settings import (
    StudySpec,
    check_same_data,
    check_same_settings,
    read_data_facts,
    read_study,
    write_data_facts,
    write_study,
)

__all__ = ["StudyResult", "report_study", "run_study"]


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
class _Place:
    """Where the trials of a call run.

    Attributes:
        executor: runs them.
        jobs: how many at a time.
        words: where, for people.
        facts: what ``study.yaml`` keeps about it.
    """

    executor: Executor
    jobs: int
    words: str
    facts: dict[str, Any]


@contextlib.contextmanager
def _place(request: Request, console: Console) -> Iterator[_Place]:
    spec, logs = request.spec, request.spec.out / "logs"
    jobs = spec.jobs or 1
    if (spec.ray is not None or jobs > 1) and load_experiment(request.door) is not request.function:
        raise ConfigError(f"experiment: {request.door} cannot be imported by other processes")
    if spec.ray is None:
        executor: Executor = InProcess(request.dataset, request.function)
        if jobs > 1:
            executor = LocalPool(jobs, threads=request.threads, logs=logs)
        yield _Place(executor, jobs, f"{jobs} at a time", {})
        return
    from tal_fast.study.execution.ray_cluster import RayCluster

    cluster = RayCluster(
        spec.ray,
        threads=request.threads,
        logs=logs,
        gpus=spec.gpus_per_trial,
        at_most=spec.jobs,
        fingerprint=data_fingerprint(request.dataset),
        notify=lambda line: console.print(line, markup=False, highlight=False),
    )
    with contextlib.closing(cluster):
        facts = cluster.connect()
        machines = "1 machine" if facts.machines == 1 else f"{facts.machines} machines"
        jobs = min(facts.slots, spec.jobs or facts.slots)
        yield _Place(
            cluster, jobs, f"{jobs} at a time on {machines}", {"ray": dataclasses.asdict(facts)}
        )


def _keep_traceback(out: Path, outcome: Outcome) -> Path:
    path = out / "logs" / f"{outcome.trial}.txt"
    with contextlib.suppress(OSError, TalFastError):  # the failure itself is what must be told
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, f"{outcome.error}\n\n{outcome.traceback}")
    return path


def _run_trials(
    request: Request, place: _Place, tasks: Sequence[TrialTask], already: int, console: Console
) -> list[Outcome]:
    """Runs the trials; returns the failed ones."""
    failed: list[Outcome] = []
    succeeded = 0
    # Closing the generator is what stops the pool, whatever ends the loop.
    with (
        StudyDisplay(tasks, already=already, console=console) as display,
        contextlib.closing(place.executor.run(tasks, display.progress)) as outcomes,
    ):
        for outcome in outcomes:
            display.finished(outcome)
            if outcome.error is None:
                succeeded += 1
                continue
            failed.append(outcome)
            _keep_traceback(request.spec.out, outcome)
            # One broken trial should not cost a night, but a full disk or a mistake that hits the
            # first trial of every process would hit all the others too.
            hopeless = not succeeded and len(failed) >= place.jobs
            if hopeless or is_environment_error(outcome.error):
                break
    return failed


def _raise_failures(request: Request, failed: list[Outcome]) -> None:
    first = failed[0]
    assert first.error is not None
    where = request.spec.out / "logs" / f"{first.trial}.txt"
    more = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
    text = (
        f"trial {first.trial} failed: {first.error}{more}; details in {where}; finished trials "
        "are kept, and the same command runs what is missing"
    )
    kind = type(first.error) if isinstance(first.error, (DataError, ConfigError)) else TalFastError
    raise kind(text) from first.error


def _check_same(
    request: Request, study: Mapping[str, Any], facts: Mapping[str, Any], console: Console
) -> None:
    """Checks that the study in the directory is of the same data and settings."""
    out = request.spec.out
    found = read_data_facts(out)
    if found is not None and study["settings"].get("split") == request.spec.split:
        check_same_data(out, found, facts, trust_times=request.spec.trust_times)
    check_same_settings(out, study["settings"], request.settings)
    if found is None:
        console.print(
            f"{out}: began under an earlier version, which kept nothing of its feature files: "
            "changes of them until now cannot be told",
            markup=False,
            highlight=False,
        )


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
        ConfigError: the request makes no sense, or ``out`` holds a study of other settings or data.
        DataError: the data is faulty, or ``out`` cannot be written.
        TalFastError: a trial failed, or another process runs this study.
        KeyboardInterrupt: Ctrl-C; finished trials are kept, running ones continue next time.
    """
    console = console or Console(stderr=True)
    request = check_request(spec, experiment)
    out = spec.out
    check_writable(out)
    busy = f"{out}: another process runs this study"
    with locked_directory(out, wait=1.0, busy=busy):
        study = read_study(out)
        facts = data_facts(request.dataset, (*request.split.train, *request.split.test))
        if study is not None:
            _check_same(request, study, facts, console)
        records = scan_trials(out / TRIALS, request.hash)
        runs = [] if study is None else list(study["runs"])
        wanted = request.trials()
        asked = len(wanted)

        def note_runs() -> None:
            write_study(out, request.settings, spec, runs, budgets=request.budgets, trials=asked)

        for note in request.notes:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        write_data_facts(out, facts)  # before study.yaml: without it a study is of an older version
        note_runs()
        write_text_atomically(out / CONFIG, request.config_text)
        tasks = [request.task(trial) for trial in wanted if trial.name not in records]
        failed: list[Outcome] = []
        if tasks:
            from tal_fast.training.environment import describe_environment

            with _place(request, console) as place:
                console.print(
                    f"{len(tasks)} of {asked} trials to run, {place.words}, {request.threads} "
                    f"{'thread' if request.threads == 1 else 'threads'} each",
                    highlight=False,
                )
                (out / TRIALS).mkdir(exist_ok=True)
                run = {
                    "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "seconds": 0.0,
                    "trials": 0,
                    "command": spec.command(),
                    "jobs": place.jobs,
                    "threads": request.threads,
                    **place.facts,
                    "machine": describe_environment(),
                }
                clock = time.perf_counter()
                before = set(records)
                meter = EnergyMeter()
                try:
                    with meter:
                        failed = _run_trials(request, place, tasks, asked - len(tasks), console)
                finally:
                    # Also after Ctrl-C: the time was spent and its trials are there.
                    records = scan_trials(out / TRIALS, request.hash, records)
                    run["seconds"] = round(time.perf_counter() - clock, 1)
                    run["trials"] = len(set(records) - before)
                    # The counters are those of this machine, not of a cluster.
                    if meter.joules is not None and spec.ray is None:
                        run["energy_joules"] = round(meter.joules, 1)
                    if run["trials"]:
                        runs.append(run)
                        with contextlib.suppress(TalFastError):
                            note_runs()
        if failed:
            # What did work is summed up all the same: a trial may fail whenever it is tried.
            with contextlib.suppress(TalFastError):
                _sum_up(out, records)
            _raise_failures(request, failed)
        files, notes, curves = _sum_up(out, records, again=bool(tasks))
        return StudyResult(curves, len(tasks), asked - len(tasks), files, notes)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector from going through thousands of records again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def _sum_up(
    out: Path,
    known: Mapping[str, dict[str, Any]] | None = None,
    *,
    pictures: bool = False,
    fits: int | None = None,
    again: bool = True,
) -> tuple[dict[str, Path], list[str], list[Curve]]:
    study = read_study(out)
    if study is None:
        raise DataError(f"{out}: no study here (study.yaml is missing)")
    records = list(scan_trials(out / TRIALS, study["hash"], known).values())
    if not records:
        raise DataError(f"{out}: no trial is complete yet, nothing to report")
    curves = build_curves(records)
    files = {
        "trials": write_text_atomically(out / "trials.csv", trials_csv(records)),
        "curve": write_text_atomically(out / "curve.csv", curve_csv(curves)),
    }
    notes: list[str] = []
    try:
        from tal_fast.study.report.page import write_report

        chosen: dict[str, Any] = {} if fits is None else {"fits": fits}
        files |= write_report(out, study, curves, records, again=again, **chosen)
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
    trials = sum(point.trials for group in curves_by_training(curves) for point in group[0].points)
    return StudyResult(curves, 0, trials, files, notes)
