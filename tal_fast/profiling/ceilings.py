# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at most: products, memory, calls, files. Measured, not looked up.

The best of repeated runs is the ceiling; their median says how much of it was to be had meanwhile.
What one thread does is timed by its CPU time, which others disturb least; what several do, by the
clock.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from tal_fast import ops
from tal_fast.data.files import write_text_atomically
from tal_fast.profiling import procfs
from tal_fast.training.device import resolve_amp
from tal_fast.training.environment import describe_environment, usable_cores

__all__ = [
    "Ceiling",
    "ceiling_table",
    "kept_ceilings",
    "machine_ceilings",
    "measure_ceilings",
    "product_ceiling",
    "rate_of",
    "with_threads",
]

FORMAT = 2
_DAY = 86_400.0  # seconds that measured ceilings are good for
_SIDE = 1024  # of the square product
_CACHES = 4  # arrays of memory are so many times the last cache
_NO_CACHE = 32 << 20  # bytes, where the system does not tell
_FILE = 32 << 20
_TINY = 8  # calls that are timed together: less than a turn on a core that others want, too


@dataclass(frozen=True)
class Ceiling:
    """One ceiling.

    Attributes:
        name: what was run.
        threads: torch threads.
        best: the best run.
        median: of all runs.
        unit: ``GFLOP/s``, ``GB/s`` (more is better) or ``us`` (less is better).
    """

    name: str
    threads: int
    best: float
    median: float
    unit: str


def machine_ceilings(cache: Path | None = None, *, fresh: bool = False) -> dict[str, Any]:
    """Returns the ceilings of this machine, of the last day if they were measured then.

    Args:
        cache: file to keep them in; one of this user's cache directory when None.
        fresh: measure again.

    Returns:
        ``format``, ``time`` (of the epoch), ``environment``, ``others_cores`` (that others used
        meanwhile) and ``ceilings``.
    """
    cache = _cache_file() if cache is None else cache
    machine = _machine()
    if not fresh:
        kept = _kept(cache, machine)
        if kept is not None:
            return kept
    before = (time.perf_counter(), time.process_time(), procfs.machine_cpu())
    ceilings = [asdict(ceiling) for ceiling in measure_ceilings()]
    measured = {
        "format": FORMAT,
        "time": time.time(),
        "environment": machine,
        "others_cores": procfs.others_since(*before),
        "ceilings": ceilings,
    }
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(cache, json.dumps(measured, indent=2) + "\n")
    return measured


def kept_ceilings(cache: Path | None = None) -> dict[str, Any] | None:
    """Returns what :func:`machine_ceilings` would without measuring; None where it would."""
    return _kept(_cache_file() if cache is None else cache, _machine())


def _machine() -> dict[str, Any]:
    known = describe_environment()
    return {key: known[key] for key in ("cpu", "cores", "torch", "isa")}


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tal_fast" / "ceilings.json"


def _kept(cache: Path, machine: dict[str, Any]) -> dict[str, Any] | None:
    try:
        measured: Any = json.loads(cache.read_text("utf-8"))
        age = time.time() - measured["time"]
        fits = measured["format"] == FORMAT and measured["environment"] == machine
    except (OSError, ValueError, KeyError, TypeError):  # not there, or no such file of ours
        return None
    return measured if fits and 0 <= age < _DAY else None


def measure_ceilings(seconds: float = 0.5) -> list[Ceiling]:
    """Measures the ceilings of this machine.

    Args:
        seconds: that each is repeated for; at least three times.
    """
    ceilings = []
    for threads in dict.fromkeys((1, usable_cores())):
        with with_threads(threads):
            ceilings += [
                product_ceiling((1, _SIDE, _SIDE, _SIDE), dtype, threads, seconds)
                for dtype in _dtypes()
            ]
            ceilings += _memory(threads, seconds)
    with with_threads(1):
        ceilings += _calls(seconds)
        ceilings.append(_file(seconds))
    return ceilings


def _dtypes() -> list[torch.dtype]:
    """Returns the types in which products are as fast as they get on this processor."""
    bfloat16 = resolve_amp(torch.device("cpu"), "auto") == "bfloat16"
    return [torch.float32, *([torch.bfloat16] if bfloat16 else [])]


@contextmanager
def with_threads(number: int) -> Iterator[None]:
    """Sets the number of torch threads for a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_times(
    work: Callable[[], Any], threads: int, seconds: float, device: torch.device | None = None
) -> list[float]:
    """Returns the seconds that each of some runs took."""
    on_gpu = device is not None and device.type == "cuda"
    clock = time.thread_time if threads == 1 and not on_gpu else time.perf_counter
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        if on_gpu:
            torch.cuda.synchronize(device)
        start = clock()
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
        times.append(max(clock() - start, 1e-9))
    return times


def rate_of(
    name: str,
    threads: int,
    amount: float,
    unit: str,
    work: Callable[[], Any],
    seconds: float,
    device: torch.device | None = None,
) -> Ceiling:
    """Measures how much of something a piece of work does in a second.

    Args:
        name: of the ceiling.
        threads: torch threads that it runs in; the caller has set them.
        amount: FLOPs or bytes of one run.
        unit: ``GFLOP/s`` or ``GB/s``.
        work: to run.
        seconds: to repeat it for; at least three times.
        device: that is to have finished it.
    """
    times = _run_times(work, threads, seconds, device)
    best, median = (amount / 1e9 / t for t in (min(times), statistics.median(times)))
    return Ceiling(name, threads, best, median, unit)


def product_ceiling(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    threads: int,
    seconds: float,
    device: str | torch.device = "cpu",
) -> Ceiling:
    """Measures products of one shape; with ``threads`` threads, which the caller has set.

    Args:
        shape: products side by side, rows, inner dimension, columns.
        dtype: of the factors.
        threads: torch threads.
        seconds: to repeat for.
        device: where.
    """
    batch, rows, inner, columns = shape
    a, b = (
        torch.ones(batch, *size, dtype=dtype, device=device)
        for size in ((rows, inner), (inner, columns))
    )
    if batch == 1:
        a, b = a[0], b[0]
    out = torch.matmul(a, b)
    size = "x".join(map(str, shape[batch == 1 :]))
    name = f"product {size} {str(dtype).removeprefix('torch.')}"
    flops = 2 * batch * rows * inner * columns
    work = lambda: torch.matmul(a, b, out=out)  # noqa: E731
    return rate_of(name, threads, flops, "GFLOP/s", work, seconds, out.device)


def _last_cache() -> int:
    """Returns the bytes of the largest cache of a core, or a guess."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        size = file.read_text("ascii").strip()
        if size.endswith("K") and size[:-1].isdigit():
            sizes.append(int(size[:-1]) << 10)
    return max(sizes, default=_NO_CACHE)


def _memory(threads: int, seconds: float) -> list[Ceiling]:
    cache = _last_cache()
    ceilings = []
    for where, size in (("memory", _CACHES * cache), ("cache", cache // 2)):
        # All arrays of a kind together have this size.
        a, b, c = (torch.ones(max(1, size // 12)) for _ in range(3))
        each = a.numel() * 4

        def triad(a: Any = a, b: Any = b, c: Any = c) -> Any:
            return torch.add(b, c, alpha=2.0, out=a)

        kinds: list[tuple[str, int, Callable[[], Any]]] = [
            ("copy", 2 * each, lambda a=a, b=b: a.copy_(b)),  # type: ignore[misc]
            ("triad", 3 * each, triad),
            ("read", each, lambda a=a: a.sum()),  # type: ignore[misc]
        ]
        for kind, amount, work in kinds:
            ceilings.append(rate_of(f"{kind}, {where}", threads, amount, "GB/s", work, seconds))
    return ceilings


def _calls(seconds: float) -> list[Ceiling]:
    """Returns what calls cost whose work is nothing, with gradients asked for."""
    x = torch.ones(1, 2, 1, 8, requires_grad=True)
    reference, samples = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, 1, 1, 1, 1)
    rows, weight = torch.ones(2, 8, requires_grad=True), torch.ones(8, 8, requires_grad=True)
    segments = torch.tensor([[0.0, 1.0]])
    kinds: dict[str, Callable[[], Any]] = {
        "add": lambda: rows + rows,
        "linear": lambda: torch.nn.functional.linear(rows, weight),
        "tal_fast dropout": lambda: ops.dropout(rows, 0.1),
        "tal_fast deform_attn_fused": lambda: ops.deform_attn_fused(
            x, (2,), reference, samples, samples
        ),
        "tal_fast local_attn": lambda: ops.local_attn(x, x, x, 3),
        "tal_fast segment_iou": lambda: ops.segment_iou(segments, segments),
    }
    ceilings = []
    for name, work in kinds.items():

        def many(work: Callable[[], Any] = work) -> None:
            for _ in range(_TINY):
                work()

        times = [1e6 * t / _TINY for t in _run_times(many, 1, seconds / 2)]
        ceilings.append(Ceiling(f"call of {name}", 1, min(times), statistics.median(times), "us"))
    return ceilings


def _file(seconds: float) -> Ceiling:
    """Reads a file that the system holds in memory."""
    buffer = bytearray(_FILE)
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(buffer)

        def work() -> None:
            file.seek(0)
            file.readinto(buffer)

        return rate_of("read, file in page cache", 1, _FILE, "GB/s", work, seconds)


def ceiling_table(measured: dict[str, Any]) -> Table:
    """Returns the ceilings for a terminal."""
    others, cores = measured["others_cores"], measured["environment"]["cores"]
    caption = None
    if others is not None:
        caption = f"Meanwhile others used {others:.1f} of {cores} cores."
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("ceiling", no_wrap=True)
    for name in ("threads", "best", "median", "unit"):
        table.add_column(name, justify="left" if name == "unit" else "right", no_wrap=True)
    for ceiling in measured["ceilings"]:
        best, median = (f"{ceiling[key]:.1f}" for key in ("best", "median"))
        table.add_row(ceiling["name"], str(ceiling["threads"]), best, median, ceiling["unit"])
    return table
