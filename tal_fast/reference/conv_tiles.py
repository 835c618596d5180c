# SPDX-License-Identifier: Apache-2.0
"""Transforms of minimal filtering tile by tile, the twin of ``tal_fast.ops.conv_tiles``."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# What each of a tile's values is multiplied by: polynomials at 0, ±a, ±b and infinity (Winograd
# 1980). Row p of `EVALUATED` are the powers of point p; row p of `INTERPOLATED` the coefficients of
# the product of (x - q) over all other points q.
POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)


def _evaluated() -> Tensor:
    """A: ``Tensor[6, 4]``."""
    powers = [[point**power for power in range(4)] for point in POINTS]
    return torch.tensor([*powers, [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)


def _interpolated() -> Tensor:
    """B^T: ``Tensor[6, 6]``."""
    rows = []
    for left_out in (*POINTS, None):
        product = [1.0]
        for point in POINTS:
            if point != left_out:
                shifted, scaled = [0.0, *product], [*(-point * c for c in product), 0.0]
                product = [a + b for a, b in zip(shifted, scaled, strict=True)]
        rows.append([*product, *[0.0] * (6 - len(product))])
    return torch.tensor(rows, dtype=torch.float64)


def _tiles(spans: Sequence[int], inputs: bool) -> Iterator[tuple[int, range, int, int]]:
    """Yields number, rows, and what of these rows the span has, of each tile."""
    number = 0
    for first, end, low, high in zip(*[iter(spans)] * 4, strict=True):
        for start in range(first, end, 4):
            if inputs:
                yield number, range(start - 1, start + 5), max(first - 1, low), min(end + 1, high)
            else:
                yield number, range(start, start + 4), first, end
            number += 1


def rows_to_tiles(rows: Tensor, spans: Sequence[int], *, inputs: bool) -> Tensor:
    """Copies the rows of one tile at a time, zeros where there are none, and transforms them."""
    matrix = _interpolated() if inputs else _evaluated()
    tiles = []
    for _, seen, low, high in _tiles(spans, inputs):
        own = torch.zeros(len(seen), rows.shape[1], dtype=torch.float64)
        for at, row in enumerate(seen):
            if low <= row < high:
                own[at] = rows[row].double()
        tiles.append(matrix @ own)
    if not tiles:
        return rows.new_zeros(6, 0, rows.shape[1])
    return torch.stack(tiles, dim=1).to(rows.dtype)


def tiles_to_rows(tiles: Tensor, spans: Sequence[int], rows: int, *, inputs: bool) -> Tensor:
    """Transforms one tile at a time and adds it to its rows."""
    matrix = _interpolated() if inputs else _evaluated()
    out = torch.zeros(rows, tiles.shape[2], dtype=torch.float64)
    for number, seen, low, high in _tiles(spans, inputs):
        own = matrix.t() @ tiles[:, number].double()
        for at, row in enumerate(seen):
            if low <= row < high:
                out[row] += own[at]
    return out.to(tiles.dtype)
