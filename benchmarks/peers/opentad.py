# SPDX-License-Identifier: Apache-2.0
"""OpenTAD's eager formulas (github.com/sming256/OpenTAD): files that need torch alone."""

from __future__ import annotations

import types
from collections.abc import Sequence

import torch
from torch import Tensor

from peers import checkout, load_file

__all__ = ["deform_attn", "iou_tools"]


def iou_tools() -> types.ModuleType:
    """Returns its pairwise IoU and GIoU; rows are the second argument's segments.

    Raises:
        PeerMissingError: the checkout is not there.
    """
    return load_file(checkout("OpenTAD") / "opentad/models/utils/iou_tools.py", "peer_iou_tools")


def deform_attn(
    value: Tensor, level_lengths: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """Its ``grid_sample`` core, arguments as ``tal_fast.ops.deform_attn`` has them.

    The core gives exactly half of the sum that its formula names (it samples an image of width 1
    half a pixel outside); the benchmark verifies it against half of ours.

    Raises:
        PeerMissingError: the checkout is not there.
    """
    return _core()(value, torch.tensor(level_lengths), locations, weights)


_CACHE: dict[str, types.ModuleType] = {}


def _core() -> types.FunctionType:
    if "deformable" not in _CACHE:
        path = checkout("OpenTAD") / "opentad/models/transformer/layers/deformable.py"
        _CACHE["deformable"] = load_file(path, "peer_opentad_deformable")
    return _CACHE["deformable"].multi_scale_deformable_attn_pytorch
