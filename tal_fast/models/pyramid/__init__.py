# SPDX-License-Identifier: Apache-2.0
"""What ActionFormer, TriDet and TemporalMaxer share.

A pyramid of temporal resolutions over a whole video; heads, the same for all levels, that rate
every row of every level (a point) and say how far the action around it reaches; targets, losses and
decoding of such points.
"""

from tal_fast.models.pyramid.config import PyramidClips, PyramidConfig, PyramidLoss, PyramidSizes
from tal_fast.models.pyramid.detector import PyramidDetector, PyramidOutput

__all__ = [
    "PyramidClips",
    "PyramidConfig",
    "PyramidDetector",
    "PyramidLoss",
    "PyramidOutput",
    "PyramidSizes",
]
