# SPDX-License-Identifier: Apache-2.0
"""Losses that the models share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["focal_loss"]


def focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss, element by element (Lin et al., ICCV 2017, equation 5).

    Args:
        logits: ``Tensor[...]``.
        targets: same shape, 1 for the class that is there and 0 elsewhere.
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: focusing exponent.

    Returns:
        ``Tensor[...]``, not reduced.
    """
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = probability + targets - 2 * probability * targets  # 1 - p of the true answer
    weight = (1 - alpha) + (2 * alpha - 1) * targets
    return weight * wrong**gamma * cross_entropy
