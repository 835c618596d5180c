# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import emulated as emulator
import pytest
import torch
from torch import Tensor

from tal_fast.ops import ragged_index
from tal_fast.reference.ragged_index import ragged_index as twin

LIKE = torch.empty(0)


@pytest.mark.parametrize(
    "counts",
    [
        [],
        [0],
        [1],
        [2, 0, 3],
        [0, 0, 127, 128, 0, 129, 1],
        [1] * 256,
        [1] * 257,
        [i % 3 for i in range(600)],
        [128 * 256 + 1, 2],  # more than the blocks of a group take at once
    ],
    ids=str,
)
def test_matches_twin(counts: list[int]) -> None:
    got = ragged_index(counts, LIKE)
    for ours, expected in zip(got, twin(counts), strict=True):
        assert ours.dtype == torch.int64
        assert torch.equal(ours, expected)


@pytest.mark.cuda_only
def test_launches(device: str) -> None:
    if device != "cuda-emulated":
        pytest.skip("about the emulator")
    emulator.launches()
    for groups, launches in ((0, 0), (1, 1), (256, 1), (257, 2)):
        ragged_index([1] * groups, LIKE)
        assert len(emulator.launches()) == launches


def test_any_tensor_says_the_device() -> None:
    for like in (torch.ones(2, 3, dtype=torch.bool), torch.ones(4, requires_grad=True)):
        got = ragged_index([1, 2], like)
        assert got.group.tolist() == [0, 1, 1]
        assert not got.first.requires_grad
    assert ragged_index([1, 2], torch.empty(0, device="meta")).group.shape == (3,)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad: bool) -> None:
    like = torch.ones(2, requires_grad=requires_grad)
    torch.library.opcheck(torch.ops.tal_fast.ragged_index, ([2, 0, 3], like))


def test_compile_fullgraph_compiles_once() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def owners(counts: list[int], like: Tensor) -> Tensor:
        return ragged_index(counts, like).group + 1

    first = 0
    for counts in ([3, 4], [5, 2], [6, 9]):
        assert torch.equal(owners(counts, LIKE), twin(counts)[0] + 1)
        first = first or counter.frame_count
    assert counter.frame_count == first


def test_errors() -> None:
    with pytest.raises(RuntimeError, match="ragged_index: expected counts >= 0, got -2"):
        ragged_index([1, -2], LIKE)
