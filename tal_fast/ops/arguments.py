# SPDX-License-Identifier: Apache-2.0
"""What every op asks of its arguments before the native call, said in one way.

The rest (shapes, dtypes, ranges) is checked by the op itself, once for all devices.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_tensors", "position"]


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
        if isinstance(tensor, Tensor):
            if device is None:
                device = tensor.device
            elif tensor.device != device:
                first = next(iter(tensors))
                raise RuntimeError(
                    f"{op}: expected {name} on {device} like {first}, got {tensor.device}"
                )
        elif tensor is not None or name != optional:
            hint = "" if tensor is None else f": torch.as_tensor({name}) makes one"
            raise TypeError(
                f"{op}: expected {name} to be a torch.Tensor, got {type(tensor).__name__}{hint}"
            )


def position(op: str, argument: str, word: object, words: tuple[str | None, ...]) -> int:
    """Returns where ``word`` is among the allowed ones, which is the number that native ops take.

    Raises:
        ValueError: it is none of them; the message lists them.
    """
    for index, known in enumerate(words):
        if word is known or (isinstance(word, str) and word == known):
            return index
    allowed = ", ".join(str(known) for known in words)
    raise ValueError(f"{op}: expected {argument} to be one of {allowed}, got {word!r}")
