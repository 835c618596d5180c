# SPDX-License-Identifier: Apache-2.0
"""Where a model runs, and at which precision."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from tal_fast.errors import ConfigError
from tal_fast.training import distributed

__all__ = ["autocast", "resolve_amp", "resolve_device"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """Returns the device of a setting; ``auto`` is CUDA where there is one.

    Each of several processes gets a GPU of its own, unless the setting numbers one.

    Raises:
        ConfigError: torch does not know the device, or it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"training.device: expected auto, cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"training.device: expected auto, cpu or cuda, got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"training.device is {name!r}, but torch sees no CUDA device")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"training.device is {name!r}, but torch sees {torch.cuda.device_count()} of them"
            )
    gpu = distributed.own_gpu() if str(device) == "cuda" else None
    return device if gpu is None else torch.device("cuda", gpu)


def resolve_amp(device: torch.device, amp: str) -> str:
    """Returns the precision of a setting; ``auto`` is bfloat16 where the hardware multiplies it.

    That is CUDA from compute capability 8.0 on, and CPUs with AVX-512 BF16 or AMX.
    """
    if amp != "auto":
        return amp
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        # Newer than the oldest torch that is supported; without it, nothing is assumed.
        capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bfloat16" if native else "float32"


def autocast(device: torch.device, amp: str) -> AbstractContextManager[Any]:
    """Returns the autocast context of a precision setting.

    Raises:
        ConfigError: float16 was asked for on a device other than CUDA.
    """
    amp = resolve_amp(device, amp)
    if amp == "float32":
        return nullcontext()
    if amp == "float16" and device.type != "cuda":
        raise ConfigError("training.amp=float16 needs CUDA; on a CPU use bfloat16 or float32")
    return torch.autocast(device.type, _DTYPES[amp])
