# SPDX-License-Identifier: Apache-2.0
import pytest
from endurance.endurance_sample import sample


@pytest.mark.slow
def test_ops_and_their_twins_agree(tmp_path):
    assert len(sample("ops", tmp_path, "--scale", "0.0001")) >= 11
