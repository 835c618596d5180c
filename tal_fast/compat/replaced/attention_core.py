# SPDX-License-Identifier: Apache-2.0
"""Deformable attention out of ``grid_sample``: TadTR's, DiGIT's, OpenTAD's, Deformable-DETR's.

They differ in how they give levels and locations, and OpenTAD's returns half of the sum; the proof
finds both out, with values and gradients in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tal_fast import ops
from tal_fast.compat.attention import row_weight, widths_of_rows
from tal_fast.compat.options import Options
from tal_fast.compat.proof import Proof, UnprovedError, UnsuitableError, arguments_of

__all__ = ["prove"]

#: How levels and locations are given: lengths with x or (…, 1), (height, width) with (…, 2).
_FORMS = ("x", "x1", "xy")
_LENGTHS = [13, 7]


def prove(original: Callable[..., Any], options: Options) -> Proof:
    """Finds the form and the factor under which values and gradients agree."""
    tried = []
    for form in _FORMS:
        inputs = _made_inputs(form)
        try:
            expected, expected_grads = _run(original, form, inputs)
        except Exception as error:
            tried.append(f"{form}: {type(error).__name__}")
            continue
        for factor in (1.0, 0.5):
            ours = _make(original, form, factor)
            found, grads = _run(ours, form, inputs)
            if found.shape != expected.shape:
                tried.append(f"{form}: another shape")
                break
            off = float((found - expected).abs().max())
            off_grad = max(
                float((a - b).abs().max()) for a, b in zip(grads, expected_grads, strict=True)
            )
            if off <= 1e-10 and off_grad <= 1e-9:
                form_words = {"x": "lengths, x", "x1": "lengths, (x,)", "xy": "rows, (x, y)"}[form]
                half = ", half of the sum" if factor == 0.5 else ""
                return Proof(
                    ours, f"{form_words}{half}; differs by {off:.0e}, gradients {off_grad:.0e}"
                )
            tried.append(f"{form} times {factor}: differs by {off:.1e}, gradients {off_grad:.1e}")
    raise UnprovedError("; ".join(tried))


def _made_inputs(form: str) -> tuple[Tensor, Any, Tensor, Tensor, Tensor]:
    """Value, shapes, locations (off the integers), weights, and a gradient for the result."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64, device="cpu")

    value, x = random(2, sum(_LENGTHS), 4, 8) - 0.5, random(2, 5, 4, 2, 3) * 1.2 - 0.1
    weights, grad = random(2, 5, 4, 2, 3), random(2, 5, 32)
    lengths = torch.tensor(_LENGTHS, device="cpu")
    if form == "x":
        return value, lengths, x, weights, grad
    if form == "x1":
        return value, lengths, x.unsqueeze(-1), weights, grad
    y = random(2, 5, 4, 2, 3) * 1.4 - 0.2
    y[:, :2] = 0.5
    shapes = torch.stack([torch.ones_like(lengths), lengths], dim=-1)
    return value, shapes, torch.stack([x, y], dim=-1), weights, grad


def _run(
    core: Callable[..., Any], form: str, inputs: tuple[Tensor, Any, Tensor, Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    value, shapes, locations, weights, grad = inputs
    leaves = [x.clone().requires_grad_() for x in (value, locations, weights)]
    with torch.enable_grad():
        out = core(leaves[0], shapes, leaves[1], leaves[2])
        return out.detach(), torch.autograd.grad(out, leaves, grad)


def _make(original: Callable[..., Any], form: str, factor: float) -> Callable[..., Tensor]:
    bind = arguments_of(original)

    def core(*args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_compiling():
            raise UnsuitableError("torch.compile is at work")
        # Names differ from one codebase to the next, the order does not.
        value, shapes, sampling_locations, weights = bind(*args, **kwargs).values()
        levels = shapes.tolist() if isinstance(shapes, Tensor) else list(shapes)
        x = sampling_locations
        if form != "x":
            x = sampling_locations[..., 0]
        if form == "xy":
            rows = widths_of_rows(levels)
            if rows is None:
                raise UnsuitableError("a level is higher than one row")
            levels = rows
            weights = weights * row_weight(sampling_locations[..., 1])
        dtype = value.dtype
        if not (dtype == x.dtype == weights.dtype):
            if not torch.is_autocast_enabled(value.device.type):
                raise UnsuitableError("dtypes differ")
            # As grid_sample has it there.
            dtype = torch.promote_types(dtype, torch.promote_types(x.dtype, weights.dtype))
        if dtype not in (torch.float32, torch.float64):
            raise UnsuitableError(f"computes in {dtype}")
        out = ops.deform_attn(value.to(dtype), levels, x.to(dtype), weights.to(dtype))
        return out if factor == 1.0 else out * factor

    return core
