# SPDX-License-Identifier: Apache-2.0
"""The steps of ``make gpu-check``: two calls, each with its own time, in the order of their worth.

The first call builds, and gives what most depends on a GPU: whether results are right, and the
times of the kernels. The second, at once after it on the same machine, looks into the kernels, and
compares with what takes long to make.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CALL_SECONDS", "Step", "steps"]

ROOT = Path(__file__).resolve().parents[1]

#: Seconds of each call; a step gets what is left where its own limit is more.
CALL_SECONDS = {1: 300.0, 2: 400.0}
# Of a kernel: time, instructions, how often one was issued, sectors and requests, occupancy.
_COUNTERS = (
    "gpu__time_duration.sum",
    "smsp__inst_executed.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "dram__bytes.sum",
    "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    "l1tex__data_bank_conflicts_pipe_lsu.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: for tables and logs.
        what: it is about.
        command: on a machine with a GPU.
        limit: seconds, at most.
        rehearsal: what can be run of it without a GPU, if anything.
        needs: a program that must be on PATH, or a module that must be importable.
        environment: over that of the caller.
        beside: neighbours that name the same thing run at once.
        bench: name of the benchmark whose rows it writes to ``<name>.json``.
        otherwise: tried where the command fails.
        expects: says what is wrong with an output although the command succeeded.
    """

    name: str
    what: str
    command: list[str]
    limit: float
    rehearsal: list[str] | None = None
    needs: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    beside: str | None = None
    bench: str | None = None
    otherwise: list[str] | None = None
    expects: Callable[[str], str | None] = lambda output: None

    def missing(self) -> str | None:
        """Says what is not there that the step needs; None if all is."""
        if self.needs is None or shutil.which(self.needs):
            return None
        if self.needs.isidentifier() and importlib.util.find_spec(self.needs) is not None:
            return None
        return f"{self.needs} is not there"


def architecture() -> str:
    """Compute capability of the GPU, as TORCH_CUDA_ARCH_LIST has it; 9.0 where there is none."""
    if shutil.which("nvidia-smi") is None:
        return "9.0"
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "-i", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.match(r"\d+\.\d+", done.stdout)
    return found.group() if found else "9.0"


def sanitizer_found(output: str) -> str | None:
    """Returns the summary of compute-sanitizer if it names errors; None if it names none."""
    match = re.search(r"(ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (errors?|hazards?)", output)
    if match is None:
        return "no summary of compute-sanitizer"
    return None if match.group(2) == "0" else match.group(0)


def _pytest(python: str) -> list[str]:
    """The command that all runs of tests begin with.

    Several processes share the GPU where pytest-xdist is there. Benchmarks of pytest-benchmark warn
    beside it, and a warning is an error; none of them is run here. Any pytest will do.
    """
    several = importlib.util.find_spec("xdist") is not None
    return [
        *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark"),
        *("-o", "minversion=0", "--maxfail=30"),
        *(("-n", str(min(8, os.cpu_count() or 1))) if several else ()),
    ]


def _bench(python: str, folder: Path, name: str, *options: str) -> list[str]:
    return [python, "benchmarks/gpu_bench.py", "--out", str(folder / f"{name}.json"), *options]


def steps(python: str, jobs: int, folder: Path) -> dict[int, list[Step]]:
    """Returns the steps of each call, in order.

    Args:
        python: with a CUDA build of torch.
        jobs: of the compiler.
        folder: for what the steps write.
    """
    found = architecture()
    build = Step(
        "build",
        f"the library for compute capability {found}, offline, into this checkout",
        [python, "setup.py", "build_ext", "--inplace"],
        180,
        # The CPU library and the emulated kernels; the CUDA library by `make cuda-link`.
        [python, "setup.py", "build_ext", "--inplace"],
        environment={
            "TAL_FAST_CUDA": "1",
            "TAL_FAST_CUDA_EMULATOR": "0",
            "TORCH_CUDA_ARCH_LIST": found,
            "TAL_FAST_BUILD_DIR": str(folder / "objects"),
            "MAX_JOBS": str(jobs),
        },
    )
    link = Step(
        "link",
        "the library loads and every op has a CUDA kernel",
        [python, "tests/cuda/link_check.py"],
        30,
    )
    return {
        1: [build, link, *_results(python, folder)],
        2: [build, link, *_insights(python, folder)],
    }


def _results(python: str, folder: Path) -> list[Step]:
    pytest = _pytest(python)
    rehearsed = {"TAL_FAST_REHEARSE": "1"}
    return [
        Step(
            "bits",
            "the CPU's bits, 20 runs bit for bit, CUDA graphs, streams, no synchronisation",
            [
                *(*pytest, "-m", "gpu and not slow and not compile"),
                *("-k", "test_cuda.py or every_device or bits_of_the_cpu", "tests/ops"),
            ],
            75,
            [*pytest, "-m", "not compile", "tests/ops/test_cuda.py"],
            environment=rehearsed,
        ),
        Step(
            "kernels",
            "event and graph time of our kernels, share of the floor",
            _bench(python, folder, "kernels", "--peers", "none", "--seconds", "60"),
            75,
            _bench(python, folder, "kernels", "--peers", "none", "--rehearse"),
            bench="kernels",
        ),
        Step(
            "peers",
            "the same beside the peers that need no compiling",
            _bench(python, folder, "peers", "--peers", "eager", "--seconds", "100"),
            130,
            _bench(python, folder, "peers", "--peers", "eager", "--rehearse"),
            bench="peers",
        ),
    ]


def _insights(python: str, folder: Path) -> list[Step]:
    pytest = _pytest(python)
    cases = [python, "benchmarks/gpu_cases.py"]
    tiny = [*cases, "--device", "cpu", "--emulated"]
    profiled = [*cases, "--device", "cuda", "--large"]
    ncu = [
        *("ncu", "--clock-control", "none", "--csv", "--kernel-name-base", "demangled"),
        *("--profile-from-start", "off", "--kernel-name", "regex:kernel_entry", "--metrics"),
    ]
    found = [
        Step(
            "profile",
            "Nsight Compute over attention at P and C, IoU and NMS: instructions, issue, sectors",
            [*ncu, ",".join(_COUNTERS), *profiled],
            80,
            [*tiny, "--large"],
            needs="ncu",
            # A counter that this version does not know fails the whole call.
            otherwise=[*ncu, ",".join(_COUNTERS[:2]), *profiled],
        )
    ]
    for tool in ("memcheck", "racecheck"):
        found.append(
            Step(
                tool,
                f"compute-sanitizer {tool} over one call of every op on small shapes",
                [
                    *("compute-sanitizer", "--tool", tool, "--kernel-name"),
                    *("kernel_substring=kernel_entry", "--error-exitcode", "9"),
                    *(*cases, "--device", "cuda"),
                ],
                100,
                tiny if tool == "memcheck" else None,
                needs="compute-sanitizer",
                # Every tensor its own allocation: else an overrun stays inside torch's pool.
                environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                beside="sanitizer",
                expects=sanitizer_found,
            )
        )
    found += [
        Step(
            "parity",
            "the tests of every op on the GPU, results against the float64 twins",
            [*pytest, "-m", "gpu and not slow and not compile", "tests/ops"],
            130,
            [*pytest, "--collect-only", "-m", "not slow and not compile", "tests/ops"],
        ),
        Step(
            "steps",
            "training steps as CUDA graphs give the weights of those that run as they are",
            [*pytest, "-m", "gpu", "tests/training/test_cuda_graph.py"],
            60,
            [*pytest, "tests/training/test_cuda_graph.py"],
            needs="pydantic",  # of all that training imports, the one that is often not there
        ),
        Step(
            "training",
            "how long steps of the models take with and without a CUDA graph",
            _bench(python, folder, "training", "--parts", "training", "--seconds", "45"),
            60,
            _bench(python, folder, "training", "--parts", "training", "--rehearse"),
            needs="pydantic",
            bench="training",
        ),
        Step(
            "compiled",
            "beside the peers that torch.compile makes, and under torch.compile",
            _bench(python, folder, "compiled", "--peers", "compiled", "--seconds", "100"),
            130,
            _bench(python, folder, "compiled", "--peers", "compiled", "--rehearse"),
            bench="compiled",
        ),
        Step(
            "torch.compile",
            "ops in graphs of torch.compile",
            [*pytest, "-m", "gpu and compile", "tests/ops/test_cuda.py"],
            60,
        ),
    ]
    return found
