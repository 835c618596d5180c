# SPDX-License-Identifier: Apache-2.0
"""What only tensors on a GPU can show; the kernels' results are checked by the tests of each op.

``TAL_FAST_REHEARSE=1`` runs the bodies on the CPU with emulated kernels, so that a mistake in this
file is found before a GPU is; streams, graphs and the guard against waiting do nothing then.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tal_fast import ops

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import emulated as emulator
import gpu_cases

GPU = torch.cuda.is_available()
REHEARSED = os.environ.get("TAL_FAST_REHEARSE") == "1" and not GPU
pytestmark = [
    pytest.mark.cpu_only,  # these tests put tensors on the GPU themselves
    pytest.mark.skipif(not GPU and not REHEARSED, reason="no GPU"),
]
DEVICE = torch.device("cuda" if GPU else "cpu")
RUNS = 20 if GPU else 2
# The size of these results depends on the data: they are read back once.
SIZED_BY_DATA = ("nms",)
CASES = list(gpu_cases.CASES)
FIXED = [name for name in CASES if not any(word in name for word in SIZED_BY_DATA)]


@pytest.fixture(autouse=True)
def _rehearsal() -> Iterator[None]:
    with emulator.emulated() if REHEARSED else contextlib.nullcontext():
        yield


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    yield
    if GPU:
        torch.cuda.set_sync_debug_mode("default")


def close(name: str, ours: tuple[Tensor, ...], cpu: tuple[Tensor, ...]) -> None:
    bound = 5e-2 if "bfloat16" in name else 1e-2 if "float16" in name else 1e-4
    for a, b in zip(ours, cpu, strict=True):
        assert a.device.type == DEVICE.type
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        a = a.cpu()
        if not b.is_floating_point():
            assert torch.equal(a, b)
        elif b.numel():
            scale = b.double().abs().max().clamp(min=1.0)
            assert float((a.double() - b.double()).abs().max() / scale) <= bound


@pytest.mark.parametrize("name", CASES)
def test_gives_what_the_cpu_gives(name: str) -> None:
    ours = gpu_cases.CASES[name](DEVICE, 0)()
    close(name, ours, gpu_cases.CASES[name](torch.device("cpu"), 0)())


@pytest.mark.parametrize("name", CASES)
def test_same_bits_on_every_run(name: str) -> None:
    call = gpu_cases.CASES[name](DEVICE, 1)
    first = call()
    for _ in range(RUNS - 1):
        again = call()
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", FIXED)
def test_never_waits_for_the_gpu(name: str, no_synchronisation: None) -> None:
    if GPU:
        torch.cuda.set_sync_debug_mode("default")
    call = gpu_cases.CASES[name](DEVICE, 2)
    call()
    if GPU:
        torch.cuda.set_sync_debug_mode("error")
    call()


@pytest.mark.parametrize("name", [name for name in FIXED if name != "dropout"])
def test_runs_in_a_cuda_graph(name: str) -> None:
    call = gpu_cases.CASES[name](DEVICE, 3)
    expected = call()
    if not GPU:
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    for result in results:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, results, strict=True))


@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("name", FIXED)
def test_runs_on_the_current_stream(name: str) -> None:
    # The inputs arrive on a side stream behind a long wait: another stream would read too early.
    expected = gpu_cases.CASES[name](DEVICE, 4)()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        results = gpu_cases.CASES[name](DEVICE, 4)()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, results, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_is_deterministic_to_torch(name: str) -> None:
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Filling every new tensor would hide what a kernel forgets to write.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gpu_cases.CASES[name](DEVICE, 5)()
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend: str) -> None:
    if backend == "inductor" and not GPU:
        pytest.skip("no GPU")
    value = torch.randn(2, 24, 8, 32, device=DEVICE, requires_grad=True)
    centre = torch.rand(2, 24, 1, 1, device=DEVICE)
    projected = torch.randn(2, 24, 64, device=DEVICE, requires_grad=True)

    def layer(value: Tensor, projected: Tensor) -> Tensor:
        offsets, logits = projected.split(32, -1)
        shape = (2, 24, 8, 1, 4)
        out = ops.deform_attn_fused(value, (24,), centre, offsets.view(shape), logits.view(shape))
        return out.square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    ours = torch.autograd.grad(compiled(value, projected), (value, projected))
    eager = torch.autograd.grad(layer(value, projected), (value, projected))
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)


def test_autocast() -> None:
    a = torch.tensor([[0.0, 4.0]], device=DEVICE, dtype=torch.bfloat16)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert ops.segment_iou(a, a).dtype == torch.float32
        linear = torch.nn.Linear(64, 2 * 32, device=DEVICE)
        offsets, logits = linear(torch.randn(1, 5, 64, device=DEVICE)).split(32, -1)
        assert offsets.dtype == torch.bfloat16
        value = torch.randn(1, 7, 8, 32, device=DEVICE, dtype=torch.bfloat16)
        reference = torch.rand(1, 5, 1, 2, device=DEVICE, dtype=torch.bfloat16)
        shape = (1, 5, 8, 1, 4)
        out = ops.deform_attn_fused(value, (7,), reference, offsets.view(shape), logits.view(shape))
    assert out.dtype == torch.bfloat16


@pytest.mark.skipif(not GPU, reason="no GPU")
def test_mixed_devices_are_refused() -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="device"):
        ops.segment_iou(torch.ones(2, 2, device=DEVICE), torch.ones(2, 2))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_runs_on_the_tensors_device() -> None:
    a = torch.rand(30, 2, device="cuda:1").cumsum(1)
    assert torch.cuda.current_device() == 0
    assert ops.segment_iou(a, a).device == a.device
    assert torch.cuda.current_device() == 0
