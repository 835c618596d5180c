# SPDX-License-Identifier: Apache-2.0
"""Models, by name.

>>> from tal_fast.models import build_model
>>> model = build_model("tadtr-small", in_channels=300, num_classes=12)
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from tal_fast.errors import ConfigError, nearest
from tal_fast.models.tadtr import TadTR, TadTRConfig, TadTROutput

__all__ = ["TadTR", "TadTRConfig", "TadTROutput", "available", "build_model", "model_config"]

# ``tadtr`` is the paper's model; ``tadtr-small`` trains in about a minute on two CPU cores.
_MODELS = {
    "tadtr": TadTRConfig(),
    "tadtr-small": TadTRConfig(d_model=128, encoder_layers=2, decoder_layers=2, feedforward=512),
}


def available() -> tuple[str, ...]:
    """Returns the names that :func:`build_model` knows."""
    return tuple(_MODELS)


def model_config(name: str, **overrides: Any) -> TadTRConfig:
    """Returns the sizes of a named model.

    Args:
        name: one of :func:`available`.
        overrides: sizes that differ from the named model's.

    Raises:
        ConfigError: the name or one of the overrides is unknown.
    """
    if name not in _MODELS:
        raise ConfigError(_unknown("model", name, available()))
    known = [field.name for field in fields(TadTRConfig)]
    for key in overrides:
        if key not in known:
            raise ConfigError(_unknown("model setting", key, known))
    return replace(_MODELS[name], **overrides)


def build_model(name: str, *, in_channels: int, num_classes: int, **overrides: Any) -> TadTR:
    """Builds a model with fresh weights from torch's random state.

    Args:
        name: one of :func:`available`.
        in_channels: channels of a feature row.
        num_classes: number of action classes.
        overrides: sizes that differ from the named model's.

    Raises:
        ConfigError: the name or one of the overrides is unknown.
    """
    return TadTR(in_channels, num_classes, model_config(name, **overrides))


def _unknown(what: str, name: str, known: list[str] | tuple[str, ...]) -> str:
    return f"unknown {what} {name!r}{nearest(name, known)} (known: {', '.join(known)})"
