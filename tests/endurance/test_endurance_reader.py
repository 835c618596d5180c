# SPDX-License-Identifier: Apache-2.0
import pytest
from endurance.endurance_sample import sample


@pytest.mark.slow
def test_loaders_that_are_left_leave_nothing(tmp_path):
    assert len(sample("reader", tmp_path, "--scale", "0.05", "--kind", "cycles")) == 1


@pytest.mark.slow
def test_calls_that_fail_are_told(tmp_path):
    assert len(sample("reader", tmp_path, "--scale", "0.05", "--kind", "failing calls")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_requests_from_bytes(tmp_path, sanitizer):
    assert len(sample("reader", tmp_path, "--scale", "1e-4", "--kind", f"fuzz {sanitizer}")) == 1
