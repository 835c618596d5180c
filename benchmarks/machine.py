# SPDX-License-Identifier: Apache-2.0
"""What a timing depends on, to print above it and to store beside it."""

from __future__ import annotations

import os
import re
from typing import Any

from tal_fast.training.environment import describe_environment

__all__ = ["describe", "header", "slug"]


def describe() -> dict[str, Any]:
    """Returns the machine, the versions, the commit and the load, as JSON types."""
    return {**describe_environment(), "load_1min": round(os.getloadavg()[0], 2)}


def header() -> str:
    """Returns :func:`describe` in one line."""
    return "; ".join(f"{key} {value}" for key, value in describe().items())


def slug() -> str:
    """Returns a name for result files, as in ``2026-01-31-amd-epyc-2-cores``.

    The instruction set follows where ``TAL_FAST_ISA`` asks for one.
    """
    facts = describe()
    name = re.sub(r"[^a-z0-9]+", "-", facts["cpu"].lower()).strip("-")
    cores = facts["cores"]
    asked = f"-{facts['isa']}" if os.environ.get("TAL_FAST_ISA") else ""
    return f"{facts['date'][:10]}-{name}-{cores}-core{'s' if cores > 1 else ''}{asked}"
