# SPDX-License-Identifier: Apache-2.0
"""``torch.use_deterministic_algorithms`` under the launcher: as ever, but for the time it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import HANG

import tal_fast

ROOT = Path(tal_fast.__file__).parents[1]

SCRIPT = """
import inspect, sys
import torch
function = torch.use_deterministic_algorithms
print(hasattr(function, "__wrapped__"), inspect.signature(function), torch.randn(1).shape)
function(True, warn_only=True)
enabled = torch.are_deterministic_algorithms_enabled
print(enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
print("torch._inductor" in sys.modules)
import torch._inductor.config as config
print(config.deterministic)
function(False)
print(enabled(), config.deterministic)
"""

UNDONE = """
import sys
from tal_fast import compat
compat.install(quiet=True)
import torch
wrapped = torch.use_deterministic_algorithms
wrapped(True)
compat.uninstall()
print(torch.use_deterministic_algorithms is wrapped.__wrapped__)
import torch._inductor.config as config
print(torch.are_deterministic_algorithms_enabled(), config.deterministic)
"""


def run(*command: str, cwd: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_compiler_is_loaded_when_it_is_needed_and_knows(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    first, *plain = run("script.py", cwd=tmp_path)
    wrapped, *ours = run("-m", "tal_fast.compat", "script.py", cwd=tmp_path)
    if wrapped.startswith("False"):
        pytest.skip("this torch does something else there, and keeps it")
    assert first.replace("False", "True", 1) == wrapped
    assert plain == ["True True", "True", "True", "False False"]
    assert ours == ["True True", "False", "True", "False False"]


def test_it_can_be_left(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    option = ("--skip", "use_deterministic_algorithms")
    first, _, loaded, *_ = run("-m", "tal_fast.compat", *option, "script.py", cwd=tmp_path)
    assert first.startswith("False")
    assert loaded == "True"


def test_uninstalling_gives_the_flag_back(tmp_path):
    (tmp_path / "script.py").write_text(UNDONE)
    assert run("script.py", cwd=tmp_path) == ["True", "True True"]
