# SPDX-License-Identifier: Apache-2.0
"""Named ranges for Nsight Systems and other NVTX readers.

A leaf module: every layer may name its phases without importing the profiling layer. Ranges are off
unless ``TAL_FAST_NVTX=1`` or :func:`enable_ranges` asks for them; when off, :func:`nvtx_range`
returns one shared do-nothing context, so a range in a hot loop costs a function call.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["enable_ranges", "nvtx_range"]

_OFF: AbstractContextManager[None] = contextlib.nullcontext()
_annotate: Any = None


def enable_ranges(on: bool = True) -> None:
    """Turns NVTX ranges on or off for this process."""
    global _annotate
    if not on:
        _annotate = None
        return
    import nvtx

    _annotate = nvtx.annotate


def nvtx_range(name: str) -> AbstractContextManager[Any]:
    """Returns a context manager that marks its block as an NVTX range.

    Args:
        name: what the range shows, for example ``"tal_fast.forward"``.
    """
    if _annotate is None:
        return _OFF
    return _annotate(message=name, domain="tal_fast")


if os.environ.get("TAL_FAST_NVTX", "0") not in ("", "0"):
    enable_ranges()
