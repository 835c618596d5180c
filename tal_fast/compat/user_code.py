# SPDX-License-Identifier: Apache-2.0
"""Which files are the user's: not those of Python, of installed packages, or of this library."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from pathlib import Path
from types import FrameType, ModuleType

__all__ = ["INSTALLED", "caller", "is_user_file", "is_user_module", "place", "relative"]

#: Packages that are examined wherever they are: codebases that people install. Nothing is mended
#: in them.
INSTALLED = frozenset({"mmaction", "mmcv", "opentad"})

#: Names of what is typed into Python and IPython; in Jupyter a cell has the name of a file.
_TYPED = ("<stdin>", "<python-input-", "<ipython-input-")

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
        path: of a source file, perhaps within a zip; ``<string>`` and the like are nobody's, but
            for what is typed in.
    """
    if not path or path.startswith("<"):
        return path.startswith(_TYPED)
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
        return name == "__main__"  # of a notebook
    return name.partition(".")[0] in INSTALLED or is_user_file(file)


def caller(depth: int) -> FrameType | None:
    """Returns the frame ``depth`` calls above the caller, if it runs a file of the user."""
    frame = sys._getframe(depth + 1)
    return frame if is_user_file(frame.f_code.co_filename) else None


def place(frame: FrameType) -> str:
    """Returns ``file:line`` of a frame; the file as it lies below the working directory."""
    path = frame.f_code.co_filename
    below = relative(path) if os.path.isabs(path) else path
    return f"{path if below.startswith('..') else below}:{frame.f_lineno}"


def relative(path: str) -> str:
    """Returns a path below the working directory, or as it is where there is no such directory."""
    try:
        return os.path.relpath(path)
    except OSError:  # somebody has deleted it
        return path


@functools.lru_cache(maxsize=256)
def _is_installation(folder: str) -> bool:
    """Whether an installer filled the folder (``pip install --target``)."""
    try:
        with os.scandir(folder) as found:
            return any(entry.name.endswith(".dist-info") for entry in found)
    except OSError:
        return False
