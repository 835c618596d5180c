# SPDX-License-Identifier: Apache-2.0
"""Loaders whose system calls fail: everything is read, or an error says why; nothing is left.

``python -m endurance.reader_faults FOLDER`` is the process with the library of
:mod:`endurance.faults`. It takes a case per line, as JSON, and answers with a line each.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from endurance import faults
from endurance.record import ROOT, Batch, Failure, Outcome, why
from endurance.subject import expect
from processes import thread_ids, wait_for_threads

from tal_fast import open_dataset
from tal_fast.data import FeatureLoader, WindowSet
from tal_fast.errors import TalFastError

__all__ = ["MOST", "MOST_THREADS", "FaultyReads"]

#: k of "every k-th call" goes from 1 to this, then again.
MOST = 500
#: The same of threads; a loader has up to three.
MOST_THREADS = 4
_ERRORS = ("EIO", "EACCES", "ENOMEM", "EMFILE", "ESTALE", "EINTR")


def _read(data: Path, rng: random.Random) -> list[torch.Tensor]:
    """Opens a dataset, reads all of it, and closes the loader."""
    windows = WindowSet(open_dataset(data), ["a", "b", "d"], length=32, drop_empty=False)
    options = {"threads": rng.choice((1, 2, 3)), "prefetch": rng.choice((1, 2))}
    with FeatureLoader(windows, 2, **options) as loader:
        return [batch.features.clone() for batch in loader]


def _case(
    data: Path, expected: list[torch.Tensor], number: int, starts: bool, rng: random.Random
) -> bool:
    """Runs a case, and returns whether everything was read."""
    mode = rng.choice(("every", "every", "once", "from"))
    if starts:
        k, calls = number % MOST_THREADS + 1, ("thread",)
    else:
        k = number % MOST + 1
        calls = tuple(rng.sample(faults.READS, rng.randint(1, len(faults.READS))))
    # A call that is interrupted is tried again: where all of them are, for ever.
    again = k > 1 and mode != "from"
    error = "EAGAIN" if starts else rng.choice(_ERRORS if again else _ERRORS[:-1])
    told = f"{mode} {k} of {', '.join(calls)}: {error}:"
    threads, files = thread_ids(), len(os.listdir("/proc/self/fd"))
    faults.arm(faults.Faults(data, mode, k, calls, getattr(errno, error)))
    try:
        found = _read(data, rng)
        same = len(found) == len(expected) and all(map(torch.equal, found, expected))
        expect(same, told, "other features")
        taken = True
    except TalFastError as fault:
        faults.arm(None)
        named = "cannot start a thread" if starts else str(data)
        expect(named in str(fault), told, f"no {named!r} in", repr(fault))
        expect("got -1" not in str(fault), told, "no cause in", repr(fault))
        taken = False
    finally:
        faults.arm(None)
    gc.collect()
    wait_for_threads(threads)
    expect(len(os.listdir("/proc/self/fd")) == files, told, "left open files")
    expect(all(map(torch.equal, _read(data, rng), expected)), told, "other features afterwards")
    return taken


def main() -> None:
    """Answers each case with whether it was read, or why it was lost."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    data = Path(sys.argv[1])
    torch.set_num_threads(1)
    expected = _read(data, random.Random(0))
    for line in sys.stdin:
        number, starts, seed = json.loads(line)
        try:
            answer: Any = _case(data, expected, number, starts, random.Random(seed))
        except Exception as error:
            faults.arm(None)
            answer = why(error)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class FaultyReads:
    """That process, as seen from outside.

    Args:
        folder: for the library.
        data: a dataset.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder = folder
        self._data = data
        self._running: subprocess.Popen[str] | None = None

    def _process(self) -> subprocess.Popen[str]:
        if self._running is None:
            library = faults.build(self._folder)
            self._running = subprocess.Popen(
                [sys.executable, "-m", "endurance.reader_faults", self._data],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT / "tests",
                env={
                    **os.environ,
                    **faults.Faults(self._data).environment(library),
                    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
                },
                text=True,
            )
        return self._running

    def run(self, batch: Batch, starts: bool) -> Outcome:
        """Runs the cases of a batch: calls that fail, or threads that do not start."""
        outcome = Outcome()
        for number in batch.numbers:
            running = self._process()
            assert running.stdin is not None
            assert running.stdout is not None
            running.stdin.write(json.dumps([number, starts, batch.seed_of(number)]) + "\n")
            running.stdin.flush()
            line = running.stdout.readline()
            answer = json.loads(line) if line else f"the process ended with {running.wait()}"
            if isinstance(answer, str):
                outcome.failures.append(Failure(number, answer))
                if not line:
                    self.close()
            else:
                outcome.done += answer
                outcome.refused += not answer
        outcome.lost = len(outcome.failures)
        return outcome

    def close(self) -> None:
        """Ends the process."""
        if self._running is not None:
            with contextlib.suppress(BrokenPipeError):
                self._running.communicate()
        self._running = None


@contextlib.contextmanager
def faulty_reads(folder: Path, data: Path) -> Iterator[FaultyReads]:
    """Gives that process, and ends it."""
    with contextlib.closing(FaultyReads(folder, data)) as reads:
        yield reads


if __name__ == "__main__":
    main()
