# SPDX-License-Identifier: Apache-2.0
"""Real trainings beside each other: the results of one alone, and no more threads than given."""

from __future__ import annotations

import os
from dataclasses import replace

import earnest_experiment as earnest
import fake_experiment as fake
from fake_experiment import run_study

SMALL = {
    "model.d_model": 32,
    "model.num_heads": 4,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.feedforward": 32,
    "model.num_queries": 8,
    "model.roi_bins": 4,
    "training.epochs": 2,
    "training.batch_size": 4,
    "data.window": 64,
    "training.ema": ["off", "corrected"],
    "training.tensorboard": "never",
}


def test_two_at_a_time(spec, quiet, no_pictures):
    spec = replace(
        spec, model="tadtr-small", fractions=(0.5,), repetitions=4, overrides=SMALL, threads=1
    )
    both = replace(spec, out=spec.out.parent / "both", jobs=2)
    door = "earnest_experiment:learn_in_earnest"
    run_study(spec, experiment=door, console=quiet)
    run_study(both, experiment=door, console=quiet)

    names = ("predictions.json", "predictions_corrected.json")
    for trial in (f"p050_r{repetition}" for repetition in range(4)):
        for name in names:
            alone = (spec.out / "trials" / trial / name).read_bytes()
            assert (both.out / "trials" / trial / name).read_bytes() == alone

    calls = fake.read_calls(both.out)
    assert len(calls) == 4
    assert len({call["pid"] for call in calls} - {os.getpid()}) == 2
    assert {call["torch"] for call in calls} == {1}
    assert max(call["most"] for call in calls) <= earnest.THREADS
