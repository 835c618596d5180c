# SPDX-License-Identifier: Apache-2.0
"""Runs a small share of a part in a process of its own, for the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def sample(part: str, out: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """Runs ``python tests/endurance PART``; returns what it counted, by kind of cases."""
    command = [sys.executable, HERE, part, "--out", out, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (path,) = out.glob(f"*-{part}.json")
    rows = {row["name"]: row for row in json.loads(path.read_text())["kinds"]}
    for row in rows.values():
        assert row["tried"] > 0, row
        assert row["lost"] == 0, row
    return rows
