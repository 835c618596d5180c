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


def run(gain=None, cpu=None):
    return {"gain": figure(gain), "cpu": figure(cpu)}


def worked(host=0.1, compute=0.2, memory=0.6, device="cpu", launches=None, tried=None, **shares):
    """A profile whose ops were looked at, and perhaps a training without the suspects."""
    shares = shares or {"forward": 0.4, "backward": 0.6}
    made = profile(**shares) | {
        "format": 2,
        "training": {"device": device, "threads": 1, "batch": 16},
        "work": {
            "host": figure(host),
            "limits": {"compute": figure(compute), "memory": figure(memory)},
            "launches": figure(launches),
            "flops_rate": figure(20.0),
            "bytes_rate": figure(5.0),
        },
        "limits": {"flops": figure(100.0), "bytes": figure(10.0)},
    }
    if tried is not None:
        runs = {name.replace("__", " "): run(*values) for name, values in tried.items()}
        made["tried"] = {"runs": runs, "fixed": figure(20.0), "marginal": figure(5.0)}
    return made


@pytest.mark.parametrize(
    ("made", "kind", "sentence", "action", "confirmed"),
    [
        (worked(), "memory",
         "Memory: ops that memory limits take 60% of the time; the step reaches 50% of what memory "
         "gives.",
         "Fewer or smaller intermediate results: training.amp=bfloat16, shorter clips.", None),
        (worked(compute=0.7, memory=0.1), "compute",
         "Compute: ops that arithmetic limits take 70% of the time; the step reaches 20% of the "
         "best product.",
         "More cores, a smaller model, or training.amp=bfloat16 where it is native.", None),
        # 16 clips at 5 ms of 100 ms in all: 80 % grows with the batch.
        (worked(tried={"cached": (1.0,), "amp__bfloat16": (1.6,), "threads__2": (1.2,)}), "memory",
         None, "training.amp=bfloat16: 1.6x as fast (measured).", True),
        (worked(compute=0.3, memory=0.1, tried={"cached": (1.0,), "passive": (1.02,)}), "compute",
         None, "More cores, a smaller model, or training.amp=bfloat16 where it is native. Nothing "
         "that was tried was faster.", False),
        (worked(host=0.6), "host",
         "Host: calling ops takes 60% of the time, whatever they compute.",
         "Larger batches, or fewer and larger ops.", None),
        (worked(host=0.6, tried={"cached": (1.0,), "floor": (1.6,)}), "host", None, None, True),
        (worked(host=0.6, tried={"cached": (1.0,), "floor": (4.0,)}), "host", None, None, False),
        # Host and GPU work at the same time: only the floor tells.
        (worked(host=0.9, device="cuda", tried={"cached": (1.0,), "floor": (4.0,)}), "memory",
         None, None, True),
        (worked(host=0.9, device="cuda", launches=900.0, tried={"floor": (1.1,)}), "host",
         "Host: calling ops takes 90% of the time, whatever they compute, 900 kernels a step.",
         None, True),
        (worked(data=0.5, forward=0.5, tried={"cached": (1.9,)}), "data",
         "Data: it waited for batches 50% of the time; without, 1.9x as fast (measured).", None,
         True),
        (worked(data=0.5, forward=0.5, tried={"cached": (1.1,)}), "data",
         "Data: it waited for batches 50% of the time; without, 1.1x as fast (measured).", None,
         False),
        (worked(tried={"cached": (1.0, 200.0), "threads__1": (2.0, 100.0)}), "machine",
         "Machine: its threads spin: 2.0 times the CPU time of one thread.",
         "--threads 1: 2.0x as fast (measured).", True),
        # Twice the CPU time for a training that is faster is well spent.
        (worked(tried={"cached": (1.0, 200.0), "threads__1": (0.6, 100.0)}), "memory", None, None,
         True),
    ],
)  # fmt: skip
def test_sentences_of_ops_and_of_what_was_tried(made, kind, sentence, action, confirmed):
    found = verdict_of(made)
    assert found.kind == kind
    assert sentence is None or found.sentence == sentence
    assert action is None or found.action == action
    assert found.confirmed is confirmed
    begins = {None: "", True: "Confirmed: ", False: "Not confirmed: "}[confirmed]
    if kind != "machine" and begins:
        assert found.notes[0].startswith(begins)


def test_both_shares_are_shown():
    found = verdict_of(worked(data=0.5, forward=0.5, tried={"cached": (1.1,)}))
    assert found.notes[0] == "Not confirmed: 50% attributed, 9% without loading."


def test_loading_on_full_cores_shows_as_cpu_time():
    made = worked(data=0.06, forward=0.9)
    made["step"] = {"cpu": figure(200.0), "thread_cpu": figure(108.0)}
    made["disturbance"]["queue_wait"] = figure(0.2)
    found = verdict_of(made)
    assert found.kind == "data"
    assert found.sentence.startswith("Data: loading takes 46% of the CPU time of full cores;")
    made["disturbance"]["queue_wait"] = figure(0.01)  # there were cores for the readers
    assert verdict_of(made).kind == "memory"


@pytest.mark.parametrize(
    ("loader", "reading", "action"),
    [
        ({"amplification": 10.2, "needed": 16.8e6}, {"read": 172e6, "read_storage": 0.0},
         "`tal-fast pack` the features: a batch reads 172.0 MB for the 16.8 MB that it needs."),
        ({"amplification": 1.0, "needed": 16.8e6}, {"read": 17e6, "read_storage": 15e6},
         "A faster disk, or more memory for files: 15.0 of 17.0 MB of a batch come from storage."),
        ({"amplification": 1.0, "needed": 16.8e6}, {"read": 17e6, "read_storage": 1e6},
         "`tal-fast pack` the features, or raise data.threads: a batch reads 17.0 MB."),
    ],
)  # fmt: skip
def test_why_it_waits_for_data(loader, reading, action):
    made = worked(data=0.5, forward=0.5)
    made["loader"] = {name: figure(value) for name, value in loader.items()}
    made["reading"] = {name: figure(value) for name, value in reading.items()}
    assert verdict_of(made).action == action


def test_beside_others_what_helped_is_said():
    made = worked(tried={"passive": (18.4,)})
    made["disturbance"]["others"] = figure(1.5)
    found = verdict_of(made)
    assert found.sentence == "Machine: others used 1.5 of 2 cores."
    assert found.action.startswith("OMP_WAIT_POLICY=passive: 18.4x as fast (measured). Run it")


def test_a_profile_of_no_training():
    with pytest.raises(DataError, match="expected that of a training, got one without phases"):
        verdict_of({"format": 2})


def test_more_threads_than_cores():
    made = worked()
    made["training"] |= {"threads": 2, "reader_threads": 1}
    assert verdict_of(made).notes == ()  # nobody waited
    made["disturbance"]["queue_wait"] = figure(0.2)
    note = "Crowded: 2 threads that compute and 1 that read share 2 cores."
    assert verdict_of(made).notes == (note,)


def test_counters_that_are_missing_decide_nothing():
    found = verdict_of(profile(data=0.3, others=None, throttled=None, disturbed=None))
    assert found.kind == "data"


def test_another_format():
    with pytest.raises(DataError, match="profile: expected format 2, got 3"):
        verdict_of({"format": 3})
