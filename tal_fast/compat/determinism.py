# SPDX-License-Identifier: Apache-2.0
"""``torch.use_deterministic_algorithms`` without torch's compiler, which it loads to set one flag.

That takes a second, and every script that fixes its seeds pays it. The flag is set when somebody
loads the compiler.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType

__all__ = ["COMPILER", "FUNCTION", "Determinism"]

#: The name in ``skip`` and ``only``.
FUNCTION = "use_deterministic_algorithms"

COMPILER = "torch._inductor.config"

#: What the function uses where it does these two things and no other.
_KNOWN = {COMPILER, "_inductor", "config", "deterministic", "_C", "_set_deterministic_algorithms"}


class Determinism:
    """Keeps the flag for the compiler."""

    def __init__(self) -> None:
        """Keeps none."""
        self._flag: bool | None = None

    def wrap(self, torch: ModuleType) -> Callable[[], None]:
        """Wraps the function, if it is the one that is known, and returns what undoes that."""
        original = torch.use_deterministic_algorithms
        if set(original.__code__.co_names) != _KNOWN:
            return lambda: None

        @functools.wraps(original)
        def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
            if COMPILER in sys.modules:
                original(mode, warn_only=warn_only)
            else:
                torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)
                self._flag = mode

        names = vars(torch)
        names[original.__name__] = use_deterministic_algorithms

        def undo() -> None:
            if names[original.__name__] is use_deterministic_algorithms:
                names[original.__name__] = original
            if self._flag is not None and COMPILER not in sys.modules:
                original(
                    self._flag, warn_only=torch.is_deterministic_algorithms_warn_only_enabled()
                )

        return undo

    def set_flag(self, compiler: ModuleType) -> Callable[[], None]:
        """Gives the compiler's configuration the flag; there is nothing to undo."""
        if self._flag is not None:
            compiler.deterministic = self._flag  # type: ignore[attr-defined]
        return lambda: None
