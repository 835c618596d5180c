# SPDX-License-Identifier: Apache-2.0
"""Which files are the user's: not those of Python, of installed packages, or of this library."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from pathlib import Path
from types import FrameType, ModuleType

__all__ = ["INSTALLED", "caller", "is_user_file", "is_user_module", "place"]

#: Packages that are examined wherever they are: codebases that people install. Nothing is mended
#: in them.
INSTALLED = frozenset({"mmaction", "mmcv", "opentad"})

_OWN = str(Path(__file__).resolve().parents[1]) + os.sep
_SITES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_STANDARD = tuple(
    {
        os.path.realpath(sysconfig.get_path(name)) + os.sep
        for name in ("stdlib", "platstdlib")
        if sysconfig.get_path(name)
    }
)


@functools.lru_cache(maxsize=4096)
def is_user_file(path: str) -> bool:
    """Whether a file of this name belongs to the user.

    Args:
        path: of a source file, perhaps within a zip; ``<string>`` and the like are nobody's.
    """
    if not path or path.startswith("<"):
        return False
    full = os.path.abspath(path)
    if any(site in full for site in _SITES):
        return False
    real = os.path.realpath(full)
    if real.startswith((_OWN, *_STANDARD)) or any(site in real for site in _SITES):
        return False
    return not any(
        full.startswith(entry + os.sep) and _is_installation(entry)
        for entry in map(os.path.abspath, sys.path)
    )


def is_user_module(module: ModuleType) -> bool:
    """Whether a loaded module is the user's."""
    name = getattr(module, "__name__", "") or ""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return False
    return name.partition(".")[0] in INSTALLED or is_user_file(file)


def caller(depth: int) -> FrameType | None:
    """Returns the frame ``depth`` calls above the caller, if it runs a file of the user."""
    frame = sys._getframe(depth + 1)
    return frame if is_user_file(frame.f_code.co_filename) else None


def place(frame: FrameType) -> str:
    """Returns ``file:line`` of a frame; the file as it lies below the working directory."""
    path = frame.f_code.co_filename
    below = os.path.relpath(path) if os.path.isabs(path) else path
    return f"{path if below.startswith('..') else below}:{frame.f_lineno}"


@functools.lru_cache(maxsize=256)
def _is_installation(folder: str) -> bool:
    """Whether an installer filled the folder (``pip install --target``)."""
    try:
        with os.scandir(folder) as found:
            return any(entry.name.endswith(".dist-info") for entry in found)
    except OSError:
        return False
