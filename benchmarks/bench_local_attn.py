# SPDX-License-Identifier: Apache-2.0
"""Banded self-attention, forward and backward, against three peers.

- ActionFormer's own, in overlapping chunks (its code, where ``TAL_FAST_PEERS`` has it; windows of
  odd sizes alone): ``ActionFormer chunks``;
- ``masked scaled_dot_product_attention``: attention of torch over all rows with the band as a mask;
- ``unfolded windows``: the band gathered by torch's own operations.

The twin (tal_fast/reference) verifies ours in float64 on a short video first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from harness import Peer
from peers import PeerMissingError, actionformer, stand_ins
from torch import Tensor

from tal_fast import ops
from tal_fast.reference.local_attn import local_attn as reference


class Shape(NamedTuple):
    """Sizes of one video: rows, heads, channels per head, window."""

    rows: int
    heads: int
    channels: int
    window: int


class Inputs(NamedTuple):
    """Tensors of one case; the first four are the arguments of a peer."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor
    grad: Tensor


def make_inputs(shape: Shape, padded: int = 0) -> Inputs:
    """Random float32 inputs, views of a layer's output; the last ``padded`` rows are padding."""
    rows, heads, channels, _ = shape
    generator = torch.Generator().manual_seed(0)
    parts = (torch.randn(1, rows, heads * channels, generator=generator) for _ in range(3))
    views = [part.requires_grad_().unflatten(-1, (heads, channels)) for part in parts]
    grad = torch.randn(1, rows, heads, channels, generator=generator)
    mask = (torch.arange(rows) >= rows - padded)[None]
    return Inputs(*views, mask, grad)


def forward_backward(attention: Callable[..., Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    out = attention(*inputs[:4])
    return (out.detach(), *torch.autograd.grad(out, inputs[:3], inputs.grad.to(out.dtype)))


def close(ours: Sequence[Tensor], peer: Sequence[Tensor]) -> None:
    """Compares result and gradients, relative to the largest entry of each."""
    for part, (a, b) in enumerate(zip(ours, peer, strict=True)):
        error = float((a.double() - b.double()).abs().max() / b.double().abs().max())
        assert error <= 1e-5, f"result {part} is off by {error:.1e}"


def masked_attention(shape: Shape, mask: Tensor) -> Callable[..., Tensor]:
    """Attention of torch; the mask of the band is made once, outside of what is timed."""
    t = torch.arange(shape.rows)
    band = (t[:, None] - t).abs() <= shape.window // 2
    seen = band & ~mask[:, None, None]

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return out.transpose(1, 2)

    return attend


SHAPES = {
    "2304 rows, 4 heads of 128, window 19": Shape(2304, 4, 128, 19),  # THUMOS14's first level
    "1280 rows, 4 heads of 32, window 9": Shape(1280, 4, 32, 9),  # the small presets
}


@pytest.mark.parametrize("case", SHAPES)
def test_local_attn(compare: Any, case: str) -> None:
    shape = SHAPES[case]

    def ours(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return ops.local_attn(query, key, value, shape.window, mask)

    short = make_inputs(shape._replace(rows=70), padded=11)
    close(
        forward_backward(ours, short),
        forward_backward(lambda q, k, v, m: reference(q, k, v, shape.window, m), short),
    )

    inputs = make_inputs(shape)
    main = shape.rows == 2304
    peers = []
    try:
        chunks = actionformer.local_attn(shape.heads, shape.channels, shape.window)
    except PeerMissingError:
        pass
    else:
        peers.append(
            Peer(
                "ActionFormer chunks",
                lambda: forward_backward(chunks, inputs),
                *((8, 20) if main else ()),
            )
        )
    masked = masked_attention(shape, inputs.mask)
    peers.append(
        Peer(
            "masked scaled_dot_product_attention",
            lambda: forward_backward(masked, inputs),
            *((5, 10) if main else ()),
        )
    )

    def unfolded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return stand_ins.local_attn_unfolded(query, key, value, shape.window, mask)

    peers.append(Peer("unfolded windows", lambda: forward_backward(unfolded, inputs)))
    compare(
        "local_attn",
        f"fwd+bwd, {case}",
        lambda: forward_backward(ours, inputs),
        peers,
        check=close,
        verified="result and gradients, and ours against the float64 twin",
    )
