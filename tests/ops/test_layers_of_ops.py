# SPDX-License-Identifier: Apache-2.0
"""tal_fast.ops.nn: what LocalAttention computes; DeformableAttention is tested with its model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tal_fast
from tal_fast import ops
from tal_fast.ops.nn import LocalAttention


def composition(layer: LocalAttention, x: Tensor, padding: Tensor) -> Tensor:
    """The layer from torch's attention under a band of ones."""
    batch, rows, width = x.shape
    parts = F.linear(x, layer.in_proj.weight, layer.in_proj.bias).chunk(3, dim=-1)
    query, key, value = (
        part.view(batch, rows, layer.num_heads, -1).transpose(1, 2) for part in parts
    )
    number = torch.arange(rows)
    near = (number[:, None] - number[None]).abs() <= layer.window // 2
    seen = near & ~padding[:, None, None, :]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    out = out.transpose(1, 2).masked_fill(padding[..., None, None], 0.0)
    return F.linear(out.reshape(batch, rows, width), layer.out_proj.weight, layer.out_proj.bias)


@pytest.mark.parametrize("window", [1, 5, 99])
def test_local_attention_is_attention_within_a_band(window: int) -> None:
    torch.manual_seed(0)
    layer = LocalAttention(12, 3, window)
    x = torch.randn(2, 20, 12, requires_grad=True)
    padding = torch.zeros(2, 20, dtype=torch.bool)
    padding[1, 13:] = True
    ours, theirs = layer(x, padding), composition(layer, x, padding)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    wanted = [x, *layer.parameters()]
    weight = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad(ours, wanted, weight),
        torch.autograd.grad(theirs, wanted, weight),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def test_weights_are_float32_whatever_the_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        layer = LocalAttention(4, 2, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}


def test_arguments_that_make_no_layer() -> None:
    with pytest.raises(ValueError, match="expected num_heads to divide d_model = 10, got 4"):
        LocalAttention(10, 4, 3)
    with pytest.raises(ValueError, match="expected window >= 1, got 0"):
        LocalAttention(8, 4, 0)


def test_layers_are_an_attribute_of_the_ops() -> None:
    assert tal_fast.ops.nn is ops.nn
    assert set(ops.nn.__all__) <= set(dir(ops.nn))
