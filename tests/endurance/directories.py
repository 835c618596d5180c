# SPDX-License-Identifier: Apache-2.0
"""Several users of one directory: two studies, a report, two trainings, with locks and without.

Every command does its work or refuses clearly, and what is there in the end is right.
"""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from endurance import tiny_study
from endurance.faults import Faults
from endurance.forks import Command, Ended
from endurance.record import Kind, Part, Refused, one_by_one
from endurance.tiny_study import SETTINGS, Place, clear, files, of_log, weights_of

from tal_fast.training.config import load_config

#: A study or training takes a second of computation, and several on a busy machine.
_SECONDS_APART = 8.0
_BUSY = "another process"
_NOTHING_YET = ("no study here", "no trial is complete yet")


def _apart(numbers: random.Random) -> None:
    """Waits for a while, more often short than long."""
    time.sleep(_SECONDS_APART * numbers.random() ** 3)


def _ends(commands: Sequence[Command]) -> list[Ended]:
    ended = [command.wait() for command in commands]
    for one in ended:
        clear(one)
    return ended


def _refusals(ended: Sequence[Ended], words: Sequence[str]) -> int:
    """Returns how many were refused; fails on any other error."""
    refused = 0
    for one in ended:
        if one.status:
            text = " ".join(one.output.split())
            assert any(word in text for word in words), f"another error: {text[-500:]}"
            refused += 1
    return refused


def _two_studies(place: Place, numbers: random.Random) -> None:
    """Two drivers, at about the same time; in a third of the cases the second asks for others."""
    out = place.new()
    other = ["--seed", "7"] if numbers.random() < 0.33 else []
    try:
        commands = [place.forks.start(place.arguments(out))]
        _apart(numbers)
        commands.append(place.forks.start(place.arguments(out, *other)))
        # Whoever comes first makes it its own.
        ended = _ends(commands)
        refused = _refusals(ended, (_BUSY, "other settings"))
        assert refused < 2, "nobody was let in"
        if other and ended[0].status:
            raise Refused
        place.complete(out)
        if refused:
            raise Refused
    finally:
        place.remove(out)


def _reports(place: Place, numbers: random.Random) -> None:
    """Reports of a study that runs, one after the other and two at once."""
    out = place.new()
    try:
        study = place.forks.start(place.arguments(out))
        reports: list[Command] = []
        while study.poll() is None:
            running = [report for report in reports if report.poll() is None]
            if len(running) < numbers.choice((1, 2)):
                reports.append(place.forks.start(["study", "report", "--study", out]))
            time.sleep(0.3 * numbers.random())
        assert not _refusals(_ends([study]), ())
        _refusals(_ends(reports), _NOTHING_YET)
        place.complete(out)
    finally:
        place.remove(out)


def _train(place: Place, out: Path, seed: int) -> list[Any]:
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["train", "--data", place.data, "--out", out, "--threads", "1", "--seed", seed, *sets]


def _trained_alone(place: Place, seed: int) -> dict[str, Any]:
    """Returns what a training leaves that has its directory for itself, made once."""
    known = place.__dict__.setdefault("trained", {})
    if seed not in known:
        out = place.new()
        ended = place.forks.run(_train(place, out, seed))
        assert ended.status == 0, ended.output
        known[seed] = _of_training(out)
    return known[seed]


def _of_training(out: Path) -> dict[str, Any]:
    return {
        "files": files(out),
        "weights": weights_of(out / "checkpoint.pt"),
        "log": of_log(out / "log.csv"),
        "seed": load_config(out / "config.yaml").training.seed,
    }


def _two_trainings(place: Place, numbers: random.Random) -> None:
    """Two trainings in one directory, with the same settings or others."""
    out = place.new()
    seeds = (1, numbers.choice((1, 2)))
    try:
        commands = []
        for seed in seeds:
            commands.append(place.forks.start(_train(place, out, seed)))
            _apart(numbers)
        ended = _ends(commands)
        refused = _refusals(ended, (_BUSY, "holds a training that has ended"))
        assert refused == 1, f"{refused} of 2 were refused"
        seed = seeds[[one.status for one in ended].index(0)]
        assert _of_training(out) == _trained_alone(place, seed), f"not what seed {seed} gives"
    finally:
        shutil.rmtree(out, ignore_errors=True)
    raise Refused


def _without_locks(place: Place, numbers: random.Random) -> None:
    """Two drivers on a file system that knows no locks: what is there in the end is right."""
    out = place.new()
    error = numbers.choice((errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS))
    faults = Faults(out, "from", 1, ("lock",), error).text()
    try:
        commands = [place.forks.start(place.arguments(out), faults=faults)]
        _apart(numbers)
        commands.append(place.forks.start(place.arguments(out), faults=faults))
        ended = _ends(commands)
        again = place.forks.run(place.arguments(out), faults=faults)
        clear(again)
        assert again.status == 0, f"status {again.status}: {again.output[-500:]}"
        # Where two wrote at once, what one of them left cannot be told from what is being written.
        place.complete(out)
        if any(one.status for one in ended):
            raise Refused
    finally:
        place.remove(out)


def _alone_without_locks(place: Place, numbers: random.Random) -> None:
    """One driver there, killed and started again: all as ever."""
    out = place.new()
    locks = Faults(out, "from", 1, ("lock",), errno.ENOLCK).text()
    try:
        command = place.forks.start(place.arguments(out), faults=locks)
        time.sleep(_SECONDS_APART * numbers.random())
        command.kill()
        ended = place.forks.run(place.arguments(out), faults=locks)
        clear(ended)
        assert ended.status == 0, f"status {ended.status}: {ended.output[-500:]}"
        place.complete(out)
    finally:
        place.remove(out)


@contextlib.contextmanager
def _prepare() -> Iterator[Place]:
    with tiny_study.place() as place:
        yield place


PART = Part(
    "directories",
    "Several users of one directory",
    [
        Kind("two studies", "pairs of commands", 100, one_by_one(_two_studies)),
        Kind("a study and reports", "pairs of commands", 50, one_by_one(_reports)),
        Kind("two trainings", "pairs of commands", 100, one_by_one(_two_trainings)),
        Kind("two studies without locks", "pairs of commands", 50, one_by_one(_without_locks)),
        Kind("killed without locks", "studies", 50, one_by_one(_alone_without_locks)),
    ],
    _prepare,
)
