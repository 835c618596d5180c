# SPDX-License-Identifier: Apache-2.0
"""The extensions of deformable attention: Deformable-DETR's and PDVC's, DiGIT's, TadTR's of 2021.

``MultiScaleDeformableAttention`` is two-dimensional: levels of height 1 are rows, others are
computed with ``grid_sample`` and counted. ``MultiScaleTemporalDeformableAttention`` and
``TemporalDeformableAttention`` have lengths and locations (…, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tal_fast import ops
from tal_fast.compat.attention import (
    attend_in_two_dimensions,
    row_slope,
    row_weight,
    widths_of_rows,
)
from tal_fast.compat.options import Options
from tal_fast.compat.reporting import Report

__all__ = ["functions"]


def functions(name: str, options: Options, report: Report) -> dict[str, Callable[..., Any]]:
    """Returns the forward and the backward under the names that the module has for them."""

    def forward(
        value: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        sampling_loc: Tensor,
        attn_weight: Tensor,
        im2col_step: int,
    ) -> Tensor:
        shapes = spatial_shapes.tolist()
        widths = shapes if spatial_shapes.dim() == 1 else widths_of_rows(shapes)
        if widths is None:
            report.add("fell back", f"{name}.forward", _HIGH).count()
            return attend_in_two_dimensions(value, shapes, sampling_loc, attn_weight)
        x, weights = _of_rows(sampling_loc, attn_weight)
        return ops.deform_attn(value, widths, x, weights)

    def backward(
        value: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        sampling_loc: Tensor,
        attn_weight: Tensor,
        grad_output: Tensor,
        im2col_step: int,
    ) -> list[Tensor]:
        shapes = spatial_shapes.tolist()
        widths = shapes if spatial_shapes.dim() == 1 else widths_of_rows(shapes)
        if widths is None:
            report.add("fell back", f"{name}.backward", _HIGH).count()
            return _grads_in_two_dimensions(value, shapes, sampling_loc, attn_weight, grad_output)
        x, weights = _of_rows(sampling_loc, attn_weight)
        of_value, of_x, of_weights = torch.ops.tal_fast.deform_attn_backward(
            grad_output, value, widths, x, weights, True, True
        )
        if sampling_loc.shape[-1] == 1:
            return [of_value, of_x.unsqueeze(-1).to(sampling_loc.dtype), of_weights]
        y = sampling_loc[..., 1]
        of_y = of_weights * attn_weight * row_slope(y)
        of_locations = torch.stack([of_x.to(of_y.dtype), of_y], dim=-1).to(sampling_loc.dtype)
        return [of_value, of_locations, of_weights * row_weight(y)]

    prefix = "temporal" if name == "TemporalDeformableAttention" else "ms"
    return {f"{prefix}_deform_attn_forward": forward, f"{prefix}_deform_attn_backward": backward}


_HIGH = "a level is higher than one row: grid_sample"


def _of_rows(locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Returns x and the weights with what the heights take off them."""
    x = locations[..., 0]
    if x.dtype != torch.float64:
        x = x.float()
    if locations.shape[-1] == 1:
        return x, weights
    return x, weights * row_weight(locations[..., 1])


def _grads_in_two_dimensions(
    value: Tensor, shapes: list[list[int]], locations: Tensor, weights: Tensor, grad: Tensor
) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in (value, locations, weights)]
    with torch.enable_grad():
        out = attend_in_two_dimensions(inputs[0], shapes, inputs[1], inputs[2])
    return list(torch.autograd.grad(out, inputs, grad))
