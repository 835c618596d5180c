# SPDX-License-Identifier: Apache-2.0
"""TadTR: temporal action detection with a transformer (Liu et al., TIP 2022)."""

from tal_fast.models.tadtr.config import TadTRClips, TadTRConfig, TadTRLoss, TadTRSizes
from tal_fast.models.tadtr.loss import TadTROutput
from tal_fast.models.tadtr.network import TadTR

__all__ = ["TadTR", "TadTRClips", "TadTRConfig", "TadTRLoss", "TadTROutput", "TadTRSizes"]
