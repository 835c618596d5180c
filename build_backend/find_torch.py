# SPDX-License-Identifier: Apache-2.0
"""Finds the torch that tal_fast is going to run with, on disk and without importing it."""

from __future__ import annotations

import importlib.util
import os
import re
import sysconfig
from pathlib import Path

__all__ = ["find_torch", "torch_version"]

_CORE_LIBRARY = "libtorch_cpu.so"


def torch_version(directory: Path) -> str:
    """Reads the version of the torch package in ``directory``.

    Args:
        directory: the package folder, ``.../site-packages/torch``.

    Returns:
        The version as torch states it, for example ``2.13.0+cpu``, or ``unknown``.
    """
    try:
        text = (directory / "version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    match = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match.group(1) if match else "unknown"


def find_torch() -> Path | None:
    """Locates torch's package folder.

    An isolated build hides the target environment from ``sys.path``, yet that is where the torch
    is that the library will meet at run time, so its folders are asked first. ``sys.path`` comes
    second: there lies the torch that an isolated build fetched because the target had none.
    ``TAL_FAST_TORCH_DIR`` overrides both.

    Returns:
        The folder, or None when there is no torch.
    """
    forced = os.environ.get("TAL_FAST_TORCH_DIR")
    if forced:
        candidates = [Path(forced)]
    else:
        paths = sysconfig.get_paths()
        candidates = [Path(paths[key]) / "torch" for key in ("purelib", "platlib")]
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.origin is not None:
            candidates.append(Path(spec.origin).parent)
    for candidate in candidates:
        if (candidate / "lib" / _CORE_LIBRARY).is_file():
            return candidate
    return None
