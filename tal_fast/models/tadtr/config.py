# SPDX-License-Identifier: Apache-2.0
"""Settings of TadTR; the defaults are those of its recipe for THUMOS14."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from tal_fast.models.base import (
    STRICT,
    ClipSettings,
    DetectorConfig,
    NonNegative,
    Positive,
    Section,
    Share,
)

__all__ = ["GROUPS", "PRESETS", "TIMING", "TadTRClips", "TadTRConfig", "TadTRLoss", "TadTRSizes"]

GROUPS = 32  # of the input projection's group normalisation


@dataclass(frozen=True, config=STRICT)
class TadTRSizes(Section):
    """Sizes of a TadTR; the defaults are the paper's for THUMOS14.

    Attributes:
        d_model: width of the transformer.
        num_heads: attention heads.
        num_points: sampling points per head of deformable attention.
        encoder_layers: number of encoder layers.
        decoder_layers: number of decoder layers.
        feedforward: hidden width of the feed-forward blocks.
        num_queries: most segments that one window can give.
        dropout: probability of zeroing an activation.
        actionness: whether to rate each segment by the rows under it.
        roi_bins: bins that the actionness head divides a segment into.
        roi_scale: how far the actionness head looks beyond the segment, in segment widths.
    """

    d_model: Positive = 256
    num_heads: Positive = 8
    num_points: Positive = 4
    encoder_layers: Positive = 4
    decoder_layers: Positive = 4
    feedforward: Positive = 1024
    num_queries: Positive = 40
    dropout: Share = 0.1
    actionness: bool = True
    roi_bins: Positive = 16
    roi_scale: Annotated[float, Field(gt=0.0)] = 1.5

    def __post_init__(self) -> None:
        """Checks what the sizes must fulfil together.

        Raises:
            ValueError: a size does not divide what it must.
        """
        if self.d_model % self.num_heads:
            raise ValueError(
                f"expected num_heads to divide d_model = {self.d_model}, got {self.num_heads}"
            )
        if self.d_model % GROUPS:
            raise ValueError(f"expected d_model to be a multiple of {GROUPS}, got {self.d_model}")


@dataclass(frozen=True, config=STRICT)
class TadTRClips(ClipSettings):
    """How videos become windows.

    Attributes:
        window: rows of a window.
        train_overlap: share of a window that the next one repeats, in training.
        test_overlap: the same in prediction.
        min_inside: share of an instance that must lie in a window for the window to own it.
    """

    window: Positive = 128
    train_overlap: Share = 0.75
    test_overlap: Share = 0.25
    min_inside: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75


@dataclass(frozen=True, config=STRICT)
class TadTRLoss(Section):
    """Weights of losses and matching costs (TadTR, section III-D and its released settings).

    Attributes:
        classification: weight of the focal loss.
        l1: weight of the L1 distance between (centre, width).
        iou: weight of 1 - IoU.
        actionness: weight of the actionness regression.
        focal_alpha: weight of positives in the focal loss.
        focal_gamma: focusing exponent of the focal loss.
        cost_classification: weight of the class in the matching cost.
        cost_l1: weight of the L1 distance in the matching cost.
        cost_iou: weight of the IoU in the matching cost.
        actionness_targets: ``video`` rates a segment by its best IoU with the instances of its own
            window, ``batch`` with those of the whole batch, as the released TadTR code does.
    """

    classification: NonNegative = 2.0
    l1: NonNegative = 5.0
    iou: NonNegative = 2.0
    actionness: NonNegative = 4.0
    focal_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    focal_gamma: NonNegative = 2.0
    cost_classification: NonNegative = 6.0
    cost_l1: NonNegative = 5.0
    cost_iou: NonNegative = 2.0
    actionness_targets: Literal["video", "batch"] = "video"


@dataclass(frozen=True, config=STRICT)
class TadTRConfig(DetectorConfig):
    """All settings of TadTR.

    Attributes:
        model: sizes.
        data: windows.
        loss: loss and matching weights.
        postprocess: from candidates to detections.
    """

    model: TadTRSizes = TadTRSizes()
    data: TadTRClips = TadTRClips()
    loss: TadTRLoss = TadTRLoss()


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The paper's model.
    "tadtr": {},
    # Trains in about a minute on two CPU cores.
    "tadtr-small": {
        "model": {"d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "feedforward": 512}
    },
}

TIMING = {"tadtr": (30.0, 8.0)}
"""Frames per second and frames between rows of the features that presets are made for."""
