# SPDX-License-Identifier: Apache-2.0
"""Steers a study while it runs: asks the policy for every trial, and writes down why.

``decisions.jsonl`` in the directory of a study has a line per decision, for people alone: what was
known, what the next trial was expected to tell, why. A study goes on from its finished trials, and
would from the same ones decide the same; times of trials are part of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tal_fast.curves import LearningCurve, read_curve
from tal_fast.curves.tables import plain
from tal_fast.errors import ConfigError, DataError, counted, differences, os_reason
from tal_fast.progress import duration
from tal_fast.study.adaptive.beliefs import Prices
from tal_fast.study.adaptive.policy import decide
from tal_fast.study.adaptive.situation import Choice, Choices, Decision, Situation
from tal_fast.study.adaptive.targets import AdaptiveRequest, Rank, Target, parse_target
from tal_fast.study.execution.messages import Outcome
from tal_fast.study.execution.store import TRIALS, read_study, scan_trials
from tal_fast.study.results import build_curves
from tal_fast.study.spec import StudyPlan
from tal_fast.study.trial import TrialRecord, TrialTask

__all__ = ["DECISIONS", "Steering", "append_line"]

DECISIONS = "decisions.jsonl"


def append_line(path: Path, fields: Mapping[str, Any]) -> None:
    """Appends a line of JSON, whole or not at all as far as other readers see.

    What a killed process left of a line stays a line of its own.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(file).st_size
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            line = ("\n" if torn else "") + json.dumps(fields) + "\n"
            os.write(file, line.encode())
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {os_reason(error)}") from error


def _last_line(path: Path) -> Any:
    """Returns the last decision without its time; None where there is none to be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        last = json.loads(lines[-1])
    except (OSError, UnicodeDecodeError, ValueError, IndexError):
        return None
    return {key: value for key, value in last.items() if key != "time"}


def _same_curve(record: TrialRecord, plan: StudyPlan) -> bool:
    trial = record.trial
    return trial.sampling in plan.spec.samplings and trial.budget in plan.budgets


def _curve(records: Mapping[str, TrialRecord], name: str) -> LearningCurve | None:
    """Returns the curve of trials that differ in averages alone, under the first of these."""
    if not records:
        return None
    return dataclasses.replace(build_curves(records.values())[0], name=name)


def other_curve(path: Path, plan: StudyPlan) -> LearningCurve:
    """Reads another model's study: its finished trials, or the table that is left of them.

    Raises:
        DataError: there is none, or none of its trials is complete under the same sampling and
            budget.
        ConfigError: it is of other data or another split. Of a table alone that is not known.
    """
    study = read_study(path) if os.path.isdir(path / TRIALS) else None
    if study is None:
        return dataclasses.replace(read_curve(path), name=str(path))
    # What a random split holds follows from the study's seed.
    keys = ("data", "split", "seed") if plan.spec.split == "random" else ("data", "split")
    there, here = (
        {key: settings.get(key) for key in keys} for settings in (study["settings"], plan.settings)
    )
    if there != here:
        raise ConfigError(
            f"--compare-with {path}: expected a study on the same data, got another: "
            f"{differences(there, here)}; if its test videos are the same all the same (other "
            f"features), give its table: --compare-with {path / 'trials.csv'}"
        )
    records = scan_trials(path / TRIALS, study["hash"])
    curve = _curve(
        {name: record for name, record in records.items() if _same_curve(record, plan)}, str(path)
    )
    if curve is None:
        raise DataError(
            f"{path}: expected finished trials under sampling {plan.spec.samplings[0]} and budget "
            f"{plan.budgets[0]} to compare with, found none"
        )
    return curve


class Steering:
    """Chooses the trials of a study, one whenever there is room for it.

    Called, it returns the next task, or None where there is none now.

    Args:
        plan: what may be run.
        records: of the finished trials, by name.

    Attributes:
        started: how many trials it has chosen.

    Raises:
        DataError: a study to compare with cannot be read.
        ConfigError: it is of other data.
    """

    def __init__(self, plan: StudyPlan, records: Mapping[str, TrialRecord]) -> None:
        assert plan.spec.adaptive is not None
        self._plan = plan
        self._request: AdaptiveRequest = plan.spec.adaptive
        self.target: Target = parse_target(self._request.target)
        self._trials = {
            Choice(trial.share, trial.repetition, trial.training): trial for trial in plan.trials
        }
        self._choices = Choices(
            tuple(sorted({choice.share for choice in self._trials})),
            plan.spec.repetitions,
            plan.spec.seeds,
        )
        self._records = {
            name: record for name, record in records.items() if _same_curve(record, plan)
        }
        self._running: dict[str, Choice] = {}
        self._failed: set[Choice] = set()
        self._others = tuple(other_curve(path, plan) for path in self._request.compare_with)
        self._path = plan.spec.out / DECISIONS
        self._given_up: Decision | None = None
        self.started = 0

    def __call__(self) -> TrialTask | None:
        """Decides, writes the decision down, and returns the task that follows from it."""
        if self._given_up is not None:
            return None
        # What is there may answer already: the first look is one in any case.
        decision = self.look(in_any_case=not self.started)
        if decision.kind == "unreachable":
            self._given_up = decision
        if decision.choice is None:
            return None
        trial = self._trials[decision.choice]
        self._write(decision, trial.name)
        self._running[trial.name] = decision.choice
        self.started += 1
        return self._plan.task(trial)

    def take(self, outcome: Outcome) -> None:
        """Takes in how a trial ended; one that failed is not tried again by this call."""
        choice = self._running.pop(outcome.trial)
        if outcome.record is None:
            self._failed.add(choice)
        else:
            self._records[outcome.trial] = outcome.record

    def look(self, *, in_any_case: bool = True) -> Decision:
        """Returns what the policy says now."""
        request = self._request
        return decide(
            self.target,
            dataclasses.replace(self._situation(), look=in_any_case),
            self._choices,
            confidence=request.confidence,
            seconds=request.seconds,
        )

    def _situation(self) -> Situation:
        finished = {
            Choice(record.trial.share, record.trial.repetition, record.trial.training)
            for record in self._records.values()
        }
        return Situation(
            curve=_curve(self._records, str(self._plan.spec.out)),
            taken=frozenset(finished | self._failed | set(self._running.values())),
            running=tuple(self._running.values()),
            spent=self._spent(),
            others=self._others,
        )

    def _spent(self) -> float:
        return math.fsum(record.seconds or 0.0 for record in self._records.values())

    def finish(self) -> list[str]:
        """Writes down why the study ends; returns the answer, its cost and what would come next."""
        decision = self.look()
        if self._given_up is not None and not decision.ends:
            # What ran then has ended since, and is part of the answer.
            decision = dataclasses.replace(self._given_up, answer=decision.answer)
        self._write(decision, None)
        words = [] if decision.answer is None else list(decision.answer.words)
        reached = "the target is met" if decision.kind == "known" else "the target is not met"
        words.append(f"{reached} ({self.target}): {decision.why}")
        prices = Prices(self._situation().curve)
        grid = math.fsum(prices(choice.share) for choice in self._trials)
        words.append(
            f"{counted(len(self._records), 'trial')}, {duration(self._spent())} of training; all "
            f"{len(self._trials)} of the grid take about {duration(grid)}"
        )
        further = self._further(decision)
        return [*words, *([f"next would be: {further}"] if further else [])]

    def _further(self, decision: Decision) -> str:
        """Returns what would come next if the answer should be twice as good."""
        if decision.kind != "known" or isinstance(self.target, Rank):
            return ""
        finer = dataclasses.replace(self.target, width=self.target.width / 2.0)
        then = decide(finer, self._situation(), self._choices, confidence=self._request.confidence)
        return f"for {finer}, {then.why}"

    def _write(self, decision: Decision, trial: str | None) -> None:
        situation = self._situation()
        points = () if situation.curve is None else situation.curve.points
        answer = decision.answer
        line = {
            "target": str(self.target),
            "confidence": self._request.confidence,
            "decision": decision.kind,
            "trial": trial,
            "why": decision.why,
            "answer": None if answer is None else dataclasses.asdict(answer),
            "width": decision.width,
            "width_after": decision.width_after,
            "seconds": decision.seconds,
            "learned_per_second": decision.learned,
            "known": [
                {"p": p.share, "trials": len(p.trainings), "mean": p.mean, "deviation": p.deviation}
                for p in points
            ],
            "running": sorted(self._running),
            "spent_seconds": round(situation.spent, 3),
        }
        entry = plain(line)
        if trial is None and _last_line(self._path) == entry:
            return  # the same command again, with nothing new
        time_now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        append_line(self._path, {"time": time_now, **entry})
