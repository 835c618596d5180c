# SPDX-License-Identifier: Apache-2.0
"""The feature reader: requests from bytes, system calls that fail, loaders opened and left.

The requests are those of ``tests/native/fuzz_reader.cpp`` under sanitizers, which the presets of
CMake build when they are first asked for.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from endurance.own_memory import own_memory
from endurance.reader_faults import MOST, MOST_THREADS, FaultyReads, faulty_reads
from endurance.record import ROOT, Batch, Failure, Kind, Outcome, Part
from endurance.subject import expect
from endurance.text_cases import VIDEOS, write_dataset
from processes import thread_ids, wait_for_threads

from tal_fast import open_dataset
from tal_fast.data import FeatureLoader, WindowSet
from tal_fast.errors import DataError

#: What a process may grow by over all cycles: the allocator's, not the reader's.
_GROWTH = 4 << 20


@dataclass(frozen=True)
class Place:
    """What the cases share: a dataset, and the process whose system calls fail."""

    data: Path
    faulty: FaultyReads


@contextlib.contextmanager
def prepared() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="tal-reader-") as folder:
        data = write_dataset(Path(folder) / "data")
        with faulty_reads(Path(folder), data) as faulty:
            yield Place(data, faulty)


def built_fuzzer(preset: str) -> Path:
    """Returns the program of a preset, built if it is not there or older than its sources.

    Raises:
        RuntimeError: it cannot be built.
    """
    # Beside the Python that runs, as in a virtual environment that is not active.
    scripts = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
    cmake = shutil.which("cmake", path=scripts)
    if cmake is None:
        raise RuntimeError(f"build/{preset}/fuzz_reader needs cmake")
    for command in (
        [cmake, "--preset", preset],
        [cmake, "--build", "--preset", preset, "--target", "fuzz_reader"],
    ):
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PATH": scripts}, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[1:])} failed: {done.stdout}{done.stderr}")
    return ROOT / "build" / preset / "fuzz_reader"


def _fuzz(preset: str) -> Callable[[Place, Batch], Outcome]:
    programs: list[Path] = []

    def run(_: Place, batch: Batch) -> Outcome:
        if not programs:
            programs.append(built_fuzzer(preset))
        # Each batch has random numbers of its own, whatever its size.
        seed = batch.seed_of(batch.first)
        command = [programs[0], str(batch.count), str(seed)]
        done = subprocess.run([*command, "requests"], capture_output=True, text=True)
        count = re.search(r"inputs, (\d+) requests", done.stdout)
        if done.returncode or count is None:
            text = " ".join((done.stdout + done.stderr).split())
            repeat = f"build/{preset}/fuzz_reader {batch.count} {seed} requests"
            return Outcome(failures=[Failure(batch.first, text[:400], repeat)])
        return Outcome(done=int(count[1]))

    return run


def cycles(place: Place, batch: Batch) -> Outcome:
    """Opens a loader, reads some batches, and leaves it: closed, dropped, or after an error."""
    data = place.data
    windows = WindowSet(open_dataset(data), ["a", "b"], length=32, drop_empty=False)
    rng = batch.random()
    process = psutil.Process()

    def once() -> None:
        loader = FeatureLoader(windows, rng.choice((1, 2)), threads=rng.choice((1, 2, 3)),
                               prefetch=rng.choice((1, 2)))  # fmt: skip
        iterator = iter(loader)
        for _ in range(rng.randrange(3)):
            next(iterator)
        how = rng.randrange(3)
        if how == 0:
            loader.close()
        elif how == 1:
            file = data / "features" / "a.npy"
            moved = file.rename(file.with_suffix(".moved"))
            try:
                with contextlib.suppress(DataError):
                    list(FeatureLoader(windows, 1))
            finally:
                moved.rename(file)
        del iterator, loader

    for _ in range(20):
        once()
    gc.collect()
    threads, files, memory = thread_ids(), process.num_fds(), own_memory()
    for _ in batch.numbers:
        once()
    gc.collect()
    wait_for_threads(threads)
    expect(process.num_fds() == files, "descriptors:", process.num_fds(), "were", files)
    grown = own_memory() - memory
    expect(grown <= _GROWTH, f"memory grew by {grown:,} bytes in {batch.count} cycles")
    return Outcome(done=batch.count, measured={"bytes grown": float(grown)})


def failing(place: Place, batch: Batch) -> Outcome:
    """Reads while the k-th call for reading, every k-th, or all from then on fail."""
    return place.faulty.run(batch, starts=False)


def without_threads(place: Place, batch: Batch) -> Outcome:
    """Reads where the k-th thread does not start, every k-th, or all from then on."""
    return place.faulty.run(batch, starts=True)


PART = Part(
    "reader",
    f"Reader ({len(VIDEOS)} files)",
    [
        Kind("cycles", "loaders opened and left", 10_000, cycles, batch=1000),
        Kind("failing calls", f"k-th calls, k to {MOST}", 10_000, failing, batch=100),
        Kind(
            "threads that do not start",
            f"k-th threads, k to {MOST_THREADS}",
            10_000,
            without_threads,
            batch=100,
        ),
        Kind("fuzz asan", "requests from bytes", 10**8, _fuzz("asan"), batch=20_000),
        Kind("fuzz tsan", "requests from bytes", 10**7, _fuzz("tsan"), batch=5_000),
    ],
    prepared,
)
