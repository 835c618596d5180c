# SPDX-License-Identifier: Apache-2.0
import pytest
from endurance_sample import sample


@pytest.mark.slow
def test_a_sample(tmp_path):
    sample("directories", tmp_path, "--scale", "0.02")
