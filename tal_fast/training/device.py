# SPDX-License-Identifier: Apache-2.0
"""Where a model runs, and at which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from tal_fast.errors import ConfigError

__all__ = ["autocast", "resolve_device"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """Returns the device of a setting; ``auto`` is CUDA where there is one.

    Raises:
        ConfigError: torch does not know the device, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"training.device: expected auto, cpu or cuda, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"training.device is {name!r}, but torch sees no CUDA device")
    return device


def autocast(device: torch.device, amp: str) -> AbstractContextManager[Any]:
    """Returns the autocast context of a precision setting.

    Raises:
        ConfigError: float16 was asked for on a device other than CUDA.
    """
    if amp == "off":
        return nullcontext()
    if amp == "float16" and device.type != "cuda":
        raise ConfigError("training.amp=float16 needs CUDA; on a CPU use bfloat16 or off")
    return torch.autocast(device.type, _DTYPES[amp])
