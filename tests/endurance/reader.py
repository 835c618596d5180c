# SPDX-License-Identifier: Apache-2.0
"""The feature reader: requests from bytes under sanitizers, and opened and closed again and again.

The requests are those of ``tests/native/fuzz_reader.cpp``, built with a sanitizer (``make
test-all``); without that build there are none. Errors of single system calls are no part of it;
``tests/data/test_loader_faults.py`` and ``tests/native/test_reader.cpp`` have those thought of.
"""

from __future__ import annotations

import contextlib
import gc
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from endurance.record import ROOT, Batch, Failure, Kind, Outcome, Part
from endurance.subject import expect
from endurance.text_cases import VIDEOS, write_dataset
from processes import thread_ids, wait_for_threads

from tal_fast import open_dataset
from tal_fast.data import FeatureLoader, WindowSet
from tal_fast.errors import DataError

_FUZZERS = {"asan": ROOT / "build" / "asan" / "fuzz_reader",
            "tsan": ROOT / "build" / "tsan" / "fuzz_reader"}  # fmt: skip
_SECONDS = 30
#: What a process may grow by over all cycles: the allocator's, not the reader's.
_GROWTH = 4 << 20


@contextlib.contextmanager
def prepared() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tal-reader-") as folder:
        yield write_dataset(Path(folder) / "data")


def _fuzz(name: str):  # type: ignore[no-untyped-def]
    def run(_: Path, batch: Batch) -> Outcome:
        program = _FUZZERS[name]
        seed = batch.seed * 10_000_000 + batch.first % 10_000_000
        command = [str(program), str(_SECONDS), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True)
        count = re.search(r"fuzz_reader: (\d+) inputs", done.stdout)
        if done.returncode or count is None:
            text = " ".join((done.stdout + done.stderr).split())
            repeat = f"build/{name}/fuzz_reader {_SECONDS} {seed}"
            return Outcome(failures=[Failure(batch.first, text[:400], repeat)])
        return Outcome(done=int(count[1]))

    return run


def cycles(data: Path, batch: Batch) -> Outcome:
    """Opens a loader, reads some batches, and leaves it: closed, dropped, or after an error."""
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
    threads, files, memory = thread_ids(), process.num_fds(), process.memory_info().rss
    for _ in batch.numbers:
        once()
    gc.collect()
    wait_for_threads(threads)
    expect(process.num_fds() == files, "descriptors:", process.num_fds(), "were", files)
    grown = process.memory_info().rss - memory
    expect(grown <= _GROWTH, f"memory grew by {grown:,} bytes in {batch.count} cycles")
    return Outcome(done=batch.count, measured={"bytes grown": float(grown)})


PART = Part(
    "reader",
    f"Reader ({len(VIDEOS)} files)",
    [
        Kind("cycles", "loaders opened and left", 10_000, cycles, batch=1000),
        *(
            Kind(f"fuzz {name}", "requests from bytes", goal, _fuzz(name))
            for name, goal in (("asan", 10**8), ("tsan", 10**7))
            if _FUZZERS[name].exists()
        ),
    ],
    prepared,
)
