# SPDX-License-Identifier: Apache-2.0
"""Folders of made modules, and an installation that ends with its test."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tal_fast import compat


@pytest.fixture(autouse=True)
def _afterwards() -> Iterator[None]:
    """No test leaves an installation, a module of its own or a path behind."""
    modules, path, finders = set(sys.modules), list(sys.path), list(sys.meta_path)
    yield
    compat.uninstall()
    assert sys.meta_path == finders
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        module = sys.modules[name]
        places = [getattr(module, "__file__", ""), *getattr(module, "__path__", ())]
        if any("pytest-" in (place or "") for place in places):
            del sys.modules[name]
    importlib.invalidate_caches()


class Folder:
    """A folder on ``sys.path`` with modules that a test writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
        importlib.invalidate_caches()
        return file

    def load(self, name: str) -> ModuleType:
        return importlib.import_module(name)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    sys.path.insert(0, str(tmp_path))
    return Folder(tmp_path)


@pytest.fixture
def kinds() -> Callable[[str], dict[str, str]]:
    """Name -> detail of the report's entries of a kind."""
    return lambda kind: {e.name: e.detail for e in compat.report().entries if e.kind == kind}
