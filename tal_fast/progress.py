# SPDX-License-Identifier: Apache-2.0
"""How far long work is, for people who watch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["bar"]


@contextlib.contextmanager
def bar(description: str, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Shows progress on a terminal or in a notebook, nothing elsewhere.

    Args:
        description: what is done, as in ``"training"``.
        shown: whether to show it at all.

    Yields:
        ``update(done, total, note)``.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:g}/{task.total:g}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not (shown and (console.is_terminal or console.is_jupyter)),
    ) as progress:
        task = progress.add_task(description, total=1, note="")

        def update(done: int, total: int, note: str = "") -> None:
            progress.update(task, completed=done, total=max(1, total), note=note)

        yield update
