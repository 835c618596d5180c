# SPDX-License-Identifier: Apache-2.0
"""Signs that features [C, T] are read as [T, C], or the reverse: the first thing to suspect.

A wrong layout shows as channels that differ by video, or as rows that no rate explains, and would
be blamed on either.
"""

from __future__ import annotations

from collections.abc import Iterable

from tal_fast.data.extents import Extent, Layout
from tal_fast.errors import argument, counted

__all__ = ["other_layout", "say_layout", "swapped_axes"]


def other_layout(layout: str) -> Layout:
    """Returns the layout that was not said."""
    return "TC" if layout == "CT" else "CT"


def say_layout(layout: str) -> str:
    """Returns how to say the other layout, in a command, a call and ``dataset.yaml``."""
    other = other_layout(layout)
    return f"{argument('layout', other)}, or `layout: {other}` under `feature` in dataset.yaml"


def swapped_axes(extents: Iterable[Extent], layout: str) -> str:
    """Says that the axes look swapped; empty where they do not.

    They do where all videos have one number of rows, and different numbers of channels: the length
    of videos differs, and channels do not.

    Args:
        extents: of all videos.
        layout: that they were read by.
    """
    seen = list(extents)
    widths = {extent.width for extent in seen}
    if len({extent.rows for extent in seen}) != 1 or len(widths) < 2:
        return ""
    return (
        f"the axes look swapped: every video has {counted(seen[0].rows, 'row')} and another number "
        f"of channels, {min(widths)} to {max(widths)}. Say {say_layout(layout)}"
    )
