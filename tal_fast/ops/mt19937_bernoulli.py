# SPDX-License-Identifier: Apache-2.0
"""``Tensor.bernoulli_`` on the CPU with torch's own random numbers, a vector at a time.

torch draws two words of its generator (MT19937; Matsumoto and Nishimura, TOMACS 1998) for every
element, one after another. Dropout on a CPU is little else. The numbers here are the same, bit for
bit, and so is the state that is left. Part of ``tal_fast.compat``, not an op for new code, which
:func:`tal_fast.ops.dropout` serves better. There is no CUDA kernel: torch's GPU generator is
another one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tal_fast.ops.arguments import check_tensors
from tal_fast.ops.registration import register_without_gradient

__all__ = ["STATE_BYTES", "mt19937_bernoulli_"]

STATE_BYTES = 5056
"""Length of ``torch.get_rng_state()``."""


def mt19937_bernoulli_(values: Tensor, state: Tensor, p: float) -> None:
    """Sets each element to 1 with probability ``p``, else to 0, as ``values.bernoulli_(p)`` does.

    Args:
        values: contiguous float32 ``Tensor[...]`` on the CPU; what it holds is overwritten.
        state: uint8 ``Tensor[5056]`` of ``torch.get_rng_state()``; it moves on by two words per
            element. ``torch.set_rng_state(state)`` gives it back to the generator.
        p: probability of 1, in [0, 1].

    Raises:
        TypeError: an argument that should be a tensor is none.
        RuntimeError: on a wrong dtype, shape, device or probability, or if ``state`` is no state.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> expected = torch.empty(5).bernoulli_(0.5)
        >>> values, state = torch.empty(5), torch.manual_seed(0).get_state()
        >>> mt19937_bernoulli_(values, state, 0.5)
        >>> torch.equal(values, expected)
        True
    """
    check_tensors("mt19937_bernoulli_", values=values, state=state)
    if values.device.type != "cpu":
        raise RuntimeError(
            f"mt19937_bernoulli_: expected values on the CPU, got {values.device}: "
            "its numbers are those of torch's CPU generator"
        )
    if state.dtype != torch.uint8 or state.shape != (STATE_BYTES,):
        raise RuntimeError(
            f"mt19937_bernoulli_: expected state to be uint8 of shape [{STATE_BYTES}], "
            f"got {state.dtype} of shape {list(state.shape)}"
        )
    torch.ops.tal_fast.mt19937_bernoulli_.default(values, state.view(torch.int64), p)


@torch.library.register_fake("tal_fast::mt19937_bernoulli_")
def _fake(values: Tensor, state: Tensor, p: float) -> None:
    return None


register_without_gradient("mt19937_bernoulli_")
