# SPDX-License-Identifier: Apache-2.0
"""``grid_sample1d_cuda``: sampling between rows, of React and other detectors.

It is ``torch.nn.functional.grid_sample`` in one dimension: of an image of height 1, read at that
height. So it is put together of torch's own kernels, which run on a CPU as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tal_fast.compat.options import Options
from tal_fast.compat.reporting import Report

__all__ = ["functions"]

_LINEAR, _ZEROS, _BORDER = 0, 0, 1  # as torch numbers them


def functions(name: str, options: Options, report: Report) -> dict[str, Callable[..., Any]]:
    """Returns ``forward`` and ``backward``."""
    return {"forward": forward, "backward": backward}


def forward(input: Tensor, grid: Tensor, padding_mode: bool, align_corners: bool) -> Tensor:
    """Returns the samples: ``Tensor[B, C, Q]``.

    Args:
        input: Tensor[B, C, T].
        grid: Tensor[B, Q], -1 and 1 being the ends.
        padding_mode: what lies outside has the value of the border, else zero.
        align_corners: the ends are the middles of the outer rows, else their outer edges.

    Raises:
        RuntimeError: a shape is wrong.
    """
    _check(input, grid)
    padding = _BORDER if padding_mode else _ZEROS
    found: Tensor = torch.ops.aten.grid_sampler_2d(
        input.unsqueeze(2), _of_height_one(grid), _LINEAR, padding, align_corners
    )
    return found.squeeze(2)


def backward(
    grad_output: Tensor, input: Tensor, grid: Tensor, padding_mode: bool, align_corners: bool
) -> list[Tensor]:
    """Returns the gradients for ``input`` and ``grid``."""
    _check(input, grid)
    of_input, of_grid = torch.ops.aten.grid_sampler_2d_backward(
        grad_output.unsqueeze(2),
        input.unsqueeze(2),
        _of_height_one(grid),
        _LINEAR,
        _BORDER if padding_mode else _ZEROS,
        align_corners,
        [True, True],
    )
    return [of_input.squeeze(2), of_grid[:, 0, :, 0]]


def _of_height_one(grid: Tensor) -> Tensor:
    return torch.stack([grid, torch.zeros_like(grid)], dim=-1).unsqueeze(1)  # [B, 1, Q, 2]


def _check(input: Tensor, grid: Tensor) -> None:
    if input.dim() != 3 or grid.dim() != 2 or input.shape[0] != grid.shape[0]:
        raise RuntimeError(
            "grid_sample1d_cuda: expected input of shape [B, C, T] and grid of shape [B, Q], "
            f"got {list(input.shape)} and {list(grid.shape)}"
        )
