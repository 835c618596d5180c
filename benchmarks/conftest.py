# SPDX-License-Identifier: Apache-2.0
"""Prints and stores the machine with every benchmark run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import machine

# The evaluator's oracle lives with its tests; a benchmark verifies against it before it times.
sys.path.append(str(Path(__file__).parent.parent / "tests" / "evaluation"))


def pytest_report_header() -> str:
    return f"machine: {machine.header()}"


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info.clear()  # the default tells the host's name
    machine_info.update(machine.describe())
