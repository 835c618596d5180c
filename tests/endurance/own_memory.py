# SPDX-License-Identifier: Apache-2.0
"""What a process holds in memory itself."""

from __future__ import annotations

from pathlib import Path

_COUNTED = ("RssAnon", "VmSwap")


def own_memory() -> int:
    """Returns the bytes of this process's own pages, those that were swapped out included.

    Resident memory also has pages of files (libraries), which the system takes away and gives back
    as it likes: it may shrink by a third where nothing was freed.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    return sum(int(sizes[name].removesuffix("kB")) for name in _COUNTED) * 1024
