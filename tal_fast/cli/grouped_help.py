# SPDX-License-Identifier: Apache-2.0
"""Help in groups, the common options first, as plain text.

typer draws its groups (``rich_help_panel``) with rich alone, whose import is half of what ``-h``
may take. These classes write the same groups plainly.
"""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["GroupedCommand", "GroupedGroup"]

_FIRST = "Options"
# Longer than a first sentence: a line that is cut says nothing; a long one is wrapped.
_WHOLE = 1000


# What an option takes, as typer writes it: `<int range>`, `<list[Path]>`.
_KIND = re.compile(r"<(?:list\[)?(\w+)(?: range)?\]?>")
_KINDS = {"str": "text", "int": "number", "float": "number"}


def _kind(written: re.Match[str]) -> str:
    """Returns it in words of the user's."""
    name = written[1].lower()
    return f"<{_KINDS.get(name, name)}>"


def _write(formatter: Any, groups: dict[str, list[tuple[str, str]]]) -> None:
    for title, rows in groups.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _options(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Returns the rows of arguments and of each group of options; those without one come first."""
    groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], _FIRST: []}
    for param in command.get_params(ctx):
        row = param.get_help_record(ctx)
        if row is not None:
            row = (_KIND.sub(_kind, row[0]), row[1])
            title = getattr(param, "rich_help_panel", None) or _FIRST
            if param.param_type_name == "argument":
                title = "Arguments"
            groups.setdefault(title, []).append(row)
    return groups


class GroupedCommand(TyperCommand):
    """A command whose help lists its options by group."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments and options."""
        _write(formatter, _options(self, ctx))


class GroupedGroup(TyperGroup):
    """A group of commands whose help lists them by group."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands, which are what one looks for, then the options."""
        self.format_commands(ctx, formatter)
        _write(formatter, _options(self, ctx))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        shown = [(name, item) for name, item in commands if item is not None and not item.hidden]
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, item in shown:
            title = getattr(item, "rich_help_panel", None) or "Commands"
            groups.setdefault(title, []).append((name, item.get_short_help_str(_WHOLE)))
        _write(formatter, groups)
