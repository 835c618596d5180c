# SPDX-License-Identifier: Apache-2.0
"""Loads the ``_C`` of another build, given as its path, and runs tests of each of its parts on it.

Part of the native tests (``ctest --preset debug``): under AddressSanitizer it also fails when
memory that ``_C`` allocated is lost. Python and torch keep memory to their end: what they lose
counts for nothing.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest
import torch  # before _C, which finds its libraries loaded

import tal_fast

ROOT = Path(tal_fast.__file__).parent.parent

# Reader, evaluator and the ops that keep scratch memory. None of them starts another process: that
# one would load the library of the package.
TESTS = (
    "tests/data/test_loader.py",
    "tests/evaluation/test_average_precision.py",
    "tests/ops/test_nms.py",
    "tests/ops/test_deform_attn.py",
)
CHOICE = "not emulated and not opcheck and not compile and not process and not cuda"


def load(path: Path) -> None:
    """Makes the library at ``path`` the one that ``from tal_fast import _C`` finds."""
    spec = importlib.util.spec_from_file_location("tal_fast._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tal_fast._C"] = module
    spec.loader.exec_module(module)
    tal_fast._C = module


def lost(library: str) -> list[str]:
    """What LeakSanitizer reports as allocated by ``library`` itself; nothing without it."""
    check = getattr(ctypes.CDLL(None), "__lsan_do_recoverable_leak_check", None)
    if check is None:
        return []
    with tempfile.TemporaryFile("w+") as report:
        stderr = os.dup(2)
        os.dup2(report.fileno(), 2)
        check()
        os.dup2(stderr, 2)
        report.seek(0)
        leaks = re.split(r"\n\n", report.read())
    # Frame 0 is the allocator.
    return [leak for leak in leaks if re.search(rf"^ *#1 .*{re.escape(library)}", leak, re.M)]


def main(path: Path) -> int:
    """Runs the tests; 0 when they pass and nothing was lost."""
    load(path)
    torch.set_num_threads(2)
    os.chdir(ROOT)
    status = int(pytest.main(["-q", "-p", "no:cacheprovider", "-k", CHOICE, *TESTS]))
    from tal_fast import _C

    if _C.__file__ != str(path):
        print(f"expected the library {path}, got {_C.__file__}")
        status = 1
    for leak in lost(path.name):
        print(leak)
        status = 1
    sys.stdout.flush()
    return status


if __name__ == "__main__":
    # Without a clean end, in which LeakSanitizer would look once more, at everything.
    os._exit(main(Path(sys.argv[1]).resolve()))
