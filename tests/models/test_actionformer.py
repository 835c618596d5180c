# SPDX-License-Identifier: Apache-2.0
"""ActionFormer: sizes, names, padding, its attention, and the official numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tal_fast.errors import ConfigError
from tal_fast.models import build_model, detector_config
from tal_fast.models.actionformer import ActionFormer

sys.path.insert(0, str(Path(__file__).parent))

import official

# The recipes, narrow: what a preset says of padding, windows and losses stays.
CHANNELS, CLASSES = 12, 5
FILES = {
    "actionformer": "thumos_i3d",
    "actionformer-anet-tsp": "anet_tsp",
    "actionformer-anet-i3d": "anet_i3d",
    "actionformer-epic-verb": "epic_slowfast_verb",
    "actionformer-epic-noun": "epic_slowfast_noun",
    "actionformer-ego4d-slowfast": "ego4d_slowfast",
    "actionformer-ego4d-omnivore": "ego4d_omnivore",
    "actionformer-ego4d-egovlp": "ego4d_egovlp",
    "actionformer-ego4d-slowfast-egovlp": "ego4d_slowfast_egovlp",
    "actionformer-ego4d-omnivore-egovlp": "ego4d_omnivore_egovlp",
    "actionformer-ego4d-all": "ego4d_slowfast_omnivore_egovlp",
}
# A window of 19 pads to multiples of 576 on six levels, one of 9 on eight to 1024; 192 stays.
LONGEST = {"actionformer": 576, "ane": 192, "epi": 512, "ego": 1024}
# Several kinds of features, each with a projection of its own.
INPUTS, PROJECTED = (5, 4, 3), (12, 10, 10)


def longest(preset):
    """Rows that a preset's recipe pads to, of a length that is quick to test."""
    return LONGEST[preset.removeprefix("actionformer-")[:3] if "-" in preset else preset]


def narrow(preset="actionformer", seed=1):
    """A model with random weights.

    Of this seed because with some a ReLU is within rounding of its kink, which moves gradients by
    up to some thousandths of the largest.
    """
    heads = 4
    sizes = {"width": 32, "head_width": 32, "heads": heads, "dropout": 0.0, "drop_path": 0.1}
    if preset.endswith("-all"):
        sizes |= {"inputs": INPUTS, "projected": PROJECTED}
    settings = {"model": sizes, "data": {"max_length": longest(preset)}}
    model = ActionFormer(CHANNELS, CLASSES, detector_config(preset, settings))
    official.random_weights(model, seed)
    for part in model.modules():
        if hasattr(part, "probability"):
            part.probability = 0.0  # of leaving out a branch
    return model


def clip(rows, instances=0, seed=None):
    return official.item(rows, CHANNELS, CLASSES, instances, rows if seed is None else seed)


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


@pytest.mark.parametrize("preset", FILES)
def test_numbers_of_the_official_code(preset, tmp_path):
    rows = longest(preset)
    changes = {
        "embd_dim": 32, "fpn_dim": 32, "head_dim": 32, "n_head": 4, "max_seq_len": rows,
        "input_dim": CHANNELS, "num_classes": CLASSES, "max_buffer_len_factor": 8.0,
    }  # fmt: skip
    if preset.endswith("-all"):
        changes |= {"input_dim": list(INPUTS), "embd_dim": list(PROJECTED)}
    # ActivityNet's videos are all resized to one length.
    beyond = () if "anet" in preset else (rows + 1, rows + 300)
    official.assert_same_numbers(
        narrow(preset),
        "actionformer_release",
        f"configs/{FILES[preset]}.yaml",
        {"model": changes, "train_cfg": {"dropout": 0.0}},
        training=[
            [clip(rows, 8), clip(37, 6), clip(90, 0)],
            [clip(1, 1), clip(rows - 1, 9), clip(100, 7)],
            [clip(30, 0), clip(60, 0)],
        ],
        prediction=[clip(n) for n in (1, 37, rows - 1, rows, *beyond)],
        folder=tmp_path,
    )


def test_padding_and_company_make_no_difference():
    model = narrow("actionformer-epic-noun").eval()
    clips = [clip(rows) for rows in (5, 100, 512, 700)]
    features, mask, _ = official.padded(model, clips)
    with torch.no_grad():
        together = model(features, mask)
        for at, one in enumerate(clips):
            alone = model(*official.padded(model, [one])[:2])
            for name in ("logits", "offsets"):
                torch.testing.assert_close(
                    getattr(together, name)[at][together.valid[at]],
                    getattr(alone, name)[0][alone.valid[0]],
                    rtol=1e-4,
                    atol=1e-4,
                )


def test_names_of_the_official_weights():
    names = narrow().state_dict()
    for name, shape in {
        "backbone.embd.0.conv.weight": (32, 12, 3),
        "backbone.embd_norm.1.bias": (1, 32, 1),
        "backbone.stem.1.attn.query_conv.conv.weight": (32, 1, 3),
        "backbone.branch.4.attn.value_norm.weight": (1, 32, 1),
        "backbone.branch.0.attn.proj.bias": (32,),
        "backbone.stem.0.mlp.0.weight": (128, 32, 1),
        "backbone.stem.0.mlp.3.weight": (32, 128, 1),
        "backbone.stem.0.drop_path_attn.scale": (1, 32, 1),
        "neck.fpn_norms.5.weight": (1, 32, 1),
        "cls_head.norm.1.weight": (1, 32, 1),
        "reg_head.scale.5.scale": (),
    }.items():
        assert tuple(names[name].shape) == shape


def test_rows_that_cannot_be_halved():
    model = narrow("actionformer-epic-noun")
    with pytest.raises(ValueError, match="expected rows in multiples of 32 for 6 levels, got 48"):
        model(torch.zeros(1, 48, CHANNELS), torch.zeros(1, 48, dtype=torch.bool))


def test_too_few_padded_rows_are_an_error():
    model = narrow("actionformer-epic-noun")
    with pytest.raises(ValueError, match="expected at least 96 rows for a clip of 64, padding inc"):
        model(torch.zeros(1, 64, CHANNELS), torch.zeros(1, 64, dtype=torch.bool))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"heads": 3}}, "expected heads to divide width = 512, got 3"),
        ({"model": {"windows": [9, 9]}}, "expected one window, or one for each of 6 levels, got 2"),
        ({"model": {"kernel": 4}}, "bad setting model: expected an odd kernel, got 4$"),
        ({"model": {"levels": 12}}, "expected loss.ranges for model.levels = 12 levels, got 6$"),
        (
            {"data": {"max_length": 1000}},
            "expected data.max_length to be a multiple of 32.*got 1000$",
        ),
    ],
)
def test_sizes_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        detector_config("actionformer", settings)


def test_a_window_wider_than_the_video_sees_all_of_it():
    features, mask = torch.randn(1, 96, CHANNELS), torch.arange(96)[None] >= 40
    features = features * ~mask[..., None]
    found = []
    for windows in ((191,), (1,)):  # 1: all rows
        settings = {
            "model": {"width": 32, "head_width": 32, "windows": windows},
            "data": {"max_length": 96},
        }
        model = ActionFormer(CHANNELS, CLASSES, detector_config("actionformer-epic-noun", settings))
        official.random_weights(model, 1)
        found.append(model.eval()(features, mask))
    for wide, everything in zip(*found, strict=True):
        torch.testing.assert_close(wide, everything)
