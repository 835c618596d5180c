# SPDX-License-Identifier: Apache-2.0
"""What a result was made with: processor, versions, commit. Nothing that names a person or host."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import tal_fast
from tal_fast.ops import _C

__all__ = ["describe_environment", "peak_memory_mib", "usable_cores"]


def usable_cores() -> int:
    """Returns the cores that this process may use (its affinity, where the system tells)."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # no affinity outside Linux
        return max(1, os.cpu_count() or 1)


def peak_memory_mib() -> float:
    """Returns the largest resident memory of this process so far, in MiB."""
    try:
        # Of this program alone: getrusage starts from what the process that launched it had.
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 2**10
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def describe_environment() -> dict[str, Any]:
    """Returns machine, versions and commit as a flat dict fit for JSON, YAML and a table."""
    description: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tal_fast": tal_fast.__version__,
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": str(np.__version__),
        "isa": str(_C.build_info()["isa"]),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        description["gpu"] = torch.cuda.get_device_name(0)
    return description


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def _commit() -> str:
    """Returns the commit of an in-place checkout, with ``-dirty`` where files differ from it."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return "not a checkout"
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
