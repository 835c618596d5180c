# SPDX-License-Identifier: Apache-2.0
"""Signals to end that wait for the end of a step."""

from __future__ import annotations

import os
import signal

import pytest

from tal_fast.training.interrupts import deferred_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_and_the_second_does_not(number):
    before = [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)]
    with deferred_interrupt(signal.SIGTERM) as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), number)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    with deferred_interrupt():
        assert signal.getsignal(signal.SIGTERM) == before
