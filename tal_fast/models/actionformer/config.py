# SPDX-License-Identifier: Apache-2.0
"""Settings of ActionFormer; the defaults are those of its recipe for THUMOS14."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from tal_fast.errors import counted
from tal_fast.models.base import STRICT, Positive, Share
from tal_fast.models.pyramid.config import (
    PyramidConfig,
    PyramidSizes,
    doubling_ranges,
    epochs,
    small,
)

__all__ = ["PRESETS", "TIMING", "ActionFormerConfig", "ActionFormerSizes"]


@dataclass(frozen=True, config=STRICT)
class ActionFormerSizes(PyramidSizes):
    """Sizes of an ActionFormer.

    Attributes:
        stem_layers: blocks before the pyramid.
        heads: attention heads; they divide ``width``.
        windows: rows that a query sees on each level, itself in the middle; an even number sees one
            more, and 1 or less all rows. One number for all levels, or one per level.
        mlp_ratio: hidden width of the feed-forward blocks, in widths.
        dropout: probability of zeroing an activation of the feed-forward blocks.
        drop_path: probability of leaving out a branch of a block; 0 also leaves out its scale.
    """

    stem_layers: Annotated[int, Field(ge=0)] = 2
    heads: Positive = 4
    windows: tuple[int, ...] = (19,)
    mlp_ratio: Positive = 4
    dropout: Share = 0.0
    drop_path: Share = 0.1

    def __post_init__(self) -> None:
        """Checks what the sizes must fulfil together.

        Raises:
            ValueError: the heads do not divide the width, or windows and levels differ in number.
        """
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"expected heads to divide width = {self.width}, got {self.heads}")
        if len(self.windows) not in (1, self.levels):
            raise ValueError(
                f"expected one window, or one for each of {counted(self.levels, 'level')}, "
                f"got {len(self.windows)}"
            )

    def window(self, level: int) -> int:
        """Returns the window of a level."""
        return self.windows[level] if len(self.windows) > 1 else self.windows[0]


@dataclass(frozen=True, config=STRICT)
class ActionFormerConfig(PyramidConfig):
    """All settings of ActionFormer.

    Attributes:
        model: sizes.
    """

    model: ActionFormerSizes = ActionFormerSizes()


_R2 = doubling_ranges(6, overlapping=True)
_ANET: dict[str, dict[str, Any]] = {
    "model": {
        "width": 256, "head_width": 256, "windows": [7, 7, 7, 7, 7, -1], "position_code": True,
    },
    "data": {"max_length": 192, "resize": 192},
    "loss": {"normaliser": 200.0, "smoothing": 0.1, "weight": 2.0},
    "training": {**epochs(5, 10), "learning_rate": 1e-3, "batch_size": 16},
    "postprocess": {
        "nms_classes": "all", "nms_sigma": 0.75, "voting": 0.9, "voting_weight": "score_iou",
        "min_rows": 0.001, "max_detections": 100,
    },
}  # fmt: skip
_EPIC: dict[str, dict[str, Any]] = {
    "model": {"windows": [9]},
    "data": {"min_inside": 0.3},
    "loss": {"normaliser": 250.0, "ranges": _R2},
    "training": epochs(5, 16),
    "postprocess": {"nms_sigma": 0.4, "top_k": 5000, "max_detections": 2000},
}


def _ego4d(
    width: int, heads: int, levels: int, inputs: list[int] | None = None,
    projected: list[int] | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    sizes = {
        "width": width, "head_width": width, "heads": heads, "levels": levels, "windows": [9],
        "dropout": 0.1, "position_code": True,
    }  # fmt: skip
    if inputs:
        sizes |= {"inputs": inputs, "projected": projected}
    return {
        "model": sizes,
        "data": {"max_length": 1024, "min_inside": 0.3},
        "loss": {"ranges": doubling_ranges(levels, overlapping=True)},
        "training": epochs(5, 10),
        "postprocess": {"nms_sigma": 0.9, "top_k": 5000, "max_detections": 2000},
    }


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # THUMOS14 with I3D features.
    "actionformer": {},
    "actionformer-small": small(width=128, head_width=128, windows=[9]),
    "actionformer-anet-tsp": _ANET,
    "actionformer-anet-i3d": _ANET,
    "actionformer-epic-verb": _EPIC,
    "actionformer-epic-noun": {**_EPIC, "loss": {**_EPIC["loss"], "smoothing": 0.1}},
    "actionformer-ego4d-slowfast": _ego4d(512, 4, 7),
    "actionformer-ego4d-omnivore": _ego4d(512, 4, 8),
    "actionformer-ego4d-egovlp": _ego4d(384, 4, 8),
    "actionformer-ego4d-slowfast-egovlp": _ego4d(768, 12, 8),
    "actionformer-ego4d-omnivore-egovlp": _ego4d(768, 12, 8),
    "actionformer-ego4d-all": _ego4d(1024, 16, 8, [2304, 1536, 256], [256, 384, 384]),
}

_EGO4D = ("slowfast", "omnivore", "egovlp", "slowfast-egovlp", "omnivore-egovlp", "all")
# Not ActivityNet's, whose videos are resized to one length.
TIMING = {
    "actionformer": (30.0, 4.0),
    "actionformer-epic-verb": (30.0, 16.0),
    "actionformer-epic-noun": (30.0, 16.0),
    **{f"actionformer-ego4d-{kind}": (30.0, 16.0) for kind in _EGO4D},
}
"""Frames per second and frames between rows of the features that presets are made for."""
