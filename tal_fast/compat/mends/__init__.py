# SPDX-License-Identifier: Apache-2.0
"""What code of a few years ago misses in the libraries of today, given back to the user's files.

Each mend is one file with ``mend(module, report)``, which changes a loaded library and returns what
undoes it. None changes a result in silence: each turns an error into what the code meant, and is
reported with file and line.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from tal_fast.compat.mends import numpy_names, pandas_frames, torch_load
from tal_fast.compat.reporting import Report

__all__ = ["LIBRARIES", "Undo"]

Undo = Callable[[], None]

#: Library -> (name of the mend, what makes it).
LIBRARIES: dict[str, tuple[str, Callable[[ModuleType, Report], Undo]]] = {
    "numpy": ("numpy", numpy_names.mend),
    "pandas": ("pandas", pandas_frames.mend),
    "torch": ("torch.load", torch_load.mend),
}
