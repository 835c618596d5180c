# SPDX-License-Identifier: Apache-2.0
"""From made profiles to sentences."""

from __future__ import annotations

import pytest

from tal_fast.errors import DataError
from tal_fast.profiling.verdict import verdict_of


def figure(value, unit="of the time"):
    return {"value": value, "unit": unit}


def profile(between=None, *, others=0.0, throttled=0.0, disturbed=False, read=2e6, **phases):
    """A profile in which phases take so much of the time."""
    phases = {name.replace("__", "/"): share for name, share in phases.items()}
    return {
        "format": 1,
        "usable_cores": 2,
        "disturbed": disturbed,
        "disturbance": {"others": figure(others), "throttled": figure(throttled)},
        "phases": {name: {"share": figure(share)} for name, share in phases.items()},
        "between_steps": {k: {"share": figure(v)} for k, v in (between or {}).items()},
        "reading": {"read": figure(read)},
    }


@pytest.mark.parametrize(
    ("made", "kind", "sentence", "action"),
    [
        (profile(data=0.5, forward=0.2, backward=0.3), "data",
         "Data: it waited for batches 50% of the time; without, 2.0x as fast at most.",
         "`tal-fast pack` the features, or raise data.threads: a batch reads 2.0 MB."),
        (profile(data=0.2, read=None), "data",
         "Data: it waited for batches 20% of the time; without, 1.2x as fast at most.",
         "`tal-fast pack` the features, or raise data.threads."),
        (profile(data=0.04, forward=0.3, loss=0.06, backward=0.6), "work",
         "The network's own work: 96% of the time (forward 30%, loss 6%, backward 60%).", None),
        (profile(data=0.3, forward=0.7, others=0.5), "machine",
         "Machine: others used 0.5 of 2 cores.", None),
        (profile(data=0.3, forward=0.7, throttled=3.0, others=1.0), "machine",
         "Machine: the limit of its control group held it back 3 times.", None),
        (profile(data=0.1, loss=0.5, loss__matching=0.4, backward=0.4), "loss/matching",
         "Matching: 40% of the time; without, 1.7x as fast at most.",
         "Fewer queries or decoder layers."),
        (profile(optimizer=0.25, forward=0.75), "optimizer",
         "The optimiser: 25% of the time; without, 1.3x as fast at most.", None),
        (profile({"rate": 0.5, "save": 0.3}, forward=0.5, backward=0.5), "rate",
         "Rating held-out videos: 50% of the time; without, 2.0x as fast at most.", None),
        (profile({"save": 0.3}, forward=0.5, backward=0.5), "save",
         "Saving: 30% of the time; without, 1.4x as fast at most.", None),
        (profile(data=1.0), "data", "Data: it waited for batches 100% of the time.", None),
    ],
)  # fmt: skip
def test_sentences(made, kind, sentence, action):
    found = verdict_of(made)
    assert found.kind == kind
    assert found.sentence == sentence
    assert action is None or found.action == action
    assert found.lines()[:2] == [found.sentence, found.action]


def test_a_disturbed_profile_says_so():
    assert verdict_of(profile(data=0.5, disturbed=True)).notes[0].startswith("Disturbed")
    assert verdict_of(profile(data=0.5, disturbed=None)).notes[0].startswith("Whether others")
    assert verdict_of(profile(data=0.5)).notes == ()


def test_partly_data():
    found = verdict_of(profile(data=0.1, forward=0.9))
    assert found.kind == "work"
    assert found.notes == ("Partly data: it waited for batches 10% of the time.",)


def test_counters_that_are_missing_decide_nothing():
    found = verdict_of(profile(data=0.3, others=None, throttled=None, disturbed=None))
    assert found.kind == "data"


def test_another_format():
    with pytest.raises(DataError, match="profile: expected format 2, got 3"):
        verdict_of({"format": 3})
