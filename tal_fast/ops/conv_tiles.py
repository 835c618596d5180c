# SPDX-License-Identifier: Apache-2.0
"""The transforms of a convolution of kernel 3 by minimal filtering, F(4, 3), over rows.

Winograd 1980; Lavin and Gray, CVPR 2016: four outputs of a convolution, a *tile*, are
``A^T ((G w) * (B^T x))`` of the six inputs x around them and the three weights w, with six products
instead of twelve. ``csrc/cpu/conv_tiles.h`` has the matrices. The points 0, ±2/3, ±3/2 and infinity
round least: 2.5 times as far from float64 as a direct convolution, where 0, ±1, ±2 are 3.7 times,
and F(2, 3), with eight products, 1.5 times.

The transforms are parts of a convolution on a CPU (``tal_fast.models.pyramid.convolution``), not
ops for users. They have no CUDA kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tal_fast.ops.registration import Tangents, register_autograd, register_no_flops

__all__ = ["rows_to_tiles", "tiles_to_rows", "tiles_to_weight", "weight_to_tiles"]

_TILE = 4  # rows of output
_PLANES = 6
# The points ±a and ±b, and what A and B leave to G.
_A, _B = 2 / 3, 3 / 2
_OF_A = 1 / (2 * _A**2 * (_A**2 - _B**2))
_OF_B = 1 / (2 * _B**2 * (_B**2 - _A**2))
_G = (
    (1.0, 0.0, 0.0),
    *((_OF_A, sign * _A * _OF_A, _A**2 * _OF_A) for sign in (1, -1)),
    *((_OF_B, sign * _B * _OF_B, _B**2 * _OF_B) for sign in (1, -1)),
    (0.0, 0.0, 1.0),
)


def rows_to_tiles(rows: Tensor, spans: Sequence[int], *, inputs: bool) -> Tensor:
    """Transforms the rows of each tile: B^T times inputs, or A times outputs.

    Args:
        rows: ``Tensor[R, C]``, float32 or float64.
        spans: four numbers for each run of outputs, in order: its first row, the one after its
            last, and the same of its clip, beyond which there is nothing. No row may be an input of
            two spans. A span of n rows has ceil(n / 4) tiles; outputs beyond its end count as zero.
        inputs: whether the rows are inputs of the convolution, else they are outputs.

    Returns:
        ``Tensor[6, N, C]`` of all N tiles.

    Raises:
        RuntimeError: on a wrong shape or dtype, or spans that are not as said.
    """
    tiles: Tensor = _rows_to_tiles(rows, spans, inputs)
    return tiles


def tiles_to_rows(tiles: Tensor, spans: Sequence[int], rows: int, *, inputs: bool) -> Tensor:
    """The transpose of :func:`rows_to_tiles`: A^T to outputs, or B to inputs, summed over tiles.

    Args:
        tiles: ``Tensor[6, N, C]``, float32 or float64.
        spans: see :func:`rows_to_tiles`.
        rows: R.
        inputs: see :func:`rows_to_tiles`.

    Returns:
        ``Tensor[R, C]``, 0 on rows of no span.

    Raises:
        RuntimeError: on a wrong shape or dtype, or spans that are not as said.
    """
    out: Tensor = _tiles_to_rows(tiles, spans, rows, inputs)
    return out


def weight_to_tiles(weight: Tensor) -> Tensor:
    """Transforms weights: G times ``Tensor[D, C, 3]`` gives ``Tensor[6, D, C]``."""
    transform = torch.tensor(_G, dtype=weight.dtype)
    return torch.mm(transform, weight.reshape(-1, 3).t()).view(_PLANES, *weight.shape[:2])


def tiles_to_weight(tiles: Tensor) -> Tensor:
    """The transpose of :func:`weight_to_tiles`: ``Tensor[6, D, C]`` gives ``Tensor[D, C, 3]``."""
    transform = torch.tensor(_G, dtype=tiles.dtype)
    return torch.mm(transform.t(), tiles.flatten(1)).view(3, *tiles.shape[1:]).permute(1, 2, 0)


@torch.library.register_fake("tal_fast::rows_to_tiles")
def _fake_tiles(rows: Tensor, spans: Sequence[int], inputs: bool) -> Tensor:
    count = sum(
        -(-(end - first) // _TILE) for first, end in zip(spans[::4], spans[1::4], strict=True)
    )
    return rows.new_empty(_PLANES, count, rows.shape[1])


@torch.library.register_fake("tal_fast::tiles_to_rows")
def _fake_rows(tiles: Tensor, spans: Sequence[int], rows: int, inputs: bool) -> Tensor:
    return tiles.new_empty(rows, tiles.shape[2])


# Both are linear, and each is the other's transpose.


def _setup_tiles(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, ctx.spans, ctx.inputs = inputs
    ctx.rows = rows.shape[0]


def _of_tiles(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return tiles_to_rows(grad, ctx.spans, ctx.rows, inputs=ctx.inputs), None, None


def _tangent_of_tiles(
    output: Tensor, tangents: Tangents, rows: Tensor, spans: Sequence[int], inputs: bool
) -> Tensor | None:
    return None if tangents[0] is None else rows_to_tiles(tangents[0], spans, inputs=inputs)


def _setup_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.spans, _, ctx.inputs = inputs


def _of_rows(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return rows_to_tiles(grad, ctx.spans, inputs=ctx.inputs), None, None, None


def _tangent_of_rows(
    output: Tensor, tangents: Tangents, tiles: Tensor, spans: Sequence[int], rows: int, inputs: bool
) -> Tensor | None:
    return None if tangents[0] is None else tiles_to_rows(tangents[0], spans, rows, inputs=inputs)


_rows_to_tiles = register_autograd(
    "rows_to_tiles", _of_tiles, setup_context=_setup_tiles, jvp=_tangent_of_tiles
)
_tiles_to_rows = register_autograd(
    "tiles_to_rows", _of_rows, setup_context=_setup_rows, jvp=_tangent_of_rows
)
# No autocast rule: the convolution that they are part of takes another way there.

# Additions and factors of elements alone, as element-wise ops, which count 0.
register_no_flops("rows_to_tiles", "tiles_to_rows")
