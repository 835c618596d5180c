# SPDX-License-Identifier: Apache-2.0
"""Many small linear assignment problems in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors, renamed
from tal_fast.ops.registration import register_autocast, register_autograd, register_no_flops

__all__ = ["LinearAssignment", "linear_assignment"]


class LinearAssignment(NamedTuple):
    """Matched pairs of all problems: problem after problem, rows ascending within each.

    A problem of r rows and c columns has min(r, c) of them.

    Attributes:
        problem: int64 Tensor[K], the index of the problem.
        row: int64 Tensor[K], the row within its problem.
        column: int64 Tensor[K], the column matched with it.
    """

    problem: Tensor
    row: Tensor
    column: Tensor


def linear_assignment(
    costs: Tensor | Sequence[Tensor],
    row_counts: int | Sequence[int] | None = None,
    column_counts: Sequence[int] | None = None,
) -> LinearAssignment:
    """Matches rows and columns one to one at least total cost, for many problems at once.

    Exact: shortest augmenting paths in float64 (Jonker and Volgenant 1987, as described by Crouse,
    IEEE TAES 52, 2016), O(min(r, c)² max(r, c)) for one problem; problems are solved in parallel.
    Where one assignment alone is optimal, the result is that of
    ``scipy.optimize.linear_sum_assignment``.

    Ties: the smaller side (the rows, if equal) enters in the order of its index, each by a shortest
    augmenting path; among the nearest members of the other side the search goes on with the free
    one of lowest index, or when none of them is free with the lowest index. So the result depends
    on the costs alone: neither on the number of threads nor on the instruction set nor on other
    problems. If all costs are equal, row i gets column i.

    Args:
        costs: Tensor[sum of r * c], the matrices one after the other, each row after row, as
            :func:`tal_fast.ops.matching_cost` returns them; float32 or float64. +inf forbids a
            pair. Or a sequence of Tensor[r, c], then without the two counts.
        row_counts: r of each problem, host integers >= 0, or one for all problems (which costs less
            to hand over than many).
        column_counts: c of each problem, host integers >= 0. Both are integers and no tensors
            because the size of the result follows from them: it is known without looking at data,
            to a caller as to ``torch.compile``.

    Returns:
        :class:`LinearAssignment` on the device of ``costs``; no gradient. The same on every device.
        On CUDA nothing waits for the GPU, so that the call can be captured in a graph; problems of
        up to 128 rows and columns are solved by a warp each, larger ones by a block.

    Raises:
        TypeError: costs are no tensors.
        RuntimeError: on a wrong shape or dtype, counts that are negative or do not fit ``costs``, a
            cost that is NaN or -inf (problem and place are named), or a problem without an
            assignment of finite cost (named). The last two depend on data, which a GPU does not
            wait to show: on CUDA the matches of such a problem have row and column -1 instead.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> costs = torch.tensor([4.0, 1.0, 3.0, 2.0, 0.0, 5.0])  # [[4, 1, 3], [2, 0, 5]]
        >>> ops.linear_assignment(costs, [2], [3]).column
        tensor([1, 0])
        >>> ops.linear_assignment(costs, 2, [1, 2]).column  # [[4], [1]] and [[3, 2], [0, 5]]
        tensor([0, 1, 0])
        >>> ops.linear_assignment([costs.view(2, 3), costs.view(3, 2)])
        LinearAssignment(problem=tensor([0, 0, 1, 1]), row=tensor([0, 1, 0, 2]), \
column=tensor([1, 0, 1, 0]))
    """
    if isinstance(costs, Sequence):
        matrices: dict[str, Any] = {f"costs[{p}]": matrix for p, matrix in enumerate(costs)}
        check_tensors("linear_assignment", **matrices)
        if row_counts is not None or column_counts is not None:
            raise RuntimeError(
                "linear_assignment: expected no row_counts and column_counts beside a sequence of "
                "matrices, whose shapes say them"
            )
        costs, row_counts, column_counts = _flatten(costs)
    check_tensors("linear_assignment", costs=costs)
    if row_counts is None or column_counts is None:
        raise RuntimeError("linear_assignment: expected row_counts and column_counts, got None")
    given: dict[str, object] = {"row_counts": row_counts, "column_counts": column_counts}
    for name, counts in given.items():
        if isinstance(counts, Tensor):
            raise RuntimeError(
                f"linear_assignment: expected {name} as host integers, got a tensor: "
                "call its tolist()"
            )
    if not isinstance(column_counts, Sequence):
        raise TypeError(
            "linear_assignment: expected column_counts to be a sequence of integers, got "
            f"{type(column_counts).__name__}"
        )
    if isinstance(row_counts, Sequence):
        if len(row_counts) != len(column_counts):
            raise RuntimeError(
                "linear_assignment: expected as many row_counts as column_counts, got "
                f"{len(row_counts)} and {len(column_counts)}"
            )
    else:
        row_counts = [row_counts]
    try:
        return LinearAssignment(*_op(costs, row_counts, column_counts))
    except RuntimeError as error:
        both = "row_counts and column_counts"
        raise renamed(error, "linear_assignment", "linear_assignment", counts=both) from None


def _flatten(matrices: Sequence[Tensor]) -> tuple[Tensor, list[int], list[int]]:
    for p, matrix in enumerate(matrices):
        if matrix.dim() != 2:
            raise RuntimeError(
                f"linear_assignment: expected matrices of shape [r, c], got {list(matrix.shape)} "
                f"for problem {p}"
            )
    if not matrices:
        return torch.empty(0, dtype=torch.float32, device="cpu"), [], []
    flat = torch.cat([matrix.reshape(-1) for matrix in matrices])
    return flat, [matrix.shape[0] for matrix in matrices], [matrix.shape[1] for matrix in matrices]


@torch.library.register_fake("tal_fast::linear_assignment")
def _fake(
    costs: Tensor, row_counts: Sequence[int], column_counts: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    if len(row_counts) == 1:
        row_counts = [row_counts[0]] * len(column_counts)
    matches = sum(torch.sym_min(r, c) for r, c in zip(row_counts, column_counts, strict=True))
    problem, row, column = (costs.new_empty((matches,), dtype=torch.int64) for _ in range(3))
    return problem, row, column


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output)


def _no_gradient(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("linear_assignment: indices have no gradient")


_op = register_autograd("linear_assignment", _no_gradient, setup_context=_setup_context)
# 16-bit costs tie far too often to be taken as they are, but under autocast a matrix product may
# have made them.
register_autocast("linear_assignment")
register_no_flops("linear_assignment")
