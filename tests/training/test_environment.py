# SPDX-License-Identifier: Apache-2.0
"""What is told about a run."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

IMPORT = "import numpy; from tal_fast.training.environment import peak_memory_mib; "
PRINT = "print(peak_memory_mib())"


def peak_of_a_process(does=""):
    code = IMPORT + does + PRINT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_peak_memory_is_that_of_the_process_and_not_of_its_parent():
    alone = peak_of_a_process()
    array = np.ones(200 << 17)  # 200 MiB, and our own memory grows by them
    beside_a_larger_one = peak_of_a_process()
    assert array.all()
    assert beside_a_larger_one < alone + 50


def test_peak_memory_stays_when_memory_is_given_back():
    assert peak_of_a_process("numpy.ones(200 << 17); ") > peak_of_a_process() + 150
