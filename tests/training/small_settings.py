# SPDX-License-Identifier: Apache-2.0
"""A model and a training that are as small as they can be and still whole."""

from collections.abc import Sequence

from tal_fast.training import load_config
from tal_fast.training.config import ExperimentConfig

SMALL = (
    "model.d_model=32", "model.num_heads=4", "model.encoder_layers=1", "model.decoder_layers=2",
    "model.feedforward=32", "model.num_queries=8", "model.roi_bins=4", "training.epochs=2",
    "training.batch_size=4", "data.window=32", "training.amp=float32", "training.tensorboard=never",
)  # fmt: skip


def small(overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Returns the settings, with others over them."""
    return load_config(preset="tadtr-small", overrides=[*SMALL, *overrides])
