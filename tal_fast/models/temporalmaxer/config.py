# SPDX-License-Identifier: Apache-2.0
"""Settings of TemporalMaxer; the defaults are those of its recipe for THUMOS14."""

from __future__ import annotations

from typing import Any, Literal

from pydantic.dataclasses import dataclass

from tal_fast.models.base import STRICT, NonNegative
from tal_fast.models.pyramid.config import (
    PyramidConfig,
    PyramidLoss,
    PyramidSizes,
    doubling_ranges,
    epochs,
    small,
)

__all__ = [
    "GROUPS",
    "PRESETS",
    "TIMING",
    "TemporalMaxerConfig",
    "TemporalMaxerLoss",
    "TemporalMaxerSizes",
]

GROUPS = 4
"""Groups of channels that the neck normalises over all rows."""


@dataclass(frozen=True, config=STRICT)
class TemporalMaxerSizes(PyramidSizes):
    """Sizes of a TemporalMaxer.

    Attributes:
        neck: what normalises each level before the heads: ``groupnorm`` groups of channels over all
            rows, without weights; ``layernorm`` each row, with the same weights on all levels.
    """

    neck: Literal["groupnorm", "layernorm"] = "groupnorm"

    def __post_init__(self) -> None:
        """Checks what the sizes must fulfil together.

        Raises:
            ValueError: a kernel is even, or the groups do not divide the width.
        """
        super().__post_init__()
        if self.neck == "groupnorm" and self.width % GROUPS:
            raise ValueError(f"expected width to be a multiple of {GROUPS}, got {self.width}")


@dataclass(frozen=True, config=STRICT)
class TemporalMaxerLoss(PyramidLoss):
    """Targets and losses.

    Attributes:
        class_cost: weight of the focal loss in what an instance costs a point.
        diou_cost: weight of the DIoU loss in it.
    """

    class_cost: NonNegative = 1.0
    diou_cost: NonNegative = 2.0


@dataclass(frozen=True, config=STRICT)
class TemporalMaxerConfig(PyramidConfig):
    """All settings of TemporalMaxer.

    Attributes:
        model: sizes.
        loss: targets and losses.
    """

    model: TemporalMaxerSizes = TemporalMaxerSizes()
    loss: TemporalMaxerLoss = TemporalMaxerLoss()


def _epic(neck: str) -> dict[str, dict[str, Any]]:
    return {
        "model": {"neck": neck},
        "data": {"min_inside": 0.3},
        "loss": {"normaliser": 250.0, "ranges": doubling_ranges(6, overlapping=True)},
        "training": epochs(5, 32),
        "postprocess": {"nms_sigma": 0.4, "top_k": 5000, "max_detections": 2000},
    }


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # THUMOS14 with I3D features.
    "temporalmaxer": {},
    "temporalmaxer-small": small(width=256, head_width=256),
    # With the first half of the same features, those of RGB.
    "temporalmaxer-multithumos": {
        "model": {"embed_layers": 3, "neck": "layernorm"},
        "postprocess": {"top_k": 3000, "max_detections": 300},
    },
    "temporalmaxer-epic-verb": _epic("layernorm"),
    "temporalmaxer-epic-noun": _epic("groupnorm"),
}

TIMING = {
    "temporalmaxer": (30.0, 4.0),
    "temporalmaxer-multithumos": (30.0, 4.0),
    "temporalmaxer-epic-verb": (30.0, 16.0),
    "temporalmaxer-epic-noun": (30.0, 16.0),
}
"""Frames per second and frames between rows of the features that presets are made for."""
