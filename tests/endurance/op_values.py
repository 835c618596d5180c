# SPDX-License-Identifier: Apache-2.0
"""What the ops of a case are called with: adversarial values, in tensors of odd sizes and strides.

Values are ties, neighbours one ulp apart, denormals, zeros of both signs, large and small ones, and
where an op allows them infinities and NaN. They are made in NumPy, whose calls cost a tenth of
those of torch for a handful of numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float32, torch.float16, torch.bfloat16)
#: Of results that twins compute in float64, over the largest value that goes in.
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SIZES = (0, 1, 1, 2, 3, 5, 8, 17, 33, 64)
#: For twins that compare all pairs in Python.
FEW = (0, 1, 2, 2, 3, 3, 4, 5, 6, 8, 8, 12, 17)
_TINY = {dtype: torch.finfo(dtype).smallest_normal for dtype in DTYPES}
_NUMPY = {torch.float64: np.float64, torch.float32: np.float32, torch.float16: np.float16}

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Call:
    """A call of an op.

    Attributes:
        op: the op as a function of the tensors.
        tensors: what it is called with.
        twin: the same of the twin, or None where only layouts and instruction sets are compared.
        scale: largest value that a difference is measured by; 0 for equal bits.
        told: what of the results the twin tells; all of them when None.
        contiguous: the op takes no other layout of its first tensor, and says so.
    """

    op: Callable[..., Any]
    tensors: tuple[Tensor, ...]
    twin: Callable[..., Any] | None
    scale: float = 0.0
    contiguous: bool = False
    told: Callable[[list[Tensor]], list[Tensor]] | None = None


def results(value: Any) -> list[Tensor]:
    """Returns the tensors that an op gave."""
    if isinstance(value, Tensor):
        return [value]
    if value is None or isinstance(value, (int, float)):
        return []
    return [tensor for one in value for tensor in results(one)]


def octets(tensor: Tensor) -> Tensor:
    """Returns the bytes of a tensor's elements, whatever its strides."""
    plain = torch.empty(tensor.shape, dtype=tensor.dtype)  # a clone may keep strides
    return plain.copy_(tensor).view(-1).view(torch.uint8)


def other_layout(rng: random.Random, tensor: Tensor) -> Tensor:
    """Returns a tensor of equal values whose memory lies otherwise."""
    how = rng.randrange(3)
    if tensor.ndim == 0 or how == 0:
        wide = tensor.new_zeros(*tensor.shape, 2)
        wide[..., 0] = tensor
        return wide[..., 0]
    if how == 1 and tensor.ndim > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    longer = tensor.new_zeros(tensor.shape[0] + 3, *tensor.shape[1:])
    longer[2 : 2 + tensor.shape[0]] = tensor
    return longer[2 : 2 + tensor.shape[0]]


def above(value: float, dtype: torch.dtype) -> float:
    """Returns the next number of a type above a value that is rounded to it."""
    if dtype == torch.bfloat16:  # the upper half of a float32
        bits = torch.tensor(value, dtype=dtype).view(torch.int16)
        return float((bits + (1 if value >= 0 else -1)).view(dtype))
    kind = _NUMPY[dtype]
    with np.errstate(over="ignore", under="ignore"):
        return float(np.nextafter(kind(value), kind(math.inf)))


def _drawn(rng: random.Random, shape: Sequence[int], dtype: torch.dtype, scale: float) -> Array:
    """Numbers of [-1, 1] · scale, some of them zeros, denormals, ties or neighbours of others."""
    numbers = np.random.Generator(np.random.PCG64(rng.getrandbits(32)))
    values: Array = numbers.uniform(-scale, scale, tuple(shape))
    flat = values.reshape(-1)
    for _ in range(rng.randrange(6) if flat.size else 0):
        at, other = rng.randrange(flat.size), rng.randrange(flat.size)
        tiny, tie = _TINY[dtype], flat[other]
        flat[at] = rng.choice((0.0, -0.0, tiny, -tiny / 2, tie, -tie, scale, -scale))
        if rng.random() < 0.3:
            flat[at] = above(flat[other], dtype)
    return values


def as_tensor(values: Array, dtype: torch.dtype) -> Tensor:
    """Returns numbers in a type."""
    return torch.from_numpy(values).to(dtype)


def numbers(rng: random.Random, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Numbers of [-1, 1] · scale, some of them zeros, denormals, ties or neighbours of others."""
    return as_tensor(_drawn(rng, shape, dtype, scale), dtype)


def special(rng: random.Random, tensor: Tensor, *words: float) -> Tensor:
    """Replaces some numbers, in half of all cases: by infinities and NaN, or by what is given."""
    flat = tensor.view(-1)
    for _ in range(rng.randrange(3) if flat.numel() and rng.random() < 0.5 else 0):
        flat[rng.randrange(flat.numel())] = rng.choice(words or (math.inf, -math.inf, math.nan))
    return tensor


def segments(rng: random.Random, n: int, dtype: torch.dtype, span: float = 50.0) -> Tensor:
    """Segments with ties, of length zero, that touch, or end one ulp after another's start."""
    ends = np.sort(_drawn(rng, (n, 2), dtype, span), 1)
    if rng.random() < 0.5:
        ends = np.round(ends / 4) * 4
    for _ in range(rng.randrange(4) if n else 0):
        at, other = rng.randrange(n), rng.randrange(n)
        how = rng.randrange(4)
        if how == 0:
            ends[at] = ends[other]
        elif how == 1:
            ends[at, 1] = ends[at, 0]
        elif how == 2:
            ends[at, 0] = min(ends[other, 1], ends[at, 1])
        else:
            ends[at] = [above(end, dtype) for end in ends[other]]
    return as_tensor(np.sort(ends, 1), dtype)


def scores(rng: random.Random, n: int, dtype: torch.dtype, *, ties: bool = True) -> Tensor:
    """Scores of [0, 1], in half of all cases with many ties."""
    drawn = np.abs(_drawn(rng, (n,), dtype, 1.0))
    return as_tensor(np.round(drawn * 8) / 8 if ties and rng.random() < 0.5 else drawn, dtype)


def integers(rng: random.Random, n: int, below: int) -> Tensor:
    """Whole numbers of [0, below)."""
    return torch.tensor([rng.randrange(below) for _ in range(n)], dtype=torch.int64)
