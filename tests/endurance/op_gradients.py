# SPDX-License-Identifier: Apache-2.0
"""Gradients of the calls of ``op_draws``, and those that torch derives from their twins."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from endurance import op_values as v
from endurance.op_values import Call, cases_of, results
from torch import Tensor

__all__ = ["gradients", "gradients_of_twin", "taken_at"]


def taken_at(call: Call) -> tuple[Tensor, ...]:
    """Returns the tensors that the gradients of a call are taken at."""
    return call.tensors if call.finite is None else call.finite


def _scales(call: Call) -> dict[int, Tensor | float]:
    assert call.slopes is not None
    return call.slopes(*taken_at(call))


def _upstream(call: Call, seed: int, out: Sequence[Tensor]) -> list[Tensor]:
    """Returns what comes from above to the results of all cases: adversarial values, too."""
    sizes = [tensor.numel() for tensor in out]
    dtype = call.tensors[0].dtype  # as that of the op's results
    parts = v.numbers(random.Random(seed), sum(sizes), dtype=dtype, cases=1)[0].split(sizes)
    return [part.view(tensor.shape) for part, tensor in zip(parts, out, strict=True)]


def gradients(call: Call, tensors: Sequence[Tensor], seed: int) -> list[list[Tensor]]:
    """Returns the gradients of every case, by one call of the op and of its backward for each.

    Args:
        call: what to call.
        tensors: with what: those that its gradients are taken at, or others of the same numbers.
        seed: of what comes from above.
    """
    wrt = [*_scales(call)]
    leaves = {at: tensors[at].detach().requires_grad_() for at in wrt}
    given = [leaves.get(at, tensor) for at, tensor in enumerate(tensors)]
    out = [results(call.op(*case))[0] for case in cases_of(given)]
    found = torch.autograd.grad(out, [*leaves.values()], _upstream(call, seed, out))
    return [list(case) for case in cases_of(found)]


def gradients_of_twin(call: Call, seed: int) -> list[tuple[Tensor, Tensor | float]]:
    """Returns gradients in float64 with the largest values that differences are measured by."""
    tensors, scales = list(taken_at(call)), _scales(call)
    for at in scales:
        tensors[at] = tensors[at].detach().double().requires_grad_()
    twin = call.twin(*tensors)
    out = [*twin.unbind()] if isinstance(twin, Tensor) else twin[0]
    if not out[0].requires_grad:  # a result that is empty, or a mean of no numbers
        zeros = (torch.zeros_like(tensors[at]) for at in scales)
        return list(zip(zeros, scales.values(), strict=True))
    upstream = [part.double() for part in _upstream(call, seed, out)]
    found = torch.autograd.grad(out, [tensors[at] for at in scales], upstream)
    return list(zip(found, scales.values(), strict=True))
