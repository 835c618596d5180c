# SPDX-License-Identifier: Apache-2.0
"""Models, by name.

>>> from tal_fast.models import build_model
>>> model = build_model("tadtr-small", in_channels=300, num_classes=12)
"""

from __future__ import annotations

from typing import Any

from tal_fast.models.base import (
    Candidates,
    ClipSettings,
    Detector,
    DetectorConfig,
    ParameterGroup,
    PostprocessConfig,
    Section,
    Targets,
    Whole,
    plain_defaults,
)
from tal_fast.models.called import built
from tal_fast.models.registry import available, code_of, detector_of, recipe
from tal_fast.models.settings import detector_config
from tal_fast.models.tadtr import TadTR

__all__ = [
    "Candidates",
    "ClipSettings",
    "Detector",
    "DetectorConfig",
    "ParameterGroup",
    "PostprocessConfig",
    "Section",
    "TadTR",
    "Targets",
    "Whole",
    "available",
    "build_model",
    "detector_config",
    "code_of",
    "detector_of",
    "recipe",
]


def build_model(name: str, *, in_channels: int, num_classes: int, **overrides: Any) -> Detector:
    """Builds a model with fresh weights from torch's random state.

    Args:
        name: one of :func:`available`, or ``package.module:Class``.
        in_channels: channels of a feature row.
        num_classes: number of action classes.
        overrides: sizes that differ from the named model's.

    Raises:
        ConfigError: the name or one of the overrides is unknown.
    """
    config = detector_config(name, {"model": overrides})
    with plain_defaults(None):
        return built(detector_of(name), in_channels, num_classes, config)
