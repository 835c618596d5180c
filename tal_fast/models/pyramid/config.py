# SPDX-License-Identifier: Apache-2.0
"""Settings of point detectors over a pyramid; the defaults are ActionFormer's on THUMOS14."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from tal_fast.errors import counted
from tal_fast.models.base import (
    STRICT,
    ClipSettings,
    DetectorConfig,
    NonNegative,
    Positive,
    PostprocessConfig,
    Section,
    Share,
)

__all__ = [
    "RECIPE",
    "PyramidClips",
    "PyramidConfig",
    "PyramidLoss",
    "PyramidSizes",
    "doubling_ranges",
    "epochs",
    "small",
]

Ranges = tuple[tuple[NonNegative, NonNegative], ...]
_FAR = 1e4  # no video has so many rows on its coarsest level


def doubling_ranges(levels: int, *, overlapping: bool = False) -> Ranges:
    """Returns which distances to the ends of an instance each level answers for, in rows.

    Args:
        levels: number of levels.
        overlapping: 0-4, 2-8, 4-16, … instead of 0-4, 4-8, 8-16, …; the last level answers for all
            that is longer.
    """
    highs = [4.0 * 2**level for level in range(levels)]
    lows = [0.0, *(high / 4 if overlapping else high / 2 for high in highs[1:])]
    return tuple(zip(lows, [*highs[:-1], _FAR], strict=True))


@dataclass(frozen=True, config=STRICT)
class PyramidSizes(Section):
    """Sizes of embedding, pyramid and heads.

    Attributes:
        width: channels of the pyramid.
        embed_layers: convolutions of the embedding.
        kernel: rows that a convolution of the embedding sees; odd.
        levels: temporal resolutions; each has half the rows of the one before.
        head_width: channels of the heads.
        head_layers: convolutions of a head, the last one included.
        head_kernel: rows that a convolution of a head sees; odd.
        position_code: add sines and cosines of the row number to the embedding.
        inputs: channels of each kind of features that are put side by side, each with a projection
            of its own; empty: one kind, which the embedding takes as it is.
        projected: channels that each kind is projected to, where there are several.
        class_prior: class probability that training starts from.
        offset_start: distance to both ends of an instance that training starts from, in rows of a
            point's level. With 0, as published, an offset may be 0 at every point after some steps;
            its ReLU then has no gradient, and no further step changes it.
    """

    width: Positive = 512
    embed_layers: Positive = 2
    kernel: Positive = 3
    levels: Positive = 6
    head_width: Positive = 512
    head_layers: Positive = 3
    head_kernel: Positive = 3
    position_code: bool = False
    inputs: tuple[Positive, ...] = ()
    projected: tuple[Positive, ...] = ()
    class_prior: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01
    offset_start: NonNegative = 0.0

    def __post_init__(self) -> None:
        """Checks what the sizes must fulfil together.

        Raises:
            ValueError: a kernel is even, or kinds of features and projections differ in number.
        """
        for name in ("kernel", "head_kernel"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"expected an odd {name}, got {getattr(self, name)}")
        if len(self.inputs) != len(self.projected):
            raise ValueError(
                f"expected one width in projected for each of inputs = {list(self.inputs)}, "
                f"got {list(self.projected)}"
            )


@dataclass(frozen=True, config=STRICT)
class PyramidClips(ClipSettings):
    """How videos become clips: one random crop per epoch in training, whole videos in prediction.

    Attributes:
        max_length: most rows of a crop, and what the recipe pads shorter ones to.
        crop_ratio: least and greatest share of a video of at most ``max_length`` rows that is kept.
        min_inside: share of an instance that must lie in a crop for the crop to own it.
        margin: how far a crop reaches for its instances (:class:`~tal_fast.data.CropSet`).
        resize: rows that every video is resampled to; None keeps its own.
    """

    max_length: Positive = 2304
    crop_ratio: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (
        0.9,
        1.0,
    )
    min_inside: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    margin: Literal["actionformer", "opentad", "none"] = "actionformer"
    resize: Positive | None = None


@dataclass(frozen=True, config=STRICT)
class PyramidLoss(Section):
    """Targets and losses.

    Attributes:
        ranges: per level the least and greatest distance from a point to the farther end of its
            instance, in rows, both inclusive.
        radius: how far from the centre of an instance its points may lie, in rows of their level.
        weight: of the regression loss; 0 weighs both losses alike in every step.
        smoothing: of the class targets.
        normaliser: positives per batch that the running number starts from.
        momentum: of that running number.
        focal_alpha: weight of positives in the focal loss.
        focal_gamma: focusing exponent of the focal loss.
    """

    ranges: Ranges = doubling_ranges(6)
    radius: Annotated[float, Field(gt=0.0)] = 1.5
    weight: NonNegative = 1.0
    smoothing: Share = 0.0
    normaliser: Annotated[float, Field(gt=0.0)] = 100.0
    momentum: Share = 0.9
    focal_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    focal_gamma: NonNegative = 2.0


@dataclass(frozen=True, config=STRICT)
class PyramidConfig(DetectorConfig):
    """All settings of a point detector over a pyramid.

    Attributes:
        model: sizes.
        data: crops and videos.
        loss: targets and losses.
        postprocess: from candidates to detections.
    """

    model: PyramidSizes = PyramidSizes()
    data: PyramidClips = PyramidClips()
    loss: PyramidLoss = PyramidLoss()
    postprocess: PostprocessConfig = PostprocessConfig(
        top_k=2000,
        threshold=0.001,
        nms="gaussian",
        nms_clipped=False,
        min_score=0.001,
        min_rows=0.05,
        max_detections=200,
    )

    def __post_init__(self) -> None:
        """Checks what the sections must fulfil together.

        Raises:
            ValueError: levels and ranges differ in number, or the rows cannot be halved so often.
        """
        levels, coarsest = self.model.levels, 2 ** (self.model.levels - 1)
        if len(self.loss.ranges) != levels:
            raise ValueError(
                f"expected loss.ranges for model.levels = {counted(levels, 'level')}, "
                f"got {len(self.loss.ranges)}"
            )
        for name, rows in (("max_length", self.data.max_length), ("resize", self.data.resize)):
            if rows is not None and rows % coarsest:
                raise ValueError(
                    f"expected data.{name} to be a multiple of {coarsest}, so that "
                    f"{counted(levels, 'level')} "
                    f"halve it, got {rows}"
                )


def epochs(warmup: int, cosine: int) -> dict[str, Any]:
    """Returns the settings of a training by its epochs before and after the learning rate's top."""
    return {"epochs": warmup + cosine, "warmup": warmup / (warmup + cosine)}


# Of all three on THUMOS14, but for epochs and weight decay.
RECIPE: dict[str, dict[str, Any]] = {
    "training": {
        **epochs(5, 30),
        "batch_size": 2,
        "learning_rate": 1e-4,
        "weight_decay": 0.05,
        "clip_norm": 1.0,
        "schedule": "cosine",
        "ema": ["plain"],
        "ema_decay": 0.999,
    }
}


def small(**model: Any) -> dict[str, dict[str, Any]]:
    """Returns the settings of a preset for two CPU cores and sensor streams of some minutes.

    Its trainings are short, and a plain average would still hold much of the random start; so the
    average that it tests has a memory that grows with the training (docs/data-efficiency.md).

    Args:
        **model: of the network, which is narrower.
    """
    return {
        "model": model,
        "data": {"max_length": 1280},
        "training": {**epochs(5, 35), "ema": ["warmup"]},
    }
