# SPDX-License-Identifier: Apache-2.0
"""Every test of an op runs on ``cpu``, ``cuda-emulated`` and, where there is a GPU, ``cuda``.

A test that is about the CPU alone (threads, instruction sets, memory) or about nothing that a
kernel decides (docstrings, ``torch.compile``) is marked ``cpu_only``, alone or its whole file with
``pytestmark``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda_emulator"))

import emulated as emulator

DEVICES = (
    ("cpu", "cuda-emulated", "cuda") if torch.cuda.is_available() else ("cpu", "cuda-emulated")
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    alone = "cpu_only" in marks or "compile" in metafunc.function.__name__
    if "thread_counts" in metafunc.fixturenames or alone:
        devices: tuple[str, ...] = ("cpu",)
    elif "cuda_only" in marks:
        devices = DEVICES[1:]
    else:
        devices = DEVICES
    metafunc.parametrize("device", devices, indirect=True, scope="function")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what a GPU is needed for, so that ``make gpu-check`` runs that and nothing else.

    Beside the tests of the device ``cuda`` these are tests of the CPU that compare its bits with
    those of every device.
    """
    for item in items:
        if not isinstance(item, pytest.Function) or Path(__file__).parent not in item.path.parents:
            continue
        own = item.callspec.params.get("device") if hasattr(item, "callspec") else None
        compares = {"assert_same_bits", "cuda_results"} & set(item.function.__code__.co_names)
        about_cuda = item.path.stem.endswith("_cuda") and own == "cpu"  # moves tensors itself
        if own != "cuda-emulated" and (own == "cuda" or compares or about_cuda):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _several_threads() -> Iterator[None]:
    """Work is divided, also where this process has one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whose kernels the ops run; tests keep handing CPU tensors to them."""
    name: str = request.param
    if name == "cpu":
        yield name
        return
    if name == "cuda-emulated" and not emulator.LIBRARY.exists():
        pytest.skip("no emulated CUDA kernels: run `make build`")
    with emulator.emulated() if name == "cuda-emulated" else emulator.on_gpu():
        yield name
