# SPDX-License-Identifier: Apache-2.0
"""TriDet: sizes, names, padding, boundaries as expectations, and the official code's numbers."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from tal_fast.models import Targets, Whole, build_model, detector_config
from tal_fast.models.pyramid.layers import Rows, group_norm_rows
from tal_fast.models.tridet import TriDet, TriDetOutput
from tal_fast.models.tridet.trident import expected_distances

sys.path.insert(0, str(Path(__file__).parent))

import official

# The recipes, narrow: what a preset says of padding, windows, bins and losses stays.
NARROW = {"width": 32, "head_width": 32, "hidden": 48, "input_noise": 0.0}
LONGEST = 192
CHANNELS, CLASSES = 12, 5
FILES = {
    "tridet": "thumos_i3d",
    "tridet-anet-tsp": "anet_tsp",
    "tridet-epic-verb": "epic_slowfast_verb",
    "tridet-epic-noun": "epic_slowfast_noun",
    "tridet-hacs-i3d": "hacs_i3d",
    "tridet-hacs-slowfast": "hacs_slowfast",
}


def narrow(preset="tridet", *, still=False, seed=0, **sizes):
    """A model with random weights; ``still`` leaves the gates at zero."""
    settings = {"model": {**NARROW, **sizes}, "data": {"max_length": LONGEST}}
    config = detector_config(preset, settings)
    model = TriDet(CHANNELS, CLASSES, config)
    official.random_weights(model, seed)
    if still:
        gates = ("psi", "fc", "convw", "convkw", "global_fc")
        state = model.state_dict()
        for name, value in state.items():
            if any(f".{gate}." in name for gate in gates):
                value.zero_()
        model.load_state_dict(state)
    for part in model.modules():
        if hasattr(part, "probability"):
            part.probability = 0.0
    return model


def batch(items, length):
    """Features, mask and targets of official items."""
    features = torch.zeros(len(items), length, CHANNELS)
    mask = torch.ones(len(items), length, dtype=torch.bool)
    for at, one in enumerate(items):
        rows = one["feats"].shape[1]
        features[at, :rows] = one["feats"].t()
        mask[at, :rows] = False
    targets = Targets(
        torch.cat([one["labels"] for one in items]),
        torch.cat([one["segments"] for one in items]).double() + 0.5,
        [len(one["labels"]) for one in items],
        length,
    )
    return features, mask, targets


def padded(model, items):
    longest = max(one["feats"].shape[1] for one in items)
    return batch(items, model.rows_needed(model.config, longest))


def clip(rows, instances=0, seed=None):
    return official.item(rows, CHANNELS, CLASSES, instances, rows if seed is None else seed)


@pytest.mark.parametrize(
    ("preset", "channels", "classes", "rows", "parameters", "gmacs"),
    [
        ("tridet", 2048, 20, 2304, 15_989_604, 43.68),
        ("tridet-anet-tsp", 512, 1, 768, 12_811_555, 10.06),
        ("tridet-epic-verb", 2304, 97, 2304, 18_594_123, 47.99),
        ("tridet-epic-noun", 2304, 300, 2304, 19_503_532, 52.23),
        ("tridet-hacs-i3d", 2048, 200, 512, 53_412_473, 35.23),
        ("tridet-hacs-slowfast", 2304, 200, 960, 51_860_092, 66.38),
    ],
)
def test_sizes_of_the_official_models(preset, channels, classes, rows, parameters, gmacs):
    with torch.device("meta"):
        model = build_model(preset, in_channels=channels, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.config.data.max_length == rows
    assert round(sum(model.flops(rows).values()) / 1e9, 2) == gmacs


def test_multiply_adds_by_part():
    model = build_model("tridet", in_channels=2048, num_classes=20)
    parts = {name: round(macs / 1e9, 2) for name, macs in model.flops(2304).items()}
    assert parts == {
        "embedding": 9.06, "stem": 3.66, "branch": 1.77, "class head": 7.27, "offset head": 7.37,
        "boundary heads": 14.55,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "still"),
    # The released weights of THUMOS14 and EPIC have still gates; any others test more.
    [*((preset, False) for preset in FILES), ("tridet", True), ("tridet-epic-noun", True)],
)
def test_numbers_of_the_official_code(preset, still, tmp_path):
    model = narrow(preset, still=still)
    levels = model.config.model.levels
    training = [
        [clip(LONGEST, 8), clip(37, 6), clip(90, 3)],
        [clip(1), clip(LONGEST - 1, 9), clip(100, 7)],
    ]
    lengths = (1, 37, LONGEST - 1, LONGEST, LONGEST + 1, 500)
    prediction = [clip(rows) for rows in lengths]
    state = {name: value for name, value in model.state_dict().items() if name != "normaliser"}
    answer = official.run(
        "TriDet",
        {
            "config": f"configs/{FILES[preset]}.yaml",
            "changes": {
                "model": {
                    "embd_dim": 32, "fpn_dim": 32, "head_dim": 32, "sgp_mlp_dim": 48,
                    "input_noise": 0.0, "max_seq_len": LONGEST, "input_dim": CHANNELS,
                    "num_classes": CLASSES, "max_buffer_len_factor": 8.0,
                },
            },
            "state": state,
            "training": training,
            "prediction": prediction,
        },
        tmp_path,
    )  # fmt: skip

    model.train()
    names = {"classification": "cls_loss", "regression": "reg_loss", "total": "final_loss"}
    for items, (losses, gradients) in zip(training, answer["training"], strict=True):
        features, mask, targets = padded(model, items)
        model.zero_grad()
        found = model.loss(model(features, mask), targets, Whole(targets))
        found["total"].backward()
        for ours, theirs in names.items():
            assert found[ours].item() == pytest.approx(losses[theirs], rel=1e-5)
        for name, parameter in model.named_parameters():
            theirs = gradients[name]
            if parameter.grad is None:
                assert not theirs.any(), name
            else:
                scale = max(float(theirs.abs().max()), 1e-3)
                error = float((parameter.grad - theirs).abs().max())
                assert error <= 1e-4 * scale, (name, error, scale)

    model.eval()
    features, mask, _ = padded(model, prediction)
    with torch.no_grad():
        together = model(features, mask)
    for at, (one, theirs) in enumerate(zip(prediction, answer["prediction"], strict=True)):
        features, mask, _ = padded(model, [one])
        with torch.no_grad():
            alone = model(features, mask)
        real = theirs["valid"]
        for output, row in ((alone, 0), (together, at)):
            for name in ("logits", "offsets", "starts", "ends"):
                expected = theirs[name][real]
                found = getattr(output, name)[row][output.valid[row]]
                error = float((found - expected).abs().max())
                assert error <= 1e-4 * float(expected.abs().max()), (one["video_id"], name, error)
        names = ("ranked", "offsets", "starts", "ends", "valid")
        fed = TriDetOutput(*(theirs[name][None] for name in names))
        finest = ~theirs["valid"][: len(real) * 2 ** (levels - 1) // (2**levels - 1)]
        chosen = model.candidates(fed, finest[None])
        keep = chosen.valid[0]
        torch.testing.assert_close(chosen.scores[0][keep], theirs["scores"], atol=0, rtol=1e-6)
        assert torch.equal(chosen.labels[0][keep], theirs["labels"])
        segments = (chosen.segments[0][keep] - 0.5).float()
        torch.testing.assert_close(segments, theirs["segments"], atol=1e-4, rtol=1e-5)
