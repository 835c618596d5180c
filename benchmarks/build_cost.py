# SPDX-License-Identifier: Apache-2.0
"""What compiling the native library costs: CPU seconds per file, and of the whole build.

    python benchmarks/build_cost.py

builds everything anew in a temporary folder, as ``pip install -e .`` does, and prints a table.
Times are user and system time, which other work on the machine changes less than the clock's. The
whole has CMake, the linker and the assembler in it; no cache of compilations is asked.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The compiler's launcher is this file: how it knows, and where it writes.
_LOG = "TAL_FAST_BUILD_COST_LOG"


def launch(command: list[str], log: Path) -> int:
    """Runs a compiler and appends what it cost to ``log``."""
    status = subprocess.run(command, check=False).returncode
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = command[command.index("-o") + 1] if "-o" in command else command[-1]
    line = json.dumps([output, usage.ru_utime + usage.ru_stime])
    with log.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return status


def measure(folder: Path) -> tuple[dict[str, float], float]:
    """Builds in ``folder``; returns seconds per object and of everything."""
    log = folder / "costs.jsonl"
    environment = {
        "CMAKE_CXX_COMPILER_LAUNCHER": f"{sys.executable};{Path(__file__).resolve()}",
        "TAL_FAST_BUILD_DIR": str(folder / "build"),
        _LOG: str(log),
    }
    command = ["setup.py", "--quiet", "build_ext", "--build-lib", folder / "lib"]
    subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=os.environ | environment, check=True
    )
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open(encoding="utf-8") as file:
        costs = dict(json.loads(line) for line in file)
    return costs, usage.ru_utime + usage.ru_stime


def name_of(output: str) -> tuple[str, str]:
    """File and instruction set (or '') of an object."""
    found = re.search(r"_(baseline|avx2|avx512)(?:_ffp_contract_off)?\.dir/", output)
    if output.endswith(".gch"):
        return "shared headers", found.group(1) if found else ""
    file = re.sub(r".*\.dir/(csrc/)?", "", output).removesuffix(".o")
    return file, found.group(1) if found else ""


def table(costs: dict[str, float], whole: float) -> str:
    """The table, the costliest file first."""
    rows: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for output, seconds in costs.items():
        file, isa = name_of(output)
        rows[file][isa] += seconds
    columns = ("", "baseline", "avx2", "avx512")
    lines = ["| file | once | baseline | AVX2 | AVX-512 | all |", "|---|---|---|---|---|---|"]
    for file, row in sorted(rows.items(), key=lambda item: -sum(item[1].values())):
        cells = [f"{row[column]:.1f}" if column in row else "" for column in columns]
        lines.append(f"| {file} | {' | '.join(cells)} | {sum(row.values()):.1f} |")
    lines.append(f"| all compilations | | | | | {sum(costs.values()):.1f} |")
    lines.append(f"| the whole build | | | | | {whole:.1f} |")
    return "\n".join(lines)


def main() -> int:
    """Prints the table, or runs as the compiler's launcher."""
    if _LOG in os.environ:
        return launch(sys.argv[1:], Path(os.environ[_LOG]))
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="tal_fast-build-") as name:
        print(table(*measure(Path(name))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
