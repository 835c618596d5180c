# SPDX-License-Identifier: Apache-2.0
"""Runs a study: validate everything, run what is missing, sum up."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tal_fast.data.files import check_writable, write_text_atomically
from tal_fast.data.fingerprint import data_facts, data_fingerprint
from tal_fast.data.locks import locked_directory
from tal_fast.errors import (
    ConfigError,
    DataError,
    TalFastError,
    counted,
    listing,
)
from tal_fast.study.display import StudyDisplay
from tal_fast.study.execution import store
from tal_fast.study.execution.local import InProcess, LocalPool
from tal_fast.study.execution.messages import Executor, Outcome, is_environment_error
from tal_fast.study.execution.run_trial import BestCheckpoints, remove_left
from tal_fast.study.spec import CONFIG, StudyPlan, StudySpec, plan_study
from tal_fast.study.summary import StudyResult, sum_up
from tal_fast.study.trial import TrialTask

if TYPE_CHECKING:
    from tal_fast.study.adaptive.steering import Steering

__all__ = ["run_study"]


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
def _place(plan: StudyPlan, console: Console) -> Iterator[_Place]:
    spec, logs = plan.spec, plan.spec.out / "logs"
    if spec.ray is None:
        jobs = spec.jobs or 1
        executor: Executor = InProcess(plan.dataset)
        if jobs > 1:
            executor = LocalPool(jobs, threads=plan.threads, logs=logs)
        yield _Place(executor, jobs, f"{jobs} at a time", {})
        return
    from tal_fast.study.execution.ray.cluster import RayCluster

    cluster = RayCluster(
        spec.ray,
        threads=plan.threads,
        logs=logs,
        gpus=spec.gpus_per_trial,
        at_most=spec.jobs,
        fingerprint=data_fingerprint(plan.dataset),
        notify=lambda line: console.print(line, markup=False, highlight=False),
    )
    with contextlib.closing(cluster):
        facts = cluster.connect()
        machines = counted(facts.machines, "machine")
        jobs = min(facts.slots, spec.jobs or facts.slots)
        yield _Place(
            cluster, jobs, f"{jobs} at a time on {machines}", {"ray": dataclasses.asdict(facts)}
        )


def _keep_traceback(path: Path, outcome: Outcome) -> None:
    with contextlib.suppress(OSError, TalFastError):  # the failure itself is what must be told
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, f"{outcome.error}\n\n{outcome.traceback}")


def _failure_log(out: Path, outcome: Outcome) -> Path:
    return out / "logs" / f"{outcome.trial}.txt"


def _run_trials(
    out: Path,
    place: _Place,
    tasks: Sequence[TrialTask] | Steering,
    already: int,
    console: Console,
    best: BestCheckpoints | None,
) -> list[Outcome]:
    """Runs the trials; returns the failed ones."""
    failed: list[Outcome] = []
    succeeded = 0
    steering = tasks if callable(tasks) else None
    known = () if callable(tasks) else tasks
    display = StudyDisplay(known, already=already, console=console)

    def chosen() -> TrialTask | None:
        task = None if steering is None else steering()
        if task is not None:
            display.expect(task)
        return task

    supply = known if steering is None else chosen
    # Closing the generator is what stops the pool, whatever ends the loop.
    with display, contextlib.closing(place.executor.run(supply, display.progress)) as outcomes:
        for outcome in outcomes:
            display.finished(outcome)
            if steering is not None:
                steering.take(outcome)
            if outcome.error is None:
                succeeded += 1
                if best is not None and outcome.record is not None:
                    best.take(outcome.record)
                continue
            failed.append(outcome)
            _keep_traceback(_failure_log(out, outcome), outcome)
            # One broken trial should not cost a night, but a full disk or a mistake that hits the
            # first trial of every process would hit all the others too.
            hopeless = not succeeded and len(failed) >= place.jobs
            if hopeless or is_environment_error(outcome.error):
                break
    return failed


def _raise_failures(out: Path, failed: list[Outcome]) -> None:
    first = failed[0]
    assert first.error is not None
    more = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
    message = (
        f"trial {first.trial} failed: {first.error}{more}; details in "
        f"{_failure_log(out, first)}; finished trials are kept, and the same command runs what is "
        "missing"
    )
    kind = type(first.error) if isinstance(first.error, (DataError, ConfigError)) else TalFastError
    raise kind(message) from first.error


def _check_same(
    plan: StudyPlan, study: Mapping[str, Any], facts: Mapping[str, Any], console: Console
) -> None:
    """Checks that the study in the directory is of the same data and settings."""
    out = plan.spec.out
    facts_then = store.read_data_facts(out)
    if facts_then is not None and study["settings"].get("split") == plan.spec.split:
        store.check_same_data(out, facts_then, facts, trust_times=plan.spec.trust_times)
    store.check_same_settings(out, study["settings"], plan.settings)
    if facts_then is None:
        console.print(
            f"{out}: began under an earlier version, which kept nothing of its feature files: "
            "changes of them until now cannot be told",
            markup=False,
            highlight=False,
        )


def _remove_empty_logs(logs: Path) -> None:
    """Removes the logs of a run that was killed before it could see that nothing was in them."""
    with contextlib.suppress(OSError):
        for log in logs.glob("*.log"):
            if log.stat().st_size == 0:
                log.unlink()
        logs.rmdir()  # where nothing else is in it


class _Study:
    """The directory of a study while this process runs it.

    Args:
        plan: what to run.
        console: where progress goes.
    """

    def __init__(self, plan: StudyPlan, console: Console) -> None:
        self._plan = plan
        self._console = console
        self._out = plan.spec.out
        study = store.read_study(self._out)
        facts = data_facts(plan.dataset, (*plan.split.train, *plan.split.test))
        if study is not None:
            _check_same(plan, study, facts, console)
        self.records = store.scan_trials(self._out / store.TRIALS, plan.hash)
        remove_left(self._out / store.TRIALS, self.records)
        _remove_empty_logs(self._out / "logs")
        self._runs = [] if study is None else list(study["runs"])
        self.answer: list[str] = []
        for note in plan.notes:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        # Before study.yaml: without it a study is of an older version.
        store.write_data_facts(self._out, facts)
        self._note_runs()
        write_text_atomically(self._out / CONFIG, plan.config_text)

    def _note_runs(self) -> None:
        plan = self._plan
        command = plan.spec.command()
        store.write_study(self._out, plan.settings, command, plan.request(), self._runs)

    def run(self) -> tuple[int, list[Outcome]]:
        """Runs the trials that are missing; returns how many those were, and the failed ones."""
        plan, asked = self._plan, len(self._plan.trials)
        root = self._out / store.TRIALS
        # Also where nothing is to run: a killed run may have left weights of two trials of a level.
        keeps_best = plan.spec.keep == "predictions"
        best = BestCheckpoints(root, self.records.values()) if keeps_best else None
        steering = self._steering()
        tasks: list[TrialTask] = []
        if steering is None:
            tasks = [plan.task(trial) for trial in plan.trials if trial.name not in self.records]
            count, already = f"{len(tasks)} of {counted(asked, 'trial')} to run", asked - len(tasks)
        else:
            count, already = (
                f"target {steering.target}: up to {counted(asked, 'trial')}",
                len(self.records),
            )
        if not tasks and (steering is None or steering.look().ends):
            self._finish(steering)
            return 0, []
        with _place(plan, self._console) as place:
            self._console.print(
                f"{count}, {place.words}, {counted(plan.threads, 'thread')} each",
                highlight=False,
            )
            root.mkdir(exist_ok=True)
            with self._noted(place):
                source = tasks if steering is None else steering
                failed = _run_trials(self._out, place, source, already, self._console, best)
        if best is not None and best.replaced:
            self._console.print(
                f"note: weights of earlier trials of --keep predictions went, since a better trial "
                f"of their level has its own: {listing(sorted(best.replaced))}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if not failed:
            self._finish(steering)
        return len(tasks) if steering is None else steering.started, failed

    def _steering(self) -> Steering | None:
        if self._plan.spec.adaptive is None:
            return None
        from tal_fast.study.adaptive.steering import Steering

        return Steering(self._plan, self.records)

    def _finish(self, steering: Steering | None) -> None:
        self.answer = [] if steering is None else steering.finish()
        if steering is not None and not self.records:
            raise ConfigError(f"--adaptive: no trial was run: {self.answer[0]}")

    @contextlib.contextmanager
    def _noted(self, place: _Place) -> Iterator[None]:
        """Notes what a run took, also after Ctrl-C: the time was spent and its trials are there."""
        from tal_fast.training.energy import EnergyMeter
        from tal_fast.training.environment import describe_environment

        plan = self._plan
        run = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": 0.0,
            "trials": 0,
            "command": plan.spec.command(),
            "jobs": place.jobs,
            "threads": plan.threads,
            **place.facts,
            "machine": describe_environment(),
        }
        clock = time.perf_counter()
        before = len(self.records)
        meter = EnergyMeter()
        try:
            with meter:
                yield
        finally:
            root = self._out / store.TRIALS
            self.records = store.scan_trials(root, plan.hash, self.records)
            run["seconds"] = round(time.perf_counter() - clock, 1)
            run["trials"] = len(self.records) - before
            # The counters are those of this machine, not of a cluster.
            if meter.joules is not None and plan.spec.ray is None:
                run["energy_joules"] = round(meter.joules, 1)
            if run["trials"]:
                self._runs.append(run)
                with contextlib.suppress(TalFastError):
                    self._note_runs()


def _check_compared(plan: StudyPlan) -> None:
    """Checks the studies to compare with before ``out`` holds anything of this one."""
    if plan.spec.adaptive is not None and plan.spec.adaptive.compare_with:
        from tal_fast.study.adaptive.steering import other_curve

        for path in plan.spec.adaptive.compare_with:
            other_curve(path, plan)


def _refuse_unreachable(plan: StudyPlan) -> None:
    """Refuses a target that no trial of the request reaches before a new study is written."""
    if plan.spec.adaptive is not None and store.read_study(plan.spec.out) is None:
        from tal_fast.study.adaptive.steering import Steering

        decision = Steering(plan, {}).look()
        if decision.ends:
            raise ConfigError(f"--adaptive: no trial was run: {decision.why}")


def run_study(spec: StudySpec, *, console: Console | None = None) -> StudyResult:
    """Runs the trials that are missing, then writes tables, pictures and page.

    Args:
        spec: the request.
        console: where progress goes; standard error when None.

    Returns:
        The curve over all finished trials of these settings, also those of earlier requests.

    Raises:
        ConfigError: the request makes no sense, or ``out`` holds a study of other settings or data.
        DataError: the data is faulty, or ``out`` cannot be written.
        TalFastError: a trial failed, or another process runs this study.
        KeyboardInterrupt: Ctrl-C; finished trials are kept, running ones continue next time.
    """
    plan = plan_study(spec)
    _check_compared(plan)
    _refuse_unreachable(plan)
    out = spec.out
    check_writable(out)
    busy = f"{out}: another process runs this study"
    with locked_directory(out, wait=1.0, busy=busy):
        study = _Study(plan, console or Console(stderr=True))
        ran, failed = study.run()
        if failed:
            # What did work is summed up all the same: a trial may fail whenever it is tried.
            with contextlib.suppress(TalFastError):
                sum_up(out, study.records)
            _raise_failures(out, failed)
        result = sum_up(out, study.records, again=bool(ran))
        reused = (len(plan.trials) if spec.adaptive is None else len(study.records)) - ran
        return dataclasses.replace(result, ran=ran, reused=reused, answer=study.answer)
