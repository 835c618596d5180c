# SPDX-License-Identifier: Apache-2.0
import pytest
from endurance.endurance_sample import sample


@pytest.mark.slow
def test_untrusted_files_are_only_read(tmp_path):
    assert len(sample("untrusted", tmp_path, "--scale", "0.02")) == 9
