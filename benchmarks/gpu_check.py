# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can show, in one run: ``make gpu-check``.

Builds the library for the GPU at hand, offline and into this checkout; runs the parity tests on it,
determinism, CUDA graphs; compute-sanitizer; the benchmarks against their peers; Nsight Compute. A
step that fails or runs out of time does not stop the others. All results go into one JSON file
(``benchmarks/results/<date>-<device>-gpu-check.json``) and a table is printed at the end.

Needs a Python with a CUDA build of torch, pytest, hypothesis, cmake, ninja, pybind11, and nvcc;
installs nothing. ``--dry-run`` lists the steps with their commands; ``--rehearse`` runs all that
needs no GPU on this machine: every step up to its first call of the device.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build/gpu-check"

# In all; a step gets what is left where its own limit is more.
BUDGET_SECONDS = 480.0
_KEPT = 6000  # characters of a step's output


@dataclass(frozen=True)
class Step:
    """One command; ``rehearsal`` is what can be run of it without a GPU, if anything."""

    name: str
    what: str
    command: list[str]
    limit: float
    rehearsal: list[str] | None = None
    needs: str | None = None  # a program that must be on PATH
    environment: dict[str, str] = field(default_factory=dict)
    beside: str | None = None  # neighbours that name the same thing run at once
    expects: Callable[[str], str | None] = lambda output: None  # an error in the output, or None


def _architecture() -> str:
    """Compute capability of the GPU, as TORCH_CUDA_ARCH_LIST has it; 9.0 where there is none."""
    done = (
        subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "-i", "0"],
            capture_output=True,
            text=True,
            check=False,
        )
        if shutil.which("nvidia-smi")
        else None
    )
    found = re.match(r"\d+\.\d+", done.stdout) if done is not None else None
    return found.group() if found else "9.0"


def _sanitizer_found(output: str) -> str | None:
    match = re.search(r"(ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (errors?|hazards?)", output)
    if match is None:
        return "no summary of compute-sanitizer"
    return None if match.group(2) == "0" else match.group(0)


def steps(python: str, jobs: int) -> list[Step]:
    """All steps, in order."""
    architecture = _architecture()
    build = {
        "TAL_FAST_CUDA": "1",
        "TAL_FAST_CUDA_EMULATOR": "0",
        "TORCH_CUDA_ARCH_LIST": architecture,
        "TAL_FAST_BUILD_DIR": str(FOLDER / "objects"),
        "MAX_JOBS": str(jobs),
    }
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=30"]
    bench = [python, "benchmarks/gpu_bench.py", "--out", str(FOLDER / "bench.json")]
    cases = [python, "benchmarks/gpu_cases.py"]
    rehearsed = {"TAL_FAST_REHEARSE": "1"}
    found = [
        Step(
            "build",
            f"the library for compute capability {architecture}, offline, into this checkout",
            [python, "setup.py", "build_ext", "--inplace"],
            200,
            # The CPU library and the emulated kernels; the CUDA library with --cuda-torch.
            [python, "setup.py", "build_ext", "--inplace"],
            environment=build,
        ),
        Step(
            "link",
            "the library loads and every op has a CUDA kernel",
            [python, "tests/cuda/link_check.py"],
            60,
            environment={"PYTHONPATH": str(ROOT)},
        ),
        Step(
            "parity",
            "the tests of every op on the GPU, results against the float64 twins",
            [
                *(*pytest, "-m", "not slow and not compile", "-k", "cuda and not emulated"),
                *("tests/ops", "--ignore", "tests/ops/test_cuda.py"),
            ],
            150,
            [*pytest, "--collect-only", "-m", "not slow and not compile", "tests/ops"],
        ),
        Step(
            "gpu tests",
            "20 runs bit for bit, CUDA graphs, streams, no synchronisation, torch.compile",
            [*pytest, "tests/ops/test_cuda.py"],
            120,
            [*pytest, "tests/ops/test_cuda.py"],
            environment=rehearsed,
        ),
        Step(
            "benchmarks",
            "event and graph time, share of the floor, peers",
            bench,
            200,
            [*bench, "--rehearse"],
        ),
    ]
    for tool in ("memcheck", "racecheck", "initcheck"):
        found.append(
            Step(
                tool,
                f"compute-sanitizer {tool} over one call of every op on small shapes",
                [
                    *("compute-sanitizer", "--tool", tool, "--kernel-name"),
                    *("kernel_substring=kernel_entry", "--error-exitcode", "9"),
                    *(*cases, "--device", "cuda"),
                ],
                90,
                [*cases, "--device", "cpu", "--emulated"] if tool == "memcheck" else None,
                needs="compute-sanitizer",
                # Every tensor its own allocation: else an overrun stays inside torch's pool.
                environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                expects=_sanitizer_found,
                beside="sanitizer",
            )
        )
    found += [
        Step(
            "profile",
            "Nsight Compute: time, bytes, occupancy of the attention kernels",
            [
                *("ncu", "--clock-control", "none", "--csv", "--kernel-name-base", "demangled"),
                *("--kernel-name", "regex:kernel_entry", "--metrics"),
                "gpu__time_duration.sum,dram__bytes.sum,sm__warps_active.avg.pct_of_peak_sustained_active,"
                "l1tex__data_bank_conflicts_pipe_lsu.sum,launch__registers_per_thread",
                *(*cases, "--device", "cuda", "--only", "one level float32"),
            ],
            90,
            needs="ncu",
        ),
        Step(
            "install",
            "the same by pip without isolation, into a folder of its own",
            [
                *(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"),
                *("--no-build-isolation", "--target", str(FOLDER / "site"), "--upgrade", "."),
            ],
            120,
            environment=build,
        ),
    ]
    return found


def run(step: Step, command: list[str], seconds: float) -> dict[str, Any]:
    """Runs a command within ``seconds`` and says how it went."""
    began = time.monotonic()
    entry: dict[str, Any] = {"step": step.name, "command": shlex.join(command)}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | step.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=max(1.0, seconds),
            check=False,
        )
        output = done.stdout
        problem = step.expects(output) if step.needs and command[0] == step.needs else None
        entry["status"] = "passed" if done.returncode == 0 and problem is None else "failed"
        entry["problem"] = problem or (None if done.returncode == 0 else f"exit {done.returncode}")
    except subprocess.TimeoutExpired as expired:
        output = (
            (expired.stdout or b"").decode(errors="replace")
            if isinstance(expired.stdout, bytes)
            else (expired.stdout or "")
        )
        entry |= {"status": "timeout", "problem": f"longer than {seconds:.0f} s"}
    except OSError as error:
        output = ""
        entry |= {"status": "failed", "problem": str(error)}
    entry["seconds"] = round(time.monotonic() - began, 1)
    entry["output"] = output[-_KEPT:]
    (FOLDER / f"{step.name.replace(' ', '-')}.log").write_text(output, encoding="utf-8")
    return entry


def _quiet(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def machine(python: str) -> dict[str, Any]:
    """Device, versions and commit: what the numbers depend on."""
    code = (
        "import json, torch; c = torch.cuda; ok = c.is_available(); "
        "p = c.get_device_properties(0) if ok else None; "
        "print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda, "
        "'device': p.name if ok else None, 'memory_gib': round(p.total_memory / 2**30, 1) if ok "
        "else None, 'multiprocessors': p.multi_processor_count if ok else None, "
        "'l2_mib': round(p.L2_cache_size / 2**20) if ok else None}))"
    )
    try:
        facts: dict[str, Any] = json.loads(_quiet(python, "-c", code) or "{}")
    except ValueError:
        facts = {}
    smi = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit"]
    return {
        **facts,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _quiet("git", "rev-parse", "--short", "HEAD") or None,
        "dirty": bool(_quiet("git", "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "nvcc": (_quiet("nvcc", "--version").splitlines() or [None])[-1],
        "driver, clocks, power": _quiet(*smi, "--format=csv,noheader") or None,
        "cores": os.cpu_count(),
    }


def table(report: dict[str, Any]) -> str:
    """What to read first: the steps, then a line per row of the benchmark."""
    lines = [f"{'step':12} {'status':10} {'seconds':>8}  problem"]
    for entry in report["steps"]:
        problem = entry.get("problem") or ""
        lines.append(f"{entry['step']:12} {entry['status']:10} {entry['seconds']:8.1f}  {problem}")
    rows = report.get("bench", {}).get("rows", [])
    if rows:
        lines.append("")
        lines.append(
            f"{'op':18} {'case':44} {'who':28} {'event us':>10} {'graph us':>10} {'of floor':>9} "
            f"{'ratio':>7} {'graphed':>8}"
        )
    for row in rows:

        def show(value: float | None, form: str = ".3g") -> str:
            return "-" if value is None else format(value, form)

        lines.append(
            f"{row['op']:18} {row['case']:44} {row['name']:28} {show(row['event_us']):>10} "
            f"{show(row['graph_us']):>10} {show(row['share_of_floor'], '.0%'):>9} "
            f"{show(row['ratio_event'], '.1f'):>7} {show(row['ratio_graph'], '.1f'):>8}"
            + (f"  {row['error']}" if row["error"] else "")
        )
    return "\n".join(lines)


def main() -> int:
    """Runs the steps; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="list the steps, run nothing")
    parser.add_argument("--rehearse", action="store_true", help="what works without a GPU")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--out", type=Path, help="folder to copy the JSON file and the logs to")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds in all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    planned = steps(sys.executable, arguments.jobs)
    if arguments.only:
        unknown = set(arguments.only) - {step.name for step in planned}
        if unknown:
            parser.error(
                f"no step {', '.join(sorted(unknown))}; expected some of "
                f"{', '.join(step.name for step in planned)}"
            )
        planned = [step for step in planned if step.name in arguments.only]
    if arguments.dry_run:
        for number, step in enumerate(planned, 1):
            settings = " ".join(f"{k}={shlex.quote(v)}" for k, v in step.environment.items())
            print(f"{number}. {step.name}: {step.what} (at most {step.limit:.0f} s)")
            print(f"   {settings + ' ' if settings else ''}{shlex.join(step.command)}")
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "bench.json").unlink(missing_ok=True)
    facts = machine(sys.executable)
    if not arguments.rehearse and not facts.get("device"):
        print("gpu-check: torch finds no GPU; --rehearse runs what needs none", file=sys.stderr)
        return 2
    began = time.monotonic()
    report: dict[str, Any] = {"machine": facts, "rehearsed": arguments.rehearse, "steps": []}
    name = re.sub(r"[^a-z0-9]+", "-", (facts.get("device") or "no-gpu").lower()).strip("-")
    path = (FOLDER if arguments.rehearse else ROOT / "benchmarks/results") / (
        f"{facts['date'][:10]}-{name}-gpu-check.json"
    )

    def perform(step: Step) -> dict[str, Any]:
        command = step.rehearsal if arguments.rehearse else step.command
        left = arguments.budget - (time.monotonic() - began)
        if command is None:
            return {"step": step.name, "status": "needs a GPU", "seconds": 0.0}
        if command[0] == step.needs and shutil.which(step.needs) is None:
            problem = f"{step.needs} is not on PATH"
            return {"step": step.name, "status": "absent", "seconds": 0.0, "problem": problem}
        if left < 5 and not arguments.rehearse:
            return {"step": step.name, "status": "no time", "seconds": 0.0}
        if arguments.rehearse and step.name == "build":
            step.environment.update(TAL_FAST_CUDA="auto", TAL_FAST_CUDA_EMULATOR="1")
        print(f"{step.name}: {step.what}", flush=True)
        entry = run(step, command, 4 * step.limit if arguments.rehearse else min(step.limit, left))
        print(f"{step.name}: {entry['status']} in {entry['seconds']} s", flush=True)
        return entry

    groups = itertools.groupby(planned, key=lambda step: step.beside or step.name)
    for _, members in groups:
        neighbours = list(members)
        with ThreadPoolExecutor(len(neighbours)) as pool:
            report["steps"] += pool.map(perform, neighbours)
        bench = FOLDER / "bench.json"
        if bench.exists():
            report["bench"] = json.loads(bench.read_text(encoding="utf-8"))
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if arguments.out is not None:  # after every step: the next one may be the last
            arguments.out.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, arguments.out)
            logs = sorted(FOLDER.glob("*.log"))
            text = "".join(f"==== {log.name}\n{log.read_text()}\n" for log in logs)
            (arguments.out / "logs.txt").write_text(text, encoding="utf-8")
    print()
    print(table(report))
    print(f"\n{path.relative_to(ROOT)}: {time.monotonic() - began:.0f} s in all")
    bad = [entry for entry in report["steps"] if entry["status"] in ("failed", "timeout")]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
