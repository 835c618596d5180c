# SPDX-License-Identifier: Apache-2.0
"""Why the native library cannot be loaded, and the command that helps."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from tal_fast.errors import NativeLibraryError, listing

__all__ = ["OLDEST_TORCH", "no_torch", "not_loaded"]

OLDEST_TORCH = (2, 10)
"""The oldest torch that the library loads in."""

_WHAT = "tal_fast: the native library"


def no_torch() -> NativeLibraryError:
    """Returns the error of an environment without torch."""
    return NativeLibraryError(
        f"tal_fast needs torch, which is not installed for {sys.executable}: "
        f"{_pip('install', f'torch>={_oldest()}')}"
    )


def not_loaded(error: ImportError, package: Path, torch_version: str) -> NativeLibraryError:
    """Returns an error that says what is missing, why, and what to run.

    Args:
        error: of ``from tal_fast import _C``.
        package: the folder of tal_fast.
        torch_version: of the torch that is loaded.
    """
    release = re.match(r"(\d+)\.(\d+)", torch_version)
    if release is not None and tuple(map(int, release.groups())) < OLDEST_TORCH:
        return NativeLibraryError(
            f"{_WHAT} needs torch {_oldest()} or newer, this is {torch_version}: "
            f"{_pip('install', f'torch>={_oldest()}')}"
        )
    ours = [path for path in map(package.joinpath, _names()) if path.exists()]
    if not ours:
        return _not_there(package)
    reason = str(error)
    if "TAL_FAST_ISA" in reason:  # its own words, which are whole
        return NativeLibraryError(f"{_WHAT} could not be loaded: {reason}")
    symbol = re.search(r"undefined symbol: (\w+)", reason)
    library = re.search(r"(lib(?:torch|c10)\w*\.so\S*): cannot open shared object", reason)
    newer = re.search(r"version `((?:GLIBC|GLIBCXX|CXXABI)_[\w.]+)' not found", reason)
    if symbol is not None:
        cause = f"was built against another torch than this one, {torch_version}, which lacks the "
        cause += f"symbol {symbol[1]}"
    elif library is not None:
        cause = f"was built against another torch than this one, {torch_version}, which lacks the "
        cause += f"library {library[1]}"
    elif newer is not None:
        cause = f"was built on a newer system than this one, which lacks {newer[1]}"
    else:
        cause = f"could not be loaded: {reason}"
    return NativeLibraryError(f"{_WHAT} {ours[0]} {cause}. Build it again: {_build(package)}")


def _not_there(package: Path) -> NativeLibraryError:
    this = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"
    others = sorted(path.name for path in package.glob("_C.*") if _is_library(path))
    if others:
        cause = f"in {package} was built for another Python or platform ({listing(others)}), this "
        cause += f"is {this}, which needs {_names()[0]}. Build it for this one: "
    else:
        cause = f"is not built: there is no {_names()[0]} in {package}. Build it: "
    return NativeLibraryError(f"{_WHAT} {cause}{_build(package)}")


def _names() -> list[str]:
    return [f"_C{suffix}" for suffix in EXTENSION_SUFFIXES]


def _is_library(path: Path) -> bool:
    return path.suffix in (".so", ".pyd", ".dylib")


def _oldest() -> str:
    return ".".join(map(str, OLDEST_TORCH))


def _pip(*words: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", *words])


def _build(package: Path) -> str:
    """Returns the command that builds the library for this Python."""
    clone = package.parent
    if (clone / "CMakeLists.txt").is_file():
        return _pip("install", "-e", str(clone))
    return (
        f"{_pip('install', '--force-reinstall', '--no-deps', '--no-cache-dir')} CLONE, where CLONE "
        "is the source of tal_fast"
    )
