# SPDX-License-Identifier: Apache-2.0
"""Builds the native library: a thin ``build_ext`` that runs CMake and Ninja.

CMakeLists.txt is the one description of the build; nothing here names a source file. All other
metadata is in pyproject.toml. Environment: ``TAL_FAST_BUILD_DIR`` (default ``build/<python tag>``),
``TAL_FAST_CUDA=auto|0|1``, ``TAL_FAST_CUDA_EMULATOR=1`` (the CUDA kernels for the CPU, for tests),
``TAL_FAST_WIDE_KERNELS=0`` (no kernels for AVX2 and AVX-512, for tests), ``TAL_FAST_WERROR=1``,
``TAL_FAST_TORCH_DIR``, ``MAX_JOBS``. ``--quiet`` or pip hide what the build prints unless it fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))

from find_torch import find_torch  # noqa: E402


def _tool(name: str) -> str:
    """Finds cmake or ninja: the Python package of that name first, then PATH."""
    module = __import__("importlib.util").util.find_spec(name)
    if module is not None and module.origin is not None:
        package = __import__(name)
        folder = getattr(package, f"{name.upper()}_BIN_DIR" if name == "cmake" else "BIN_DIR", None)
        if folder is not None and (Path(folder) / name).is_file():
            return str(Path(folder) / name)
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"tal_fast: {name} was not found; install it with: pip install {name}")
    return found


def _install(built: Path, target: Path) -> None:
    """Puts a new file under the final name: a process that has the old one mapped keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".new")
    shutil.copy2(built, temporary)
    os.replace(temporary, target)


class CMakeBuild(build_ext):
    """Configures and builds ``_C`` in a folder that persists, so that rebuilds are incremental."""

    def build_extension(self, ext: Extension) -> None:
        """Runs CMake for ``ext`` and puts the library where setuptools expects it."""
        torch_dir = find_torch()
        if torch_dir is None:
            raise SystemExit(
                "tal_fast: torch was not found in this environment; install it first "
                "(pip install torch), or build with isolation so that pip brings it"
            )
        import pybind11

        default = ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        build_dir = Path(os.environ.get("TAL_FAST_BUILD_DIR", default))
        build_dir.mkdir(parents=True, exist_ok=True)
        cmake = _tool("cmake")
        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": _tool("ninja"),
            "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
            "Python3_EXECUTABLE": sys.executable,
            "TAL_FAST_TORCH_DIR": str(torch_dir),
            "TAL_FAST_PYBIND11_INCLUDE": pybind11.get_include(),
            "TAL_FAST_CUDA": os.environ.get("TAL_FAST_CUDA", "auto"),
            "TAL_FAST_CUDA_EMULATOR": os.environ.get("TAL_FAST_CUDA_EMULATOR", "OFF"),
            "TAL_FAST_WIDE_KERNELS": os.environ.get("TAL_FAST_WIDE_KERNELS", "ON"),
            "TAL_FAST_WERROR": os.environ.get("TAL_FAST_WERROR", "OFF"),
        }
        configure = [cmake, "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in settings.items()]
        build = [cmake, "--build", str(build_dir), "--target", "_C"]
        if settings["TAL_FAST_CUDA_EMULATOR"] not in ("OFF", "0"):
            build += ["cuda_emulated", "cuda_counted"]
        build += ["--parallel", os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))]
        for command in (configure, build):
            # Shown whole only when it fails: pip hides the output anyway, make users want it short.
            done = subprocess.run(command, capture_output=not self.verbose, text=True, check=False)
            if done.returncode != 0:
                sys.stderr.write((done.stdout or "") + (done.stderr or ""))
                raise SystemExit(f"tal_fast: the native build failed: {' '.join(command)}")
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        target = Path(self.get_ext_fullpath(ext.name))
        _install(build_dir / f"_C{suffix}", target)
        cuda = build_dir / f"_C_cuda{suffix}"
        if (build_dir / "with_cuda").exists():  # CMake says what it decided
            _install(cuda, target.with_name(cuda.name))
        else:
            target.with_name(cuda.name).unlink(missing_ok=True)  # of an earlier build
        if "cuda_emulated" in build:
            folder = ROOT / "tests" / "cuda_emulator"
            for name in ("cuda_emulated.so", "cuda_counted.so"):
                if (build_dir / name).exists():  # under a sanitizer nothing counts
                    _install(build_dir / name, folder / name)


setup(ext_modules=[Extension("tal_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
