# SPDX-License-Identifier: Apache-2.0
"""Records of trials that tests make, and the study that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tal_fast.study.execution.store import hash_settings
from tal_fast.study.trial import TrialRecord

CLASSES = ["run", "jump & <throw>", "sit"]


def trial(
    fraction: float,
    repetition: int,
    value: float | Mapping[str, float],
    *,
    videos: int = 2,
    instances: int = 10,
    classes: int = 3,
    sampling: str = "video",
    budget: str = "epochs",
    training: int = 0,
    **result: Any,
) -> TrialRecord:
    """A record; ``value`` is its average mAP, or that of each mode of averaging."""
    modes = value if isinstance(value, Mapping) else {"off": value}
    scores = {
        mode: {"average_map": score, "map_per_threshold": {"0.5": score, "0.3": score + 0.1}}
        for mode, score in modes.items()
    }
    content = {
        "trial": f"p{round(100 * fraction):03d}_r{repetition}",
        "model": "tadtr-small",
        "settings": "x",
        "fraction": fraction,
        "repetition": repetition,
        "seed": 7,
        "sampling": sampling,
        "budget": budget,
        "training": training,
        "seconds": 30.0,
        "threads": 1,
        "started": "2026-01-01T00:00:00Z",
        "sample": {
            "videos": ["v"] * videos,
            "instances": instances,
            "classes": CLASSES[:classes],
            "missing_classes": CLASSES[classes:],
        },
        "result": {
            **next(iter(scores.values())),
            **({"ema": scores} if isinstance(value, Mapping) else {}),
            "windows": 64,
            "steps": 8,
            **result,
        },
    }
    return TrialRecord.from_dict(content, "here")


SETTINGS = {
    "model": "tadtr-small",
    "data": {"name": "toys", "classes": 3, "train_videos": 20, "test_videos": 5},
    "split": "data",
    "seed": 0,
    "config": {"training": {"epochs": 16, "ema_decay": 0.9}},
}


def study(trials: int = 4, **changes: Any) -> dict[str, Any]:
    """Content of ``study.yaml``."""
    run = {
        "started": "2026-01-01T00:00:00Z",
        "seconds": 75.0,
        "trials": trials,
        "jobs": 2,
        "threads": 1,
        "machine": {"cpu": "A <fast> one", "cores": 2, "isa": "avx2"},
    }
    return {
        "settings": SETTINGS,
        "hash": hash_settings(SETTINGS),
        "command": "tal-fast study run --data toys --out here",
        "request": {"trials": trials, "samplings": ["video"], "budgets": ["epochs"]},
        "runs": [run],
        **changes,
    }


RECORDS = [
    trial(1.0, 0, 0.8, videos=20, instances=100),
    trial(0.1, 1, 0.2, instances=11, classes=2),
    trial(0.1, 0, 0.1, instances=8, classes=1),
    trial(0.1, 2, 0.6, instances=14),
]

#: One sampling, two budgets, two modes; the plain average suffers where the steps are few. One
#: repetition of p = 10 % is not there under steps, and p = 50 % only there.
BUDGETS = [
    trial(0.1, 0, {"off": 0.20, "plain": 0.05}, steps=2),
    trial(0.1, 1, {"off": 0.24, "plain": 0.07}, steps=2),
    trial(0.1, 2, {"off": 0.60, "plain": 0.30}, steps=2),
    trial(1.0, 0, {"off": 0.50, "plain": 0.45}, steps=20),
    trial(0.1, 0, {"off": 0.30, "plain": 0.28}, budget="steps", steps=20),
    trial(0.1, 1, {"off": 0.32, "plain": 0.32}, budget="steps", steps=20),
    trial(0.5, 0, {"off": 0.40, "plain": 0.41}, budget="steps", steps=20),
    trial(1.0, 0, {"off": 0.50, "plain": 0.45}, budget="steps", steps=20),
]

LEVELS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


def rising(
    budget: str = "epochs",
    modes: Sequence[str] = ("off",),
    repetitions: int = 3,
    levels: Sequence[float] = LEVELS,
    **more: Any,
) -> list[TrialRecord]:
    """Records of a curve that rises to 60 points, of which it has 50 at p = 100 %."""
    noise = np.random.default_rng(0)
    return [
        trial(
            p,
            repetition,
            {mode: 0.6 * p / (p + 0.2) + noise.normal(0, 0.005) for mode in modes},
            budget=budget,
            videos=round(200 * p),
            **more,
        )
        for p in levels
        for repetition in range(repetitions)
    ]
