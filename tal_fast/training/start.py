# SPDX-License-Identifier: Apache-2.0
"""What a training starts from: fresh weights, and the loader of its clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tal_fast.data.clips import ClipSet
from tal_fast.data.dataset import TALDataset
from tal_fast.data.loader import FeatureLoader
from tal_fast.errors import DataError, listing
from tal_fast.models import Detector, detector_of
from tal_fast.models.base import plain_defaults
from tal_fast.models.called import built, started
from tal_fast.training import distributed
from tal_fast.training.config import ExperimentConfig

__all__ = ["fresh_model", "instances_of", "training_loader"]


def instances_of(data: TALDataset, videos: Sequence[str]) -> list[int]:
    """Returns the number of instances of each class in some videos.

    Raises:
        DataError: there is none at all.
    """
    labels = [data.annotations.videos[name].labels for name in videos]
    counts = np.bincount(np.concatenate(labels), minlength=data.num_classes)
    if not counts.any():
        raise DataError(
            f"{data.path}: expected training videos with instances, got "
            f"{len(videos)} without one: {listing(videos, 3, ', ')}"
        )
    return counts.tolist()


def fresh_model(config: ExperimentConfig, data: TALDataset, instances: Sequence[int]) -> Detector:
    """Returns a model with the first weights of the seed, the same on every device, in training.

    Args:
        config: all settings.
        data: gives channels and classes.
        instances: training instances of each class.
    """
    torch.manual_seed(config.training.seed)
    with plain_defaults():
        detector = detector_of(config.name)
        model = built(detector, data.channels, data.num_classes, config.detector)
        started(model, instances)
    return model.train()


def training_loader(
    config: ExperimentConfig, clips: ClipSet, device: torch.device
) -> FeatureLoader:
    """Returns the loader of a training, of this process's part of every batch.

    Args:
        config: all settings.
        clips: to learn from.
        device: of the model. A GPU gets every batch while it works on the one before.
    """
    batch = config.training.batch_size
    full = len(clips) >= batch
    several = distributed.world_size() > 1
    return FeatureLoader(
        clips,
        distributed.share_of_batch(batch, len(clips)),
        # Without full batches every process takes part in the one batch of an epoch; the
        # loader then leaves out no clip to make their parts equal.
        shuffle=full or not several,
        drop_last=full,
        seed=config.training.seed,
        threads=config.detector.data.threads,
        # Several processes tell each other their targets, which they do from the host.
        device="cpu" if several else device,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
