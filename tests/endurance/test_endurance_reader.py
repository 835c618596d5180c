# SPDX-License-Identifier: Apache-2.0
import pytest
from endurance.endurance_sample import sample


@pytest.mark.slow
def test_loaders_that_are_left_leave_nothing(tmp_path):
    assert len(sample("reader", tmp_path, "--scale", "0.05", "--kind", "cycles")) == 1
