# SPDX-License-Identifier: Apache-2.0
"""Deformable attention against what models run today.

- ``grid_sample core``: sampling from an image of height 1, as TadTR and OpenTAD run it (their own
  code where it is there; OpenTAD's gives half of the formula's sum, and is checked against that).
- ``compiled gather``: two gathers per sample and a linear blend, under ``torch.compile``.
- for the fused form: ``deform_attn`` behind eager softmax and locations.

The twin (tal_fast/reference) verifies ours in float64 first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from harness import Peer
from peers import PeerMissingError, opentad, stand_ins, tadtr
from torch import Tensor

from tal_fast import ops
from tal_fast.reference.deform_attn import deform_attn as reference

Attention = Callable[[Tensor, Sequence[int], Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """Sizes of one case: batch, queries, heads, channels per head, points, rows per level."""

    batch: int
    queries: int
    heads: int
    channels: int
    points: int
    levels: tuple[int, ...]


SHAPES = {
    "A": Shape(16, 128, 8, 32, 4, (128,)),  # TadTR's encoder, THUMOS14
    "B": Shape(16, 40, 8, 32, 4, (128,)),  # TadTR's decoder
    "W": Shape(8, 256, 8, 32, 4, (256,)),  # OpenTAD's TadTR configuration
    "C": Shape(2, 4536, 8, 32, 4, (2304, 1152, 576, 288, 144, 72)),  # a pyramid
}


class Inputs(NamedTuple):
    """Tensors of one case; the first four are the op's arguments."""

    value: Tensor
    level_lengths: tuple[int, ...]
    locations: Tensor
    weights: Tensor
    grad: Tensor

    def differentiable(self) -> list[Tensor]:
        """Returns the tensors that get a gradient."""
        return [self.value, self.locations, self.weights]


def make_inputs(shape: Shape) -> Inputs:
    """Random float32 inputs; samples keep away from integer positions, where the slope jumps."""
    generator = torch.Generator().manual_seed(0)
    batch, queries, heads, channels, points, levels = shape
    rows = sum(levels)
    per_level = []
    for length in levels:
        size = (batch, queries, heads, 1, points)
        cell = torch.randint(-1, length + 1, size, generator=generator)
        # A tenth of a row from either side, far above float32's error in loc * T - 0.5.
        inside = 0.1 + 0.8 * torch.rand(size, generator=generator)
        per_level.append((cell + inside + 0.5) / length)
    logits = torch.randn(batch, queries, heads, len(levels) * points, generator=generator)
    weights = logits.softmax(-1).view(batch, queries, heads, len(levels), points)
    value = torch.randn(batch, rows, heads, channels, generator=generator)
    grad = torch.randn(batch, queries, heads * channels, generator=generator)
    inputs = Inputs(value, levels, torch.cat(per_level, 3), weights.contiguous(), grad)
    for tensor in inputs.differentiable():
        tensor.requires_grad_()
    return inputs


def forward(attention: Attention, inputs: Inputs) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (attention(*inputs[:4]),)


def forward_backward(attention: Attention, inputs: Inputs) -> tuple[Tensor, ...]:
    out = attention(*inputs[:4])
    grads = torch.autograd.grad(out, inputs.differentiable(), inputs.grad.to(out.dtype))
    return (out.detach(), *grads)


def close(ours: Sequence[Tensor], peer: Sequence[Tensor], rows: int, scale: float = 1.0) -> None:
    """Compares output and gradients, relative to the largest entry of each.

    Float32 places a sample of level length T to about T * 2**-24 rows, which bounds what any
    implementation can reach.
    """
    bound = max(1e-5, 16 * rows * 2.0**-24)
    for part, (a, b) in enumerate(zip(ours, peer, strict=True)):
        error = float((scale * a.double() - b.double()).abs().max() / b.double().abs().max())
        assert error <= bound, f"result {part} is off by {error:.1e}, allowed {bound:.1e}"


def grid_sample_peer(shape: str) -> tuple[str, Attention, float, bool]:
    """Returns (name, function, what it gives over what the formula says, whether a stand-in)."""
    own = ("TadTR", tadtr.deform_attn, 1.0) if shape in "AB" else None
    name, core, scale = own or ("OpenTAD", opentad.deform_attn, 0.5)
    try:
        inputs = make_inputs(Shape(1, 1, 1, 1, 1, (2,)))
        forward(core, inputs)
    except PeerMissingError:
        return "grid_sample core", stand_ins.deform_attn_grid_sample, 1.0, True
    return f"grid_sample core ({name})", core, scale, False


BOUNDS = {
    # (shape, pass): (must, aim) against grid_sample, then against the compiled gather
    ("A", "fwd"): ((20, 40), (None, None)),
    ("W", "fwd"): ((20, 40), (None, None)),
    ("A", "fwd+bwd"): ((15, 30), (3, 6)),
    ("B", "fwd+bwd"): ((15, 30), (3, 6)),
    ("W", "fwd+bwd"): ((15, 30), (3, 6)),
    ("C", "fwd"): ((30, 55), None),
    ("C", "fwd+bwd"): ((15, 35), None),
}


@pytest.mark.parametrize(("shape", "what"), BOUNDS, ids=lambda value: value)
def test_deform_attn(compare: Any, shape: str, what: str) -> None:
    inputs = make_inputs(SHAPES[shape])
    rows = max(inputs.level_lengths)
    call = forward if what == "fwd" else forward_backward
    close(call(ops.deform_attn, inputs), call(reference, inputs), rows)
    core_bounds, gather_bounds = BOUNDS[shape, what]
    name, core, scale, stand_in = grid_sample_peer(shape)
    peers = [Peer(name, lambda: call(core, inputs), *core_bounds, stand_in=stand_in)]
    scales = {name: scale}
    # The peers are checked in their own scale, so each gets its own comparison of results.
    if gather_bounds is not None:
        gather = torch.compile(stand_ins.deform_attn_gather, fullgraph=True, dynamic=False)
        peers.append(Peer("compiled gather", lambda: call(gather, inputs), *gather_bounds))
        scales["compiled gather"] = 1.0
    checks = iter(scales.values())

    def check(ours: Sequence[Tensor], peer: Sequence[Tensor]) -> None:
        close(ours, peer, rows, next(checks))

    compare(
        "deform_attn",
        f"{what} fp32, shape {shape}",
        lambda: call(ops.deform_attn, inputs),
        peers,
        check=check,
        verified="output and gradients, and ours against the float64 twin",
    )


def test_deform_attn_fused(compare: Any) -> None:
    """Softmax, locations and attention in one op against the same three in turn, shape A."""
    generator = torch.Generator().manual_seed(0)
    batch, queries, heads, channels, points, levels = SHAPES["A"]
    rows = levels[0]
    value = torch.randn(batch, rows, heads, channels, generator=generator, requires_grad=True)
    steps = (torch.arange(queries) + 0.5) / queries
    reference_points = steps.view(1, -1, 1, 1).expand(batch, -1, 1, 1).contiguous()
    # One projection gives both halves, as a model has them.
    projected = torch.randn(
        batch, queries, 2 * heads * points, generator=generator, requires_grad=True
    )
    grad = torch.randn(batch, queries, heads * channels, generator=generator)
    shape = (batch, queries, heads, 1, points)

    def fused() -> tuple[Tensor, ...]:
        offsets, logits = projected.split(heads * points, -1)
        out = ops.deform_attn_fused(
            value, levels, reference_points, offsets.view(shape), logits.view(shape)
        )
        return (out.detach(), *torch.autograd.grad(out, (value, projected), grad))

    def composed() -> tuple[Tensor, ...]:
        offsets, logits = projected.split(heads * points, -1)
        weights = logits.reshape(batch, queries, heads, points).softmax(-1).view(shape)
        locations = reference_points[:, :, None, :, :] + offsets.reshape(shape) / rows
        out = ops.deform_attn(value, levels, locations, weights)
        return (out.detach(), *torch.autograd.grad(out, (value, projected), grad))

    compare(
        "deform_attn_fused",
        "fwd+bwd fp32, shape A",
        fused,
        [Peer("deform_attn + eager softmax and locations", composed, 1.3, 2)],
        check=lambda ours, peer: close(ours, peer, rows),
        verified="output and gradients",
    )
