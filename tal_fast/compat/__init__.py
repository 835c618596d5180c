# SPDX-License-Identifier: Apache-2.0
"""Other people's codebases, unmodified, on our ops and evaluator.

``python -m tal_fast.compat SCRIPT ARGS…`` runs a script as ``python SCRIPT ARGS…`` would, with
native ops behind the names that it imports or defines; :func:`install` does the same from a script
or a notebook. Importing this package changes nothing. ``docs/drop-in.md`` has the codebases.

:class:`ActionFormerItems` and :class:`OpenTADItems` are datasets with the items of those codebases,
read by our reader.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tal_fast.compat.installation import install, installed, report, uninstall

if TYPE_CHECKING:
    from tal_fast.compat.datasets import ActionFormerItems, OpenTADItems

__all__ = ["ActionFormerItems", "OpenTADItems", "install", "installed", "report", "uninstall"]


def __getattr__(name: str) -> Any:
    """Imports the datasets, which need torch, on first use."""
    if name in ("ActionFormerItems", "OpenTADItems"):
        return getattr(importlib.import_module("tal_fast.compat.datasets"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
