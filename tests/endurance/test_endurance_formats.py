# SPDX-License-Identifier: Apache-2.0
import pytest
from endurance.endurance_sample import sample


@pytest.mark.slow
def test_bent_files_are_read_right_or_refused(tmp_path):
    assert len(sample("formats", tmp_path, "--scale", "0.001")) == 17
