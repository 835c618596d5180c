# SPDX-License-Identifier: Apache-2.0
"""What a timing depends on, to print above it and to store beside it."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path

__all__ = ["describe", "header", "slug"]


def cpu_model() -> str:
    """Returns the processor's name as Linux gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def describe() -> dict[str, str | int | float]:
    """Returns the machine, the versions and the load, as JSON types."""
    import torch

    from tal_fast.ops import _C

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "isa": _C.build_info()["isa"],
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def header() -> str:
    """Returns :func:`describe` in one line."""
    return "; ".join(f"{key} {value}" for key, value in describe().items())


def slug() -> str:
    """Returns a name for result files, as in ``2026-01-31-amd-epyc-2-cores``."""
    name = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    cores = len(os.sched_getaffinity(0))
    return f"{datetime.date.today().isoformat()}-{name}-{cores}-core{'s' if cores > 1 else ''}"
