# SPDX-License-Identifier: Apache-2.0
"""Tables on a terminal, in a pipe and in a log: wide ones are broken there, and never cut."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["print_tables", "widen"]


def print_tables(*tables: Table, width: int, gap: bool = False) -> None:
    """Prints tables with all their cells whole.

    Args:
        tables: one below the other.
        width: of a pipe or a log, at least.
        gap: whether an empty line follows each.
    """
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=width)
    for table in tables:
        widen(console, table)
        console.print(table)
        if gap:
            console.print()


def widen(console: Console, table: Table) -> None:
    """Makes room for whole numbers, even where a narrow terminal breaks the lines."""
    measured = console.measure(table, options=console.options.update(width=1000))
    console.width = max(console.width, measured.maximum)
