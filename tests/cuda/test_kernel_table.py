# SPDX-License-Identifier: Apache-2.0
"""The reader of nvcc's reports, on reports written by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kernel_table
import limits
import sass

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


@pytest.mark.parametrize(
    ("cubins", "kept"),
    [
        (
            ("scale.compute_80.cubin", "scale.compute_90.sm_90.cubin"),
            "scale.compute_90.sm_90.cubin",
        ),
        (("scale.compute_80.cubin", "scale.compute_90.cubin"), "scale.compute_90.cubin"),
        (("scale.cubin",), "scale.cubin"),
        ((), None),
    ],
)
def test_recording_keeps_reports_and_passes_errors_on(
    cubins: tuple[str, ...], kept: str | None, tmp_path: Path
) -> None:
    report = PTXAS.format(name=NAME, stack=0, stores=0, loads=0, registers=9, shared=0)
    # A stand-in for nvcc that reports, writes PTX where it is told to, and fails.
    compiler = tmp_path / "compiler.py"
    compiler.write_text(
        "import pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--keep-dir') + 1])\n"
        f"(folder / 'scale.ptx').write_text({PTX.format(name=NAME)!r})\n"
        f"for name in {cubins!r}:\n"
        "    (folder / name).write_text(name)\n"
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
    found = tmp_path / "scale.cu.cubin"
    assert (found.read_text() if found.exists() else None) == kept


def test_machine_code_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cubin = tmp_path / "scale.cu.cubin"
    cubin.write_bytes(b"1")
    asked: list[Path] = []

    def disassemble(tool: str, path: Path) -> str:
        asked.append(path)
        return f"\t.section\t.text.{NAME},\n        /*0000*/   EXIT ;  /* 0x000000000000794d */\n"

    monkeypatch.setattr(sass, "disassemble", disassemble)
    monkeypatch.setattr(sass, "find_nvdisasm", lambda: "nvdisasm")
    kernels = kernel_table.collect(write(tmp_path))
    for content, times in ((b"1", 1), (b"1", 1), (b"2", 2)):
        cubin.write_bytes(content)
        codes = kernel_table.collect_code(tmp_path, kernels, 1)
        assert codes is not None
        assert codes[kernels[0].name].instructions == 1
        assert len(asked) == times
    assert "1 instructions" in kernel_table.code_table(codes)


def test_worse_than_the_limits_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = kernel_table.collect(write(tmp_path))
    code = sass.Code(NAME, instructions=10)
    monkeypatch.setattr(limits, "PATH", tmp_path / "limits.json")
    monkeypatch.setattr(
        kernel_table, "collect_code", lambda *_: {kernels[0].name: code}, raising=True
    )
    monkeypatch.setattr(kernel_table, "nvcc_version", lambda _: "13.0")
    assert kernel_table.check_code(tmp_path, kernels, 1, write=True)
    assert kernel_table.check_code(tmp_path, kernels, 1, write=False)
    code.local = 2
    assert not kernel_table.check_code(tmp_path, kernels, 1, write=False)
    assert "local 0 -> 2" in capsys.readouterr().out
    # Another compiler makes other code.
    monkeypatch.setattr(kernel_table, "nvcc_version", lambda _: "13.1")
    assert kernel_table.check_code(tmp_path, kernels, 1, write=False)
    assert "not compared" in capsys.readouterr().out


def test_without_nvdisasm_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sass, "find_nvdisasm", lambda: None)
    assert kernel_table.check_code(tmp_path, kernel_table.collect(write(tmp_path)), 1, write=False)
    assert "nvdisasm was not found" in capsys.readouterr().out
