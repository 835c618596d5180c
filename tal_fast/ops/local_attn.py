# SPDX-License-Identifier: Apache-2.0
"""Self-attention of every row among the rows near it.

Schema and checks are in ``csrc/ops/local_attn.cpp`` and ``.h``, the kernels in
``csrc/cpu/local_attn.cpp`` and ``csrc/cuda/local_attn.cuh``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
    of rows, where work grows with ``T * window``: on a CPU the backward computes the scores of the
    rows around each block of rows again, in scratch that grows with the square of the window. For
    windows of hundreds use ``torch.nn.functional.scaled_dot_product_attention``.

    Args:
        query: Tensor[B, T, H, D] of float64, float32, float16 or bfloat16. Read where it lies: it
            may be a view, such as ``x.unflatten(-1, (H, D))`` or a third of one projection.
        key: Tensor[B, T, H, D], dtype of ``query``.
        value: Tensor[B, T, H, D], dtype of ``query``.
        window: rows seen, at least 1; each side sees ``window // 2``, so an even window sees one
            more.
        mask: bool Tensor[B, T], True = padding: no row sees such a row, whatever it holds, its own
            result is 0, and it neither gets nor passes on a gradient.

    Returns:
        Tensor[B, T, H, D], contiguous, in the dtype of ``query``. float64 computes in float64,
        everything else in float32, rounded once. A row sees a NaN only within its window.

    Query, key and value are differentiable; nothing but them and the mask is kept for the backward,
    which computes the weights again. Forward and backward give the same bits on every run and with
    any number of threads; the instruction set (and the device) may change the last bits. There is
    no second derivative.

    Raises:
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
    out: Tensor = torch.ops.tal_fast.local_attn.default(query, key, value, window, mask)
    return out


@torch.library.register_fake("tal_fast::local_attn")
def _fake(query: Tensor, key: Tensor, value: Tensor, window: int, mask: Tensor | None) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.register_fake("tal_fast::local_attn_backward")
def _fake_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    mask: Tensor | None,
    needs_query: bool,
    needs_key: bool,
    needs_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    def empty(needed: bool) -> Tensor:
        return query.new_empty(query.shape if needed else (0,))

    return empty(needs_query), empty(needs_key), empty(needs_value)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, ctx.window, mask = inputs
    if any(ctx.needs_input_grad):
        ctx.save_for_backward(query, key, value, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:3]
    query, key, value, mask = ctx.saved_tensors
    grads = torch.ops.tal_fast.local_attn_backward.default(
        grad, query, key, value, ctx.window, mask, *needs
    )
    wanted = (g if needed else None for g, needed in zip(grads, needs, strict=True))
    return (*wanted, None, None)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("local_attn: second derivatives are not implemented")


torch.library.register_autograd("tal_fast::local_attn", _backward, setup_context=_setup_context)
torch.library.register_autograd("tal_fast::local_attn_backward", _no_second_derivative)
# No autocast rule: the inputs keep the dtype that the linear layers before gave them, and the
# kernels compute in float32.
