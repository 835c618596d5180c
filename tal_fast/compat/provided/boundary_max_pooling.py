# SPDX-License-Identifier: Apache-2.0
"""``boundary_max_pooling_cuda``: the pooling of AFSD, which OpenTAD has as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tal_fast.ops  # noqa: F401  (defines the ops)
from tal_fast.compat.options import Options
from tal_fast.compat.reporting import Report

__all__ = ["functions"]


def functions(name: str, options: Options, report: Report) -> dict[str, Callable[..., Any]]:
    """Returns ``forward`` and ``backward``."""
    return {"forward": forward, "backward": backward}


def forward(input: Tensor, segments: Tensor) -> Tensor:
    """Returns the maxima over two ranges of rows per segment: ``Tensor[B, C, K]``.

    Args:
        input: Tensor[B, C, T] with an even C.
        segments: Tensor[B, K, 4] of rows.
    """
    return torch.ops.tal_fast.boundary_max_pool(input, _wide(segments), False, False)[0]


def backward(grad_output: Tensor, input: Tensor, segments: Tensor) -> Tensor:
    """Returns the gradient that the published kernel computes: ``Tensor[B, C, T]``.

    It takes K for T (``ops.boundary_max_pool`` says what that does), and published trainings ran
    with it. With K > T it writes outside its memory; there ours gives the right gradient.
    """
    rows = input.shape[2]
    as_published = segments.shape[1] <= rows
    argmax = torch.ops.tal_fast.boundary_max_pool(input, _wide(segments), True, as_published)[1]
    return torch.ops.tal_fast.boundary_max_pool_backward(grad_output, argmax, rows, as_published)


def _wide(segments: Tensor) -> Tensor:
    half = segments.dtype in (torch.float16, torch.bfloat16)
    return segments.float() if half else segments
