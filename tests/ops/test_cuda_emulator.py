# SPDX-License-Identifier: Apache-2.0
"""The emulator finds what it is there to find, and lets sound kernels pass."""

from __future__ import annotations

import emulated as emulator
import pytest
import torch

from tal_fast import ops

pytestmark = pytest.mark.cuda_only


@pytest.fixture(autouse=True)
def _emulated_alone(device: str) -> None:
    if device != "cuda-emulated":
        pytest.skip("about the emulator")


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("SharedOutOfBounds", "touches shared memory outside its array"),
        ("SharedBelowBounds", "touches shared memory outside its array"),
        ("SharedMoreThanAsked", "carves more shared memory than the launch asked for"),
        ("SharedUninitialised", "reads shared memory that no thread of the block wrote"),
        ("SharedLeftByAnotherBlock", r"no thread of the block wrote \(block 1, 0, 0"),
        ("MisalignedPack", "an access of shared memory is not aligned"),
        ("MisalignedGlobal", "a wide access of global memory is not aligned"),
        ("RaceReadAfterWrite", "race: (reads|writes) shared memory"),
        ("RaceWriteAfterRead", "race: (reads|writes) shared memory"),
        ("RaceWriteAfterWrite", "race: writes shared memory that another thread wrote"),
        ("RaceWithinWarp", "race: "),
        ("RaceOfWarpOrderAcrossWarps", "race: "),
        ("RaceAtomicAndPlain", "race: "),
        ("RaceOfReadAgain", "race: "),
        ("DivergentBarrier", "divergent barrier|no thread can go on"),
        ("TwoBarriers", "divergent barrier: another thread waits at another one"),
        ("DivergentShuffle", "divergent warp operation|no thread can go on"),
        ("ShuffleAgainstBarrier", "divergent warp operation|no thread can go on"),
        ("ShuffleOutsideMask", "a shuffle reads a lane that its mask leaves out"),
        ("MaskWithoutCaller", "leaves out the lane that calls it"),
        ("CopyNotWaitedFor", "ended before it waited for its asynchronous copies"),
        ("UnboundedStack", "more than 256 KiB of stack"),
    ],
)
def test_finds(kernel: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"{kernel}: .*({message})"):
        emulator.run_kernel(kernel, shared=2048)


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"threads": 0}, "an empty grid or block"),
        ({"blocks": 0}, "an empty grid or block"),
        ({"blocks": 2**31}, "the grid exceeds"),
        ({"threads": 1025}, "the block exceeds 1024 threads"),
        ({"threads": 129}, "129 threads, its launch bound is 128"),
        ({"shared": 227 * 1024 + 1}, "232449 bytes of shared memory exceed"),
    ],
)
def test_refuses_what_hardware_refuses(launch: dict[str, int], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"BlockSum: .*{message}"):
        emulator.run_kernel("BlockSum", **launch)


@pytest.mark.parametrize("blocks", [1, 2])
def test_sound_kernels_pass(blocks: int) -> None:
    # Blocks run forwards and backwards by turns.
    total = sum(range(128)) + 128 * (blocks - 1)
    assert emulator.run_kernel("BlockSum", blocks=blocks) == [total] * 128
    assert emulator.run_kernel("EveryOperation", blocks=1) == [1] * 128
    assert emulator.run_kernel("ReadsAgainThenWrites", blocks=blocks) == [3] * 128


def test_goes_on_after_a_fault() -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError, match="race"):
            emulator.run_kernel("RaceWriteAfterWrite")
        assert emulator.run_kernel("BlockSum", blocks=1) == [sum(range(128))] * 128


def test_an_op_runs_its_cuda_kernel() -> None:
    emulator.launches()
    ops.segment_iou(torch.ones(3, 2), torch.ones(4, 2))
    assert emulator.launches() == ["segment_iou pairwise"]


@pytest.mark.parametrize("name", emulator.op_names())
def test_every_op_has_a_cuda_kernel(name: str) -> None:
    assert emulator.has_kernel(name)
