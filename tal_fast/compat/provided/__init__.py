# SPDX-License-Identifier: Apache-2.0
"""Modules that other codebases compile, under the names by which they import them.

Their functions take and give what the compiled ones do. Each file here has one or more of them and
is imported when somebody imports the module.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tal_fast.compat.options import MODULES, Options
from tal_fast.compat.reporting import Report

__all__ = ["HOMES", "functions_of"]

#: Name -> file here.
HOMES = {
    "Align1D": "align1d",
    "MultiScaleDeformableAttention": "deform_attn",
    "MultiScaleTemporalDeformableAttention": "deform_attn",
    "TemporalDeformableAttention": "deform_attn",
    "boundary_max_pooling_cuda": "boundary_max_pooling",
    "grid_sample1d_cuda": "grid_sample1d",
    "nms_1d_cpu": "nms_1d_cpu",
}
assert set(HOMES) == set(MODULES)


def functions_of(name: str, options: Options, report: Report) -> dict[str, Callable[..., Any]]:
    """Returns the functions of a provided module by name.

    Raises:
        ImportError: the native library cannot be loaded.
    """
    home = importlib.import_module(f"tal_fast.compat.provided.{HOMES[name]}")
    found: dict[str, Callable[..., Any]] = home.functions(name, options, report)
    return found
