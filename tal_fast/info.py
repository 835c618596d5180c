# SPDX-License-Identifier: Apache-2.0
"""What ``tal-fast info`` prints: versions, instruction set, CUDA and why it is off, threads."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

from tal_fast import __version__

__all__ = ["collect", "instruction_sets"]

_WAITING = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_PACKAGES = ("numpy", "scipy", "safetensors", "pydantic", "matplotlib", "jinja2", "ray")


def instruction_sets() -> list[str]:
    """Names the instruction sets that this machine and this binary have, slowest first."""
    import tal_fast.ops  # noqa: F401  (loads torch, then the native library)
    from tal_fast import _C

    info = _C.build_info()
    return [isa for isa in info["isas_available"] if isa in info["isas_built"]]


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Cores that this process may use: a container or taskset may grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cuda(build: dict[str, Any], torch: Any) -> dict[str, Any]:
    """Says whether CUDA kernels can be used, and if not, every reason why."""
    reasons = []
    kernels = sys.modules.get("tal_fast._C_cuda")
    if not build["cuda"]:
        reasons.append(build["cuda_reason"])
    elif torch.version.cuda is not None and kernels is None:
        reasons.append("the library of the CUDA kernels (_C_cuda) could not be loaded")
    if torch.version.cuda is None:
        reasons.append(f"torch {torch.__version__} is a CPU build")
    elif not torch.cuda.is_available():
        reasons.append("torch finds no usable GPU")
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "available": not reasons,
        "why_off": "; ".join(reasons) or None,
        "torch_cuda": torch.version.cuda,
        "architectures": getattr(kernels, "architectures", None),
        "compiler": getattr(kernels, "compiler", None),
        "device": device,
    }


def collect() -> dict[str, Any]:
    """Collects the facts about this installation and machine.

    Returns:
        A dictionary that JSON can hold: ``tal_fast``, ``python``, ``torch`` (versions),
        ``platform``, ``cpu`` (name, cores), ``isa`` (in use, available, forced), ``threads``
        (torch's and the OMP variable), ``cuda`` (available, why_off, …), ``build`` (of the native
        library) and ``packages``.

    Raises:
        NativeLibraryError: the native library cannot be loaded; the message says why.
    """
    from tal_fast.ops import _C  # it says what is missing, torch among it

    build: dict[str, Any] = dict(_C.build_info())
    import torch

    return {
        "tal_fast": __version__,
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "cpu": {"name": _cpu_name(), "cores": os.cpu_count() or 1, "usable": _usable_cores()},
        "isa": {
            "used": build["isa"],
            "available": instruction_sets(),
            "forced": os.environ.get("TAL_FAST_ISA") or None,
        },
        "threads": {
            "torch": torch.get_num_threads(),
            "interop": torch.get_num_interop_threads(),
            **{name: os.environ.get(name) for name in _WAITING},
        },
        "cuda": _cuda(build, torch),
        "build": build,
        "packages": _versions(),
    }
