# SPDX-License-Identifier: Apache-2.0
"""CUDA ops for deformable attention of other projects, where they are importable.

All but DiGIT's sample images; a sequence is an image of height 1 and every sample lies at its
middle. Adding that coordinate is outside what is timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from peers import PeerMissingError

__all__ = ["PEERS", "Prepared"]

#: What is timed: value, locations and weights to the output; the rest is bound before.
Prepared = Callable[[Tensor, Tensor, Tensor], Tensor]

# A batch is processed in steps of so many samples; all of it at once is the ops' fastest setting.
_STEP = 64


def _images(level_lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor(level_lengths, device=device)
    starts = lengths.cumsum(0) - lengths
    return torch.stack((torch.ones_like(lengths), lengths), -1), starts


def _at_half_height(locations: Tensor) -> Tensor:
    x = locations[..., None]
    return torch.cat((x, torch.full_like(x, 0.5)), -1)


def _import(module: str, name: str) -> object:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, OSError) as error:
        raise PeerMissingError(f"{module}.{name}: {error}") from error


def mmcv(level_lengths: Sequence[int], device: torch.device) -> Prepared:
    """The op of mmcv, fp32 and fp16 (mmcv.ops)."""
    function = _import("mmcv.ops.multi_scale_deform_attn", "MultiScaleDeformableAttnFunction")
    shapes, starts = _images(level_lengths, device)
    return lambda value, points, weights: function.apply(  # type: ignore[attr-defined]
        value, shapes, starts, points, weights, _STEP
    )


def deformable_detr(level_lengths: Sequence[int], device: torch.device) -> Prepared:
    """Deformable DETR's op, fp32 (its functions folder on the path)."""
    function = _import("functions.ms_deform_attn_func", "MSDeformAttnFunction")
    shapes, starts = _images(level_lengths, device)
    return lambda value, points, weights: function.apply(  # type: ignore[attr-defined]
        value, shapes, starts, points, weights, _STEP
    )


def deformops(level_lengths: Sequence[int], device: torch.device) -> Prepared:
    """The op of deformops 3 (TMLR 2026), the backend that it chooses itself."""
    function = _import("deformops.registry", "msda")
    shapes, starts = _images(level_lengths, device)
    return lambda value, points, weights: function(  # type: ignore[operator]
        value, shapes, starts, points, weights
    )


def digit(level_lengths: Sequence[int], device: torch.device) -> Prepared:
    """DiGIT's 1-D op, fp32 (CVPR 2025; its models/digit/ops folder on the path)."""
    function = _import("functions.ms_temporal_deform_attn_func", "MSDeformAttnFunction")
    lengths = torch.tensor(level_lengths, device=device)
    starts = lengths.cumsum(0) - lengths
    return lambda value, points, weights: function.apply(  # type: ignore[attr-defined]
        value, lengths, starts, points, weights, _STEP
    )


#: name -> (adapter, locations as it takes them)
PEERS: dict[
    str,
    tuple[Callable[[Sequence[int], torch.device], Prepared], Callable[[Tensor], Tensor]],
] = {
    "mmcv, H = 1": (mmcv, _at_half_height),
    "Deformable-DETR, H = 1": (deformable_detr, _at_half_height),
    "deformops, H = 1": (deformops, _at_half_height),
    "DiGIT": (digit, lambda locations: locations[..., None]),
}
