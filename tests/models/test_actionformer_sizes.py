# SPDX-License-Identifier: Apache-2.0
"""ActionFormer: parameters and multiply-adds of its official models."""

from __future__ import annotations

import pytest
import torch

from tal_fast.models import build_model


@pytest.mark.parametrize(
    ("preset", "channels", "classes", "parameters", "convolutions", "attention"),
    [
        ("", 2048, 20, 29_251_612, 45.03, 0.133),
        ("-anet-tsp", 512, 1, 6_943_497, 0.861, 0.002),
        ("-anet-i3d", 2048, 1, 8_123_145, 1.087, 0.002),
        ("-epic-verb", 2304, 97, 29_763_177, 46.47, 0.063),
        ("-epic-noun", 2304, 300, 30_075_188, 47.89, 0.063),
        ("-ego4d-slowfast", 2304, 110, 32_945_271, 20.80, None),
        ("-ego4d-omnivore", 1536, 110, 34_927_736, 19.64, None),
        ("-ego4d-egovlp", 256, 110, 18_675_576, 10.06, None),
        ("-ego4d-slowfast-egovlp", 2560, 110, 78_933_624, 44.53, None),
        ("-ego4d-omnivore-egovlp", 1792, 110, 77_164_152, 42.71, None),
        ("-ego4d-all", 4096, 110, 134_048_888, 72.70, None),
    ],
)
def test_sizes_of_the_official_models(
    preset, channels, classes, parameters, convolutions, attention
):
    with torch.device("meta"):
        model = build_model(f"actionformer{preset}", in_channels=channels, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    parts = model.flops(model.config.data.max_length)
    band = parts.pop("attention") / 1e9
    digit = 0.001 if convolutions < 2 else 0.01
    assert sum(parts.values()) / 1e9 == pytest.approx(convolutions, abs=0.52 * digit)
    if attention is not None:
        assert round(band, 3) == attention


def test_multiply_adds_by_part():
    with torch.device("meta"):
        model = build_model("actionformer", in_channels=2048, num_classes=20)
    parts = {name: round(macs / 1e9, 2) for name, macs in model.flops(2304).items()}
    assert parts == {
        "embedding": 9.06, "stem": 14.52, "branch": 7.03, "attention": 0.13, "class head": 7.27,
        "offset head": 7.15,
    }  # fmt: skip
