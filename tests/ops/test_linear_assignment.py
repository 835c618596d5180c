# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from typing import Any

import emulated as emulator
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tal_fast.ops import LinearAssignment, linear_assignment
from tal_fast.reference.linear_assignment import linear_assignment as twin

INF = float("inf")


def make(
    shapes: list[tuple[int, int]], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, list[int], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    costs = torch.randn(sum(r * c for r, c in shapes), generator=generator, dtype=dtype)
    return costs, [r for r, _ in shapes], [c for _, c in shapes]


def matrices(costs: Tensor, rows: list[int], columns: list[int]) -> list[Tensor]:
    parts = costs.split([r * c for r, c in zip(rows, columns, strict=True)])
    return [part.view(r, c) for part, r, c in zip(parts, rows, columns, strict=True)]


def by_scipy(costs: Tensor, rows: list[int], columns: list[int]) -> LinearAssignment:
    found: list[list[np.ndarray]] = [[], [], []]
    for p, matrix in enumerate(matrices(costs, rows, columns)):
        row, column = linear_sum_assignment(matrix.numpy())
        for place, part in zip(found, (np.full(len(row), p), row, column), strict=True):
            place.append(part)
    empty = np.zeros(0, dtype=np.int64)
    return LinearAssignment(
        *(torch.from_numpy(np.concatenate([empty, *part]).astype(np.int64)) for part in found)
    )


def check_equal(ours: LinearAssignment, expected: LinearAssignment) -> None:
    for name in LinearAssignment._fields:
        mine = getattr(ours, name)
        assert mine.dtype == torch.int64
        assert torch.equal(mine, getattr(expected, name)), name


def totals(costs: Tensor, rows: list[int], columns: list[int], got: LinearAssignment) -> Tensor:
    return torch.stack(
        [
            matrix.double()[got.row[got.problem == p], got.column[got.problem == p]].sum()
            for p, matrix in enumerate(matrices(costs, rows, columns))
        ]
    )


SHAPES = {
    "none": [],
    "one": [(1, 1)],
    "empty": [(0, 0), (0, 5), (5, 0), (3, 2), (0, 1)],
    "single": [(1, 9), (9, 1), (1, 1)],
    "matcher": [(40, 1 + i % 12) for i in range(64)],
    "wide": [(1 + i % 12, 40) for i in range(33)],
    "odd": [(r, c) for r in (1, 2, 3, 7, 8, 9, 17) for c in (1, 2, 3, 7, 8, 9, 17)],
    "large": [(120, 90), (64, 130), (100, 100)],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_is_scipys_on_untied_costs(shapes: list[tuple[int, int]], dtype: torch.dtype) -> None:
    for seed in range(3):
        problem = make(shapes, dtype, seed)
        check_equal(linear_assignment(*problem), by_scipy(*problem))


def test_is_scipys_where_rows_compete() -> None:
    # Nearly the same costs in every row: long augmenting paths.
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 12), (12, 40), (30, 30)] * 10
    parts = [
        torch.rand(1, c, generator=generator, dtype=torch.float64)
        + 1e-3 * torch.rand(r, c, generator=generator, dtype=torch.float64)
        for r, c in shapes
    ]
    problem = torch.cat([part.reshape(-1) for part in parts]), *map(list, zip(*shapes, strict=True))
    check_equal(linear_assignment(*problem), by_scipy(*problem))  # type: ignore[arg-type]


def test_every_optimum_is_an_optimum_by_trying_all() -> None:
    # Small integers: many ties, and exact sums.
    generator = torch.Generator().manual_seed(0)
    shapes = [(r, c) for r in range(1, 5) for c in range(1, 6)] * 6
    size = sum(r * c for r, c in shapes)
    costs = torch.randint(-2, 3, (size,), generator=generator).double()
    rows, columns = [r for r, _ in shapes], [c for _, c in shapes]
    got = linear_assignment(costs, rows, columns)
    for p, (_, optima) in enumerate(twin(costs, rows, columns)):
        mine = got.problem == p
        pairs = zip(got.row[mine].tolist(), got.column[mine].tolist(), strict=True)
        assert tuple(pairs) in optima


def test_objective_is_scipys_on_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 12), (12, 40), (30, 30)] * 5
    rows, columns = [r for r, _ in shapes], [c for _, c in shapes]
    size = sum(r * c for r, c in shapes)
    costs = torch.randint(4, (size,), generator=generator).float()
    ours = totals(costs, rows, columns, linear_assignment(costs, rows, columns))
    theirs = totals(costs, rows, columns, by_scipy(costs, rows, columns))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("r", "c"), [(4, 4), (3, 7), (7, 3), (1, 9), (9, 1)])
def test_equal_costs_give_the_diagonal(r: int, c: int) -> None:
    got = linear_assignment([torch.full((r, c), 2.5)])
    assert got.row.tolist() == got.column.tolist() == list(range(min(r, c)))


def test_tie_rule() -> None:
    # Row 0 takes column 1, as near as column 2 and lower. Row 1 finds it taken and column 2 as near
    # and free.
    costs = torch.tensor([[5.0, 1.0, 1.0], [5.0, 1.0, 1.0]])
    assert linear_assignment([costs]).column.tolist() == [1, 2]
    # As many rows as columns, and the smaller side when there are fewer columns.
    assert linear_assignment([costs.T.contiguous()]).row.tolist() == [1, 2]
    # Row 1 can have column 1 only when row 0 moves: to column 2, the lower of two as near.
    costs = torch.tensor([[9.0, 1.0, 2.0, 2.0], [9.0, 1.0, 9.0, 9.0]])
    assert linear_assignment([costs]).column.tolist() == [2, 1]


def test_forbidden_pairs() -> None:
    costs = torch.tensor([[INF, 1.0, INF], [0.0, 0.5, INF], [INF, 0.0, 7.0]])
    got = linear_assignment([costs, costs[:2], costs[:, :2]])
    assert got.column.tolist() == [1, 0, 2, 1, 0, 0, 1]
    assert got.row.tolist() == [0, 1, 2, 0, 1, 1, 2]
    generator = torch.Generator().manual_seed(0)
    shapes = [(20, 9), (9, 20), (14, 14)] * 4
    problem = make(shapes)
    problem[0][torch.rand(len(problem[0]), generator=generator) < 0.5] = INF
    check_equal(linear_assignment(*problem), by_scipy(*problem))


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e12, 1e300])
def test_any_scale(scale: float) -> None:
    costs, rows, columns = make([(12, 7), (7, 12)])
    check_equal(
        linear_assignment(costs * scale, rows, columns), by_scipy(costs * scale, rows, columns)
    )


def test_a_constant_on_a_row_changes_nothing() -> None:
    (matrix,) = matrices(*make([(8, 11)]))
    shifted = matrix + torch.arange(8.0, dtype=torch.float64)[:, None]
    check_equal(linear_assignment([shifted]), linear_assignment([matrix]))


def test_permuting_the_columns_permutes_the_answer() -> None:
    (matrix,) = matrices(*make([(8, 11)]))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    got = linear_assignment([matrix[:, order]])
    assert torch.equal(order[got.column], linear_assignment([matrix]).column)


def test_problems_do_not_see_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (2, 9), (6, 6), (40, 12)]
    parts = [torch.randint(3, shape, generator=generator).float() for shape in shapes]
    together = linear_assignment(parts)
    for p, part in enumerate(parts):
        alone = linear_assignment([part])
        assert torch.equal(together.row[together.problem == p], alone.row)
        assert torch.equal(together.column[together.problem == p], alone.column)


def test_a_sequence_of_matrices() -> None:
    costs, rows, columns = make(SHAPES["odd"], torch.float32)
    expected = linear_assignment(costs, rows, columns)
    parts = matrices(costs, rows, columns)
    check_equal(linear_assignment(parts), expected)
    strided = [part.T.contiguous().T for part in parts]
    check_equal(linear_assignment(tuple(strided)), expected)
    assert linear_assignment([]).row.shape == (0,)


def test_one_row_count_for_all() -> None:
    for columns in ([], [3], [3, 0, 9, 5]):
        costs, rows, _ = make([(7, c) for c in columns])
        check_equal(linear_assignment(costs, 7, columns), linear_assignment(costs, rows, columns))


def test_any_stride() -> None:
    costs, rows, columns = make([(7, 5), (3, 4)])
    spread = torch.stack((costs, torch.full_like(costs, torch.nan)), dim=1)[:, 0]
    check_equal(linear_assignment(spread, rows, columns), linear_assignment(costs, rows, columns))


def test_same_on_every_run_and_thread_count(thread_counts: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = [40] * 200, [1 + i % 20 for i in range(200)]
    costs = torch.randint(5, (40 * sum(columns),), generator=generator).float()
    seen = []
    for threads, _ in itertools.product(thread_counts, range(3)):
        torch.set_num_threads(threads)
        seen.append(linear_assignment(costs, rows, columns))
    for other in seen[1:]:
        check_equal(other, seen[0])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad: bool) -> None:
    for dtype in (torch.float64, torch.float32):
        costs, rows, columns = make([(4, 3), (0, 2), (1, 6)], dtype)
        costs.requires_grad_(requires_grad)
        torch.library.opcheck(torch.ops.tal_fast.linear_assignment, (costs, rows, columns))
        torch.library.opcheck(torch.ops.tal_fast.linear_assignment, (costs, [2], [3, 0, 6]))


def test_compile_fullgraph_compiles_once() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def pick(costs: Tensor, rows: list[int], columns: list[int]) -> Tensor:
        got = linear_assignment(costs, rows, columns)
        return got.row * 100 + got.column + got.problem

    first = 0
    for shapes in ([(5, 3), (4, 6)], [(7, 2), (5, 9)], [(9, 4), (3, 8)]):
        problem = make(shapes)
        got = linear_assignment(*problem)
        assert torch.equal(pick(*problem), got.row * 100 + got.column + got.problem)
        first = first or counter.frame_count
    assert counter.frame_count == first


def test_autocast_widens() -> None:
    costs, rows, columns = make([(5, 3)], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_assignment(costs.bfloat16(), rows, columns)
    check_equal(got, linear_assignment(costs.bfloat16().float(), rows, columns))


@pytest.mark.parametrize(
    ("costs", "rows", "columns", "message"),
    [
        (torch.ones(2, 3), [2], [3], r"costs of shape .* got \[2, 3\]"),
        (torch.ones(6).half(), [2], [3], "costs of dtype float64 or float32, got float16"),
        (torch.ones(6).long(), [2], [3], "costs of dtype float64 or float32, got int64"),
        (torch.ones(6), [2, 1], [3], "as many row_counts as column_counts, got 2 and 1"),
        (torch.ones(6), [2], [2, 1], "as many row_counts as column_counts, got 1 and 2"),
        (torch.ones(6), [1, -2], [0, 3], r"counts >= 0, got problem 1 of \[-2, 3\]"),
        (torch.ones(6), [2, 1], [3, 1], "expected 7 costs, .* got 6"),
        (torch.ones(6), None, None, "expected row_counts and column_counts, got None"),
        (torch.ones(6), torch.tensor([2]), [3], "row_counts as host integers, got a tensor"),
        (torch.ones(6), [2], torch.tensor([3]), "column_counts as host integers, got a tensor"),
        ([torch.ones(2, 3)], [2], [3], "no row_counts and column_counts beside a sequence"),
        ([torch.ones(2, 3), torch.ones(2)], None, None, r"\[r, c\], got \[2\] for problem 1"),
    ],
)
def test_errors(costs: Any, rows: Any, columns: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"linear_assignment: .*{message}"):
        linear_assignment(costs, rows, columns)


# Costs without an answer: how the CPU says so, and the matches on a GPU.
UNSOLVABLE = [
    (
        torch.tensor([1.0, 2, 3, 4, torch.nan, 6]),
        [1, 2],
        [2, 2],
        "NaN or -inf, got nan in problem 1 at row 1, column 0",
        ([0, 1, 1], [0, -1, -1], [0, -1, -1]),
    ),
    (
        torch.tensor([1.0, 2, 3, 4, 5, -INF]),
        [3],
        [2],
        "NaN or -inf, got -inf in problem 0 at row 2, column 1",
        ([0, 0], [-1, -1], [-1, -1]),
    ),
    (
        torch.tensor([0.0, INF, INF]),
        [1, 1],
        [1, 2],
        "problem 1 is infeasible",
        ([0, 1], [0, -1], [0, -1]),
    ),
    (
        torch.tensor([1.0, INF, 2.0, INF]),
        [2],
        [2],
        "problem 0 is infeasible",
        ([0, 0], [-1, -1], [-1, -1]),
    ),
]


@pytest.mark.cpu_only
@pytest.mark.parametrize(("costs", "rows", "columns", "message", "matches"), UNSOLVABLE)
def test_costs_without_an_answer_raise(
    costs: Tensor, rows: list[int], columns: list[int], message: str, matches: Any
) -> None:
    with pytest.raises(RuntimeError, match=f"linear_assignment: .*{message}"):
        linear_assignment(costs, rows, columns)


@pytest.mark.cuda_only
@pytest.mark.parametrize("limit", [10**6, 16])
@pytest.mark.parametrize(("costs", "rows", "columns", "message", "matches"), UNSOLVABLE)
def test_costs_without_an_answer_give_minus_one_on_a_gpu(
    costs: Tensor, rows: list[int], columns: list[int], message: str, matches: Any, limit: int
) -> None:
    with emulator.shared_memory(limit):
        got = linear_assignment(costs, rows, columns)
    assert tuple(field.tolist() for field in got) == matches


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("limit", [10**6, 16])  # of shared memory, in bytes: both kernels
def test_same_matches_on_every_device(limit: int, dtype: torch.dtype) -> None:
    # Around warps, slots of a lane and the larger side that a warp takes; few values: many ties.
    sizes = (1, 5, 31, 32, 33, 63, 64, 65) if limit > 16 else (1, 6, 33, 65)
    shapes = [*itertools.product(sizes, sizes), (127, 9), (9, 128), (129, 9), (9, 130)]
    generator = torch.Generator().manual_seed(0)
    size = sum(r * c for r, c in shapes)
    rows, columns = [r for r, _ in shapes], [c for _, c in shapes]
    for costs in (
        torch.randint(4, (size,), generator=generator),
        torch.randn(size, generator=generator, dtype=torch.float64),
        torch.where(torch.rand(size, generator=generator) < 0.02, INF, torch.arange(size) % 7),
    ):
        flat = costs.to(dtype)
        with emulator.shared_memory(limit):
            emulator.assert_same_bits(lambda flat=flat: linear_assignment(flat, rows, columns))


@pytest.mark.cpu_only
def test_same_matches_of_large_problems_on_every_device() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 511), (512, 4), (4, 513), (1100, 3)]  # a block has 512 threads
    for parts in (
        [torch.randint(3, shape, generator=generator).float() for shape in shapes],
        [torch.randn(shape, generator=generator) for shape in shapes],
    ):
        emulator.assert_same_bits(lambda parts=parts: linear_assignment(parts))


@pytest.mark.cuda_only
def test_kernel_by_size(device: str) -> None:
    if device != "cuda-emulated":
        pytest.skip("about the emulator")

    def launches(*shapes: tuple[int, int]) -> list[str]:
        emulator.launches()
        linear_assignment(*make(list(shapes)))
        return [name.removeprefix("linear_assignment, ") for name in emulator.launches()]

    assert launches() == launches((0, 3), (3, 0)) == []
    assert launches((128, 128)) == launches((3, 128), (5, 0), (64, 2)) == ["warp"]
    assert launches((129, 2)) == launches((2, 129)) == ["block"]
    assert launches((129, 2), (2, 2), (2, 129)) == ["warp", "block"]
    assert launches(*[(3, 2)] * 240) == ["warp"]
    assert launches(*[(3, 2)] * 241) == ["warp", "warp"]
    assert launches(*[(129, 1)] * 65) == ["block", "block"]
    with emulator.shared_memory(8 * 41 * 4 + 64):  # costs, potentials and matches of 4 x 40
        assert launches((40, 4), (40, 5)) == ["warp", "block"]


@pytest.mark.cuda_only
def test_more_problems_than_a_launch_takes() -> None:
    rows, columns = [3] * 500, [1 + i % 4 for i in range(500)]
    costs = torch.randn(3 * sum(columns), generator=torch.Generator().manual_seed(0))
    check_equal(linear_assignment(costs, rows, columns), by_scipy(costs, rows, columns))


def test_the_op_itself_checks_the_number_of_counts() -> None:
    with pytest.raises(RuntimeError, match=r"one row count for all .* got 2 and 3"):
        torch.ops.tal_fast.linear_assignment(torch.ones(6), [1, 1], [2, 2, 2])
