# SPDX-License-Identifier: Apache-2.0
"""ActionFormer (Zhang et al., ECCV 2022)."""

from tal_fast.models.actionformer.config import ActionFormerConfig, ActionFormerSizes
from tal_fast.models.actionformer.network import ActionFormer

__all__ = ["ActionFormer", "ActionFormerConfig", "ActionFormerSizes"]
