# SPDX-License-Identifier: Apache-2.0
"""Batches of windows from features that are in memory already, on a CPU or a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors
from tal_fast.ops.registration import register_autograd, register_no_flops

__all__ = ["gather_windows"]


def gather_windows(
    store: Tensor,
    first_row: Tensor,
    rows: Tensor,
    length: int,
    dtype: torch.dtype | None = None,
    channels_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Copies windows of a ragged store into a padded batch, in one pass.

    The store holds the rows of all videos one after the other, so a video is a range of rows and a
    window is another one within it. For features that fit into the memory of a GPU a batch is one
    kernel, which reads each row once, widens it (a store of float16 costs half the memory and half
    the time) and, if asked to, transposes it on the way::

        features[b, t] = store[first_row[b] + t]        mask[b, t] = False       t < rows[b]
        features[b, t] = 0                              mask[b, t] = True        rows[b] <= t

    Args:
        store: Tensor[R, C] of float64, float32, float16 or bfloat16, contiguous (a copy of the
            whole store in every call would be a surprise).
        first_row: int64 Tensor[B] on the device of ``store``: the row where each window begins.
        rows: int64 Tensor[B] on that device: how many rows it has, in [0, length].
        length: rows of every window in the batch.
        dtype: of the features; None: that of ``store``. One that cannot hold all values of
            ``store`` is refused: rounding belongs where it can be seen, before the store is made.
        channels_first: features as [B, C, length], as 1-D convolutions read them.

    Returns:
        ``features``, Tensor[B, length, C] (or [B, C, length]) of ``dtype``, and ``mask``, bool
        Tensor[B, length], True where there is no row (padding), as in
        :class:`tal_fast.data.FeatureLoader`. Exact. Both are new and contiguous. There is no
        gradient, and forward AD is refused: features are data.

    Raises:
        TypeError: an argument is no tensor, or ``dtype`` no dtype.
        RuntimeError: on wrong shapes, dtypes or devices, a store that is not contiguous, or a
            negative length; on a CPU also if a window is not within the store or ``length`` (it is
            named). A GPU cannot say so without waiting for it: there every row that does not exist,
            in the window or in the store, is padding, and nothing outside the store is read.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> store = torch.arange(12, dtype=torch.float16).view(6, 2)
        >>> features, mask = ops.gather_windows(
        ...     store, torch.tensor([1, 4]), torch.tensor([3, 2]), length=3, dtype=torch.float32
        ... )
        >>> features
        tensor([[[ 2.,  3.],
                 [ 4.,  5.],
                 [ 6.,  7.]],
        <BLANKLINE>
                [[ 8.,  9.],
                 [10., 11.],
                 [ 0.,  0.]]])
        >>> mask
        tensor([[False, False, False],
                [False, False,  True]])
    """
    check_tensors("gather_windows", store=store, first_row=first_row, rows=rows)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"gather_windows: expected dtype to be a torch.dtype, got {dtype!r}")
    features, mask = _op(
        store, first_row, rows, length, store.dtype if dtype is None else dtype, channels_first
    )
    return features, mask


@torch.library.register_fake("tal_fast::gather_windows")
def _fake(
    store: Tensor,
    first_row: Tensor,
    rows: Tensor,
    length: int,
    dtype: torch.dtype,
    channels_first: bool = False,
) -> tuple[Tensor, Tensor]:
    batch, channels = first_row.shape[0], store.shape[1]
    shape = (batch, channels, length) if channels_first else (batch, length, channels)
    return store.new_empty(shape, dtype=dtype), store.new_empty((batch, length), dtype=torch.bool)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
    return (None,) * 6


_op = register_autograd("gather_windows", _backward, setup_context=_setup_context)
# No autocast rule: the caller names the dtype.
register_no_flops("gather_windows")
