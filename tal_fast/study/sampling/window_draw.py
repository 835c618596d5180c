# SPDX-License-Identifier: Apache-2.0
"""Samples of training windows instead of videos."""

from __future__ import annotations

from collections.abc import Sequence

from tal_fast.data.windows import WindowSet
from tal_fast.study.sampling.hash_order import SEPARATOR, hash_order

__all__ = ["draw_windows", "instances_of_windows"]


def draw_windows(windows: WindowSet, count: int, *key: object) -> tuple[int, ...]:
    """Draws windows uniformly without replacement.

    A window is known by its video and first row, so that the draw does not depend on the order of
    the videos. OpenTAD's rule can cut the same window twice; the second one has a hash of its own.

    Args:
        windows: of all training videos.
        count: how many are drawn.
        key: purpose, seed and so on of the draw.

    Returns:
        Positions in ``windows.windows``, rising.
    """
    seen: dict[str, int] = {}
    names = []
    for window in windows.windows:
        name = f"{window.video}{SEPARATOR}{window.start}"
        before = seen[name] = seen.get(name, -1) + 1
        names.append(f"{name}{SEPARATOR}{before}" if before else name)
    return tuple(sorted(hash_order(names, *key)[:count]))


def instances_of_windows(windows: WindowSet, positions: Sequence[int]) -> dict[str, set[int]]:
    """Returns the instances that are targets of some windows: video -> rows of its ``segments``.

    Windows overlap; an instance that lies in several of them is there once.
    """
    found: dict[str, set[int]] = {}
    for position in positions:
        name = windows.windows[position].video
        found.setdefault(name, set()).update(windows.instances(position).tolist())
    return found
