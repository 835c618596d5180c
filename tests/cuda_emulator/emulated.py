# SPDX-License-Identifier: Apache-2.0
"""Runs the ops of ``tal_fast`` through other kernels than those for the CPU.

Inside :func:`emulated` the CUDA kernels that were compiled for the CPU run wherever a test calls an
op with CPU tensors; inside :func:`on_gpu` the arguments travel to the GPU and the results back.
Fake, autograd and autocast rules stay the same, so the tests of an op are the tests of all of its
kernels.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

import tal_fast.ops  # noqa: F401  (defines the ops)

#: ``TAL_FAST_EMULATED_LIBRARY`` names another build of it, for example one with AddressSanitizer.
LIBRARY = Path(
    os.environ.get("TAL_FAST_EMULATED_LIBRARY") or Path(__file__).with_name("cuda_emulated.so")
)
#: The same kernels with counters (counters.h), which cost time.
COUNTED = Path(
    os.environ.get("TAL_FAST_COUNTED_LIBRARY") or Path(__file__).with_name("cuda_counted.so")
)
_OPS = "tal_fast::"
_EMULATED = "tal_fast_emulated"
_NAMESPACES = {LIBRARY: _EMULATED, COUNTED: "tal_fast_counted"}


# Parts of a computation that goes another way on a GPU (tal_fast/ops/conv_tiles.py), and what has
# the bits of the C library (tal_fast/ops/soft_nms_literal.py) or of torch's CPU generator
# (tal_fast/ops/mt19937_bernoulli.py).
CPU_ONLY = frozenset({"mt19937_bernoulli_", "rows_to_tiles", "soft_nms_literal", "tiles_to_rows"})


def op_names() -> list[str]:
    """Names all ops of the library that have CUDA kernels, without namespace."""
    names = (name.split(".")[0] for name in torch._C._dispatch_get_all_op_names())
    ours = {name.removeprefix(_OPS) for name in names if name.startswith(_OPS)}
    assert ours >= CPU_ONLY
    return sorted(ours - CPU_ONLY)


def load(path: Path = LIBRARY) -> ctypes.CDLL:
    """Defines every op once more, in the namespace that the emulated kernels register for."""
    return _load(path)


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    namespace = _NAMESPACES[path]
    library = torch.library.Library(namespace, "DEF")
    for name in op_names():
        schema = str(getattr(torch.ops.tal_fast, name).default._schema)
        library.define(schema.removeprefix(_OPS))
        # Gradients are the affair of the op that is redirected here.
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    _load.__dict__[namespace] = library  # its end would take the definitions along
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


def has_kernel(name: str) -> bool:
    """Says whether the op has an emulated CUDA kernel."""
    load()
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{_EMULATED}::{name}", "CPU")


def launches() -> list[str]:
    """Names the emulated kernels launched since the last call."""
    function = load().tal_fast_emulator_launches
    function.restype = ctypes.c_char_p
    return function().decode().splitlines()


def run_kernel(name: str, *, blocks: int = 2, threads: int = 128, shared: int = 4096) -> list[int]:
    """Runs one of ``broken_kernels.cpp``.

    Returns:
        The 128 numbers that it wrote.

    Raises:
        RuntimeError: what the emulator found.
    """
    out = torch.zeros(128, dtype=torch.int32)
    function = load().tal_fast_emulator_run
    function.restype = ctypes.c_char_p
    error = function(
        name.encode(), blocks, threads, ctypes.c_size_t(shared), ctypes.c_void_p(out.data_ptr())
    )
    if error is not None:
        raise RuntimeError(error.decode())
    return out.tolist()


def run_made(name: str, *, blocks: int = 1, threads: int = 32, shared: int = 0) -> None:
    """Runs one of ``counted_kernels.cpp``.

    Raises:
        RuntimeError: what the emulator found.
    """
    function = load(COUNTED).tal_fast_emulator_run_made
    function.restype = ctypes.c_char_p
    error = function(name.encode(), blocks, threads, ctypes.c_size_t(shared))
    if error is not None:
        raise RuntimeError(error.decode())


@contextmanager
def counted(
    runs: int = 0, length: int = 1, partly: Sequence[str] = ()
) -> Iterator[list[dict[str, Any]]]:
    """Counts what kernels do: those of ops with CPU tensors, and of :func:`run_made`.

    Args:
        runs: of a launch with more than ``runs * length`` blocks that many are counted, evenly
            spread in runs of ``length`` neighbours; 0 counts all.
        length: see ``runs``.
        partly: how the names of kernels begin of which only the counted blocks are run. What their
            ops return is then no result.

    Yields:
        A list; at the end it gets a dict per launch, as counters.cpp writes it.
    """
    library = load(COUNTED)
    names = "\n".join(partly).encode()

    def switch(on: bool) -> None:
        library.tal_fast_emulator_count(
            on, ctypes.c_uint64(runs), ctypes.c_uint64(length), ctypes.c_char_p(names)
        )

    found: list[dict[str, Any]] = []
    with emulated(COUNTED):
        switch(True)
        try:
            yield found
            take = library.tal_fast_emulator_counts
            take.restype = ctypes.c_char_p
            found += [json.loads(line) for line in take().decode().splitlines()]
        finally:
            switch(False)


@contextmanager
def _redirected(target: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
    library = torch.library.Library("tal_fast", "IMPL")
    try:
        for name in op_names():
            library.impl(name, target(name), "CPU", allow_override=True)
        yield
    finally:
        library._destroy()


@contextmanager
def emulated(path: Path = LIBRARY) -> Iterator[None]:
    """Lets every op with CPU tensors run its emulated CUDA kernel."""
    load(path)
    kernels = getattr(torch.ops, _NAMESPACES[path])
    with _redirected(lambda name: getattr(kernels, name).default):
        yield


@contextmanager
def on_gpu() -> Iterator[None]:
    """Lets every op with CPU tensors run on the GPU, with copies there and back."""

    def target(name: str) -> Callable[..., Any]:
        op = getattr(torch.ops.tal_fast, name).default

        def call(*args: Any) -> Any:
            there = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.cuda(), args)
            return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.cpu(), op(*there))

        return call

    with _redirected(target):
        yield


def cuda_results(function: Callable[[], Any]) -> list[Any]:
    """Calls ``function`` with emulated CUDA kernels and, where there is a GPU, with real ones.

    For tests of the device ``cpu`` that compare the CPU's bits with those of CUDA.
    """
    results = []
    if LIBRARY.exists():
        with emulated():
            results.append(function())
    if torch.cuda.is_available():
        with on_gpu():
            results.append(function())
    return results


def assert_same_bits(function: Callable[[], Any]) -> None:
    """Calls ``function`` once with the kernels of every device and compares with those of the CPU.

    For tests marked ``cpu_only``: where ops are redirected already, the CPU's kernels are out of
    reach. A NaN equals a NaN: which of them comes out is up to the hardware.
    """
    expected = function()
    for result in cuda_results(function):
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@contextmanager
def shared_memory(limit: int) -> Iterator[None]:
    """Lets the launchers see an emulated device whose blocks get ``limit`` bytes at most."""
    os.environ["TAL_FAST_EMULATED_SHARED"] = str(limit)
    try:
        yield
    finally:
        del os.environ["TAL_FAST_EMULATED_SHARED"]
