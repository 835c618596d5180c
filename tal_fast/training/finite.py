# SPDX-License-Identifier: Apache-2.0
"""What is not finite first, once a run has failed on it.

Everything here waits for the device. A training step asks for it only when it ends with an error:
an op on a CPU refuses what is not finite, and on a GPU, which cannot raise, it reaches the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tal_fast.errors import counted

__all__ = ["clips_of", "first_not_finite", "not_finite_weights"]


def not_finite_weights(weights: Mapping[str, Tensor]) -> str | None:
    """Names the first parameter that holds NaN or infinity, and says how many; None if none does.

    Args:
        weights: a state dict.
    """
    for name, weight in weights.items():
        bad = weight.numel() - int(torch.isfinite(weight).sum())
        if bad:
            return f"the parameter {name!r} ({bad} of {counted(weight.numel(), 'value')})"
    return None


@torch.no_grad()
def first_not_finite(model: nn.Module, features: Tensor, mask: Tensor) -> str | None:
    """Says what is not finite first on the way from features to outputs; None if all is finite.

    Args:
        model: called again with what it failed on.
        features: ``Tensor[B, T, C]``.
        mask: ``BoolTensor[B, T]``.
    """
    weight = not_finite_weights(model.state_dict())
    if weight is not None:
        return weight
    seen: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if not seen and not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
                seen.append(f"the output of {name}" if name else "the outputs themselves")

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with suppress(Exception):  # as the call that failed
            model(features, mask)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        return None
    return f"{seen[0]}, for features up to {float(features.abs().max()):.3g}"


def clips_of(videos: Sequence[str]) -> str:
    """Returns ``clips of a, b`` for an error."""
    return f"clips of {', '.join(sorted(set(videos)))}"
