# SPDX-License-Identifier: Apache-2.0
"""Processes that are started anew (``spawn``, ``forkserver``) get the same installation, quietly.

multiprocessing pickles what a child needs before its main module and unpickles it first thing. One
entry of ours is unpickled with it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tal_fast.compat.options import Options

__all__ = ["install_in_children"]

_CODE = """
try:
    import tal_fast
except ImportError:
    import sys
    sys.path.append(root)
import tal_fast.compat
if not tal_fast.compat.installed():
    tal_fast.compat.install(**options)
"""


class _InChild:
    """What a child unpickles: the call that installs."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def __reduce__(self) -> tuple[Any, ...]:
        # The child does not have the parent's sys.path yet.
        root = str(Path(__file__).resolve().parents[2])
        scope = {"__name__": __name__, "root": root, "options": self.options}
        return exec, (_CODE, scope)


def install_in_children(spawn: ModuleType, options: Options) -> Callable[[], None]:
    """Changes ``multiprocessing.spawn``, and returns what undoes that."""
    original = spawn.get_preparation_data
    child = _InChild({**options.to_dict(), "report": None, "quiet": True})

    def get_preparation_data(name: str) -> dict[str, Any]:
        return {"tal_fast.compat": child, **original(name)}

    spawn.get_preparation_data = get_preparation_data  # type: ignore[attr-defined]

    def undo() -> None:
        if spawn.get_preparation_data is get_preparation_data:
            spawn.get_preparation_data = original  # type: ignore[attr-defined]

    return undo
