# SPDX-License-Identifier: Apache-2.0
"""What every op asks of its arguments before the native call, said in one way.

The rest (shapes, dtypes, ranges) is checked by the op itself, once for all devices.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

__all__ = ["check_tensors", "position", "renamed", "widened"]


def check_tensors(op: str, *, optional: str | None = None, **tensors: Tensor | None) -> None:
    """Refuses what is no tensor, and tensors on several devices.

    Here and not in the native op: which implementation runs depends on the devices, so none of them
    sees every mixture, and an array is not converted because its dtype and device are a choice.

    Args:
        op: the name of the op, for the message.
        optional: the argument that may be None, not the first one.
        **tensors: the arguments by name, the first being the one that says the device.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: an argument is on another device than the first one.
    """
    device = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            if tensor is None and name == optional:
                continue
            break
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            break
    else:
        return
    _explain(op, optional, tensors)


def _explain(op: str, optional: str | None, tensors: dict[str, Tensor | None]) -> None:
    first, like = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            if tensor is None and name == optional:
                continue
            hint = "" if tensor is None else f": torch.as_tensor({name}) makes one"
            raise TypeError(
                f"{op}: expected {name} to be a torch.Tensor, got {type(tensor).__name__}{hint}"
            )
        if like is not None and tensor.device != like.device:
            raise RuntimeError(
                f"{op}: expected {name} on {like.device} like {first}, got {tensor.device}"
            )


def widened(numbers: Tensor) -> Tensor:
    """Returns integers of 8 or 16 bits, as which detectors store labels, as int32; others as is."""
    narrow = numbers.dtype in (torch.uint8, torch.int8, torch.int16)
    return numbers.to(torch.int32) if narrow else numbers


def position(op: str, argument: str, word: object, words: tuple[str | None, ...]) -> int:
    """Returns where ``word`` is among the allowed ones, which is the number that native ops take.

    Raises:
        ValueError: it is none of them; the message lists them.
    """
    try:
        return words.index(word)
    except ValueError:
        allowed = ", ".join(str(known) for known in words)
        raise ValueError(
            f"{op}: expected {argument} to be one of {allowed}, got {word!r}"
        ) from None


# What torch says of an argument of a type that the schema does not have.
_OF_A_SCHEMA = re.compile(
    r"tal_fast::\w+\(\) Expected a value of type '([^']+)' for argument '(\w+)' but instead found "
    r"type '([^']+)'"
)


def renamed(error: Exception, op: str, inner: str, **names: str) -> Exception:
    """Returns an error of an inner op as that of the function that was called.

    Args:
        error: that ``inner`` raised.
        op: the name of the function.
        inner: the name of the op that it calls.
        **names: the arguments of ``op``, by those of ``inner`` where they are called otherwise.
    """
    message = str(error)
    found = _OF_A_SCHEMA.match(message)
    if found is not None:
        kind, name, got = found.groups()
        return type(error)(f"{op}: expected {names.get(name, name)} of type {kind}, got {got}")
    if not message.startswith((f"{inner}:", f"{inner}()")):
        return error
    words = "|".join(map(re.escape, names))
    rest = message.removeprefix(inner)
    if words:
        rest = re.sub(rf"(?<![\w.])(?:{words})(?![\w.])", lambda word: names[word[0]], rest)
    return type(error)(op + rest)
