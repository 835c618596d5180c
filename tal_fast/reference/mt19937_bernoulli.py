# SPDX-License-Identifier: Apache-2.0
"""MT19937 word by word, and Bernoulli variables of it: the twin of the op of that name."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def mt19937_bernoulli(count: int, state: Tensor, p: float) -> Tensor:
    """Returns what the op sets ``count`` elements to: float32 ``Tensor[count]``.

    Args:
        count: number of elements.
        state: uint8 ``Tensor[5056]``, as ``torch.get_rng_state()`` gives it; left as it is.
        p: probability of 1.
    """
    numbers = state.view(torch.int64).tolist()
    left, following, words = numbers[1] & 0xFFFFFFFF, numbers[2], numbers[3:627]
    draws = _draws(words, 624 if left == 1 else following)
    threshold = math.ceil(p * 2**53)
    values = []
    for _ in range(count):
        high, low = next(draws), next(draws)
        values.append(float(((high & 0x1FFFFF) << 32 | low) < threshold))
    return torch.tensor(values, dtype=torch.float32)


def _draws(words: list[int], position: int) -> Iterator[int]:
    while True:
        if position == 624:
            for i in range(624):
                mixed = (words[i] & 0x80000000) | (words[(i + 1) % 624] & 0x7FFFFFFF)
                words[i] = words[(i + 397) % 624] ^ mixed >> 1 ^ (0x9908B0DF if mixed & 1 else 0)
            position = 0
        y = words[position]
        position += 1
        y ^= y >> 11
        y ^= y << 7 & 0x9D2C5680
        y ^= y << 15 & 0xEFC60000
        yield y ^ y >> 18
