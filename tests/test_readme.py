# SPDX-License-Identifier: Apache-2.0
"""What the README says can be run is run, and what it points to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_python_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, object] = {}
    exec(code, scope)
    keep = scope["keep"]
    assert isinstance(keep, torch.Tensor)
    assert keep.tolist() == [0, 2]
    value = scope["value"]
    assert isinstance(value, torch.Tensor)
    assert value.grad is not None


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [target for target in targets if not target.startswith("http")]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("command", ["demo", "test", "test-all", "lint", "bench"])
def test_make_targets_exist(command):
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
