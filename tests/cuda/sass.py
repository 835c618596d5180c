# SPDX-License-Identifier: Apache-2.0
"""Reads the machine code (SASS) of kernels, as ``nvdisasm -c -gi -hex`` prints it.

Counted per kernel: loads and stores of global and shared memory by width, accesses of local memory,
and, for every loop that the source marks, its instructions. A mark is a comment on the line of the
``for``: ``for (...) {  // hot: gather``. The compiler attributes the branch back to that line: so
the loop is found. One that was unrolled away has no branch and is not.

What stands in the braces behind another mark, ``if (...) {  // hot: name``, is a part: the
instructions that the compiler attributes to its lines, or to what is called from there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_LINE = re.compile(r'\s*//## File "(?P<file>[^"]*)", line (?P<line>\d+)')  # then where it is called
_LABEL = re.compile(r"^(\.L_\w+):")
_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^\s,]+)")
_CODE = re.compile(
    r"\s+/\*(?P<at>[0-9a-f]{4,6})\*/\s+(?P<text>[^;]*);.*/\* 0x(?P<low>[0-9a-f]{16})"
)
_HIGH = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_OPCODE = re.compile(r"(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)")
_MARK = re.compile(r"//.*\bhot: ([\w -]+?)\s*$")

_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_BARRIERS = 6  # scoreboards on which an instruction can wait
_BACK = {"BRA"}


@dataclass
class Instruction:
    """One instruction: its address, text and control bits."""

    at: int
    text: str
    opcode: str  # without suffixes
    suffixes: tuple[str, ...]
    # File and line, then where that was called from, and so on.
    chain: tuple[tuple[str, int], ...]
    target: str | None  # the label that it may branch to
    sets: int = 7  # the barrier that its result releases; 7: none
    waits: int = 0  # bit mask of the barriers that it waits for

    @property
    def source(self) -> tuple[str, int] | None:
        """File and line."""
        return self.chain[0] if self.chain else None

    @property
    def conditional(self) -> bool:
        """Whether execution may go on behind it although it branches or ends."""
        return self.text.startswith("@") or bool(re.search(r"\bBRA[.\w]*\s+!?U?P\w+,", self.text))

    @property
    def width(self) -> int:
        """Bytes that a load or store moves for a thread."""
        return next((_BYTES[s] for s in self.suffixes if s in _BYTES), 4)


@dataclass
class Loop:
    """A marked loop, in instructions of a warp; loops within it are counted once."""

    name: str
    all: int  # of every path, the least way round, ...
    least: int
    waits: int  # on global memory
    early: int  # of these, on what this turn loaded and before it reads shared memory


@dataclass
class Part:
    """The instructions of a marked part that are in no loop and no part within it."""

    name: str
    all: int
    loop: str  # the marked loop around it, or empty


@dataclass
class Code:
    """What the machine code of one kernel says."""

    name: str
    instructions: int = 0
    loads: Counter[int] = field(default_factory=Counter)  # of global memory: how many by bytes
    stores: Counter[int] = field(default_factory=Counter)
    shared_loads: Counter[int] = field(default_factory=Counter)
    shared_stores: Counter[int] = field(default_factory=Counter)
    local: int = 0
    loops: list[Loop] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A form for a file."""
        return {
            "name": self.name,
            "instructions": self.instructions,
            "loads": dict(self.loads),
            "stores": dict(self.stores),
            "shared_loads": dict(self.shared_loads),
            "shared_stores": dict(self.shared_stores),
            "local": self.local,
            "loops": [vars(loop) for loop in self.loops],
            "parts": [vars(part) for part in self.parts],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Code:
        """The inverse of :meth:`to_json`."""
        widths = {
            key: Counter({int(width): count for width, count in data[key].items()})
            for key in ("loads", "stores", "shared_loads", "shared_stores")
        }
        return cls(
            name=data["name"],
            instructions=data["instructions"],
            local=data["local"],
            loops=[Loop(**loop) for loop in data["loops"]],
            parts=[Part(**part) for part in data["parts"]],
            **widths,
        )


def find_nvdisasm() -> str | None:
    """The path of nvdisasm: that of the wheel (extra ``cuda-dev``), or one on the path."""
    for folder in map(Path, sys.path):
        for tool in sorted(folder.glob("nvidia/*/bin/nvdisasm")):
            return str(tool)
    return shutil.which("nvdisasm")


def disassemble(tool: str, cubin: Path) -> str:
    """The listing of one cubin."""
    command = [tool, "-c", "-gi", "-hex", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{cubin}: nvdisasm failed: {done.stderr}")
    return done.stdout


@cache
def marks(file: str) -> dict[int, str]:
    """Line to name of the loops marked in a source file; none where the file is not there."""
    path = Path(file)
    if not path.is_file():
        return {}
    lines = path.read_text(errors="replace").splitlines()
    found = ((number, _MARK.search(line)) for number, line in enumerate(lines, 1))
    return {number: mark.group(1) for number, mark in found if mark}


@cache
def parts(file: str) -> list[tuple[int, int, str]]:
    """First and last line and name of the marked parts of a file, the smaller ones first."""
    found = []
    lines = Path(file).read_text(errors="replace").splitlines() if marks(file) else []
    for begin, name in marks(file).items():
        if re.match(r"\s*(for|while)\b", lines[begin - 1]):
            continue
        depth, end = 1, begin
        while depth > 0 and end < len(lines):
            code = lines[end].split("//")[0]
            # `} else {` ends what is open.
            for brace in re.findall(r"[{}]", code):
                depth += 1 if brace == "{" else -1
                if depth == 0:
                    break
            end += 1
        found.append((begin + 1, end, name))
    return sorted(found, key=lambda part: part[1] - part[0])


def _part_of(chain: tuple[tuple[str, int], ...]) -> str:
    """The innermost part that an instruction is in."""
    for file, line in chain:
        for first, last, name in parts(file):
            if first <= line <= last:
                return name
    return ""


def parse(listing: str) -> dict[str, tuple[list[Instruction], dict[str, int]]]:
    """Instructions and labels (to indices of instructions) of each function, by symbol."""
    functions: dict[str, tuple[list[Instruction], dict[str, int]]] = {}
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    chain: tuple[tuple[str, int], ...] = ()
    called = False  # the line before was one of the chain
    for line in listing.splitlines():
        if match := _LINE.match(line):
            here = (match["file"], int(match["line"]))
            chain, called = ((*chain, here) if called else (here,)), True
            continue
        called = False
        if match := _CODE.match(line):
            text = match["text"].strip()
            operation = _OPCODE.match(text)
            target = _TARGET.search(text)
            code.append(
                Instruction(
                    at=int(match["at"], 16),
                    text=text,
                    opcode=operation.group(1) if operation else text,
                    suffixes=tuple(operation.group(2).split(".")[1:]) if operation else (),
                    chain=chain,
                    target=target.group(1) if target else None,
                )
            )
        elif match := _HIGH.match(line):
            # From sm_70 on: stall, yield, then the barriers, in bits 105 to 125 of 128.
            control = int(match[1], 16) >> 41
            if code:
                code[-1].sets = control >> 5 & 7
                code[-1].waits = control >> 11 & 0x3F
        elif match := _LABEL.match(line):
            labels[match[1]] = len(code)
        elif match := _SECTION.match(line):
            code, labels, chain = [], {}, ()
            functions[match[1]] = (code, labels)
    return functions


def _successors(code: list[Instruction], labels: dict[str, int]) -> list[list[int]]:
    result = []
    for i, one in enumerate(code):
        follows = []
        if one.opcode in _BACK and one.target in labels:
            follows.append(labels[one.target])
        ends = one.opcode in ("BRA", "EXIT", "RET", "BRX", "JMP", "KILL")
        if (not ends or one.conditional) and i + 1 < len(code):
            follows.append(i + 1)
        result.append(follows)
    return result


def _body(tail: int, head: int, before: list[list[int]]) -> list[int]:
    """The natural loop of the branch from ``tail`` back to ``head``."""
    found = {head, tail}
    waiting = [tail] if tail != head else []
    while waiting:
        for i in before[waiting.pop()]:
            if i not in found:
                found.add(i)
                waiting.append(i)
    return sorted(found)


def _least(head: int, tail: int, after: list[list[int]], body: set[int]) -> int:
    steps = {head: 1}
    waiting = deque([head])
    while waiting:
        i = waiting.popleft()
        if i == tail:
            return steps[i]
        for j in after[i]:
            if j in body and j not in steps:
                steps[j] = steps[i] + 1
                waiting.append(j)
    return len(body)


def _waits(code: list[Instruction], body: list[int]) -> tuple[int, int]:
    """Waits on global loads in one turn, and those before shared memory is read.

    Taken in the order of addresses, twice: what the first turn leaves under way the second one may
    wait for.
    """
    pending = [0] * _BARRIERS  # 1: a load of the turn before, 2: of this one
    total = early = 0
    reads = [i for i in body if code[i].opcode == "LDS"]
    for turn in range(2):
        total = early = 0
        for i in body:
            held = [b for b in range(_BARRIERS) if code[i].waits >> b & 1 and pending[b]]
            if held:
                total += 1
                if any(pending[b] == 2 for b in held) and reads and i <= reads[0]:
                    early += 1
                for b in held:
                    pending[b] = 0
            if code[i].opcode == "LDG" and code[i].sets < _BARRIERS:
                pending[code[i].sets] = 2
        if turn == 0:
            pending = [min(p, 1) for p in pending]
    return total, early


def _loops(
    code: list[Instruction], labels: dict[str, int]
) -> list[tuple[Loop, set[int], Instruction]]:
    """The marked loops, which instructions they have, and the branch back."""
    backs = [
        (i, labels[one.target])
        for i, one in enumerate(code)
        if one.opcode in _BACK and one.target in labels and labels[one.target] <= i
    ]
    named = [
        (tail, head, name)
        for tail, head in backs
        if (source := code[tail].source) and (name := marks(source[0]).get(source[1]))
    ]
    if not named:
        return []
    after = _successors(code, labels)
    before: list[list[int]] = [[] for _ in code]
    for i, follows in enumerate(after):
        for j in follows:
            before[j].append(i)
    loops = []
    for tail, head, name in named:
        body = _body(tail, head, before)
        total, early = _waits(code, body)
        loop = Loop(name, len(body), _least(head, tail, after, set(body)), total, early)
        loops.append((loop, set(body), code[tail]))
    return loops


def _parts(code: list[Instruction], loops: list[tuple[Loop, set[int], Instruction]]) -> list[Part]:
    """The marked parts: one for each loop, or none, that it is in."""
    found: Counter[tuple[str, int | None]] = Counter()
    # A loop whose branch is in the same part is within the part.
    of_loops = [_part_of(branch.chain) for _, _, branch in loops]
    for i, one in enumerate(code):
        name = _part_of(one.chain)
        around = [j for j, (_, body, _) in enumerate(loops) if i in body]
        if not name or any(of_loops[j] == name for j in around):
            continue
        inner = min(around, key=lambda j: len(loops[j][1]), default=None)
        found[name, inner] += 1
    return [
        Part(name, count, "" if inner is None else loops[inner][0].name)
        for (name, inner), count in found.items()
    ]


def read(listing: str) -> list[Code]:
    """What the listing says about every function in it."""
    kernels = []
    for name, (code, labels) in parse(listing).items():
        kernel = Code(name)
        while code and code[-1].opcode == "NOP":  # filling, behind the last branch
            code.pop()
        kernel.instructions = len(code)
        counters = {
            "LDG": kernel.loads,
            "STG": kernel.stores,
            "LDS": kernel.shared_loads,
            "STS": kernel.shared_stores,
        }
        for one in code:
            if one.opcode in counters:
                counters[one.opcode][one.width] += 1
            kernel.local += one.opcode in ("LDL", "STL")
        loops = _loops(code, {label: min(i, len(code) - 1) for label, i in labels.items()})
        kernel.loops = [loop for loop, _, _ in loops]
        kernel.parts = _parts(code, loops)
        kernels.append(kernel)
    return kernels
