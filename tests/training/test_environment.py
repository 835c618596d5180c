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


def test_peak_memory_is_that_of_the_process_even_when_given_back_and_not_of_its_parent():
    alone = peak_of_a_process()
    assert peak_of_a_process("numpy.ones(200 << 17); ") > alone + 150  # 200 MiB
    array = np.ones(200 << 17)  # our own memory grows by as much
    beside_a_larger_one = peak_of_a_process()
    assert array.all()
    assert beside_a_larger_one < alone + 50
