# SPDX-License-Identifier: Apache-2.0
"""Compiles every CUDA kernel with nvcc, no GPU needed, and checks what it costs.

``python tests/cuda/kernel_table.py`` prints, per kernel and architecture, registers, shared memory,
stack and spills as ptxas reports them, and next to them the launch bound and the blocks per
multiprocessor that the design assumes (``kThreads`` and ``kBlocks`` of the kernel). It fails if a
kernel spills, or needs more registers than that many blocks can have. Where nvdisasm is (extra
``cuda-dev``) the machine code for sm_90 is read too (sass.py), and compared with the limits of each
kernel (limits.py): worse fails, ``--write`` writes down what is. Only what changed is compiled and
read again. Without nvcc it says so and succeeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import limits
import sass
from occupancy import MULTIPROCESSORS

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = "80-real;90-real;90-virtual"
LIMITED = "sm_90"  # the architecture whose machine code is read

_PTXAS = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>sm_\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_BOUND = re.compile(
    r"\.entry (?P<name>\w+)\(.*?\n\)\s*(?:\.maxntid (?P<threads>\d+)[^\n]*\n)"
    r"(?:\.minnctapersm (?P<blocks>\d+)[^\n]*\n)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    """What one kernel needs on one architecture."""

    name: str
    arch: str
    registers: int
    shared: int
    stack: int
    spills: int
    threads: int
    blocks: int

    def blocks_by_registers(self) -> int:
        """Blocks of ``threads`` threads that the registers of a multiprocessor are enough for."""
        return MULTIPROCESSORS["sm_90"].by_registers(self.threads, self.registers)

    def faults(self) -> list[str]:
        """What is wrong with it."""
        found = []
        if self.spills:
            found.append(f"spills {self.spills} bytes")
        if self.blocks_by_registers() < self.blocks:
            found.append(
                f"registers for {self.blocks_by_registers()} blocks, {self.blocks} assumed"
            )
        if self.arch in MULTIPROCESSORS and (
            MULTIPROCESSORS[self.arch].by_shared(self.shared) < self.blocks
        ):
            found.append("static shared memory for fewer blocks than assumed")
        return found


def record(command: list[str]) -> int:
    """Runs one command of nvcc; its report goes beside the object file, and its PTX too."""
    target = Path(command[command.index("-o") + 1])
    if target.suffix != ".o" or "-c" not in command:  # CMake's trials
        return subprocess.run(command, check=False).returncode
    folder = target.with_suffix(".keep")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = subprocess.run(
        [*command, "-Xptxas", "-v", "--keep", "--keep-dir", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    ptx = "".join(path.read_text() for path in sorted(folder.glob("*.ptx")))
    cubins = list(folder.glob("*.cubin"))  # named after architectures where there are several
    for cubin in cubins:
        if len(cubins) == 1 or f"_{LIMITED.removeprefix('sm_')}." in cubin.name:
            cubin.replace(target.with_suffix(".cubin"))
    shutil.rmtree(folder)
    target.with_suffix(".ptxas").write_text(done.stderr)
    target.with_suffix(".entries").write_text(
        "\n".join(match.group() for match in _BOUND.finditer(ptx))
    )
    notes = re.compile(r"^ptxas info.*|^ +\d+ bytes stack.*|^ptxas \.\s.*")
    sys.stderr.write("".join(f"{x}\n" for x in done.stderr.splitlines() if not notes.match(x)))
    sys.stdout.write(done.stdout)
    return done.returncode


def build(folder: Path, jobs: int, architectures: str = ARCHITECTURES) -> bool:
    """Compiles all kernels into ``folder``; False if there is no nvcc."""
    cmake = [sys.executable, "-m", "cmake"]
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    configure = [
        *(*cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
        *(f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython3_EXECUTABLE={sys.executable}"),
        *("-DTAL_FAST_CUDA=objects", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}"),
        "-DTAL_FAST_WERROR=ON",
        f"-DCMAKE_CUDA_COMPILER_LAUNCHER={sys.executable};{Path(__file__).resolve()};--record",
    ]
    done = subprocess.run(configure, capture_output=True, text=True, check=False)
    if "nvcc was not found" in done.stderr:
        return False
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    command = [*cmake, "--build", str(folder), "--target", "tal_fast_cuda", "--parallel", str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    return True


def demangle(names: list[str]) -> dict[str, str]:
    """Turns symbols into readable kernel names; as they are where there is no ``c++filt``."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    done = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    )
    shown = {}
    for name, text in zip(names, done.stdout.splitlines(), strict=True):
        match = re.search(r"kernel_entry<(.*)>\(", text)
        shown[name] = limits.short_name(match.group(1) if match else text)
    return shown


def collect(folder: Path) -> list[Kernel]:
    """Reads the reports of the last build."""
    bounds: dict[str, tuple[int, int]] = {}
    reports = []
    for path in sorted(folder.rglob("*.ptxas")):
        for match in _BOUND.finditer(path.with_suffix(".entries").read_text()):
            bounds[match["name"]] = (int(match["threads"]), int(match["blocks"] or 1))
        reports += list(_PTXAS.finditer(path.read_text()))
    shown = demangle(sorted({report["name"] for report in reports}))
    kernels = []
    for report in reports:
        shared = re.search(r"(\d+) bytes smem", report["rest"])
        if report["name"] not in bounds:
            raise SystemExit(f"no launch bound in the PTX of {shown[report['name']]}")
        threads, blocks = bounds[report["name"]]
        kernels.append(
            Kernel(
                name=shown[report["name"]],
                arch=report["arch"],
                registers=int(report["registers"]),
                shared=int(shared.group(1)) if shared else 0,
                stack=int(report["stack"]),
                spills=int(report["stores"]) + int(report["loads"]),
                threads=threads,
                blocks=blocks,
            )
        )
    return sorted(kernels, key=lambda kernel: (kernel.name, kernel.arch))


def read_code(tool: str, cubin: Path) -> list[sass.Code]:
    """What the machine code of a cubin says, kept beside it until cubin or reader changes."""
    digest = hashlib.sha256(cubin.read_bytes() + Path(sass.__file__).read_bytes()).hexdigest()
    kept = cubin.with_suffix(".sass.json")
    if kept.exists():
        data = json.loads(kept.read_text())
        if data["digest"] == digest:
            return [sass.Code.from_json(one) for one in data["kernels"]]
    found = sass.read(sass.disassemble(tool, cubin))
    kept.write_text(json.dumps({"digest": digest, "kernels": [one.to_json() for one in found]}))
    return found


def collect_code(folder: Path, kernels: list[Kernel], jobs: int) -> dict[str, sass.Code] | None:
    """By the kernels' names, what their machine code says; None if there is no nvdisasm."""
    tool = sass.find_nvdisasm()
    if tool is None:
        return None
    with ThreadPoolExecutor(jobs) as pool:  # the work is that of nvdisasm, in processes
        parts = pool.map(lambda path: read_code(tool, path), sorted(folder.rglob("*.cu.cubin")))
        found = [code for part in parts for code in part]
    shown = demangle(sorted({code.name for code in found}))
    known = {kernel.name for kernel in kernels}
    return {shown[code.name]: code for code in found if shown[code.name] in known}


def nvcc_version(folder: Path) -> str:
    """The version that CMake found."""
    for path in folder.glob("CMakeFiles/*/CMakeCUDACompiler.cmake"):
        if match := re.search(r'CMAKE_CUDA_COMPILER_VERSION "([^"]+)"', path.read_text()):
            return match.group(1)
    return "unknown"


def code_table(codes: dict[str, sass.Code]) -> str:
    """Accesses by their bytes, and the marked loops, of every kernel."""

    def widths(counts: dict[int, int]) -> str:
        return " ".join(f"{n}x{width}" for width, n in sorted(counts.items(), reverse=True)) or "-"

    lines = []
    for name, code in sorted(codes.items()):
        lines.append(
            f"{name}: {code.instructions} instructions; loads {widths(code.loads)}, stores "
            f"{widths(code.stores)}, shared {widths(code.shared_loads)} and "
            f"{widths(code.shared_stores)}, local {code.local}"
        )
        lines += [
            f"    loop '{loop.name}': {loop.all} instructions, {loop.least} at least, "
            f"{loop.waits} waits on global loads, {loop.early} of them before the gather"
            for loop in code.loops
        ]
    return "\n".join(lines)


def check_code(folder: Path, kernels: list[Kernel], jobs: int, write: bool) -> bool:
    """Prints what the machine code says; False if a kernel is worse than its limits."""
    codes = collect_code(folder, kernels, jobs)
    if codes is None:
        print("machine code: not read, nvdisasm was not found (pip install nvidia-cuda-nvdisasm)")
        return True
    print(code_table(codes))
    by_name = {kernel.name: kernel for kernel in kernels if kernel.arch == LIMITED}
    now: dict[str, dict[str, Any]] = {
        name: limits.facts(code, by_name[name].registers, by_name[name].blocks_by_registers())
        for name, code in codes.items()
    }
    nvcc = nvcc_version(folder)
    known = limits.read()
    worse, better = limits.compare(known, now)
    if write:
        limits.write(nvcc, LIMITED, now)
        print("\n".join([*worse, *better]))
        print(f"{limits.PATH.name}: {len(now)} kernels written")
        return True
    if known["nvcc"] != nvcc:
        print(
            f"machine code: not compared, {limits.PATH.name} is of nvcc {known['nvcc']}, not {nvcc}"
        )
        return True
    for text in worse:
        print(f"worse than its limit: {text}")
    for text in better:
        print(f"better than its limit: {text}")
    print(f"machine code of {len(now)} kernels read, {len(worse)} limits exceeded")
    if better:
        print("kernel_table.py --write writes down what is better")
    return not worse


def table(kernels: list[Kernel]) -> str:
    """One line per kernel and architecture."""
    lines = [("kernel", "arch", "regs", "smem", "stack", "spills", "threads", "blocks", "possible")]
    for k in kernels:
        numbers = (k.registers, k.shared, k.stack, k.spills, k.threads, k.blocks)
        lines.append((k.name, k.arch, *map(str, numbers), str(k.blocks_by_registers())))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def main() -> int:
    """Builds, prints the table, returns 1 if a kernel has a fault."""
    if sys.argv[1:2] == ["--record"]:
        return record(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=ROOT / "build/cuda-objects")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("MAX_JOBS", "2")))
    parser.add_argument(
        "--quick", action="store_true", help=f"for {LIMITED} alone, in a folder of its own"
    )
    parser.add_argument("--write", action="store_true", help="write kernel_limits.json anew")
    arguments = parser.parse_args()
    architectures = ARCHITECTURES
    if arguments.quick:
        architectures = f"{LIMITED.removeprefix('sm_')}-real"
        arguments.build = arguments.build.with_name(f"{arguments.build.name}-{LIMITED}")
    if not build(arguments.build, arguments.jobs, architectures):
        print("CUDA kernels: not compiled, nvcc was not found")
        return 0
    kernels = collect(arguments.build)
    print(table(kernels))
    faulty = [(k, k.faults()) for k in kernels if k.faults()]
    for kernel, faults in faulty:
        print(f"{kernel.name} ({kernel.arch}): {'; '.join(faults)}")
    sources = len(list(arguments.build.rglob("*.ptxas")))
    print(f"{len(kernels)} kernels of {sources} files compiled, {len(faulty)} with faults")
    fits = check_code(arguments.build, kernels, arguments.jobs, arguments.write)
    return 1 if faulty or not kernels or not fits else 0


if __name__ == "__main__":
    sys.exit(main())
