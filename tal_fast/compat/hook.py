# SPDX-License-Identifier: Apache-2.0
"""The import hook: provides compiled modules, and looks at every module of the user once it ran."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from tal_fast.compat.options import MODULES, Options
from tal_fast.compat.provided import functions_of
from tal_fast.compat.reporting import Report, counted
from tal_fast.compat.user_code import INSTALLED, is_user_file, relative

__all__ = ["Finder"]

Action = Callable[[ModuleType], None]

#: Too many modules to look each up twice, and none of them the user's.
_NOBODYS = frozenset({"numpy", "pandas", "scipy", "tal_fast", "torch", "torchvision"})
_EXTENSIONS = tuple(importlib.machinery.EXTENSION_SUFFIXES)


class Finder:
    """First on ``sys.meta_path``; asks the finders behind it where a module is.

    While it asks, it finds nothing itself (in that thread): other finders may ask in turn.
    """

    def __init__(
        self,
        options: Options,
        report: Report,
        examine: Action,
        after: dict[str, Action],
    ) -> None:
        """Prepares; ``sys.meta_path`` is the business of the installation.

        Args:
            options: which modules are provided.
            report: where it says what it did.
            examine: is given every module of the user after it ran.
            after: library -> what is done with it after it was imported.
        """
        self.options = options
        self.report = report
        self.examine = examine
        self.after = after
        self.provided: list[ModuleType] = []
        self._asking = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a module as the import system asks for it."""
        names: set[str] = self._asking.__dict__.setdefault("names", set())
        if name in names:
            return None
        names.add(name)
        try:
            return self._find(name, path, target)
        finally:
            names.discard(name)

    def _find(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        package, _, last = name.rpartition(".")
        top = name.partition(".")[0]
        if last in MODULES and top not in _NOBODYS and self.options.wants(last, package):
            there = self._ask_others(name, path, target)
            if not self._is_python(name, there):
                stale = there.origin if there is not None else None
                return ModuleSpec(name, _Provider(self, last, stale))  # type: ignore[arg-type]
            return self._with_examination(name, there)
        action = self.after.get(name)
        if action is not None:
            spec = self._ask_others(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Then(spec.loader, action)  # type: ignore[assignment]
            return spec
        if top in _NOBODYS or top in sys.stdlib_module_names:
            return None
        return self._with_examination(name, self._ask_others(name, path, target))

    def _ask_others(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if find is None else find(name, path, target)
            if spec is not None:
                return spec
        return None

    def _is_python(self, name: str, spec: ModuleSpec | None) -> bool:
        """Whether a module of Python is there, which is left alone."""
        if spec is None or (spec.origin or "").endswith(_EXTENSIONS):
            return False
        folders = spec.submodule_search_locations
        if folders is not None and spec.origin is None:  # a folder without __init__.py
            sources = [f for folder in folders for f in _python_files(folder)]
            if not sources:
                return False
        place = spec.origin or next(iter(folders or ()))
        self.report.add("left", name, f"a Python module: {place}")
        return True

    def _with_examination(self, name: str, spec: ModuleSpec | None) -> ModuleSpec | None:
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return spec
        origin = spec.origin or ""
        if origin.endswith((".py", ".pyc")) and (
            name.partition(".")[0] in INSTALLED or is_user_file(origin)
        ):
            spec.loader = _Then(spec.loader, self.examine)  # type: ignore[assignment]
        return spec


class _Then:
    """A loader with something to do once the module ran. The module keeps the real loader."""

    def __init__(self, real: Any, action: Action) -> None:
        self._real = real
        self._action = action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Lets the real loader make the module."""
        made: ModuleType | None = self._real.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module under its real loader, then acts."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._real
        module.__loader__ = self._real
        self._real.exec_module(module)
        # One that has put another object in its place in sys.modules means that object.
        self._action(sys.modules.get(module.__name__, module))

    def __getattr__(self, name: str) -> Any:
        # get_code, get_data, get_resource_reader, …: of whoever asks for the spec alone.
        return getattr(self.__dict__["_real"], name)


class _Provider:
    """Loads one of our modules."""

    def __init__(self, finder: Finder, name: str, stale: str | None) -> None:
        self._finder = finder
        self._name = name
        self._stale = stale

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves it to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module; an ImportError says why our native library cannot be loaded."""
        finder = self._finder
        functions = functions_of(self._name, finder.options, finder.report)
        where = f"instead of {relative(self._stale)}" if self._stale else ""
        if self._name == "nms_1d_cpu":
            where = f"{finder.options.nms} order{', ' if where else ''}{where}"
        finder.report.add("provided", module.__name__, where)
        for name, function in functions.items():
            entry = finder.report.add("provided", f"{module.__name__}.{name}")
            setattr(module, name, counted(entry, function))
        module.__doc__ = f"{self._name} of tal_fast.compat."
        finder.provided.append(module)


def _python_files(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.endswith((".py", ".pyc"))]
    except OSError:
        return []
