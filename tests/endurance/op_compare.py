# SPDX-License-Identifier: Apache-2.0
"""Whether the results of a group of cases are those that they must be, bit by bit or nearly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from endurance.op_values import BOUNDS, Call
from endurance.subject import Fault, expect
from torch import Tensor

__all__ = ["Differs", "bits", "check_bits", "compare", "compare_results", "digest"]


class Differs(Fault):
    """A case of a group has another result than it must have.

    Attributes:
        at: number of the case within its group.
    """

    def __init__(self, at: int, words: str) -> None:
        super().__init__(words)
        self.at = at


def _flat(tensors: Sequence[Tensor] | Tensor) -> Tensor:
    """Returns the elements of tensors of one type, in a row."""
    if isinstance(tensors, Tensor):
        return tensors.reshape(-1)
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _one_nan(tensor: Tensor) -> Tensor:
    """All NaN as the same one: which of them comes out is promised nowhere."""
    return torch.where(tensor.isnan(), torch.nan, tensor) if tensor.is_floating_point() else tensor


def bits(tensors: Sequence[Tensor]) -> tuple[list[tuple[int, ...]], torch.dtype, bytes]:
    """Returns what tensors of one type must have in common to be the same, bit by bit."""
    octets = _flat(tensors).view(torch.uint8).numpy().tobytes()
    return [tuple(tensor.shape) for tensor in tensors], tensors[0].dtype, octets


def _columns(found: list[list[Tensor]]) -> list[list[Tensor]]:
    """Results per case, as cases per result."""
    return [list(column) for column in zip(*found, strict=True)]


def check_bits(found: list[list[Tensor]], others: list[list[Tensor]], words: str) -> None:
    """Checks that two calls of each case gave the same bits.

    Raises:
        Differs: not so.
    """
    if list(map(bits, _columns(found))) == list(map(bits, _columns(others))):
        return
    for at, (mine, theirs) in enumerate(zip(found, others, strict=True)):
        if [bits([_one_nan(x)]) for x in mine] != [bits([_one_nan(x)]) for x in theirs]:
            raise Differs(at, words)


def compare(call: Call, found: list[list[Tensor]]) -> None:
    """Checks what an op gave in each case against its twin.

    Raises:
        Differs: they differ by more than the type's rounding.
    """
    found = found if call.told is None else call.told(found)
    expected = call.twin(*call.tensors)
    expected = [expected] if isinstance(expected, Tensor) else expected
    compare_results(found, [(column, call.scale) for column in expected])


def compare_results(
    found: list[list[Tensor]], expected: Sequence[tuple[list[Tensor] | Tensor, Tensor | float]]
) -> None:
    """Compares results of all cases with what they must be.

    Args:
        found: by case.
        expected: by result, as ``Call.twin`` gives them, with the largest value that a difference
            is measured by: 0 for equal bits, infinity or NaN where nothing is compared.

    Raises:
        Differs: they differ by more than the type's rounding.
    """
    mine = _columns(found)
    expect(len(mine) >= len(expected), "other numbers of results")
    for ours, (theirs, scale) in zip(mine, expected, strict=False):
        _compare(ours, theirs, scale)


def _compare(ours: list[Tensor], theirs: list[Tensor] | Tensor, scale: Tensor | float) -> None:
    """Compares one result of all cases."""
    for at, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine.shape != other.shape:
            raise Differs(at, f"shape {[*mine.shape]} for {[*other.shape]}")
    mine, other = _flat(ours), _flat(theirs)
    alike = (mine == other.to(mine.dtype)) | (mine.isnan() & other.isnan())
    if bool(alike.all()):
        return
    if isinstance(scale, Tensor):
        assert isinstance(theirs, Tensor)
        scale = scale.expand_as(theirs).reshape(-1)
    bound = torch.as_tensor(scale * BOUNDS.get(mine.dtype, 0.0)).double()
    difference = (mine.double() - other.double()).abs()
    # What is no number is within no bound; a bound that is none or infinite compares nothing.
    far = ~alike & (bound < torch.inf) & ~(difference <= bound)
    if not bool(far.any()):
        return
    where = int(far.nonzero()[0])
    ends = torch.tensor([tensor.numel() for tensor in ours]).cumsum(0)
    at = int(torch.searchsorted(ends, where, right=True))
    values = f"{float(mine[where])!r} for {float(other[where])!r}"
    raise Differs(at, f"{values}, more than {float(bound.expand_as(mine)[where]):g} apart")


def digest(found: list[list[Tensor]]) -> str:
    """Returns a digest of the bits of results."""
    text = hashlib.sha256()
    for column in _columns(found):
        shapes, dtype, octets = bits(column)
        text.update(f"{dtype} {shapes}".encode())
        text.update(octets)
    return text.hexdigest()
