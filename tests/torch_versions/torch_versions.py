# SPDX-License-Identifier: Apache-2.0
"""Loads the one built ``_C`` in other versions of torch and compares what its ops give there.

    python tests/torch_versions/torch_versions.py 2.10.0 2.11.0

Each version is downloaded as the package index has it (0.2 GB for a CPU build, 0.9 GB for a CUDA
build), unpacked into a temporary folder, used, and deleted. Of a CUDA build the libraries of CUDA,
another 3 GB, are left out: torch wants to find them when it is loaded, so libraries that define the
same names take their places, and every function in them returns an error. Ops on the CPU call none
of them.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
_DIGEST = Path(__file__).with_name("ops_digest.py")
# "No CUDA-capable device is detected"; to the other libraries an error as well.
_NO_DEVICE = 100


class Outcome(NamedTuple):
    """What became of one version."""

    version: str
    """As torch states it, or as it was asked for."""
    digests: dict[str, str]
    problem: str
    """Empty where the ops ran."""


def run(*command: str | Path, **environment: str) -> str:
    """Returns what a command prints; RuntimeError with its last lines if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "PIP_CONSTRAINT"} | environment,
    )
    if done.returncode != 0:
        raise RuntimeError("\n".join((done.stderr or done.stdout).splitlines()[-4:]))
    return done.stdout


def needed(libraries: Path) -> list[str]:
    """The libraries that those in a folder want and that are neither there nor on this machine."""
    names = set()
    for library in libraries.glob("*.so*"):
        names |= set(re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", library)))
    missing = []
    for name in sorted(names - {library.name for library in libraries.iterdir()}):
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing


def undefined(libraries: Path) -> Iterator[tuple[str, str]]:
    """The functions that the libraries of a folder leave to others, each with its version or ''."""
    for library in libraries.glob("*.so*"):
        for line in run("nm", "-D", "--undefined-only", library).splitlines():
            name, _, version = line.split()[-1].partition("@")
            yield name, version


def owners(libraries: Path) -> dict[str, str]:
    """Which library the versions of functions are of, for those that a folder's libraries want."""
    found = {}
    for library in libraries.glob("*.so*"):
        owner = ""
        for kind, name in re.findall(r"\b(File|Name): (\S+)", run("readelf", "-V", "-W", library)):
            if kind == "File":
                owner = name
            elif owner:
                found[name] = owner
    return found


def stand_in(libraries: Path, folder: Path) -> None:
    """Compiles a library for each that :func:`needed` misses, with the functions wanted of it."""
    missing = needed(libraries)
    owner_of = {v: owner for v, owner in owners(libraries).items() if owner in missing}
    functions: dict[str, set[str]] = {version: set() for version in owner_of}
    unversioned = set()
    for name, version in undefined(libraries):
        if version in functions:
            functions[version].add(name)
        elif not version and re.match(r"_*(cu|nv|nccl)\w+$", name):
            unversioned.add(name)  # one loaded library with the name is enough
    folder.mkdir()
    for i, library in enumerate(missing):
        versions = {v: sorted(functions[v]) for v, owner in owner_of.items() if owner == library}
        names = {name for some in versions.values() for name in some}
        names |= unversioned if i == 0 else set()
        source = folder / "stand_in.c"
        source.write_text(
            "".join(f"long {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in sorted(names))
        )
        script = folder / "versions.map"
        script.write_text(
            "".join(
                f"{v} {{ {''.join(f'{n}; ' for n in some)}}};\n" for v, some in versions.items()
            )
        )
        run(
            *("cc", "-shared", "-fPIC", "-w", "-fno-builtin", source, "-o", folder / library),
            f"-Wl,-soname,{library}",
            *([f"-Wl,--version-script,{script}"] if versions else []),
        )


def ops_in(torch_folder: Path | None, stand_ins: Path | None) -> dict[str, Any]:
    """What ops_digest.py prints with the torch in a folder; None: this environment's."""
    path = [str(p) for p in (torch_folder, ROOT) if p is not None]
    environment = {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    if stand_ins is not None:
        environment["LD_LIBRARY_PATH"] = str(stand_ins)
    return dict(json.loads(run(sys.executable, "-W", "ignore", _DIGEST, **environment)))


def try_version(version: str) -> Outcome:
    """Downloads a version and runs the ops in it."""
    with tempfile.TemporaryDirectory(prefix="torch-") as name:
        folder = Path(name)
        try:
            run(
                *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download"),
                *("--quiet", "--no-deps", "--no-cache-dir", "-d", folder, f"torch=={version}"),
            )
            (wheel,) = folder.glob("torch-*.whl")
            with zipfile.ZipFile(wheel) as packed:
                # Without its headers, which are half of the files.
                wanted = [n for n in packed.namelist() if not n.startswith("torch/include/")]
                packed.extractall(folder / "site", wanted)
            wheel.unlink()
            stand_in(folder / "site" / "torch" / "lib", folder / "cuda")
            found = ops_in(folder / "site", folder / "cuda")
        except (RuntimeError, ValueError) as error:
            return Outcome(version, {}, str(error))
    return Outcome(found["torch"], found["digests"], "")


def main(versions: list[str]) -> int:
    """Prints a row per version; 1 if an op gave something else in one of them."""
    here = ops_in(None, None)
    print(f"torch {here['torch']}: {len(here['digests'])} results of {here['library']}")
    status = 0
    for version in versions:
        outcome = try_version(version)
        other = [
            case for case, bits in here["digests"].items() if outcome.digests.get(case) != bits
        ]
        if outcome.problem:
            print(f"torch {version}: could not be tried: {outcome.problem}")
        elif other:
            print(f"torch {outcome.version}: {len(other)} results differ: {', '.join(other)}")
        else:
            print(f"torch {outcome.version}: the same {len(outcome.digests)} results, bit for bit")
        status |= bool(other)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
