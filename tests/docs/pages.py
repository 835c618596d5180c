# SPDX-License-Identifier: Apache-2.0
"""The pages of the project, and what stands in them: code, commands, links, headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "benchmarks/README.md",
        *(ROOT / ".github").glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
    )
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, language: str) -> list[str]:
    """What stands in the page's fenced blocks of a language."""
    return [body for name, body in _FENCE.findall(text_of(page)) if name == language]


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text_of(page))


def lines_of_shell(page: str) -> Iterator[list[str]]:
    """The words of each command of the page's shell blocks; continued lines are one."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def commands(page: str) -> list[list[str]]:
    """The arguments of every call of ``tal-fast`` in the page's shell blocks."""
    found = []
    for words in lines_of_shell(page):
        text = " ".join(words)
        if "tal-fast" in words:
            found.append(words[words.index("tal-fast") + 1 :])
        elif "-m tal_fast " in text and "torchrun" in words:
            found.append(words[words.index("tal_fast") + 1 :])
    return found


def slug(heading: str) -> str:
    """The anchor of a heading, as hosts of Markdown make it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def anchors(page: str) -> set[str]:
    return {slug(match) for match in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


def links(page: str) -> list[tuple[str, str]]:
    """File and anchor of every link and picture that stays in the project; file "" is the page."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [
        tuple(target.partition("#")[::2])  # type: ignore[misc]
        for target in targets
        if not re.match(r"[a-z]+:", target)
    ]
