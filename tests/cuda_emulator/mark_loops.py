# SPDX-License-Identifier: Apache-2.0
"""Writes a copy of a source file whose marked loops tell the emulator of every turn.

A loop is marked as for sass.py: ``for (...) {  // hot: name``. So the turns that the emulator
counts belong to the instructions that the machine code has for the same name. Lines stay where
they are.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_MARK = re.compile(r"//.*\bhot: (?P<name>[\w -]+?)\s*$")


def instrumented(text: str, name: str) -> str:
    """Returns the source with a call at the begin of every marked loop.

    Raises:
        ValueError: a mark stands on a line that does not end with the brace of its ``for``;
            ``name`` and the line are named.
    """
    lines = text.split("\n")
    for number, line in enumerate(lines):
        mark = _MARK.search(line)
        if mark is None:
            continue
        code, comment = line[: mark.start()], line[mark.start() :]
        if not code.rstrip().endswith("{"):
            raise ValueError(f"{name}:{number + 1}: expected '{{' before the mark, got {line!r}")
        call = f' ::tal_fast::emulator::turn("{mark["name"]}");'
        lines[number] = f"{code.rstrip()}{call}  {comment}"
    return "\n".join(lines)


def main() -> int:
    """``mark_loops.py SOURCE TARGET``."""
    source, target = map(Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(instrumented(source.read_text("utf-8"), source.name), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
