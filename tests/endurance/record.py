# SPDX-License-Identifier: Apache-2.0
"""What every part of the endurance programs shares: what is counted, and how it is written down.

A part (``studies``, ``reader``, …) has kinds of cases, each with the count that it is to reach. A
case is right, refused clearly (an error of the library where one is due), or LOST: anything else,
which must be zero. Cases are numbered, and a case follows from the seed, its kind and its number
alone, so that the first ones that were lost can be repeated one by one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tal_fast.data.files import write_text_atomically
from tal_fast.training.environment import describe_environment

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "endurance"
_FORMAT = 1
_FAILURES_KEPT = 10
_SECONDS_BETWEEN_LINES = 10.0


class Refused(Exception):
    """Raised in a case where the library refused clearly what it had to refuse."""


@dataclass(frozen=True)
class Batch:
    """Cases that run in one call.

    Attributes:
        kind: name of their kind.
        seed: of the whole run.
        first: number of the first.
        count: how many.
    """

    kind: str
    seed: int
    first: int
    count: int

    @property
    def numbers(self) -> range:
        """Numbers of the cases."""
        return range(self.first, self.first + self.count)

    def random(self, number: int | None = None) -> random.Random:
        """Returns the random numbers of a case (the first when None), the same in every run."""
        return random.Random(self.seed_of(self.first if number is None else number))

    def seed_of(self, number: int) -> int:
        """Returns the seed of a case."""
        text = f"{self.seed}/{self.kind}/{number}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


@dataclass
class Failure:
    """A case that was lost."""

    number: int
    why: str
    repeat: str = ""


@dataclass
class Outcome:
    """How the cases of a batch ended.

    Attributes:
        done: right.
        refused: refused clearly.
        failures: the lost ones; as many as there are, or the first with ``lost`` their number.
        measured: what was measured beside, by name; of several batches the largest is kept.
    """

    done: int = 0
    refused: int = 0
    failures: list[Failure] = field(default_factory=list)
    lost: int | None = None
    measured: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lost is None:
            self.lost = len(self.failures)


@dataclass(frozen=True)
class Kind:
    """A kind of cases.

    Attributes:
        name: unique within its part.
        what: what a case is, in the plural ("kills of the driver").
        goal: how many a full run has.
        run: runs a batch with what the part prepared.
        batch: most cases of a call; results are written after each.
        whole: run all that is missing in one call, whatever ``batch`` says.
    """

    name: str
    what: str
    goal: int
    run: Callable[[Any, Batch], Outcome]
    batch: int = 1
    whole: bool = False


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield None


@dataclass(frozen=True)
class Part:
    """Kinds of cases that share a program.

    Attributes:
        name: as on the command line.
        title: what it is about, for the page.
        kinds: what it runs.
        prepare: gives what all cases share, and cleans up. Called once a run.
    """

    name: str
    title: str
    kinds: Sequence[Kind]
    prepare: Callable[[], AbstractContextManager[Any]] = _nothing

    def kind(self, name: str) -> Kind:
        """Returns a kind by its name."""
        for kind in self.kinds:
            if kind.name == name:
                return kind
        known = ", ".join(kind.name for kind in self.kinds)
        raise SystemExit(f"{self.name}: expected one of the kinds {known}, got {name!r}")


def one_by_one(
    case: Callable[[Any, random.Random], dict[str, float] | None],
) -> Callable[[Any, Batch], Outcome]:
    """Makes the ``run`` of a kind from a function that runs a single case.

    It returns where the case was right (what it measured beside, or None), raises
    :class:`Refused` where it was refused clearly, and anything else where it was lost.
    """

    def run(place: Any, batch: Batch) -> Outcome:
        outcome = Outcome()
        for number in batch.numbers:
            try:
                measured = case(place, batch.random(number))
                outcome.done += 1
                for name, value in (measured or {}).items():
                    outcome.measured[name] = max(value, outcome.measured.get(name, -math.inf))
            except Refused:
                outcome.refused += 1
            except Exception as error:
                traceback.print_exc()
                outcome.failures.append(Failure(number, why(error)))
                outcome.lost = len(outcome.failures)
        return outcome

    return run


def why(error: BaseException) -> str:
    """Returns the cause of a loss in one short line without paths of this machine."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    for place, name in ((str(ROOT), "."), (tempfile.gettempdir(), "TMP")):
        text = text.replace(place, name)
    return text[:400]


def machine() -> dict[str, Any]:
    """Returns what the cases ran on; nothing that names a person or host."""
    facts = describe_environment()
    return {key: facts[key] for key in ("cpu", "cores", "memory_gib", "system", "python", "torch")}


def processor_seconds() -> float:
    """Returns the processor time of this process and all its children, living and ended."""
    total = 0.0
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


class Record:
    """The results of a part, in its file.

    Args:
        part: what runs.
        out: directory of the file.
        seed: of all cases.
        scale: share of the goals to reach.
        resume: go on in the newest file of this part with this seed.
    """

    def __init__(self, part: Part, out: Path, *, seed: int, scale: float, resume: bool) -> None:
        self._part = part
        self._scale = scale
        facts = describe_environment()
        today = facts["date"][:10]
        self.path = out / f"{today}-{part.name}.json"
        self.content: dict[str, Any] = {
            "format": _FORMAT,
            "part": part.name,
            "title": part.title,
            "date": today,
            "commits": [],
            "machine": machine(),
            "seed": seed,
            "kinds": [],
        }
        found = sorted(out.glob(f"*-{part.name}.json"), reverse=True) if resume else []
        for path in found:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] == _FORMAT and content["seed"] == seed:
                self.path, self.content = path, content
                break
        commit = str(facts["commit"])
        if commit not in self.content["commits"]:
            self.content["commits"].append(commit)

    def row(self, kind: Kind) -> dict[str, Any]:
        """Returns what is kept of a kind."""
        for row in self.content["kinds"]:
            if row["name"] == kind.name:
                return row
        row = {
            "name": kind.name,
            "what": kind.what,
            "goal": kind.goal,
            **dict.fromkeys(("tried", "done", "refused", "lost"), 0),
            "seconds": 0.0,
            "per_second": 0.0,
            "measured": {},
            "failures": [],
        }
        self.content["kinds"].append(row)
        return row

    def wanted(self, kind: Kind) -> int:
        """Returns how many cases this run is to reach."""
        return max(1, math.ceil(kind.goal * self._scale))

    def add(self, kind: Kind, outcome: Outcome, seconds: float, processor: float = 0.0) -> None:
        """Takes in a batch, with its seconds by the clock and of processors; writes the file."""
        row = self.row(kind)
        before = row["tried"]
        row["done"] += outcome.done
        row["refused"] += outcome.refused
        row["lost"] += outcome.lost
        row["tried"] = row["done"] + row["refused"] + row["lost"]
        row["seconds"] = round(row["seconds"] + seconds, 2)
        row["per_second"] = float(f"{row['tried'] / max(row['seconds'], 1e-9):.3g}")
        # On a busy machine only this says how fast it is. Older results have none.
        cpu = row.setdefault("cpu", {"cases": 0, "seconds": 0.0})
        cpu["cases"] += row["tried"] - before
        cpu["seconds"] = round(cpu["seconds"] + max(processor, 0.0), 2)
        for name, value in outcome.measured.items():
            row["measured"][name] = max(value, row["measured"].get(name, -math.inf))
        for failure in outcome.failures[: max(0, _FAILURES_KEPT - len(row["failures"]))]:
            repeat = failure.repeat or (
                f"python tests/endurance {self._part.name} --kind '{kind.name}' "
                f"--seed {self.content['seed']} --case {failure.number}"
            )
            row["failures"].append(asdict(failure) | {"repeat": repeat})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.path, json.dumps(self.content, indent=1) + "\n")


def _of_processor(row: dict[str, Any]) -> str:
    cpu = row.get("cpu", {})
    return f", {cpu['cases'] / cpu['seconds']:.3g} a CPU second" if cpu.get("seconds") else ""


def line(part: Part, kind: Kind, row: dict[str, Any], wanted: int) -> str:
    """Returns how far a kind has come."""
    text = (
        f"{part.name}: {kind.name}: {row['tried']:,} of {wanted:,} {kind.what} "
        f"({row['per_second']:g}/s{_of_processor(row)}): {row['done']:,} right, "
        f"{row['refused']:,} refused clearly, {row['lost']:,} LOST"
    )
    measured = ", ".join(f"{name} {value:.4g}" for name, value in row["measured"].items())
    return f"{text}; {measured}" if measured else text


def _run(kind: Kind, place: Any, seed: int, first: int, count: int) -> Outcome:
    batch = Batch(kind.name, seed, first, count)
    try:
        return kind.run(place, batch)
    except Exception as error:  # what a program does not expect is no less of a loss
        traceback.print_exc()
        return Outcome(failures=[Failure(first, why(error))])


def run_part(
    part: Part,
    out: Path,
    *,
    seed: int,
    scale: float,
    resume: bool = False,
    kinds: Sequence[str] = (),
    minutes: float = math.inf,
) -> dict[str, Any]:
    """Runs the cases that are missing, and says how far it comes.

    Args:
        part: what to run.
        out: directory for its results.
        seed: of all cases.
        scale: share of the goals to reach.
        resume: go on with earlier results of this seed.
        kinds: names of the kinds to run; all when empty.
        minutes: after which each kind ends with the batch that runs.

    Returns:
        What the file holds.
    """
    record = Record(part, out, seed=seed, scale=scale, resume=resume)
    chosen = [part.kind(name) for name in kinds] or list(part.kinds)
    with part.prepare() as place:
        for kind in chosen:
            wanted, row = record.wanted(kind), record.row(kind)
            end, told = time.monotonic() + 60.0 * minutes, -math.inf
            try:
                while row["tried"] < wanted and time.monotonic() < end:
                    left = wanted - row["tried"]
                    count = left if kind.whole else min(kind.batch, left)
                    began, used = time.monotonic(), processor_seconds()
                    outcome = _run(kind, place, seed, row["tried"], count)
                    took = time.monotonic() - began, processor_seconds() - used
                    record.add(kind, outcome, *took)
                    if time.monotonic() - told > _SECONDS_BETWEEN_LINES or outcome.failures:
                        told = time.monotonic()
                        print(line(part, kind, row, wanted), file=sys.stderr, flush=True)
            finally:
                print(line(part, kind, row, wanted), flush=True)
    return record.content


def run_case(part: Part, kind_name: str, number: int, *, seed: int) -> Outcome:
    """Runs one case again, as :func:`run_part` ran it, and writes nothing."""
    kind = part.kind(kind_name)
    with part.prepare() as place:
        return _run(kind, place, seed, number, 1)
