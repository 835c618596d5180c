# SPDX-License-Identifier: Apache-2.0
"""Ground truth of OpenTAD in float32 under NumPy 2, as it was under NumPy 1.

Its transforms subtract an int64 scalar from a float32 array: float32 before, float64 since NumPy 2
(NEP 50), and the losses then mix dtypes or fail.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tal_fast.compat.reporting import Report

__all__ = ["mend"]


def mend(module: ModuleType, report: Report) -> Callable[[], None] | None:
    """Lets ``ConvertToTensor`` of a module of transforms give segments in float32.

    Returns:
        What undoes that; None if the module has no such class of its own.
    """
    owner = module.__dict__.get("ConvertToTensor")
    if (
        not inspect.isclass(owner)
        or owner.__module__ != module.__name__
        or "transforms" not in module.__name__.split(".")
        or "__call__" not in owner.__dict__
    ):
        return None
    original = owner.__dict__["__call__"]
    name = f"{module.__name__}.ConvertToTensor"

    @functools.wraps(original)
    def __call__(self: Any, results: Any) -> Any:
        import torch

        found = original(self, results)
        segments = found.get("gt_segments") if isinstance(found, dict) else None
        if isinstance(segments, torch.Tensor) and segments.dtype == torch.float64:
            found["gt_segments"] = segments.float()
            report.add("mended", name, "gt_segments in float32").count()
        return found

    setattr(owner, "__call__", __call__)  # noqa: B010 (to mypy it is a method)

    def undo() -> None:
        if owner.__dict__.get("__call__") is __call__:
            setattr(owner, "__call__", original)  # noqa: B010

    return undo
