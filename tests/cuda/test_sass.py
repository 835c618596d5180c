# SPDX-License-Identifier: Apache-2.0
"""The reader of machine code, on listings written by hand, and the comparison with limits."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import limits
import sass

SOURCE = """\
void kernel() {
  for (int i = 0; i < n; ++i) {  // hot: gather
    sum += memory[i];
  }
  for (int i = 0; i < n; ++i) {
  }
}
"""


def control(sets: int = 7, waits: int = 0) -> str:
    """The upper half of an instruction that sets one barrier and waits for some."""
    return f"{(sets << 5 | waits << 11) << 41:016x}"


def listing(source: Path, lines: list[str | tuple[str, dict[str, int]]]) -> str:
    """As nvdisasm prints it; ``2:`` before an instruction is the line that it comes from."""
    text = ['\t.section\t.text._Z6kernelv,"ax",@progbits', ".text._Z6kernelv:"]
    at = 0
    for line in lines:
        code, barriers = line if isinstance(line, tuple) else (line, {})
        if code.endswith(":"):
            text.append(code)
            continue
        if match := re.match(r"(\d+(?: < \d+)*): (.*)", code):
            # `7 < 3:` is line 7, called from line 3.
            calls = match[1].split(" < ")
            for line_number, at_line in zip(calls, [*calls[1:], ""], strict=True):
                called = f' inlined at "{source}", line {at_line}' if at_line else ""
                text.append(f'\t//## File "{source}", line {line_number}{called}')
            code = match[2]
        text.append(f"        /*{at:04x}*/                   {code} ;   /* 0x0000000000000001 */")
        text.append(f"                                       /* 0x{control(**barriers)} */")
        at += 16
    return "\n".join(text)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "kernel.cuh"
    path.write_text(SOURCE)
    return path


def read_one(text: str) -> sass.Code:
    (code,) = sass.read(text)
    return code


def test_counts_accesses_by_width(source: Path) -> None:
    code = read_one(
        listing(
            source,
            [
                "1: LDG.E.128.CONSTANT R4, desc[UR4][R2.64]",
                "@!P0 LDG.E.U16 R4, desc[UR4][R2.64]",
                "STG.E desc[UR4][R2.64], R4",
                "STG.E.64 desc[UR4][R2.64], R4",
                "LDS.128 R4, [R5]",
                "STS.U8 [R5], R4",
                "STL [R1], R4",
                "LDL.64 R4, [R1]",
                "EXIT",
                "NOP",
            ],
        )
    )
    assert code.name == "_Z6kernelv"
    assert code.instructions == 9
    assert (code.loads, code.stores) == (Counter({16: 1, 2: 1}), Counter({4: 1, 8: 1}))
    assert (code.shared_loads, code.shared_stores) == (Counter({16: 1}), Counter({1: 1}))
    assert code.local == 2
    assert sass.Code.from_json(code.to_json()) == code


def test_finds_marked_loops_by_their_branch(source: Path) -> None:
    code = read_one(
        listing(
            source,
            [
                "1: MOV R1, R2",
                ".L_x_0:",
                "3: IADD3 R1, R1, R2, RZ",
                "@P0 BRA `(.L_x_1)",
                "FADD R3, R3, R4",
                "FADD R3, R3, R4",
                ".L_x_1:",
                "2: ISETP.GE.AND P1, PT, R1, R5, PT",
                "@!P1 BRA `(.L_x_0)",
                ".L_x_2:",
                "6: @!P1 BRA `(.L_x_2)",
                "EXIT",
            ],
        )
    )
    # All six instructions; with the branch taken two fewer. The second loop has no mark.
    assert [(x.name, x.all, x.least) for x in code.loops] == [("gather", 6, 4)]


def test_code_behind_the_end_belongs_to_the_loop_that_it_returns_to(source: Path) -> None:
    code = read_one(
        listing(
            source,
            [
                ".L_x_0:",
                "3: @P0 BRA `(.L_x_3)",
                ".L_x_1:",
                "2: @!P1 BRA `(.L_x_0)",
                "EXIT",
                ".L_x_3:",
                "3: FADD R3, R3, R4",
                "BRA `(.L_x_1)",
            ],
        )
    )
    assert [(x.all, x.least) for x in code.loops] == [(4, 2)]


PARTS = """\
void kernel() {
  if (block < rows) {  // hot: rows
    for (int i = 0; i < n; ++i) {  // hot: bin
      if (slow) {  // hot: slow
        divide();
      } else {
        multiply();
      }
    }
  } else {  // hot: samples
    divide();
  }
}
void divide() {
  quotient = 1 / x;
}
"""


def test_parts_and_loops_have_what_is_in_none_within_them(tmp_path: Path) -> None:
    path = tmp_path / "parts.cuh"
    path.write_text(PARTS)
    code = read_one(
        listing(
            path,
            [
                "1: MOV R1, R2",
                "2: @P0 BRA `(.L_x_2)",
                "3: MOV R1, R2",
                "MOV R1, R2",
                ".L_x_0:",
                "4: @P1 BRA `(.L_x_1)",
                "15 < 5: MUFU.RCP R1, R2",
                ".L_x_1:",
                "7: FMUL R1, R2",
                "3: @!P1 BRA `(.L_x_0)",
                "EXIT",
                ".L_x_2:",
                "15 < 11: MUFU.RCP R1, R2",
                "FMUL R1, R2",
                "1: EXIT",
            ],
        )
    )
    assert [(loop.name, loop.all) for loop in code.loops] == [("bin", 4)]
    parts = {(part.name, part.all, part.loop) for part in code.parts}
    # The two before the loop and the end are of the part of rows.
    assert parts == {("rows", 3, ""), ("slow", 1, "bin"), ("samples", 2, "")}
    facts = limits.facts(code, 32, 8)
    assert facts["parts"] == {"rows": {"": 3}, "slow": {"bin": 1}, "samples": {"": 2}}
    gone, _ = limits.compare(
        {"kernels": {"K": facts}}, {"K": {k: v for k, v in facts.items() if k != "parts"}}
    )
    assert len(gone) == 3
    assert "part 'rows' is not found" in gone[0]
    assert sass.Code.from_json(code.to_json()) == code


LOAD = ("3: LDG.E R4, desc[UR4][R2.64]", {"sets": 0})
USE = ("3: FADD R3, R3, R4", {"waits": 1})
SHARED = ("3: LDS.128 R8, [R5]", {"sets": 1})
BACK = "2: @!P1 BRA `(.L_x_0)"


@pytest.mark.parametrize(
    ("body", "waits", "early"),
    [
        ([LOAD, USE, SHARED], 1, 1),
        # Asked for before the gather, used after it: not early.
        ([LOAD, SHARED, USE], 1, 0),
        # Used in the next turn.
        ([USE, LOAD, SHARED], 1, 0),
        # A wait for something else, and none at all.
        ([LOAD, SHARED, ("3: FADD R3, R3, R8", {"waits": 2})], 0, 0),
        ([SHARED, ("3: FADD R3, R3, R8", {"waits": 2})], 0, 0),
        ([LOAD, USE], 1, 0),
    ],
)
def test_waits_on_global_loads(source: Path, body: list[Any], waits: int, early: int) -> None:
    (loop,) = read_one(listing(source, [".L_x_0:", *body, BACK, "EXIT"])).loops
    assert (loop.waits, loop.early) == (waits, early)


def test_without_the_source_no_loop_has_a_name(tmp_path: Path) -> None:
    text = listing(tmp_path / "gone.cuh", [".L_x_0:", BACK, "EXIT"])
    assert read_one(text).loops == []


FACTS: dict[str, Any] = {
    "registers": 40,
    "blocks": 6,
    "instructions": 100,
    "local": 0,
    "narrow_loads": 2,
    "narrow_stores": 0,
    "loops": {"gather": [80, 60, 2, 0]},
}


@pytest.mark.parametrize(
    ("change", "worse", "better"),
    [
        ({}, None, None),
        ({"registers": 42, "instructions": 104}, None, None),
        ({"instructions": 106}, "instructions 100 -> 106", None),
        ({"blocks": 5}, "blocks by registers 6 -> 5", None),
        ({"blocks": 8}, None, "blocks by registers 6 -> 8"),
        ({"local": 1}, "local 0 -> 1", None),
        ({"narrow_stores": 4}, "narrow stores 0 -> 4", None),
        ({"narrow_loads": 1}, None, "narrow loads 2 -> 1"),
        ({"loops": {"gather": [81, 60, 2, 0]}}, "loop 'gather' all 80 -> 81", None),
        ({"loops": {"gather": [80, 60, 2, 1]}}, "loop 'gather' early 0 -> 1", None),
        ({"loops": {"gather": [80, 50, 2, 0]}}, None, "loop 'gather' least 60 -> 50"),
        ({"loops": {}}, "loop 'gather' is not found", None),
    ],
)
def test_limits(change: dict[str, Any], worse: str | None, better: str | None) -> None:
    known = {"kernels": {"Scale<float>": FACTS}}
    bad, good = limits.compare(known, {"Scale<float>": {**FACTS, **change}})
    for found, expected in ((bad, worse), (good, better)):
        assert len(found) == (expected is not None)
        assert expected is None or expected in found[0]


def test_kernels_come_and_go() -> None:
    bad, good = limits.compare({"kernels": {"old": FACTS}}, {"new": FACTS})
    assert bad == ["new: has no limits yet"]
    assert good == ["old: is no longer compiled"]


def test_limits_are_written_as_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    assert limits.read(path)["kernels"] == {}
    limits.write("13.0", "sm_90", {"b<1, 2>": FACTS, "a": FACTS}, path)
    assert limits.read(path) == {
        "nvcc": "13.0",
        "arch": "sm_90",
        "kernels": {"a": FACTS, "b<1, 2>": FACTS},
    }
    assert len(path.read_text().splitlines()) == 8


def test_the_worst_of_loops_of_one_name_counts() -> None:
    code = sass.Code("k", loops=[sass.Loop("x", 10, 5, 1, 0), sass.Loop("x", 8, 7, 0, 0)])
    assert limits.facts(code, registers=32, blocks=8)["loops"] == {"x": [10, 7, 1, 0]}
