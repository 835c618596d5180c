# SPDX-License-Identifier: Apache-2.0
"""Looks for known functions in loaded modules, proves ours equal, and puts them in place."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tal_fast.compat.mends import opentad_dtypes
from tal_fast.compat.options import POOLS, Options
from tal_fast.compat.pools import loops_for
from tal_fast.compat.proof import UnprovedError, quietly, with_fallback
from tal_fast.compat.replaced import RECOGNISED, Recognised
from tal_fast.compat.reporting import Report
from tal_fast.compat.user_code import is_user_module

__all__ = ["Examiner"]

Undo = Callable[[], None]


class Examiner:
    """Examines modules for one installation."""

    def __init__(self, options: Options, report: Report) -> None:
        """Starts without a replaced function.

        Args:
            options: what may be replaced.
            report: where it says what it did.
        """
        self.options = options
        self.report = report
        self.undos: list[Undo] = []
        self._ours: dict[int, Any] = {}  # by id; the values keep the ids theirs
        self._lock = threading.RLock()

    def examine(self, module: ModuleType) -> None:
        """Replaces what the module defines, turns its pools to loops, mends its classes.

        Nothing that goes wrong here is an error of the module: it is left as it is.
        """
        for name, known in RECOGNISED.items():
            function = vars(module).get(name)
            if (
                inspect.isfunction(function)
                and function.__module__ == module.__name__
                and id(function) not in self._ours
            ):
                self._take(module, name, function, known)
        with self._lock:
            self._turn_pools_to_loops(module)
            if self.options.mends("opentad"):
                undo = opentad_dtypes.mend(module, self.report)
                if undo is not None:
                    self.undos.append(undo)

    def examine_loaded(self) -> None:
        """Examines all of the user's modules that are loaded already."""
        for module in _user_modules():
            self.examine(module)

    def _take(
        self, module: ModuleType, name: str, original: Callable[..., Any], known: Recognised
    ) -> None:
        full = f"{module.__name__}.{name}"
        if not self.options.wants(name, module.__name__):
            self.report.add("left", full, "not wanted")
            return
        parameters = list(inspect.signature(original).parameters)
        if not known.fits(parameters):
            names = ", ".join(parameters)
            self.report.add("left", full, f"expected parameters {known}, found ({names})")
            return
        if not self.options.verify:
            self.report.add("left", full, "not proved (verify=False)")
            return
        try:
            with quietly():
                proof = known.prove(original, self.options)
        except UnprovedError as error:
            self.report.add("left", full, str(error))
            return
        except Exception as error:
            self.report.add("left", full, f"the proof failed: {type(error).__name__}: {error}")
            return
        # No lock is held while a proof runs: it may import what another thread is importing.
        with self._lock:
            if vars(module).get(name) is original:
                ours = with_fallback(self.report, full, original, proof)
                self._ours[id(ours)] = ours
                self._swap(original, ours, module)

    def _swap(self, original: Any, ours: Any, home: ModuleType) -> None:
        """Puts ours where the user's modules have the original, under whatever name."""
        for module in {id(m): m for m in (home, *_user_modules())}.values():
            names = [n for n, value in list(vars(module).items()) if value is original]
            for name in names:
                self._set(module, name, ours)
            if names and module is not home:
                self._turn_pools_to_loops(module)

    def _set(self, module: ModuleType, name: str, ours: Any) -> None:
        before = vars(module)[name]
        vars(module)[name] = ours

        def undo() -> None:
            if vars(module).get(name) is ours:
                vars(module)[name] = before

        self.undos.append(undo)

    def _turn_pools_to_loops(self, module: ModuleType) -> None:
        if POOLS in self.options.skip or not any(
            id(v) in self._ours for v in vars(module).values()
        ):
            return
        loops = loops_for(module)
        if isinstance(loops, str):
            self.report.add("left", module.__name__, f"pools stay: {loops}")
            return
        for name, (ours, what) in loops.items():
            self._set(module, name, ours)
            self.report.add("in line", f"{module.__name__}.{name}", what)


def _user_modules() -> list[ModuleType]:
    modules = list(sys.modules.values())
    return [
        module for module in modules if isinstance(module, ModuleType) and is_user_module(module)
    ]
