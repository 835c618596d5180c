# SPDX-License-Identifier: Apache-2.0
"""What a training will ask of a model of one's own, asked once before it starts."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from tal_fast.data.batches import to_device
from tal_fast.data.clips import ClipSet
from tal_fast.data.dataset import TALDataset
from tal_fast.models import detector_of
from tal_fast.models.base import Targets, Whole
from tal_fast.models.called import groups_of, is_own, learn_once, losses_of, output_of
from tal_fast.training.config import ExperimentConfig
from tal_fast.training.device import autocast
from tal_fast.training.inference import detect
from tal_fast.training.start import fresh_model, instances_of, training_loader

__all__ = ["dry_run"]


def dry_run(
    config: ExperimentConfig,
    data: TALDataset,
    videos: Sequence[str],
    clips: ClipSet,
    device: torch.device,
) -> None:
    """Learns from one batch and predicts on one, so that mistakes show before a training.

    Else the first prediction, maybe hours later, would be the first to find them. With a model of
    its own, whose weights, buffers and random numbers are nobody's afterwards: the training gives
    the same bits with and without it. The models of this library need none, their tests do it.

    Args:
        config: all settings.
        data: the data set.
        videos: names of the training videos.
        clips: to learn from.
        device: to run on.

    Raises:
        ConfigError: a method of the model fails or gives what it should not.
        TrainingError: outputs are not finite.
    """
    if not is_own(detector_of(config.name)):
        return
    with _random_numbers_kept():
        model = fresh_model(config, data, instances_of(data, videos)).to(device)
        groups_of(model)
        with training_loader(config, clips, device) as loader:
            batch = next(iter(loader))
            features, mask = (to_device(item, device) for item in (batch.features, batch.mask))
            targets = Targets(batch.labels, batch.edges, batch.counts, batch.padded)
            with autocast(device, config.training.amp):
                output = output_of(model, features, mask)
            losses = losses_of(model, output, targets, Whole(targets))
        if bool(torch.isfinite(losses["total"])):  # else the first step says what was not, and why
            learn_once(model, losses)
        detect(model, data, videos, config.training, batches=1)


@contextlib.contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Leaves the random numbers of Python and NumPy as they were; torch's begin with the seed."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
