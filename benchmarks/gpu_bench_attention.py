# SPDX-License-Identifier: Apache-2.0
"""The cases of deformable attention on a GPU, for :mod:`gpu_bench`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gpu_harness import Bench, Call, close
from peers import PeerMissingError, gpu_attention, stand_ins
from torch import Tensor

from tal_fast import ops

__all__ = ["ATTENTION", "AttentionCase", "attention"]

# (B, Q, heads, channels, points, level lengths), as in bench_deform_attn.py, and a padded window.
# The large ones first: most is to be learnt of them, should the time not suffice for all.
ATTENTION = {
    "P": (8, 2304, 8, 32, 4, (2304,)),
    "C": (2, 4536, 8, 32, 4, (2304, 1152, 576, 288, 144, 72)),
    "A": (16, 128, 8, 32, 4, (128,)),
    "B": (16, 40, 8, 32, 4, (128,)),
    "W": (8, 256, 8, 32, 4, (256,)),
}
TINY = dict.fromkeys(ATTENTION, (1, 6, 2, 8, 2, (8,)))


#: Peers without 16-bit kernels.
_FLOAT32_ALONE = ("DiGIT", "Deformable-DETR, H = 1")
_COMPILED_CORE = {("A", "float32"), ("W", "float32")}
_COMPILED_GATHER = {(name, "float32") for name in "ABWP"} | {("A", "bfloat16"), ("P", "bfloat16")}


def attention(bench: Bench) -> None:
    """deform_attn and its fused form, fp32 and bf16, forward and forward + backward."""
    for name, shape in (ATTENTION if bench.real else TINY).items():
        for dtype in (torch.float32, torch.bfloat16):
            case = AttentionCase(name, shape, dtype, bench.device)
            _plain_attention(bench, case)
            _fused_attention(bench, case)


class AttentionCase:
    """Random inputs of one shape and dtype, and the bytes that its op must move."""

    def __init__(self, name: str, shape: Any, dtype: torch.dtype, device: torch.device) -> None:
        batch, queries, heads, channels, self.points, self.lengths = shape
        self.name, self.dtype, self.label = name, dtype, str(dtype).removeprefix("torch.")
        levels = len(self.lengths)
        self.samples = (batch, queries, heads, levels, self.points)
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        # A tenth of a row from integer positions, where the gradient jumps.
        sizes = torch.tensor(self.lengths).view(1, 1, 1, -1, 1)
        cell = torch.floor(torch.rand(self.samples, generator=generator) * (sizes + 2)) - 1
        inside = 0.1 + 0.8 * torch.rand(self.samples, generator=generator)
        self.locations = ((cell + inside + 0.5) / sizes).to(device)
        weights = normal(*self.samples).flatten(3).softmax(-1).view(self.samples)
        self.weights = weights.to(device, dtype)
        self.value = normal(batch, sum(self.lengths), heads, channels).to(device, dtype)
        self.grad = normal(batch, queries, heads * channels).to(device, dtype)
        self.centre = torch.rand(batch, queries, levels, 2, generator=generator).to(device)
        self.half = heads * levels * self.points
        self.projected = normal(batch, queries, 2 * self.half).to(device, dtype)
        item = self.value.element_size()
        by_sample = self.locations.numel() * (4 + item)
        self.forward_bytes = (self.value.numel() + self.grad.numel()) * item + by_sample
        self.backward_bytes = (2 * self.value.numel() + self.grad.numel()) * item + 2 * by_sample
        self.fused_forward_bytes = item * (
            self.value.numel() + self.grad.numel() + self.projected.numel()
        )
        self.fused_bytes = item * (
            3 * self.value.numel() + 2 * self.grad.numel() + 4 * self.projected.numel()
        )
        self.large = self.forward_bytes > 20e6
        # What any float32 implementation can reach; 16 bits round results once.
        exact = dtype == torch.float32
        self.bound = max(1e-5, 16 * sum(self.lengths) * 2.0**-24) if exact else 5e-2

    def differentiated(self, function: Any, *inputs: Tensor) -> Call:
        """Returns a call that gives the output of the function and all gradients."""
        leaves = [x.detach().clone().requires_grad_() for x in inputs]

        def call() -> tuple[Tensor, ...]:
            out = function(*leaves)
            grads = torch.autograd.grad(out, leaves, self.grad.to(out.dtype))
            # Peers with two coordinates have a gradient for the second: not compared.
            return (out.detach(), *(g[..., 0] if g.dim() == 6 else g for g in grads))

        return call


def _plain_attention(bench: Bench, case: AttentionCase) -> None:
    # The eager form samples with locations of value's dtype.
    own_dtype = case.locations.to(case.dtype)
    contenders: dict[str, tuple[Any, Tensor]] = {
        "grid_sample core": (_with(stand_ins.deform_attn_grid_sample, case), own_dtype)
    }
    for peer, (adapter, shape_locations) in gpu_attention.PEERS.items():
        if case.dtype != torch.float32 and peer in _FLOAT32_ALONE:
            continue
        try:
            prepared = adapter(case.lengths, bench.device)
        except PeerMissingError:
            continue
        contenders[peer] = (prepared, shape_locations(case.locations).contiguous())
    compiled: dict[str, tuple[Any, Tensor]] = {}
    if (case.name, case.label) in _COMPILED_CORE:
        compiled["compiled grid_sample core"] = (stand_ins.deform_attn_grid_sample, own_dtype)
    if (case.name, case.label) in _COMPILED_GATHER:
        compiled["compiled gather"] = (stand_ins.deform_attn_gather, case.locations)

    def forward(function: Any, locations: Tensor) -> Call:
        def call() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (function(case.value, locations, case.weights),)

        return call

    def both(function: Any, locations: Tensor) -> Call:
        return case.differentiated(function, case.value, locations, case.weights)

    def compiler(make: Any, function: Any, locations: Tensor) -> Callable[[], Call]:
        return lambda: make(_with(bench.compile(function), case), locations)

    for what, make, num_bytes in (
        ("fwd", forward, case.forward_bytes),
        ("fwd+bwd", both, case.forward_bytes + case.backward_bytes),
    ):
        bench.compare(
            "deform_attn",
            f"{case.name} {what} {case.label}",
            make(_with(ops.deform_attn, case), case.locations),
            {peer: make(function, at) for peer, (function, at) in contenders.items()},
            compiled={peer: compiler(make, *item) for peer, item in compiled.items()},
            num_bytes=num_bytes,
            check=close(case.bound),
            # 16-bit locations misplace samples by up to several rows.
            unchecked=[
                peer
                for peer, (_, at) in {**contenders, **compiled}.items()
                if at.dtype != torch.float32
            ],
            large=case.large,
        )


def _with(function: Any, case: AttentionCase) -> Any:
    return lambda value, locations, weights: function(value, case.lengths, locations, weights)


def _fused_attention(bench: Bench, case: AttentionCase) -> None:
    def fused(value: Tensor, projected: Tensor) -> Tensor:
        offsets, raw = projected.split(case.half, -1)
        shape = case.samples
        return ops.deform_attn_fused(
            value, case.lengths, case.centre, offsets.view(shape), raw.view(shape)
        )

    def composed(value: Tensor, projected: Tensor) -> Tensor:
        offsets, raw = projected.split(case.half, -1)
        share = raw.float().reshape(*case.samples[:3], -1).softmax(-1).view(case.samples)
        middle, width = case.centre[:, :, None, :, None].unbind(-1)
        at = middle + offsets.reshape(case.samples).float() * width * 0.5 / case.points
        return ops.deform_attn(value, case.lengths, at, share.to(value.dtype))

    def forward(function: Any) -> Call:
        def call() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (function(case.value, case.projected),)

        return call

    def both(function: Any) -> Call:
        return case.differentiated(function, case.value, case.projected)

    exact = case.dtype == torch.float32
    for what, make, num_bytes in (
        ("fwd", forward, case.fused_forward_bytes),
        ("fwd+bwd", both, case.fused_bytes),
    ):
        bench.compare(
            "deform_attn_fused",
            f"{case.name} {what} {case.label}",
            make(fused),
            {"deform_attn + eager softmax": make(composed)},
            num_bytes=num_bytes,
            check=close(1e-3) if exact else None,  # offsets of 16 bits lie on integer positions
            large=case.large,
        )
