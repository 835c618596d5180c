# SPDX-License-Identifier: Apache-2.0
"""TadTR: shapes, names, initialisation, masks, checkpoints of the official code."""

from __future__ import annotations

import math

import pytest
import torch

from tal_fast.errors import ConfigError
from tal_fast.models import available, build_model, detector_config
from tal_fast.models.layers import sine_position_encoding
from tal_fast.models.segments import (
    center_width_to_start_end,
    inverse_sigmoid,
    start_end_to_center_width,
)
from tal_fast.ops.nn import DeformableAttention

TINY = {
    "d_model": 32, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 48,
    "num_queries": 5, "roi_bins": 4,
}  # fmt: skip


def tiny(**overrides):
    torch.manual_seed(0)
    return build_model("tadtr", in_channels=7, num_classes=3, **{**TINY, **overrides})


def test_output_shapes_and_ranges():
    model = tiny().eval()
    with torch.no_grad():
        output = model(torch.randn(2, 16, 7), torch.zeros(2, 16, dtype=torch.bool))
    assert output.logits.shape == (2, 2, 5, 3)
    assert output.segments.shape == (2, 2, 5, 2)
    assert output.actionness.shape == (2, 5)
    for values in (output.segments, output.actionness):
        assert bool(((values >= 0) & (values <= 1)).all())


def test_without_actionness():
    model = tiny(actionness=False)
    assert model(torch.randn(1, 8, 7), torch.zeros(1, 8, dtype=torch.bool)).actionness is None
    assert not any("actionness" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("actionness", "parameters"),
    # 8,661,594 and 1,114,881 in the actionness head: counted on the official model's THUMOS14
    # configuration, 2048 channels and 20 classes.
    [(True, 8_661_594), (False, 8_661_594 - 1_114_881)],
)
def test_parameter_count_of_the_official_model(actionness, parameters):
    model = build_model("tadtr", in_channels=2048, num_classes=20, actionness=actionness)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_parameter_names_of_the_official_model():
    names = {name for name, _ in tiny().named_parameters()}
    attention = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    for prefix in (
        *(f"transformer.encoder.layers.0.self_attn.{name}" for name in attention),
        *(f"transformer.decoder.layers.1.cross_attn.{name}" for name in attention),
        "transformer.encoder.layers.0.linear1",
        "transformer.decoder.layers.0.norm3",
        "transformer.decoder.layers.0.self_attn.out_proj",
        "transformer.reference_points",
        "input_proj.0.0",
        "input_proj.0.1",
        "class_embed.1",
        "segment_embed.1.layers.2",
        "actionness_pred.4",
    ):
        assert {f"{prefix}.weight", f"{prefix}.bias"} <= names
    assert {"query_embed.weight", "transformer.level_embed"} <= names
    assert "transformer.decoder.layers.0.self_attn.in_proj_weight" in names


def test_loads_checkpoints_that_list_segment_heads_twice():
    model = tiny()
    state = model.state_dict()
    extra = {
        f"transformer.decoder.{key}": value
        for key, value in state.items()
        if key.startswith("segment_embed.")
    }
    assert extra
    tiny().load_state_dict({**state, **extra})


def test_initial_state_is_the_recipes():
    model = build_model("tadtr", in_channels=7, num_classes=3)
    attention = model.transformer.encoder.layers[0].self_attn
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.weight.any()
    # head h looks cos(4 pi h / 8) * (p + 1) rows away
    offsets = attention.sampling_offsets.bias.view(8, 4)
    expected = [[math.cos(4 * math.pi * h / 8) * (p + 1) for p in range(4)] for h in range(8)]
    torch.testing.assert_close(offsets, torch.tensor(expected), atol=1e-5, rtol=0)
    prior = torch.sigmoid(model.class_embed[0].bias)
    torch.testing.assert_close(prior, torch.full((3,), 0.01))
    assert model.segment_embed[0].layers[-1].bias.tolist() == [0.0, -2.0]
    assert model.segment_embed[1].layers[-1].bias.tolist() == [0.0, 0.0]


def test_first_layer_refines_a_centre_and_later_ones_a_segment():
    model = tiny().eval()
    with torch.no_grad():
        output = model(torch.randn(1, 16, 7), torch.zeros(1, 16, dtype=torch.bool))
        position = model.query_embed.weight[:, :32]
        centre = model.transformer.reference_points(position).sigmoid()[:, 0]
    # the heads start at zero, so nothing has moved yet
    torch.testing.assert_close(output.segments[0, 0, :, 0], centre)
    width = torch.sigmoid(torch.tensor(-2.0))
    torch.testing.assert_close(output.segments[0, 0, :, 1], width.expand(5))
    torch.testing.assert_close(output.segments[1], output.segments[0])


def test_padding_does_not_reach_the_result():
    """Whatever stands in padded rows, the encoder's valid rows and the queries stay the same."""
    model = tiny().eval()
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[:, 10:] = True
    x = torch.randn(1, 16, 7)
    x[:, 10:] = 0
    with torch.no_grad():
        memory, ratio = model._encode(x, mask)
        changed = memory.clone()
        changed[:, 10:] += 100.0
        logits = model._decode(memory, mask, ratio)[0]
        other = model._decode(changed, mask, ratio)[0]
    torch.testing.assert_close(logits, other)
    assert ratio.item() == pytest.approx(10 / 16)


def test_every_parameter_learns():
    model = tiny()
    output = model(torch.randn(2, 16, 7), torch.zeros(2, 16, dtype=torch.bool))
    (output.logits.sum() + output.segments.square().sum() + output.actionness.sum()).backward()
    frozen = [name for name, p in model.named_parameters() if p.grad is None]
    assert frozen == []


def test_one_seed_one_result():
    x, mask = torch.randn(2, 16, 7), torch.zeros(2, 16, dtype=torch.bool)
    results = []
    for _ in range(2):
        model = tiny()
        results.append(model(x, mask).logits)
    assert torch.equal(*results)


def test_bfloat16_stays_near_float32():
    model = tiny().eval()
    x, mask = torch.randn(2, 16, 7), torch.zeros(2, 16, dtype=torch.bool)
    with torch.no_grad():
        exact = model(x, mask)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(x, mask)
    assert rounded.logits.dtype == rounded.segments.dtype == torch.float32
    torch.testing.assert_close(rounded.logits, exact.logits, atol=0.1, rtol=0.05)


def test_wrong_channels():
    with pytest.raises(ValueError, match=r"features of shape \[B, T, 7\], got \[1, 4, 6\]"):
        tiny()(torch.zeros(1, 4, 6), torch.zeros(1, 4, dtype=torch.bool))


def test_unknown_names_suggest_the_near_one():
    with pytest.raises(ConfigError, match="unknown model 'tadrt'; did you mean 'tadtr'"):
        build_model("tadrt", in_channels=1, num_classes=1)
    with pytest.raises(ConfigError, match=r"num_querys'; did you mean 'model\.num_queries'"):
        detector_config("tadtr", {"model": {"num_querys": 3}})
    assert available()[:2] == ("tadtr", "tadtr-small")


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="expected num_heads to divide d_model = 10, got 4"):
        DeformableAttention(d_model=10, num_heads=4)


def test_attention_with_offsets_zero_reads_the_reference_rows():
    attention = DeformableAttention(d_model=8, num_heads=2, num_levels=1, num_points=2)
    with torch.no_grad():
        attention.sampling_offsets.bias.zero_()
        for projection in (attention.value_proj, attention.output_proj):
            projection.weight.copy_(torch.eye(8))
    value = torch.randn(1, 6, 8)
    reference = ((torch.arange(6) + 0.5) / 6).view(1, 6, 1, 1)
    result = attention(torch.randn(1, 6, 8), reference, value, (6,))
    torch.testing.assert_close(result, value, atol=1e-5, rtol=1e-5)
    # a reference with a width samples around the centre only as far as offsets say
    wide = torch.cat((reference, torch.full_like(reference, 0.5)), dim=-1)
    torch.testing.assert_close(attention(value, wide, value, (6,)), value, atol=1e-5, rtol=1e-5)


def test_position_encoding_spans_two_pi_over_the_valid_rows():
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[:, 5:] = True
    code = sine_position_encoding(mask, 4)
    assert code.shape == (1, 8, 4)
    phase = 2 * math.pi * torch.arange(1, 6) / 5
    torch.testing.assert_close(code[0, :5, 0], phase.sin(), atol=1e-5, rtol=0)
    torch.testing.assert_close(code[0, :5, 1], phase.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(code[0, :5, 2], (phase / 100).sin(), atol=1e-5, rtol=0)


def test_segment_conversions():
    segments = torch.tensor([[0.5, 0.2], [0.25, 0.5]])
    edges = center_width_to_start_end(segments)
    torch.testing.assert_close(edges, torch.tensor([[0.4, 0.6], [0.0, 0.5]]))
    torch.testing.assert_close(start_end_to_center_width(edges), segments)
    x = torch.tensor([0.0, 1e-7, 0.3, 1.0])
    inverse = inverse_sigmoid(x)
    assert torch.isfinite(inverse).all()
    torch.testing.assert_close(inverse[2].sigmoid(), x[2])
