# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys

import pytest

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spins(before: str, **settings: str) -> str:
    """What a process has set after ``before``, a statement, and ``wait_briefly``."""
    environment = {key: value for key, value in os.environ.items() if key not in NAMES}
    program = f"{before}\nfrom tal_fast.waiting import wait_briefly\nwait_briefly()\n"
    program += "import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("before", "settings", "wanted"),
    [
        ("", {}, "10000"),
        ("", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("", {"OMP_WAIT_POLICY": "active"}, "None"),
        ("import torch", {}, "None"),
    ],
)
def test_what_is_set(before, settings, wanted):
    assert spins(before, **settings) == wanted


def test_commands_set_it():
    environment = {key: value for key, value in os.environ.items() if key not in NAMES}
    done = subprocess.run(
        [sys.executable, "-m", "tal_fast", "info"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "GOMP_SPINCOUNT: '10000'" in done.stdout
