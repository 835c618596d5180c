# SPDX-License-Identifier: Apache-2.0
"""A study says where the averages that it tested still keep their random start."""

from __future__ import annotations

import pytest

from tal_fast.study.summary import kept_starts
from tal_fast.study.trial import Sample, Trial, TrialRecord

STUDY = {"settings": {"config": {"training": {"ema_decay": 0.999}}}}


def record(fraction: float, steps: int, *modes: str) -> TrialRecord:
    score = {"average_map": 0.5, "map_per_threshold": [0.5]}
    result = {"steps": steps, "ema": dict.fromkeys(modes, score)}
    sample = object.__new__(Sample)  # not looked at
    return TrialRecord(
        Trial(model="tiny", fraction=fraction, repetition=0, seed=0), "", sample, result
    )


def test_the_worst_share_is_named():
    records = [record(0.1, 350, "plain"), record(0.5, 1750, "plain"), record(1.0, 3500, "plain")]
    (note,) = kept_starts(STUDY, records)
    assert "more than 5 % of their random start at 2 of 3 shares, 70 % at 10 % of the data" in note


@pytest.mark.parametrize("modes", [("off",), ("off", "plain"), ("warmup",)])
def test_nothing_is_said_of_other_weights(modes):
    assert kept_starts(STUDY, [record(0.1, 350, *modes)]) == []


def test_nothing_is_said_of_long_trainings_or_other_experiments():
    assert kept_starts(STUDY, [record(1.0, 3500, "plain")]) == []
    assert kept_starts({"settings": {}}, [record(0.1, 350, "plain")]) == []
