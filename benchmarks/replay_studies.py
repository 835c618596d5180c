# SPDX-License-Identifier: Apache-2.0
"""What adaptive studies would have saved: recorded studies replayed under the policy.

``python benchmarks/replay_studies.py --study docs/results/hapt --target "±1.5 at 100 %"``

A replay asks the policy for one trial after the other, and makes up what the trial scores: the
recorded mean of its level plus a normal deviate of the recorded standard deviation. Recorded
trainings themselves are not drawn again: a level has three to five, so that the policy would get
the same training twice and see no spread where there is some. A trial takes the recorded time.

The fixed grid is every recorded level with ``--repetitions`` draws. An answer agrees if it is the
recorded grid's within the width that was asked for; an order if its verdict is that of the grid,
or not wrong where the grid leaves it open. An answer holds if its interval contains the recorded
mean, which is the truth that the trials are made from. The gain at more data than recorded has no
such truth: ``--cut 0.5`` takes half of the data as if it were all, so that the gain at 2x is known.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tal_fast.curves import CurvePoint, LearningCurve, read_curves
from tal_fast.curves.learning_curve import DEVIATION_FLOOR
from tal_fast.errors import counted
from tal_fast.study.adaptive.beliefs import Belief
from tal_fast.study.adaptive.forecast import LEVELS, Forecast
from tal_fast.study.adaptive.orders import compare
from tal_fast.study.adaptive.policy import decide
from tal_fast.study.adaptive.situation import Choice, Choices, Decision, Situation
from tal_fast.study.adaptive.targets import Gain, Level, Rank, Target, parse_target

CONFIDENCE = 0.9


@dataclass(frozen=True)
class World:
    """A recorded curve, from which trials are made.

    Attributes:
        curve: levels that may be trained, share in percent of what counts as all data.
        beyond: share -> recorded mean beyond all of that.
        study: where it is recorded.
    """

    curve: LearningCurve
    beyond: dict[float, float]
    study: Path

    @classmethod
    def of(cls, study: Path, curve: LearningCurve, cut: float) -> World:
        """Takes the share ``cut`` of the data as all of it."""
        inside, beyond = [], {}
        for point in curve.points:
            share = round(point.share / cut, 6)
            # Where no time is recorded: as long as p, and a tenth for the test videos.
            seconds = point.share + 10.0 if point.seconds is None else point.seconds
            if share <= 100.0:
                inside.append(replace(point, share=share, seconds=seconds))
            else:
                beyond[share] = point.mean
        return cls(replace(curve, points=tuple(inside)), beyond, study)

    def trial(self, share: float, rng: np.random.Generator) -> float:
        """Returns what a made trial at ``share`` scores."""
        index = int(np.flatnonzero(self.curve.share == share)[0])
        spread = float(self.curve.spread[index])
        return float(np.clip(self.curve.mean[index] + spread * rng.standard_normal(), 0.0, 100.0))

    def mean(self, share: float) -> float | None:
        """Returns the recorded mean at ``share``; None where there is none."""
        known = {p.share: p.mean for p in self.curve.points} | self.beyond
        return known.get(share)

    def grid_seconds(self, repetitions: int) -> float:
        """Returns what a grid takes."""
        return repetitions * float(self.curve.seconds.sum())


class Study:
    """A study of made trials."""

    def __init__(self, world: World, repetitions: int, rng: np.random.Generator) -> None:
        self._world = world
        self._rng = rng
        self._scores: dict[Choice, float] = {}
        shares = tuple(world.curve.share.tolist())
        self.choices = Choices(shares, repetitions)
        self._seconds = dict(zip(shares, world.curve.seconds.tolist(), strict=True))

    @property
    def spent(self) -> float:
        """Seconds of all trials."""
        return sum(self._seconds[choice.share] for choice in self._scores)

    @property
    def trials(self) -> int:
        """How many there are."""
        return len(self._scores)

    def run(self, choice: Choice) -> None:
        """Runs a trial."""
        self._scores[choice] = self._world.trial(choice.share, self._rng)

    def curve(self) -> LearningCurve:
        """Returns the curve of the trials, also where there is none yet."""
        levels: dict[float, list[list[float]]] = {}
        for choice, score in sorted(self._scores.items()):
            levels.setdefault(choice.share, []).append([score])
        points = [
            CurvePoint.of_draws(share, draws, seconds=self._seconds[share])
            for share, draws in levels.items()
        ]
        return LearningCurve(self._world.curve.name, tuple(points))

    def decide(
        self, target: Target, others: Sequence[LearningCurve] = (), *, look: bool = False
    ) -> Decision:
        """Asks the policy."""
        situation = Situation(
            curve=self.curve() if self._scores else None,
            taken=frozenset(self._scores),
            spent=self.spent,
            others=tuple(others),
            look=look,
        )
        return decide(target, situation, self.choices, confidence=CONFIDENCE)


def replay(target: Target, worlds: Sequence[World], most: int, seed: int) -> dict[str, Any]:
    """Replays a study, or for an order the studies of several models in turn."""
    studies = [
        Study(world, most, np.random.default_rng([seed, index]))
        for index, world in enumerate(worlds)
    ]
    at, still = 0, 0
    while True:
        others = [study.curve() for index, study in enumerate(studies) if index != at]
        decision = studies[at].decide(target, others)
        if decision.choice is not None:
            studies[at].run(decision.choice)
            still = 0
        elif decision.kind == "elsewhere" and still < len(studies):
            at, still = (at + 1) % len(studies), still + 1
        else:
            break
    first = studies[0].decide(target, [study.curve() for study in studies[1:]], look=True)
    return {
        "kind": first.kind if decision.kind == "elsewhere" else decision.kind,
        "answer": first.answer,
        "seconds": sum(study.spent for study in studies),
        "trials": sum(study.trials for study in studies),
    }


def _gain_of(world: World, curve: LearningCurve, target: Gain) -> tuple[float, float]:
    """Returns the gain that a grid tells, and half the width of its interval."""
    value, low, high = Forecast(curve).gain(target.times, CONFIDENCE)
    return value, (high - low) / 2.0


def row_of(
    target: Target, worlds: Sequence[World], *, replays: int, repetitions: int, most: int
) -> dict[str, Any]:
    """Replays a target many times."""
    clock = time.perf_counter()
    grid = sum(world.grid_seconds(repetitions) for world in worlds)
    found = [replay(target, worlds, most, seed) for seed in range(replays)]
    seconds = np.array([one["seconds"] for one in found]) / grid
    row: dict[str, Any] = {
        "curve": " / ".join(world.curve.name for world in worlds),
        "target": str(target),
        "levels": len(worlds[0].curve),
        "replays": replays,
        "seconds_of_grid": grid,
        "share_of_seconds": {
            name: round(float(np.quantile(seconds, level)), 4)
            for name, level in (("q25", 0.25), ("median", 0.5), ("q75", 0.75))
        },
        "trials": float(np.median([one["trials"] for one in found])),
        "ends": {k: sum(o["kind"] == k for o in found) for k in {o["kind"] for o in found}},
    }
    if isinstance(target, Rank):
        row |= _judge_order(target, worlds, found)
    else:
        row |= _judge_number(target, worlds[0], found)
    if isinstance(target, Level):
        made = np.random.default_rng(replays)
        means = [
            np.mean([worlds[0].trial(target.share, made) for _ in range(repetitions)])
            for _ in range(replays)
        ]
        close = abs(np.array(means) - row["grid_says"]) <= target.width
        row["made_grids_agree"] = float(close.mean())
    row["took_seconds"] = round(time.perf_counter() - clock, 1)
    return row


def _recorded(world: World) -> Belief:
    """Returns what the recorded trials say of 100 %, also where only their number is known."""
    point = world.curve.points[-1]
    deviation = max(float(world.curve.spread[-1]), DEVIATION_FLOOR)
    return Belief(point.mean, deviation / math.sqrt(point.n), point.n - 1.0, point.n, deviation)


def _judge_order(target: Rank, worlds: Sequence[World], found: list[Any]) -> dict[str, Any]:
    first, second = (_recorded(world) for world in worlds)
    recorded = compare(first, second, target.tie, CONFIDENCE, looks=1)
    true = {"open", "first" if recorded.difference > 0.0 else "second"}
    if abs(recorded.difference) <= target.tie:
        true.add("tie")
    verdicts = [one["answer"].verdicts[0] for one in found]
    same = true if recorded.verdict == "open" else {recorded.verdict}
    return {
        "difference": recorded.difference,
        "grid_says": recorded.verdict,
        "says": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "agrees": sum(verdict in same for verdict in verdicts) / len(found),
        "holds": sum(verdict in true for verdict in verdicts) / len(found),
    }


def _judge_number(target: Level | Gain, world: World, found: list[Any]) -> dict[str, Any]:
    if isinstance(target, Level):
        reference, truth = world.mean(target.share), world.mean(target.share)
        own = None
    else:
        # The recorded draws, as many as there are.
        reference, own = _gain_of(world, world.curve, target)
        beyond, last = world.mean(100.0 * target.times), world.mean(100.0)
        truth = None if beyond is None or last is None else beyond - last
    answers = [one["answer"] for one in found]
    values = np.array([a.value for a in answers])
    spans = np.array([a.interval for a in answers])
    row = {
        "grid_says": reference,
        "grid_half_width": own,
        "agrees": float((abs(values - reference) <= target.width).mean()),
        "half_width": float(np.median((spans[:, 1] - spans[:, 0]) / 2.0)),
        "deviation_of_answers": float(values.std()),
    }
    if truth is not None:
        inside = (spans[:, 0] <= truth) & (truth <= spans[:, 1])
        row |= {"truth": truth, "holds": float(inside.mean())}
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Replays every target on every curve."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--study", type=Path, action="append", required=True)
    parser.add_argument("--curve", action="append", help="names, or parts of them; all by default")
    parser.add_argument("--target", action="append", required=True)
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=5, help="draws per level of the grid")
    parser.add_argument(
        "--most", type=int, help="draws per level that may be chosen; the grid's by default"
    )
    parser.add_argument("--across", action="store_true", help="order models of different studies")
    parser.add_argument("--cut", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    most = given.most or given.repetitions
    worlds = []
    for path in given.study:
        for curve in read_curves(path, repetitions=given.repetitions):
            named = replace(curve, name=f"{path.name}: {curve.name}")
            chosen = not given.curve or any(part in named.name for part in given.curve)
            world = World.of(path, named, given.cut)
            if chosen and len(world.curve) >= LEVELS and world.curve.share[-1] == 100.0:
                worlds.append(world)
    rows = []
    for text in given.target:
        target = parse_target(text)
        size = 2 if isinstance(target, Rank) else 1
        for group in itertools.combinations(worlds, size):
            if not given.across and len({world.study for world in group}) > 1:
                continue
            row = row_of(
                target, group, replays=given.replays, repetitions=given.repetitions, most=most
            )
            rows.append(row)
            print(json.dumps(row, ensure_ascii=False), flush=True)
    if not rows:
        parser.error(
            f"expected curves of {LEVELS} levels or more up to 100 % to replay (two for a rank, of "
            f"one study without --across), found {counted(len(worlds), 'curve')}"
        )
    if given.json is not None:
        content = {"cut": given.cut, "repetitions": given.repetitions, "most": most}
        given.json.write_text(
            json.dumps({**content, "confidence": CONFIDENCE, "rows": rows}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
