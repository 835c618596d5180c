# SPDX-License-Identifier: Apache-2.0
"""What docs/features.md says can be run is run, and its tables are those of the code."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tal_fast import cli
from tal_fast.data.validation.result import CHECKS

PAGE = (Path(__file__).parents[2] / "docs" / "features.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line, posix=True)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").strip().splitlines()
]


def test_checks_are_those_of_the_code():
    assert dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", PAGE, re.MULTILINE)) == CHECKS


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_have_these_options(capsys, command):
    assert command[0] == "tal-fast"
    words = 2 if command[1] in ("prepare", "study") else 1
    assert cli.main([*command[1 : 1 + words], "-h"]) == 0
    text = capsys.readouterr().out
    for word in command[1 + words :]:
        if word.startswith("--"):
            assert word in text.split(), f"{command[1]} has no {word}"


def test_python_example_runs(tmp_path, monkeypatch, capsys):
    for folder, prefix, channels in (("i3d", "v_", 4), ("rgb", "", 2), ("flow", "", 3)):
        (tmp_path / folder).mkdir()
        for name in "ab":
            np.save(tmp_path / folder / f"{prefix}{name}.npy", np.ones((7, channels), np.float32))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "7 5 [2, 3]\n"
