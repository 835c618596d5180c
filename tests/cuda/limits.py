# SPDX-License-Identifier: Apache-2.0
"""What the machine code of each kernel may cost: ``kernel_limits.json``, compared and written.

The numbers are those of one architecture and one nvcc; another compiler makes other code, so that
nothing is compared with it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sass import Code

PATH = Path(__file__).with_name("kernel_limits.json")

_WIDEST = 16  # bytes of a thread's access
_SLACK = 1.05  # of the size of the whole code, which every edit moves a little
_LOOP = ("all", "least", "waits", "early")


def short_name(kernel: str) -> str:
    """A demangled type without the library's namespaces and the types of enumerators."""
    short = re.sub(r"tal_fast::(\(anonymous namespace\)::)?|\(anonymous namespace\)::", "", kernel)
    return re.sub(r"\((\w+)\)(\d+)", r"\2", short).strip()


def facts(code: Code, registers: int, blocks: int) -> dict[str, Any]:
    """What is compared of a kernel."""
    loops: dict[str, list[int]] = {}
    for loop in code.loops:
        now = [getattr(loop, name) for name in _LOOP]
        loops[loop.name] = [*map(max, loops.get(loop.name, now), now)]
    # By the loop around it, or "". Of several copies of a loop the one with most; without a loop
    # around it, all copies.
    parts: dict[str, dict[str, int]] = {}
    for part in code.parts:
        of = parts.setdefault(part.name, {})
        known = of.get(part.loop, 0)
        of[part.loop] = max(known, part.all) if part.loop else known + part.all
    return {
        "registers": registers,
        "blocks": blocks,
        "instructions": code.instructions,
        "local": code.local,
        "narrow_loads": sum(n for width, n in code.loads.items() if width < _WIDEST),
        "narrow_stores": sum(n for width, n in code.stores.items() if width < _WIDEST),
        "loops": loops,
        **({"parts": parts} if parts else {}),
    }


def _changes(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What got worse and what got better, in words."""
    worse, better = [], []

    def compare(what: str, before: float, after: float) -> None:
        if before != after:
            (worse if after > before else better).append(f"{what} {before:g} -> {after:g}")

    for key in ("local", "narrow_loads", "narrow_stores"):
        compare(key.replace("_", " "), old[key], new[key])
    # Registers cost nothing until a block less has room.
    if old["blocks"] != new["blocks"]:
        text = f"blocks by registers {old['blocks']} -> {new['blocks']}"
        (worse if new["blocks"] < old["blocks"] else better).append(text)
    if new["instructions"] > _SLACK * old["instructions"]:
        worse.append(f"instructions {old['instructions']} -> {new['instructions']}")
    for name, before in old["loops"].items():
        if name not in new["loops"]:
            worse.append(f"loop '{name}' is not found: its mark or its branch is gone")
            continue
        for what, x, y in zip(_LOOP, before, new["loops"][name], strict=True):
            compare(f"loop '{name}' {what}", x, y)
    worse += [
        f"part '{name}' is not found: its mark is gone"
        for name in old.get("parts", {})
        if name not in new.get("parts", {})
    ]
    better += [f"loop '{name}' is new" for name in new["loops"] if name not in old["loops"]]
    return worse, better


def read(path: Path | None = None) -> dict[str, Any]:
    """The file: ``nvcc``, ``arch`` and ``kernels``; empty ones where there is no file."""
    path = path or PATH
    if not path.exists():
        return {"nvcc": "", "arch": "", "kernels": {}}
    return json.loads(path.read_text())


def write(
    nvcc: str, arch: str, kernels: dict[str, dict[str, Any]], path: Path | None = None
) -> None:
    """One line per kernel, so that a difference can be read."""
    lines = [f"    {json.dumps(name)}: {json.dumps(kernels[name])}" for name in sorted(kernels)]
    (path or PATH).write_text(
        f'{{\n  "nvcc": {json.dumps(nvcc)},\n  "arch": {json.dumps(arch)},\n'
        '  "kernels": {\n' + ",\n".join(lines) + "\n  }\n}\n"
    )


def compare(
    limits: dict[str, Any], kernels: dict[str, dict[str, Any]]
) -> tuple[list[str], list[str]]:
    """Lines about kernels that are worse than their limits, and about better or unknown ones."""
    worse, better = [], []
    for name, now in sorted(kernels.items()):
        if name not in limits["kernels"]:
            worse.append(f"{name}: has no limits yet")
            continue
        bad, good = _changes(limits["kernels"][name], now)
        worse += [f"{name}: {text}" for text in bad]
        better += [f"{name}: {text}" for text in good]
    better += [
        f"{name}: is no longer compiled" for name in limits["kernels"] if name not in kernels
    ]
    return worse, better
