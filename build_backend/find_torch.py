# SPDX-License-Identifier: Apache-2.0
"""Finds the torch that tal_fast is going to run with, on disk and without importing it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

__all__ = ["cuda_architectures", "find_torch", "torch_version"]

_CORE_LIBRARY = "libtorch_cpu.so"
# The data-centre GPUs of the last two generations, and PTX for newer ones.
_DEFAULT_ARCHITECTURES = "80-real;90-real;90-virtual"


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


def cuda_architectures(directory: Path) -> str:
    """Says for which GPUs to compile, as CMake writes it (``90-real;90-virtual``).

    ``TORCH_CUDA_ARCH_LIST`` (``8.0;9.0+PTX``) decides where it is set, else the architectures that
    the torch in ``directory`` was compiled for, else (torch cannot be imported, or is a CPU build)
    compute capability 8.0 and 9.0 and PTX of the latter.

    Args:
        directory: the package folder, ``.../site-packages/torch``.

    Raises:
        ValueError: if ``TORCH_CUDA_ARCH_LIST`` names something else than numbers with a point.
    """
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if wanted:
        names = []
        for entry in re.split(r"[ ;,]+", wanted.strip()):
            match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", entry)
            if match is None:
                raise ValueError(
                    f"TORCH_CUDA_ARCH_LIST: expected entries like 9.0 or 9.0+PTX, got {entry!r}"
                )
            number = match.group(1) + match.group(2)
            names += [f"{number}-real"] + ([f"{number}-virtual"] if match.group(3) else [])
        return ";".join(names)
    # In a process of its own: a build must not keep torch loaded.
    # torch.cuda.get_arch_list() would answer only where there is a GPU.
    code = "import torch; print(getattr(torch._C, '_cuda_getArchFlags', str)())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(directory.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"(sm|compute)_(\d+[af]?)", done.stdout if done.returncode == 0 else "")
    names = [f"{number}-{'real' if kind == 'sm' else 'virtual'}" for kind, number in found]
    return ";".join(names) or _DEFAULT_ARCHITECTURES
