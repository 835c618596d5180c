# SPDX-License-Identifier: Apache-2.0
"""DeformableAttention: what it computes, its parameter names, its padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tal_fast import ops
from tal_fast.models import build_model
from tal_fast.ops.nn import DeformableAttention

LEVELS = (16, 8)


def layer(levels: int = 2) -> DeformableAttention:
    torch.manual_seed(0)
    module = DeformableAttention(d_model=32, num_heads=4, num_levels=levels, num_points=4)
    for parameter in module.parameters():  # no projection starts at random: make them all count
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def inputs(components: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(3, 5, 32, generator=generator)
    reference = torch.rand(3, 5, 2, components, generator=generator) * 0.5 + 0.25
    value = torch.randn(3, sum(LEVELS), 32, generator=generator)
    mask = torch.rand(3, sum(LEVELS), generator=generator) < 0.3
    return query, reference, value, mask


def composition(
    module: DeformableAttention, query: Tensor, reference: Tensor, value: Tensor, mask: Tensor
) -> Tensor:
    """The layer from separate projections, softmax, locations and deform_attn."""
    batch, queries, _ = query.shape
    shape = (batch, queries, module.num_heads, module.num_levels, module.num_points)
    projected = module.value_proj(value).masked_fill(mask[..., None], 0.0)
    projected = projected.view(batch, -1, module.num_heads, 8)
    offsets = module.sampling_offsets(query).view(shape)
    weights = module.attention_weights(query).view(*shape[:3], -1).softmax(-1).view(shape)
    expanded = reference[:, :, None, :, None]
    if reference.shape[-1] == 1:
        locations = expanded[..., 0] + offsets / offsets.new_tensor(LEVELS)[:, None]
    else:
        locations = expanded[..., 0] + offsets / module.num_points * expanded[..., 1] * 0.5
    return module.output_proj(ops.deform_attn(projected, LEVELS, locations, weights))


@pytest.mark.parametrize("components", [1, 2])
def test_equals_its_composition(components: int) -> None:
    module = layer()
    query, reference, value, mask = inputs(components)
    leaves = [query.requires_grad_(), reference.requires_grad_(), value.requires_grad_()]
    wanted = [*leaves, *module.parameters()]
    ours = module(query, reference, value, LEVELS, mask)
    theirs = composition(module, query, reference, value, mask)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    for mine, other in zip(
        torch.autograd.grad(ours, wanted, weight),
        torch.autograd.grad(theirs, wanted, weight),
        strict=True,
    ):
        scale = other.abs().max().item()
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5 * max(scale, 1.0))


def test_padding_may_hold_nan() -> None:
    module = layer()
    query, reference, value, mask = inputs(1)
    dirty = value.masked_fill(mask[..., None], torch.nan)
    clean = value.masked_fill(mask[..., None], 0.0)
    out = module(query, reference, dirty, LEVELS, mask)
    torch.testing.assert_close(out, module(query, reference, clean, LEVELS, mask))
    assert not out.isnan().any()


def test_checkpoints_hold_two_projections() -> None:
    module = layer()
    names = {
        f"{projection}.{kind}"
        for projection in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for kind in ("weight", "bias")
    }
    assert set(module.state_dict()) == names
    other = DeformableAttention(d_model=32, num_heads=4, num_levels=2, num_points=4)
    other.load_state_dict(module.state_dict())
    query, reference, value, mask = inputs(2)
    assert torch.equal(
        module(query, reference, value, LEVELS, mask), other(query, reference, value, LEVELS, mask)
    )


def test_offsets_keep_their_own_learning_rate() -> None:
    model = build_model("tadtr-small", in_channels=4, num_classes=2)
    rest, slow = model.parameter_groups()
    names = {id(p): name for name, p in model.named_parameters()}
    assert not rest.slow
    assert slow.slow
    found = {names[id(p)].rpartition(".")[0].rpartition(".")[2] for p in slow.parameters}
    assert found == {"sampling_offsets", "reference_points"}
    assert len(rest.parameters) + len(slow.parameters) == len(names)


@pytest.mark.parametrize("components", [1, 2])
def test_under_autocast_only_the_products_are_rounded(components: int) -> None:
    module = layer()
    query, reference, value, mask = inputs(components)
    expected = module(query, reference, value, LEVELS, mask)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(query, reference, value, LEVELS, mask)
    assert out.dtype == torch.bfloat16
    # A few 2**-8 of the largest entry; a location off by half a row would be far more.
    error = (out.float() - expected).abs().max() / expected.abs().max()
    assert error.item() < 0.05


def test_num_heads_must_divide_d_model() -> None:
    with pytest.raises(ValueError, match="expected num_heads to divide d_model = 32, got 5"):
        DeformableAttention(d_model=32, num_heads=5)
