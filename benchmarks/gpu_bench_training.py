# SPDX-License-Identifier: Apache-2.0
"""Training steps with and without a CUDA graph, for :mod:`gpu_bench`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from gpu_harness import Bench, Call

__all__ = ["training"]

PRESETS = ("tadtr", "actionformer", "temporalmaxer", "tridet")
_CHANNELS, _CLASSES = 2048, 20
# What a rehearsal makes of the sizes.
_TINY = {
    "tadtr": ("model.d_model=32", "model.num_heads=4", "model.feedforward=32"),
    "actionformer": ("model.width=32", "model.head_width=32", "data.max_length=288"),
    "temporalmaxer": ("model.width=32", "model.head_width=32", "data.max_length=288"),
    "tridet": ("model.width=32", "model.head_width=32", "data.max_length=288"),
}


def training(bench: Bench) -> None:
    """Steps of the models at the sizes of their recipes, on one batch that is on the device."""
    # What settings need is not there wherever the ops are.
    from tal_fast.models import detector_of
    from tal_fast.training import load_config
    from tal_fast.training.step import Stepper

    for preset in PRESETS:
        tiny = () if bench.real else (*_TINY[preset], "training.batch_size=2")
        config = load_config(preset=preset, overrides=["training.seed=0", *tiny])
        recorded = load_config(
            preset=preset,
            overrides=[*tiny, f"training.cuda_graph={'auto' if bench.real else 'off'}"],
        )
        torch.manual_seed(0)
        channels = _CHANNELS if bench.real else 16
        model = detector_of(preset)(channels, _CLASSES, config.detector).to(bench.device).train()
        batch = _batch(config, channels, bench.device)

        def step(settings: Any, model: Any = model, batch: Any = batch) -> Call:
            stepper = Stepper(copy.deepcopy(model), settings)
            stepper.set_learning_rate(1e-6)
            for _ in range(5):  # a graph is recorded in the fourth
                stepper.run(batch, "a step of a benchmark")
            return lambda: stepper.run(batch, "a step of a benchmark")

        clips, rows = batch.mask.shape
        bench.compare(
            "training step",
            f"{preset}, {clips} x {rows} rows",
            step(recorded),
            {"without a graph": step(config)},
            graph=False,
        )


def _batch(config: Any, channels: int, device: torch.device) -> Any:
    """Returns a batch of clips as long as they are in the recipe, with four instances each."""
    from tal_fast.data.batches import Batch

    clips = config.training.batch_size
    of_windows = hasattr(config.detector.data, "window")
    rows = config.detector.data.window if of_windows else config.detector.data.max_length
    real = rows if of_windows else rows - rows // 8  # padded rows follow
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(clips, rows, channels, generator=generator)
    features[:, real:] = 0.0
    start = torch.rand(4 * clips, generator=generator, dtype=torch.float64) * real * 0.8
    length = 1 + torch.rand(4 * clips, generator=generator, dtype=torch.float64) * real * 0.15
    return Batch(
        features=features,
        mask=(torch.arange(rows) >= real).expand(clips, -1).contiguous(),
        labels=torch.randint(_CLASSES, (4 * clips,), generator=generator),
        edges=torch.stack((start, start + length), 1),
        counts=[4] * clips,
        lengths=[real] * clips,
        indices=[0] * clips,
        starts=[0] * clips,
        rows=[real] * clips,
        videos=["video"] * clips,
    ).moved(lambda tensor: tensor.to(device))
