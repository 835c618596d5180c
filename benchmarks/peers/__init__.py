# SPDX-License-Identifier: Apache-2.0
"""Adapters to other projects' code that the user already has.

``TAL_FAST_PEERS`` names a folder of checkouts (``TadTR``, ``OpenTAD``, ``actionformer_release``).
An adapter imports from there and says so when there is nothing; it never fetches or builds. Where
a peer is absent its algorithm, written here (``stand_ins.py``), takes its place and is labelled.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PeerMissingError", "checkout", "in_place", "load_file"]


class PeerMissingError(RuntimeError):
    """The peer is not on this machine."""


def checkout(name: str) -> Path:
    """Returns the folder of a peer's checkout.

    Raises:
        PeerMissingError: ``TAL_FAST_PEERS`` is not set or has no such folder.
    """
    folder = Path(os.environ.get("TAL_FAST_PEERS", "")) / name
    if "TAL_FAST_PEERS" not in os.environ or not folder.is_dir():
        raise PeerMissingError(f"{name} is absent: set TAL_FAST_PEERS to the folder that holds it")
    return folder


def load_file(
    path: Path,
    name: str,
    needs: Mapping[str, types.ModuleType] | None = None,
    search: Path | None = None,
) -> types.ModuleType:
    """Imports one file of a peer (Python or extension) without its package.

    Args:
        path: the file.
        name: module name to load it under; the last part of an extension's must be its own.
        needs: modules that the file imports by name, put in place while it loads: two projects call
            their extension by the same name, and some import configuration that is not used here.
        search: a folder to import from while it loads.

    Raises:
        PeerMissingError: there is no such file.
    """
    if not path.is_file():
        raise PeerMissingError(f"{path.name} is absent: expected {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with in_place(dict(needs or {}), search):
        spec.loader.exec_module(module)
    return module


@contextmanager
def in_place(modules: dict[str, types.ModuleType], search: Path | None) -> Iterator[None]:
    """Has modules and a search path in place for the block."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    if search is not None:
        sys.path.insert(0, str(search))
    try:
        yield
    finally:
        if search is not None:
            sys.path.remove(str(search))
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
