# SPDX-License-Identifier: Apache-2.0
"""From the sizes of the groups of a ragged batch to indices on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors
from tal_fast.ops.registration import register_autograd, register_no_flops

__all__ = ["RaggedIndex", "ragged_index"]


class RaggedIndex(NamedTuple):
    """Where the M items of B groups, one group after the other, belong.

    Attributes:
        group: int64 Tensor[M], the group of every item.
        first: int64 Tensor[B], the first item of every group; for an empty one where it would be.
    """

    group: Tensor
    first: Tensor


def ragged_index(counts: Sequence[int], like: Tensor) -> RaggedIndex:
    """Tells the group of every item and the first item of every group.

    What ``repeat_interleave`` and an exclusive ``cumsum`` of a tensor of counts give, from host
    integers and without a copy: on CUDA they travel as kernel parameters, so that nothing waits and
    the call can be captured in a graph. Instances of the videos of a batch are such items.

    Args:
        counts: items of each of B groups, host integers >= 0.
        like: any tensor on the device of the result.

    Returns:
        :class:`RaggedIndex` on the device of ``like``; no gradient.

    Raises:
        TypeError: ``like`` is no tensor.
        RuntimeError: on a negative count.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> ops.ragged_index([2, 0, 3], torch.empty(0))
        RaggedIndex(group=tensor([0, 0, 2, 2, 2]), first=tensor([0, 2, 2]))
    """
    check_tensors("ragged_index", like=like)
    return RaggedIndex(*_op(counts, like))


@torch.library.register_fake("tal_fast::ragged_index")
def _fake(counts: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    return (
        like.new_empty((sum(counts),), dtype=torch.int64),
        like.new_empty((len(counts),), dtype=torch.int64),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output)


def _no_gradient(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("ragged_index: indices have no gradient")


_op = register_autograd("ragged_index", _no_gradient, setup_context=_setup_context)
register_no_flops("ragged_index")
