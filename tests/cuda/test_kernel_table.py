# SPDX-License-Identifier: Apache-2.0
"""The reader of nvcc's reports, on reports written by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kernel_table

NAME = "_ZN8tal_fast12kernel_entryINS_5ScaleIfEEEEvT_"
PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{name}' for 'sm_90'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem, 400 bytes cmem[0]
"""
PTX = """\
.visible .entry {name}(
\t.param .align 8 .b8 {name}_param_0[40]
)
.maxntid 256
.minnctapersm 4
{{
}}
"""


def write(folder: Path, **changes: int) -> Path:
    facts = {"stack": 0, "stores": 0, "loads": 0, "registers": 40, "shared": 0, **changes}
    (folder / "scale.cu.ptxas").write_text(PTXAS.format(name=NAME, **facts))
    (folder / "scale.cu.entries").write_text(PTX.format(name=NAME))
    return folder


def test_reads_what_ptxas_says(tmp_path: Path) -> None:
    (kernel,) = kernel_table.collect(write(tmp_path, stack=16, shared=512))
    assert kernel.name in ("Scale<float>", NAME)
    assert (kernel.arch, kernel.registers, kernel.shared, kernel.stack) == ("sm_90", 40, 512, 16)
    assert (kernel.threads, kernel.blocks, kernel.blocks_by_registers()) == (256, 4, 6)
    assert kernel.faults() == []
    assert kernel.name in kernel_table.table([kernel])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"stores": 8, "loads": 4}, "spills 12 bytes"),
        ({"registers": 65}, "registers for 3 blocks, 4 assumed"),
        ({"registers": 255}, "registers for 1 blocks, 4 assumed"),
        ({"shared": 60 * 1024}, "static shared memory for fewer blocks"),
    ],
)
def test_finds_faults(tmp_path: Path, changes: dict[str, int], fault: str) -> None:
    (kernel,) = kernel_table.collect(write(tmp_path, **changes))
    assert any(fault in found for found in kernel.faults())


def test_a_kernel_without_launch_bound_is_an_error(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "scale.cu.entries").write_text("")
    with pytest.raises(SystemExit, match="no launch bound"):
        kernel_table.collect(tmp_path)


def test_recording_keeps_reports_and_passes_errors_on(tmp_path: Path) -> None:
    report = PTXAS.format(name=NAME, stack=0, stores=0, loads=0, registers=9, shared=0)
    # A stand-in for nvcc that reports, writes PTX where it is told to, and fails.
    compiler = tmp_path / "compiler.py"
    compiler.write_text(
        "import pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--keep-dir') + 1])\n"
        f"(folder / 'scale.ptx').write_text({PTX.format(name=NAME)!r})\n"
        f"sys.stderr.write({report!r})\n"
        "sys.stderr.write('scale.cu(3): error: no\\n')\n"
        "sys.exit(2)\n"
    )
    target = tmp_path / "scale.cu.o"
    command = [sys.executable, str(compiler), "-c", "scale.cu", "-o", str(target)]
    done = subprocess.run(
        [sys.executable, kernel_table.__file__, "--record", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "scale.cu(3): error: no\n"
    assert [kernel.registers for kernel in kernel_table.collect(tmp_path)] == [9]
