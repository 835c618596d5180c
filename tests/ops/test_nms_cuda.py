# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of the NMS family: the bits of the CPU kernels, on every path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import emulated as emulator
import pytest
import torch
from nms_cases import groups, hostile, make, spread
from torch import Tensor
from torch.utils import _pytree as pytree

from tal_fast import ops
from tal_fast.ops.nms import METHODS, WEIGHTS

# The fixture of all tests of ops must not redirect: here both kernels run, one after the other.
pytestmark = pytest.mark.cpu_only

CUDA = {"cuda-emulated": emulator.emulated}
if torch.cuda.is_available():
    CUDA["cuda"] = emulator.on_gpu


@pytest.fixture(params=CUDA)
def same_bits(request) -> Callable[[Callable[[], Any]], Any]:
    """Runs a call with the CPU kernels and with those for CUDA, and compares."""
    if request.param == "cuda-emulated" and not emulator.LIBRARY.exists():
        pytest.skip("no emulated CUDA kernels: run `make build`")

    def compare(call: Callable[[], Any]) -> Any:
        expected = call()
        with CUDA[request.param]():
            found = call()
        leaves = pytree.tree_leaves(found), pytree.tree_leaves(expected)
        for ours, theirs in zip(*leaves, strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            if ours.is_floating_point():  # also the sign of zeros
                ours, theirs = (
                    x.contiguous().view(
                        {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize]
                    )
                    for x in (ours, theirs)
                )
            assert torch.equal(ours, theirs)
        return found

    return compare


@pytest.fixture
def launches():
    """Names the kernels since the last call; of the emulated ones alone."""
    if not emulator.LIBRARY.exists():
        pytest.skip("no emulated CUDA kernels: run `make build`")
    emulator.launches()
    return emulator.launches


def equal_scores(n: int) -> tuple[Tensor, Tensor]:
    segments, _ = spread(n, clustered=True, seed=n)
    scores = torch.tensor([0.5, 0.25, 0.0, -0.0])[torch.arange(n) % 4]
    return segments, scores


CASES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "clustered": lambda n: spread(n, clustered=True, seed=n, span=20 + n / 10),
    "sparse": lambda n: spread(n, clustered=False, seed=n, span=100.0 * n),
    "ties": lambda n: make(n, ties=True, seed=n),
    "equal scores": equal_scores,
    "hostile": lambda n: hostile(n, seed=n),
    "one place": lambda n: (torch.tensor([[5.0, 7.0]]).repeat(n, 1), make(n, seed=n)[1]),
    "nested": lambda n: (
        torch.stack((torch.arange(n) * 1.0, 2.0 * n + 1 - torch.arange(n)), dim=1),
        make(n, seed=n)[1],
    ),
    "far": lambda n: (spread(n, clustered=True)[0] + 1e6, spread(n, clustered=True)[1]),
    "infinite scores": lambda n: (
        spread(n, clustered=True, seed=n)[0],
        torch.tensor([math.inf, 1.0, 0.5, math.inf])[torch.arange(n) % 4],
    ),
}
# Around a warp, a block, a tile of candidates and a tile of a scan.
SIZES = (1, 2, 31, 33, 255, 257, 1023, 1024, 1025)

# ---- hard ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_hard_has_the_bits_of_the_cpu(same_bits, name):
    for n in SIZES:
        segments, scores = CASES[name](n)
        for threshold, comparison, limit in ((0.5, "ge", None), (0.1, "gt", 40), (0.0, "ge", None)):
            same_bits(
                lambda: ops.nms(
                    *(segments, scores, threshold),  # noqa: B023
                    iou_comparison=comparison,  # noqa: B023
                    length_eps=1e-6,
                    max_segments=limit,  # noqa: B023
                    validate=False,
                )
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_hard_in_every_type(same_bits, dtype):
    for n in (33, 1025):
        segments, scores = (x.to(dtype) for x in spread(n, clustered=True))
        same_bits(lambda: ops.nms(segments, scores, 0.5))  # noqa: B023


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [257, 288, 289, 1000])
def test_a_list_goes_by_its_pairs(same_bits, launches, n, dtype):
    """Around whole words; limits that end in the first word, within one and behind all."""
    segments, scores = (x.to(dtype) for x in spread(n, clustered=True, seed=n))
    scores[5:9] = scores[4]
    kept = same_bits(lambda: ops.nms(segments, scores, 0.3))
    used = launches()
    if used:  # a GPU does not say
        assert used.count("nms hard, pairs") == used.count("nms hard, scan of the pairs") == 1
    for limit in (1, 33, len(kept) - 1, len(kept), n):
        first = same_bits(lambda: ops.nms(segments, scores, 0.3, max_segments=limit))  # noqa: B023
        assert torch.equal(first, kept[:limit])
    options = {"iou_threshold": 0.3, "max_segments": None, "spare_first": True}
    for least in (0.5, 0.999, 2.0):
        same_bits(
            lambda: ops.soft_nms(segments, scores, "hard", min_score=least, **options)  # noqa: B023
        )


def test_a_chain_settles_one_by_one(same_bits):
    """Each segment suppresses the next in rank: of every word all turns are needed."""
    start = torch.arange(300.0)
    segments, scores = torch.stack((start, start + 1.9), 1), torch.linspace(1, 0, 300)
    kept = same_bits(lambda: ops.nms(segments, scores, 0.3))
    assert kept.tolist() == list(range(0, 300, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [4096, 4097, 5121])
def test_large_problems_go_tile_by_tile(same_bits, launches, n, dtype):
    segments, scores = (x.to(dtype) for x in spread(n, clustered=True, seed=n))
    kept = same_bits(lambda: ops.nms(segments, scores, 0.3, iou_comparison="ge"))
    used = launches()
    if used:  # a GPU does not say
        tiles = math.ceil(n / 1024) if n > 4096 else 0
        assert used.count("nms hard, tile by tile") == tiles
        assert used.count("nms hard, scan of the pairs") == (0 if tiles else 1)
    for limit in (1, len(kept) - 1, len(kept) + 1):
        first = same_bits(lambda: ops.nms(segments, scores, 0.3, max_segments=limit))  # noqa: B023
        assert len(first) == min(limit, len(ops.nms(segments, scores, 0.3)))


def test_large_problems_with_a_least_score(same_bits):
    segments, scores = spread(4500, clustered=True)
    options = {"iou_threshold": 0.4, "max_segments": None, "spare_first": True}
    for least in (0.0, 0.5, 0.99, 2.0):
        kept, _ = same_bits(
            lambda: ops.soft_nms(segments, scores, "hard", min_score=least, **options)  # noqa: B023
        )
        assert len(kept) >= 1
    none = same_bits(lambda: ops.soft_nms(segments, scores, "hard", 0.5, 0.4, 2.0, None))
    assert len(none[0]) == 0


# ---- soft ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS[1:])
def test_soft_has_the_bits_of_the_cpu(same_bits, method, name):
    for n in (1, 33, 255, 257):
        segments, scores = CASES[name](n)
        for limit, comparison in ((None, "gt"), (20, "ge")):
            same_bits(
                lambda: ops.soft_nms(
                    *(segments, scores, method, 0.3, 0.2, 0.01, limit),  # noqa: B023
                    iou_comparison=comparison,  # noqa: B023
                    t1=0.1,
                    t2=0.01,
                    length_eps=1e-6,
                    validate=False,
                )
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS[1:])
def test_soft_in_every_type(same_bits, method, dtype):
    segments, scores = (x.to(dtype) for x in spread(300, clustered=True))
    for sigma in (0.5, 0.002):
        same_bits(lambda: ops.soft_nms(segments, scores, method, sigma, min_score=0.0))  # noqa: B023


# Candidates in the shared memory of a block, and, with less of it, in global memory.
@pytest.mark.parametrize("shared", [227 * 1024, 20_000])
def test_candidates_join_late(same_bits, launches, shared):
    # Several hundred picks before the last ones may be the highest, which then catch up with all.
    segments, scores = spread(1500, clustered=True, span=60.0)
    with emulator.shared_memory(shared):
        for limit in (1, 100, 400):
            same_bits(lambda: ops.soft_nms(segments, scores, max_segments=limit))  # noqa: B023
    used = launches()
    assert not used or used.count("nms soft, a warp per problem") == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shared", [227 * 1024, 20_000])
def test_soft_problems_of_every_place(same_bits, shared, dtype):
    # A warp has 256 candidates in shared memory, with less of it 160 or 96; a block eight or nine
    # times as many; a problem of more has them in global memory.
    sizes = (1, 32, 33, 90, 96, 97, 160, 161, 250, 256, 257, 770, 2310)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    segments, scores = (x.to(dtype) for x in spread(len(labels), clustered=True, span=400.0))
    ties = (scores * 40).round() / 40
    with emulator.shared_memory(shared):
        for ranks in (scores, ties):
            same_bits(
                lambda: ops.batched_nms(
                    *(segments, ranks, labels),  # noqa: B023
                    method="gaussian",
                    min_score=0.0,
                    max_per_class=60,
                )
            )


# ---- batched -------------------------------------------------------------------------------------

BATCHED = [
    {"method": "hard", "min_score": 0.05},
    {"method": "gaussian", "min_score": 0.05, "max_segments": 30, "spare_first": True},
    {"method": "linear", "max_per_class": 5, "max_segments": 12, "voting_threshold": 0.5},
    {"method": "hard", "per_class": False, "voting_threshold": 0.7, "voting_weight": "score_iou"},
]


@pytest.mark.parametrize("options", BATCHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batched_has_the_bits_of_the_cpu(same_bits, dtype, options):
    for n, kinds, owners in ((40, 3, 2), (1030, 7, 3), (200, 200, 1)):
        segments, scores = (x.to(dtype) for x in make(n, ties=True, seed=n))
        labels, videos = groups(n, kinds), groups(n, owners, seed=2) * 10**12 - 5
        for of in (videos, None) if n < 1000 else (videos,):
            same_bits(
                lambda: ops.batched_nms(segments, scores, labels, of, **options)  # noqa: B023
            )


@pytest.mark.parametrize("options", BATCHED)
def test_what_does_not_fit_into_a_block_is_sorted_by_torch(same_bits, launches, options):
    segments, scores = make(1500, ties=True)
    labels, videos = groups(1500, 5), groups(1500, 4, seed=2)
    sorts = 3 if "voting_threshold" in options else 2
    for shared, in_one_block in ((227 * 1024, sorts), (20_000, 0)):
        with emulator.shared_memory(shared):
            same_bits(lambda: ops.batched_nms(segments, scores, labels, videos, **options))
        used = launches()
        if used:
            assert used.count("row order, one block") == in_one_block
            assert ("row order, fold" in used) == (in_one_block == 0)
    large = spread(4200, clustered=True)
    same_bits(lambda: ops.batched_nms(*large, groups(4200, 30), groups(4200, 9), **options))
    assert "row order, one block" not in launches()


def test_one_sort_where_groups_and_score_fit_into_a_number(same_bits, launches):
    n = 1200
    segments, scores = make(n, ties=True)
    labels, videos = groups(n, 9), groups(n, 4, seed=2)

    def sorts(dtype: torch.dtype, of: Tensor | None, num_videos: int | None) -> int:
        inputs = segments.to(dtype), scores.to(dtype), labels, of
        with emulator.shared_memory(20_000):  # too little for one block
            if num_videos is None:
                same_bits(lambda: ops.batched_nms(*inputs, max_segments=50))
            else:
                padded = {"num_videos": num_videos, "max_segments": 2, "method": "hard"}
                same_bits(lambda: ops.batched_nms_padded(*inputs, **padded))
        return launches().count("row order, fold")

    # That of the ranks and that of what is kept.
    assert sorts(torch.float32, videos, 4) in (0, 2)  # a GPU does not say
    assert sorts(torch.float32, None, None) in (0, 2)
    # Videos may be any numbers, or too many for 63 bits: a sort of their own.
    assert sorts(torch.float32, videos, None) in (0, 2)
    assert sorts(torch.float32, videos, 2**19 + 1) in (0, 3)
    # A score of 64 bits is sorted by alone.
    assert sorts(torch.float64, videos, 4) in (0, 2)
    assert sorts(torch.float64, videos, None) in (0, 2)


@pytest.mark.parametrize("kinds", ["ends", "distinct", "same hash"])
def test_labels_may_be_any_numbers(same_bits, kinds):
    n = 1200
    segments, scores = make(n, ties=True)
    numbers = {
        "ends": torch.tensor([-(2**63), -1, 0, 2**63 - 1])[groups(n, 4)],
        "distinct": torch.arange(n) * 2**50 - 2**60,
        # The product with the hash's factor is small, so all begin at one place of the table.
        "same hash": groups(n, 300) * (pow(0x9E3779B97F4A7C15, -1, 2**64) - 2**64),
    }[kinds]
    videos = torch.tensor([2**63 - 1, -5, -(2**63)])[groups(n, 3, seed=3)]
    with emulator.shared_memory(20_000):
        for of in (None, videos):
            same_bits(lambda: ops.batched_nms(segments, scores, numbers, of, max_segments=99))  # noqa: B023
            same_bits(
                lambda: ops.batched_nms(
                    *(segments, scores, numbers, of),  # noqa: B023
                    method="linear",
                    voting_threshold=0.5,
                )
            )


def test_one_list_is_sorted_by_one_number(same_bits, launches):
    for n in (1, 2, 3, 64, 127, 128, 129, 511, 513, 2000, 4096):
        segments, _ = spread(n, clustered=False, span=1e5)
        scores = torch.tensor([0.5, -1.0, math.inf, 0.0, -0.0])[groups(n, 5)]
        same_bits(lambda: ops.nms(segments, scores, 0.9))  # noqa: B023
        assert launches()[1:2] in ([], ["row order, one list"])


def test_more_problems_than_blocks(same_bits):
    # 528 blocks on the device that is emulated.
    n = 1300
    segments, scores = spread(n, clustered=True)
    labels = torch.arange(n) // 2
    for method in ("hard", "linear"):
        result = same_bits(
            lambda: ops.batched_nms(segments, scores, labels, method=method)  # noqa: B023
        )
        assert len(result.indices) > n // 2
    same_bits(lambda: ops.batched_nms(segments, scores, labels, labels, voting_threshold=0.2))


def test_groups_at_the_ends_of_their_type(same_bits):
    segments, scores = make(60, ties=True)
    numbers = torch.tensor([-(2**63), -1, 2**63 - 1])[groups(60, 3)]
    same_bits(lambda: ops.batched_nms(segments, scores, numbers, numbers, max_segments=3))
    same_bits(lambda: ops.batched_nms(segments, scores, numbers.int(), max_segments=3))


# ---- voting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_voting_has_the_bits_of_the_cpu(same_bits, dtype, weight):
    for n, k in ((0, 3), (1, 1), (7, 5), (9, 9), (900, 170), (4100, 60)):
        segments, scores = (x.to(dtype) for x in spread(n, clustered=True, seed=n))
        kept = spread(k, clustered=True, seed=n)[0].to(dtype)
        kept[k // 2, 1] = kept[k // 2, 0]
        for threshold in (0.05, 0.6, 1.0):
            same_bits(
                lambda: ops.segment_voting(kept, segments, scores, threshold, weight)  # noqa: B023
            )


def test_voting_of_equal_starts_and_signed_zeros(same_bits):
    # Votes are added by start and, of equal ones, by row: -0 and 0 are equal.
    n = 300
    scores = make(n)[1]
    start = torch.tensor([0.0, -0.0, 1e-3, -1e-3])[torch.arange(n) % 4]
    segments = torch.stack((start, 5.0 + 0.01 * torch.arange(n)), dim=1)
    kept = same_bits(lambda: ops.segment_voting(segments, segments, scores, 0.5, "score_iou"))
    assert not torch.equal(kept, segments)


# ---- what stays on the GPU -----------------------------------------------------------------------

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_graph_captures_what_has_a_fixed_size(method):
    segments, scores = (x.cuda() for x in spread(5000, clustered=True))
    labels = groups(5000, 20).cuda()

    def call():
        return (
            ops.batched_nms_padded(
                segments, scores, labels, max_segments=100, method=method, voting_threshold=0.7
            ),
            ops.nms_padded(segments, scores, 0.5, 100),
            ops.soft_nms_padded(segments, scores, method),
        )

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    segments += 3.0
    scores.copy_(scores.flip(0))
    graph.replay()
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(*map(pytree.tree_leaves, (captured, expected)), strict=True):
        assert torch.equal(ours, theirs)


@gpu
def test_exact_sizes_refuse_to_be_captured():
    segments, scores = (x.cuda() for x in spread(100, clustered=True))
    ops.nms(segments, scores, 0.5)
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(RuntimeError, match=r"nms: expected no CUDA graph capture.*use nms_padded"),
        torch.cuda.graph(graph),
    ):
        ops.nms(segments, scores, 0.5)


@gpu
def test_the_same_bits_twenty_times():
    segments, scores = (x.cuda() for x in spread(20_000, clustered=True))
    labels = groups(20_000, 50).cuda()
    options = {"method": "gaussian", "voting_threshold": 0.6, "max_segments": 500}
    first = ops.batched_nms(segments, scores, labels, **options)
    for _ in range(20):
        again = ops.batched_nms(segments, scores, labels, **options)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
