# SPDX-License-Identifier: Apache-2.0
"""TriDet (Shi et al., CVPR 2023)."""

from tal_fast.models.tridet.config import TriDetConfig, TriDetLoss, TriDetSizes
from tal_fast.models.tridet.network import TriDet, TriDetOutput

__all__ = ["TriDet", "TriDetConfig", "TriDetLoss", "TriDetOutput", "TriDetSizes"]
