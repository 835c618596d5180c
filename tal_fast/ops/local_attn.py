# SPDX-License-Identifier: Apache-2.0
"""Self-attention of every row among the rows near it.

Schema and checks are in ``csrc/ops/local_attn.cpp`` and ``.h``, the kernels in
``csrc/cpu/local_attn.cpp`` and ``csrc/cuda/local_attn.cuh``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tal_fast.ops.arguments import check_tensors
from tal_fast.ops.registration import (
    Tangents,
    make_dual,
    register_autograd,
    register_flops,
    register_no_second_derivative,
    unpack_dual,
)

__all__ = ["local_attn"]


def local_attn(
    query: Tensor, key: Tensor, value: Tensor, window: int, mask: Tensor | None = None
) -> Tensor:
    r"""Attends from each row to the rows within half a window of it.

    The attention of ActionFormer (Zhang, Wu, Li, ECCV 2022, section 3.2) without its convolutions
    and linear layers, in one call forward and one backward:

    .. math:: out_{th} = \sum_{|s - t| \le \lfloor window / 2 \rfloor}
              \operatorname{softmax}_s(q_{th} \cdot k_{sh} / \sqrt D) \, v_{sh}

    over the rows s that are inside the video and no padding. There are no chunks, T need not be a
    multiple of anything, and a window wider than the video sees all of it. Made for windows of tens
    of rows, where work grows with ``T * window``: on a CPU each block of rows also looks at half a
    window of rows on either side. For windows of hundreds use
    ``torch.nn.functional.scaled_dot_product_attention``.

    Args:
        query: Tensor[B, T, H, D] of float64, float32, float16 or bfloat16. Read where it lies: it
            may be a view, such as ``x.unflatten(-1, (H, D))`` or a third of one projection.
        key: Tensor[B, T, H, D], dtype of ``query``.
        value: Tensor[B, T, H, D], dtype of ``query``.
        window: rows seen, any number from 1 on: the row itself and ``window // 2`` on either side.
            Odd numbers say how many that are; an even one is the same as the next odd one (18 sees
            19 rows), as in ActionFormer's code. 1 sees the row alone.
        mask: bool Tensor[B, T], True = padding: no row sees such a row, whatever it holds, its own
            result is 0, and it neither gets nor passes on a gradient.

    Returns:
        Tensor[B, T, H, D], contiguous, in the dtype of ``query``. float64 computes in float64,
        everything else in float32, rounded once. A row sees a NaN only within its window, and an
        infinite number likewise: it gives what the formula gives, where a score of minus infinity
        is a weight of zero.

    Query, key and value are differentiable. Kept for the backward are they, the mask and, on a CPU
    where that is no more than the result (``window <= D``), the weights of the softmax; otherwise
    the backward computes these again, with the same bits. Forward and backward give the same bits
    on every run and with any number of threads; the instruction set (and the device) may change the
    last bits. Forward mode (``torch.func.jvp``) is composed of torch's own ops. There is no second
    derivative.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: for a wrong shape or dtype, or a window less than 1.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> value = torch.arange(6.0).view(1, 6, 1, 1)
        >>> same = torch.zeros_like(value)  # equal scores: a mean over the window
        >>> padding = torch.tensor([[False, False, False, False, False, True]])
        >>> ops.local_attn(same, same, value, 3, padding).flatten()
        tensor([0.5000, 1.0000, 2.0000, 3.0000, 3.5000, 0.0000])
    """
    check_tensors("local_attn", query=query, key=key, value=value, mask=mask, optional="mask")
    wanted = query.requires_grad or key.requires_grad or value.requires_grad
    with_weights = wanted and torch.is_grad_enabled() and window <= query.shape[-1]
    out: Tensor = _op(query, key, value, window, mask, with_weights)[0]
    return out


@torch.library.register_fake("tal_fast::local_attn")
def _fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    mask: Tensor | None,
    with_weights: bool,
) -> tuple[Tensor, Tensor]:
    kept: tuple[Any, ...] = (0,)
    if with_weights and query.device.type == "cpu":  # a GPU computes them again
        batch, rows, heads, _ = query.shape
        half = torch.sym_min(window // 2, torch.sym_max(rows - 1, 0))
        kept = (batch, rows, heads, 2 * half + 1)
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty(kept, dtype=dtype)


@torch.library.register_fake("tal_fast::local_attn_backward")
def _fake_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor | None,
    window: int,
    mask: Tensor | None,
    needs_query: bool,
    needs_key: bool,
    needs_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    def empty(needed: bool) -> Tensor:
        return query.new_empty(query.shape if needed else (0,))

    return empty(needs_query), empty(needs_key), empty(needs_value)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, ctx.window, mask, with_weights = inputs
    weights = output[1] if with_weights else None
    ctx.mark_non_differentiable(output[1])
    if any(ctx.needs_input_grad):
        ctx.save_for_backward(query, key, value, weights, mask)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:3]
    query, key, value, weights, mask = ctx.saved_tensors
    grads = _op_backward(grad, query, key, value, weights, ctx.window, mask, *needs)
    wanted = (g if needed else None for g, needed in zip(grads, needs, strict=True))
    return (*wanted, None, None, None)


def _jvp(
    output: tuple[Tensor, Tensor],
    tangents: Tangents,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    mask: Tensor | None,
    with_weights: bool,
) -> tuple[Tensor | None, None]:
    # The op is a composition, so its tangent is what comes out of that when tangents go in.
    dtype = torch.promote_types(query.dtype, torch.float32)
    if mask is None:
        mask = torch.zeros(query.shape[:2], dtype=torch.bool, device=query.device)
    padding = mask[:, :, None, None]
    query, key, value = (
        make_dual(tensor, tangent).to(dtype).masked_fill(padding, 0)
        for tensor, tangent in zip((query, key, value), tangents[:3], strict=True)
    )
    half = window // 2
    seen = ~F.pad(mask, (half, half), value=True).unfold(1, 2 * half + 1, 1)  # [B, T, W]
    keys, values = (
        F.pad(tensor, (0, 0, 0, 0, half, half)).unfold(1, 2 * half + 1, 1)  # [B, T, H, D, W]
        for tensor in (key, value)
    )
    scores = (query[..., None] * keys).sum(-2) / math.sqrt(query.shape[-1])  # [B, T, H, W]
    # Rows of padding see nothing; their weights are dropped below, whatever they are.
    scores = scores.masked_fill(~(seen | mask[..., None])[:, :, None], -math.inf)
    composed = (values * scores.softmax(-1)[:, :, :, None]).sum(-1).masked_fill(padding, 0)
    return unpack_dual(composed.to(output[0].dtype))[1], None


_op = register_autograd("local_attn", _backward, setup_context=_setup_context, jvp=_jvp)
_op_backward = register_no_second_derivative("local_attn")
# No autocast rule: the inputs keep the dtype that the linear layers before gave them, and the
# kernels compute in float32.


def _product(query: Sequence[int], window: int) -> int:
    """Returns the FLOPs of a product of each row with the rows that it sees."""
    return 2 * math.prod(query) * min(2 * (window // 2) + 1, query[1])


@register_flops("local_attn")
def _flops(query: Sequence[int], key: Any, value: Any, window: int, *_: Any, **__: Any) -> int:
    return 2 * _product(query, window)


@register_flops("local_attn_backward")
def _flops_backward(
    grad: Any,
    query: Sequence[int],
    key: Any,
    value: Any,
    weights: Any,
    window: int,
    mask: Any,
    needs_query: bool,
    needs_key: bool,
    needs_value: bool,
    **__: Any,
) -> int:
    of_scores = needs_query or needs_key
    return (of_scores + needs_query + needs_key + needs_value) * _product(query, window)
