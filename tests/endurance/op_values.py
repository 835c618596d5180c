# SPDX-License-Identifier: Apache-2.0
"""What the ops of a case are called with: adversarial values, in tensors of odd sizes and strides.

Values are ties, neighbours one ulp apart, denormals, zeros of both signs, large and small ones, and
where an op allows them infinities and NaN. Cases are drawn :data:`GROUP` at a time: one of them
takes as long to draw as all. They have types, sizes and options in common, and numbers of their
own; the first axis of a drawn tensor is the case.
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

#: Cases that are drawn together.
GROUP = 20
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
    """A call of an op per case of a group.

    Attributes:
        op: the op as a function of the tensors of one case.
        tensors: what it is called with, each with all cases of the group on its first axis.
        twin: the same of the twin, as a function of the tensors of the whole group. It gives every
            result as a tensor with the cases on its first axis, or as a list of one per case.
        scale: largest value that a difference is measured by; 0 for equal bits.
        told: what of the results the twin tells, of all cases; all of them when None.
        contiguous: the op takes no other layout of its first tensor, and says so.
        slopes: what gradients are compared by, as a function of the tensors: by the position of
            every tensor that the op is differentiable for, the largest value that a difference is
            measured by, a number or a tensor that broadcasts to the gradient; infinity where
            gradients are not compared. None where there are no gradients.
        finite: tensors that gradients are taken at, where not at ``tensors``.
    """

    op: Callable[..., Any]
    tensors: tuple[Tensor, ...]
    twin: Callable[..., Any]
    scale: float = 0.0
    contiguous: bool = False
    told: Callable[[list[list[Tensor]]], list[list[Tensor]]] | None = None
    slopes: Callable[..., dict[int, Tensor | float]] | None = None
    finite: tuple[Tensor, ...] | None = None

    def run(self, tensors: Sequence[Tensor] = ()) -> list[list[Tensor]]:
        """Returns the results of the op per case, called with these tensors or its own."""
        return [results(self.op(*case)) for case in cases_of(tensors or self.tensors)]


def cases_of(tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Returns the tensors of every case of a group."""
    return list(zip(*(tensor.unbind() for tensor in tensors), strict=True))


def each(twin: Callable[..., Any]) -> Callable[..., list[list[Tensor]]]:
    """Makes the twin of a group from the twin of one case."""

    def of_group(*tensors: Tensor) -> list[list[Tensor]]:
        found = (results(twin(*case)) for case in cases_of(tensors))
        return [list(column) for column in zip(*found, strict=True)]

    return of_group


def folded(twin: Callable[..., Any]) -> Callable[..., Tensor]:
    """Makes the twin of a group from one that treats the items of a batch separately."""

    def of_group(*tensors: Tensor) -> Tensor:
        found: Tensor = twin(*(tensor.flatten(0, 1) for tensor in tensors))
        return found.unflatten(0, tensors[0].shape[:2])

    return of_group


def results(value: Any) -> list[Tensor]:
    """Returns the tensors that an op gave."""
    if isinstance(value, Tensor):
        return [value]
    if value is None or isinstance(value, (int, float)):
        return []
    return [tensor for one in value for tensor in results(one)]


def other_layout(rng: random.Random, tensor: Tensor) -> Tensor:
    """Returns a tensor of equal values in which the memory of every case lies otherwise."""
    how = rng.randrange(3)
    if tensor.ndim < 2 or how == 0:
        wide = tensor.new_zeros(*tensor.shape, 2)
        wide[..., 0] = tensor
        return wide[..., 0]
    if how == 1 and tensor.ndim > 2:
        return tensor.transpose(1, -1).contiguous().transpose(1, -1)
    longer = tensor.new_zeros(len(tensor), tensor.shape[1] + 3, *tensor.shape[2:])
    longer[:, 2 : 2 + tensor.shape[1]] = tensor
    return longer[:, 2 : 2 + tensor.shape[1]]


def above(values: Array, dtype: torch.dtype) -> Array:
    """Returns the next numbers of a type above values that are rounded to it."""
    if dtype == torch.bfloat16:  # the upper half of a float32
        rounded = torch.from_numpy(values + 0.0).to(dtype) + 0.0  # no -0.0
        bits = rounded.view(torch.int16)
        return (bits + torch.where(rounded < 0, -1, 1).to(bits.dtype)).view(dtype).double().numpy()
    kind = _NUMPY[dtype]
    with np.errstate(over="ignore", under="ignore"):
        return np.nextafter(values.astype(kind), kind(math.inf)).astype(np.float64)


def generator(rng: random.Random) -> np.random.Generator:
    """Returns a generator of many numbers at once."""
    return np.random.Generator(np.random.PCG64(rng.getrandbits(32)))


def _drawn(
    numbers: np.random.Generator, shape: Sequence[int], dtype: torch.dtype, scale: float
) -> Array:
    """Numbers of [-1, 1] · scale, some of them zeros, denormals, ties or neighbours of others."""
    values: Array = numbers.uniform(-scale, scale, tuple(shape))
    if values.size:
        cases = values.reshape(len(values), -1)
        many = 5 * len(cases) // 2
        row, at, other = (numbers.integers(0, n, many) for n in (len(cases), *[cases.shape[1]] * 2))
        tie, tiny = cases[row, other], _TINY[dtype]
        nearest = above(tie, dtype), -above(-tie, dtype)
        words = (0.0, -0.0, tiny, -tiny / 2, tie, -tie, scale, -scale, *nearest)
        cases[row, at] = np.choose(numbers.integers(0, len(words), many), words)
    return values


def as_tensor(values: Array, dtype: torch.dtype) -> Tensor:
    """Returns numbers in a type."""
    return torch.from_numpy(values).to(dtype)


def numbers(
    rng: random.Random, *shape: int, dtype: torch.dtype, scale: float = 1.0, cases: int = GROUP
) -> Tensor:
    """Numbers of [-1, 1] · scale, some of them zeros, denormals, ties or neighbours of others."""
    return as_tensor(_drawn(generator(rng), (cases, *shape), dtype, scale), dtype)


def special(rng: random.Random, tensor: Tensor, *words: float) -> Tensor:
    """Replaces a number in some of the cases: by infinities and NaN, or by what is given."""
    flat = tensor.view(len(tensor), -1)
    for _ in range(len(tensor) // 2 if flat.numel() else 0):
        where = rng.randrange(len(flat)), rng.randrange(flat.shape[1])
        flat[where] = rng.choice(words or (math.inf, -math.inf, math.nan))
    return tensor


def segments(
    rng: random.Random, n: int, dtype: torch.dtype, span: float = 50.0, cases: int = GROUP
) -> Tensor:
    """Segments with ties, of length zero, that touch, or end one ulp after another's start."""
    numbers = generator(rng)
    ends = np.sort(_drawn(numbers, (cases, n, 2), dtype, span), -1)
    whole = numbers.random(cases) < 0.5
    ends[whole] = np.round(ends[whole] / 4) * 4
    if n:
        many = 3 * cases // 2
        case, at, other = (numbers.integers(0, below, many) for below in (cases, n, n))
        mine, theirs = ends[case, at], ends[case, other]
        start, end = mine.T
        ways = (
            theirs,
            np.stack((start, start), -1),
            np.stack((np.minimum(theirs[:, 1], end), end), -1),
            above(theirs, dtype),
        )
        ends[case, at] = np.choose(numbers.integers(0, len(ways), (many, 1)), ways)
    return as_tensor(np.sort(ends, -1), dtype)


def scores(
    rng: random.Random, n: int, dtype: torch.dtype, *, ties: bool = True, cases: int = GROUP
) -> Tensor:
    """Scores of [0, 1], in half of all cases with many ties."""
    numbers = generator(rng)
    drawn = np.abs(_drawn(numbers, (cases, n), dtype, 1.0))
    tied = (numbers.random((cases, 1)) < 0.5) & ties
    return as_tensor(np.where(tied, np.round(drawn * 8) / 8, drawn), dtype)


def integers(rng: random.Random, n: int, below: int, cases: int = GROUP) -> Tensor:
    """Whole numbers of [0, below)."""
    return torch.from_numpy(generator(rng).integers(0, below, (cases, n)))


def some_of(rng: random.Random, n: int, choices: Sequence[int]) -> Tensor:
    """Whole numbers, each one of the choices."""
    return torch.tensor(choices)[integers(rng, n, len(choices))]
