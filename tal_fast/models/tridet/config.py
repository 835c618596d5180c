# SPDX-License-Identifier: Apache-2.0
"""Settings of TriDet; the defaults are those of its recipe for THUMOS14."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from tal_fast.models.base import STRICT, NonNegative, Positive, PostprocessConfig, Share
from tal_fast.models.pyramid.config import (
    PyramidClips,
    PyramidConfig,
    PyramidLoss,
    PyramidSizes,
    doubling_ranges,
    epochs,
    small,
)

__all__ = ["GROUPS", "PRESETS", "TIMING", "TriDetConfig", "TriDetLoss", "TriDetSizes"]

GROUPS = 16
"""Groups of channels that a block normalises over all rows."""


@dataclass(frozen=True, config=STRICT)
class TriDetSizes(PyramidSizes):
    """Sizes of a TriDet.

    Attributes:
        stem_layers: blocks before the pyramid; their window is 1.
        window: rows that the narrower convolution of a block sees; odd.
        widening: the wider one sees (window + 1) times it, rounded to an odd number.
        hidden: hidden width of the feed-forward blocks.
        drop_path: probability of leaving out a branch of a block of the pyramid; 0 also leaves out
            its scale.
        gate_start: standard deviation of the first weights of a block's convolutions. With 0 their
            gradients are zero, too: they never learn, and padding beyond a few rows is free.
        bins: greatest distance to a boundary, in rows of a point's level.
        boundary_kernel: rows that a convolution of the boundary heads sees; odd.
        input_noise: standard deviation of what is added to features in training.
    """

    stem_layers: Annotated[int, Field(ge=0)] = 2
    window: Positive = 1
    widening: Annotated[float, Field(gt=0.0)] = 5.0
    hidden: Positive = 768
    drop_path: Share = 0.1
    gate_start: NonNegative = 0.0
    bins: Positive = 16
    boundary_kernel: Positive = 3
    input_noise: NonNegative = 5e-4

    def __post_init__(self) -> None:
        """Checks what the sizes must fulfil together.

        Raises:
            ValueError: a kernel or window is even, the width is no multiple of 16, or offsets,
                which are means over bins here, are to start anywhere.
        """
        super().__post_init__()
        for name in ("window", "boundary_kernel"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"expected an odd {name}, got {getattr(self, name)}")
        if self.width % GROUPS:
            raise ValueError(f"expected width to be a multiple of {GROUPS}, got {self.width}")
        if self.offset_start:
            raise ValueError(
                "expected offset_start = 0, since offsets are means over bins here, "
                f"got {self.offset_start:g}"
            )

    def wide(self, window: int) -> int:
        """Returns the rows that the wider convolution of a block sees."""
        rows = round((window + 1) * self.widening)  # halves to even, as the recipes have it
        return rows + 1 if rows % 2 == 0 else rows


@dataclass(frozen=True, config=STRICT)
class TriDetLoss(PyramidLoss):
    """Targets and losses.

    Attributes:
        iou_power: power of the IoU that the classification loss of a positive is multiplied by.
    """

    iou_power: NonNegative = 0.2


@dataclass(frozen=True, config=STRICT)
class TriDetConfig(PyramidConfig):
    """All settings of TriDet.

    Attributes:
        model: sizes.
        data: crops and videos; crops own what lies in them, without a margin of half a frame.
        loss: targets and losses.
        postprocess: from candidates to detections.
    """

    model: TriDetSizes = TriDetSizes()
    data: PyramidClips = PyramidClips(margin="opentad")
    loss: TriDetLoss = TriDetLoss()
    postprocess: PostprocessConfig = dataclasses.replace(
        PyramidConfig().postprocess, max_detections=2000
    )


_R2 = doubling_ranges(6, overlapping=True)
_HACS: dict[str, dict[str, Any]] = {
    "model": {
        "width": 1024, "head_width": 1024, "head_kernel": 5, "boundary_kernel": 1,
        "widening": 1.2, "hidden": 1024, "gate_start": 0.1, "position_code": True,
    },
    "loss": {"normaliser": 400.0, "smoothing": 0.1, "iou_power": 1.0},
    "training": {"learning_rate": 1e-3, "weight_decay": 0.03, "batch_size": 16},
    "postprocess": {"nms_sigma": 0.75, "max_detections": 250},
}  # fmt: skip


def _epic(window: int, widening: float, smoothing: float, **training: Any) -> Any:
    return {
        "model": {"window": window, "widening": widening, "hidden": 1024, "input_noise": 0.0},
        "data": {"min_inside": 0.3},
        "loss": {"normaliser": 250.0, "ranges": _R2, "iou_power": 0.25, "smoothing": smoothing},
        "training": {**training, "weight_decay": 0.05},
        "postprocess": {"nms_sigma": 0.4, "top_k": 5000},
    }


def _hacs(model: Any, data: Any, loss: Any, training: Any) -> Any:
    changes = {"model": model, "data": data, "loss": loss, "training": training}
    return {
        **_HACS,
        **{name: {**_HACS.get(name, {}), **changed} for name, changed in changes.items()},
    }


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # THUMOS14 with I3D features.
    "tridet": {},
    "tridet-small": small(width=128, head_width=128, hidden=192),
    "tridet-anet-tsp": {
        "model": {
            "width": 256, "window": 15, "widening": 1.3, "hidden": 2048, "gate_start": 0.2,
            "bins": 12, "position_code": True, "input_noise": 0.5,
        },
        "data": {"max_length": 768},
        "loss": {"normaliser": 400.0, "smoothing": 0.1, "iou_power": 1.0},
        "training": {
            **epochs(10, 5), "learning_rate": 1e-3, "lr_end": 5e-5, "weight_decay": 0.04,
            "batch_size": 16, "clip_norm": 0.4,
        },
        "postprocess": {
            "nms_classes": "all", "nms_sigma": 0.7, "voting": 0.95, "min_rows": 0.1,
            "max_detections": 200,
        },
    },
    "tridet-epic-verb": _epic(5, 2.0, 0.0, **epochs(5, 22), lr_end=5e-5),
    "tridet-epic-noun": _epic(1, 4.0, 0.1, **epochs(5, 14)),
    "tridet-hacs-i3d": _hacs(
        {"levels": 7, "window": 15, "bins": 12, "input_noise": 0.0},
        {"max_length": 512},
        {"ranges": doubling_ranges(7)},
        {**epochs(10, 3), "lr_end": 2e-4},
    ),
    "tridet-hacs-slowfast": _hacs(
        {"window": 3, "bins": 14, "input_noise": 0.2},
        {"max_length": 960},
        {},
        {**epochs(7, 4), "lr_end": 5e-4, "clip_norm": 0.5},
    ),
}  # fmt: skip

TIMING = {
    "tridet": (30.0, 4.0),
    "tridet-anet-tsp": (15.0, 16.0),
    "tridet-epic-verb": (30.0, 16.0),
    "tridet-epic-noun": (30.0, 16.0),
    "tridet-hacs-i3d": (2.0, 1.0),
    "tridet-hacs-slowfast": (15.0, 8.0),
}
"""Frames per second and frames between rows of the features that presets are made for."""
