# SPDX-License-Identifier: Apache-2.0
"""Calls on the files below a folder that fail, or kill their process, at chosen moments.

The library behind it (``faults.cpp``) is built when it is first asked for, and goes into programs
by ``LD_PRELOAD``. There it sees what Python, torch and the other libraries ask of the system
through the C library; what the C library does for itself (the writes behind ``fopen``) it does not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.cpp")
VARIABLE = "ENDURANCE_FAULTS"
CALLS = {
    "open": 1,  # for writing
    "write": 2,
    "rename": 4,
    "sync": 8,
    "remove": 16,
    "make": 32,
    "close": 64,
    "lock": 128,
    "look": 256,  # open for reading
    "read": 512,
    "ask": 1024,  # for the size and kind of a file
    "thread": 2048,  # start one; has nothing to do with the folder
    "process": 4096,  # likewise
}
#: What changes something on disk.
CHANGES = ("open", "write", "rename", "sync", "remove", "make")
#: What starts something.
STARTS = ("thread", "process")
#: What reads.
READS = ("look", "read", "ask")


@dataclass(frozen=True)
class Faults:
    """What goes wrong.

    Attributes:
        root: folder of the files.
        mode: ``count`` (nothing), ``once`` (call number ``at`` fails), ``every`` (each ``at``-th),
            ``from`` (that one and all later ones), ``kill`` (SIGKILL just before it).
        at: counted from 1, over all ``calls`` of a process.
        calls: which calls count, of :data:`CALLS`.
        error: what the failing ones say.
    """

    root: Path
    mode: str = "count"
    at: int = 1
    calls: tuple[str, ...] = CHANGES
    error: int = errno.EIO

    def text(self) -> str:
        """Returns it as the library reads it."""
        calls = sum(CALLS[name] for name in self.calls)
        return f"{calls} {self.mode} {self.at} {self.error} {os.path.abspath(self.root)}"

    def environment(self, library: Path) -> dict[str, str]:
        """Returns the variables with which a program has these faults from its start."""
        return {"LD_PRELOAD": str(library), VARIABLE: self.text()}


def build(folder: Path) -> Path:
    """Compiles the library into a folder; returns its path.

    Raises:
        RuntimeError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("faults need a C++ compiler; set CXX")
    library = folder / "libendurance_faults.so"
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", library, SOURCE, "-ldl"], check=True)
    return library


def arm(faults: Faults | None) -> None:
    """Changes what goes wrong in this process, which has the library already; None for nothing."""
    text = "" if faults is None else faults.text()
    if not ctypes.CDLL(None).endurance_faults_arm(text.encode()):
        raise ValueError(f"the library cannot read {text!r}")


def count() -> int:
    """Returns how many calls there were in this process since it was armed."""
    function = ctypes.CDLL(None).endurance_faults_count
    function.restype = ctypes.c_long
    return int(function())
