# SPDX-License-Identifier: Apache-2.0
import pytest
from endurance.endurance_sample import sample
from endurance.reader import prepared, without_threads
from endurance.record import Batch


@pytest.mark.slow
def test_loaders_that_are_left_leave_nothing(tmp_path):
    assert len(sample("reader", tmp_path, "--scale", "0.05", "--kind", "cycles")) == 1


def test_threads_that_do_not_start_are_told():
    with prepared() as place:
        outcome = without_threads(place, Batch("threads that do not start", 1, 0, 8))
    assert outcome.lost == 0, outcome.failures
    assert outcome.refused > 0


@pytest.mark.slow
def test_calls_that_fail_are_told(tmp_path):
    assert len(sample("reader", tmp_path, "--scale", "0.05", "--kind", "failing calls")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_requests_from_bytes(tmp_path, sanitizer):
    assert len(sample("reader", tmp_path, "--scale", "1e-4", "--kind", f"fuzz {sanitizer}")) == 1
