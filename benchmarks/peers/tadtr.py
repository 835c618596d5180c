# SPDX-License-Identifier: Apache-2.0
"""Single functions of the official TadTR (github.com/xlliu7/TadTR, commit 983ae14).

Its files unchanged, without the package around them; ``tadtr_training.py`` runs the whole model.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from peers import checkout, load_file

__all__ = ["deform_attn", "matching_cost"]

_CACHE: dict[str, types.ModuleType] = {}


def deform_attn(
    value: Tensor, level_lengths: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """Its ``grid_sample`` core as its module calls it: 1-D locations become points of an image.

    Raises:
        PeerMissingError: the checkout is not there.
    """
    if "attention" not in _CACHE:
        settings = types.ModuleType("opts")
        settings.cfg = None  # type: ignore[attr-defined]  # read by the module, not by its core
        path = checkout("TadTR") / "models/ops/temporal_deform_attn/temporal_deform_attn.py"
        _CACHE["attention"] = load_file(path, "peer_tadtr_attention", {"opts": settings})
    lengths = torch.tensor(level_lengths)
    shapes = torch.stack((torch.ones_like(lengths), lengths), -1)
    points = locations[..., None]
    points = torch.cat((points, torch.ones_like(points) * 0.5), -1)
    return _CACHE["attention"].deform_attn_core_pytorch(value, shapes, points, weights)


def matching_cost() -> Callable[[dict[str, Tensor], list[dict[str, Tensor]]], Tensor]:
    """Returns its matcher up to the cost matrix [B, Q, M]: its own code, the solver left out.

    Raises:
        PeerMissingError: the checkout is not there.
    """
    root = checkout("TadTR")
    module = load_file(root / "models/matcher.py", "peer_tadtr_matcher", search=root)
    blocks: list[Tensor] = []

    def no_assignment(cost: Any) -> tuple[list[int], list[int]]:
        blocks.append(cost)
        return [], []

    module.linear_sum_assignment = no_assignment  # type: ignore[attr-defined]
    matcher = module.HungarianMatcher(cost_class=6.0, cost_seg=5.0, cost_iou=2.0)

    def cost(outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        blocks.clear()
        matcher(outputs, targets)
        return torch.cat([block.flatten() for block in blocks])

    return cost
