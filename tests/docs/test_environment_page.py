# SPDX-License-Identifier: Apache-2.0
"""docs/environment.md has every variable that the sources read, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pages

NAME = re.compile(r"TAL_FAST_[A-Z0-9_]+")
PYTHON = ("tal_fast", "build_backend", "benchmarks", "tests", "examples", "docs")


def in_python() -> Iterator[str]:
    """Names that stand alone in a text of the program, which is how they are looked up."""
    files = [pages.ROOT / "setup.py"]
    for folder in PYTHON:
        files += sorted((pages.ROOT / folder).rglob("*.py"))
    for file in files:
        text = file.read_text("utf-8")
        for node in ast.walk(ast.parse(text)) if "TAL_FAST_" in text else ():
            value = node.value if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and NAME.fullmatch(value):
                yield value


def in_native_sources() -> Iterator[str]:
    for folder in ("csrc", "tests"):
        for file in sorted((pages.ROOT / folder).rglob("*")):
            if file.suffix in {".h", ".cpp", ".cu", ".cuh"}:
                yield from re.findall(r'getenv\("(TAL_FAST_\w+)"', file.read_text("utf-8"))


def in_the_build() -> Iterator[str]:
    cmake = (pages.ROOT / "CMakeLists.txt").read_text("utf-8")
    yield from re.findall(r"^option\((TAL_FAST_\w+)", cmake, re.MULTILINE)
    yield from re.findall(r"^set\((TAL_FAST_\w+) .*CACHE", cmake, re.MULTILINE)
    yield from re.findall(r"\b(TAL_FAST_\w+)=", (pages.ROOT / "Makefile").read_text("utf-8"))


def test_every_variable_has_a_row():
    read = {*in_python(), *in_native_sources(), *in_the_build()}
    rows = re.findall(r"^\| `(TAL_FAST_\w+)` \|", pages.text_of("docs/environment.md"), re.M)
    assert len(rows) == len(set(rows))
    assert read - set(rows) == set(), "not in docs/environment.md"
    assert set(rows) - read == set(), "read nowhere"
    assert {"TAL_FAST_ISA", "TAL_FAST_CUDA", "TAL_FAST_PEERS"} <= read
