# SPDX-License-Identifier: Apache-2.0
"""TemporalMaxer (Tang et al., 2023)."""

from tal_fast.models.temporalmaxer.config import (
    TemporalMaxerConfig,
    TemporalMaxerLoss,
    TemporalMaxerSizes,
)
from tal_fast.models.temporalmaxer.network import TemporalMaxer

__all__ = ["TemporalMaxer", "TemporalMaxerConfig", "TemporalMaxerLoss", "TemporalMaxerSizes"]
