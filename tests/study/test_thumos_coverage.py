# SPDX-License-Identifier: Apache-2.0
"""What samples of THUMOS14's training videos cover, from its annotations where they lie."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tal_fast.data.annotations import load_annotations
from tal_fast.data.grid import Grid
from tal_fast.data.windows import WindowSet
from tal_fast.study.sampling import draw_sample

ROOT = Path(__file__).parents[2]
REPETITIONS = 300


@pytest.fixture(scope="module")
def thumos():
    folder = Path(os.environ.get("TAL_FAST_TEST_DATA", ROOT.parent / "shared" / "data"))
    path = folder / "thumos14.json"
    if not path.is_file():
        pytest.skip(f"no annotations at {path} (TAL_FAST_TEST_DATA)")
    return load_annotations(path, out_of_range="keep").subset("Validation")


@pytest.fixture(scope="module")
def windows(thumos):
    """TadTR's training windows over one row per 8 frames."""
    data = SimpleNamespace(
        name="thumos14",
        annotations=thumos,
        features={
            name: SimpleNamespace(rows=int(video.duration * video.fps / 8))
            for name, video in thumos.videos.items()
        },
        grid=lambda name: Grid(8, 8, thumos.videos[name].fps),
    )
    return WindowSet(data, thumos.videos)


def classes_of(sampling, thumos, percent, windows=None):
    samples = [
        draw_sample(
            sampling,
            list(thumos.videos),
            thumos.videos,
            thumos.classes,
            fraction=percent / 100,
            repetition=repetition,
            seed=0,
            clips=windows,
        )
        for repetition in range(REPETITIONS)
    ]
    return np.array([len(sample.classes) for sample in samples])


def test_random_videos(thumos):
    assert len(thumos.videos) == 200
    known = {1: 2.2, 2: 4.2, 3: 5.9, 5: 8.9, 10: 13.9}  # computed without this library
    for percent, expected in known.items():
        found = classes_of("video", thumos, percent)
        # Five standard errors, and the rounding of the known numbers.
        assert abs(found.mean() - expected) < 5 * found.std() / REPETITIONS**0.5 + 0.05


def test_twenty_stratified_videos_hold_all_twenty_classes(thumos):
    assert (classes_of("stratified", thumos, 10) == 20).all()
    assert classes_of("stratified", thumos, 5).mean() > classes_of("video", thumos, 5).mean() + 1


def test_a_hundredth_of_the_windows_shows_most_classes(thumos, windows):
    assert len(windows) == 3212
    assert windows.dropped == 4279 - 3212
    assert classes_of("window", thumos, 1, windows).mean() > 13
