# SPDX-License-Identifier: Apache-2.0
"""The emulated CUDA kernels under AddressSanitizer: accesses of global memory stay in bounds.

Every tensor that a kernel reads or writes is an allocation of its own here, with a red zone around
it. Builds the emulated library once more and runs the op tests with it in a process of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/emulated-asan"

pytestmark = [pytest.mark.slow, pytest.mark.cpu_only]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Builds the library; what a process needs to run with it."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no g++")
    runtimes = []
    for library in ("libasan.so", "libstdc++.so"):
        asked = [compiler, f"-print-file-name={library}"]
        path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        if not os.path.isabs(path):
            pytest.skip(f"no {library}")
        runtimes.append(path)
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    cmake = [sys.executable, "-m", "cmake"]
    configure = [
        *(*cmake, "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"),
        *(f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython3_EXECUTABLE={sys.executable}"),
        *("-DTAL_FAST_CUDA=0", "-DTAL_FAST_CUDA_EMULATOR=ON"),
        "-DCMAKE_CXX_FLAGS=-fsanitize=address -fno-omit-frame-pointer",
    ]
    build = [*cmake, "--build", str(BUILD), "--target", "cuda_emulated", "--parallel", "2"]
    for command in (configure, build):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return os.environ | {
        "TAL_FAST_EMULATED_LIBRARY": str(BUILD / "cuda_emulated.so"),
        "LD_PRELOAD": " ".join(runtimes),
        # Python itself frees little at its end.
        "ASAN_OPTIONS": "detect_leaks=0",
    }


def test_finds_an_overrun(environment: dict[str, str]) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests/cuda_emulator')!r})\n"
        "import emulated\n"
        "emulated.run_kernel('BlockSum')\n"
        "print('sound', flush=True)\n"
        "emulated.run_kernel('GlobalOutOfBounds')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "sound\n", done.stderr
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_every_kernel_stays_in_bounds(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-x",
            "tests/ops",
            "-m",
            "not slow and not compile",
            "-k",
            "emulated",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
