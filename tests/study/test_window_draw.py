# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tal_fast.data.grid import Grid
from tal_fast.data.windows import WindowSet
from tal_fast.errors import ConfigError, DataError
from tal_fast.study.sampling import draw_sample
from tal_fast.study.shares import sample_size

CLASSES = ("run", "jump", "throw")
NAMES = [f"video_{i}" for i in range(8)]


def video(i):
    """Row j of every video covers [j, j + 1) s; instances of 4 s, the first ones well apart."""
    starts = np.array([2.0, 30.0, 31.0, 60.0])[: 1 + i % 4]
    return SimpleNamespace(
        segments=np.stack([starts, starts + 4], axis=1),
        labels=np.array([0, 1, 0, 1])[: len(starts)],
    )


VIDEOS = {name: video(i) for i, name in enumerate(NAMES)}
DATA = SimpleNamespace(
    name="made",
    annotations=SimpleNamespace(videos=VIDEOS),
    features={name: SimpleNamespace(rows=50 + 10 * i) for i, name in enumerate(NAMES)},
    grid=lambda name: Grid(1, 1, 1.0),
)


def cut(names=NAMES, **settings):
    return WindowSet(DATA, names, **{"length": 16, "overlap": 0.75, **settings})


WINDOWS = cut()


def draw(fraction=0.25, repetition=0, seed=0, sampling="window", windows=WINDOWS, train=NAMES):
    return draw_sample(
        sampling,
        train,
        VIDEOS,
        CLASSES,
        fraction=fraction,
        repetition=repetition,
        seed=seed,
        clips=windows,
    )


def drawn_windows(sample, windows=WINDOWS):
    return {(windows.windows[i].video, windows.windows[i].start) for i in sample.positions}


@given(
    fraction=st.floats(1e-4, 1.0),
    sampling=st.sampled_from(["window", "nested-window"]),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_properties(fraction, sampling, seed):
    sample = draw(fraction, 0, seed, sampling)
    assert len(sample.positions) == sample_size(fraction, len(WINDOWS))
    assert list(sample.positions) == sorted(set(sample.positions))
    part = WINDOWS.subset(sample.positions)
    assert sample.videos == tuple(sorted(part.videos))
    labels = [label for i in range(len(part)) for label in part.clip(i, 0, 0).labels.tolist()]
    assert sample.classes == tuple(CLASSES[label] for label in sorted(set(labels)))
    assert "throw" in sample.missing_classes
    assert len(set(labels)) <= sample.instances <= len(labels)


def test_an_instance_in_several_windows_counts_once():
    # The only instance, rows 2 to 6, is in the windows from rows 0, 1, 2 and, by three quarters, 3.
    windows = cut(["video_0"], overlap=0.9375)
    assert [w.start for w in windows.windows] == [0, 1, 2, 3]
    sample = draw(1.0, windows=windows)
    assert len(sample.positions) == 4
    assert (sample.videos, sample.instances, sample.classes) == (("video_0",), 1, ("run",))


def test_counts_targets_of_the_windows_and_not_all_of_their_videos():
    windows = cut(["video_3"])
    samples = [draw(1e-4, r, windows=windows) for r in range(50)]
    assert {sample.videos for sample in samples} == {("video_3",)}
    for sample in samples:
        (position,) = sample.positions
        assert sample.instances == len(windows.instances(position))
    assert {sample.instances for sample in samples} >= {1, 2}


def test_full_sample_is_every_window():
    for sampling in ("window", "nested-window"):
        sample = draw(1.0, 4, sampling=sampling)
        assert sample.positions == tuple(range(len(WINDOWS)))
        assert sample.videos == tuple(NAMES)
        assert sample.instances == sum(len(VIDEOS[name].labels) for name in NAMES)


@given(fractions=st.tuples(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0)).map(sorted))
@settings(max_examples=40, deadline=None)
def test_nested_samples_hold_the_smaller_ones(fractions):
    small, large = (draw(p, 2, 1, "nested-window") for p in fractions)
    assert set(small.positions) <= set(large.positions)


def test_every_fraction_repetition_and_seed_is_a_draw_of_its_own():
    base = set(draw().positions)
    assert base - set(draw(0.5).positions)
    assert base != set(draw(repetition=1).positions)
    assert base != set(draw(seed=1).positions)


@pytest.mark.parametrize("sampling", ["window", "nested-window"])
def test_order_of_the_videos_does_not_matter(sampling):
    turned = cut(NAMES[::-1])
    assert turned.windows != WINDOWS.windows
    one, other = draw(sampling=sampling), draw(sampling=sampling, windows=turned, train=NAMES[::-1])
    assert drawn_windows(one) == drawn_windows(other, turned)
    assert (one.videos, one.instances) == (other.videos, other.instances)


@pytest.mark.parametrize("sampling", ["window", "nested-window"])
def test_draws_are_uniform(sampling):
    counts = np.zeros(len(WINDOWS))
    for repetition in range(2000):
        counts[list(draw(0.25, repetition, sampling=sampling).positions)] += 1
    share = sample_size(0.25, len(WINDOWS)) / len(WINDOWS)
    assert np.abs(counts - 2000 * share).max() < 5 * np.sqrt(2000 * share * (1 - share))


def test_a_window_that_is_cut_twice_is_drawn_twice_on_its_own():
    windows = cut(["video_7"], length=60, overlap=0.5, cover="opentad", drop_empty=False)
    assert [w.start for w in windows.windows] == [0, 30, 60, 60]
    pairs = {draw(0.5, r, windows=windows).positions for r in range(200)}
    assert pairs == {(i, j) for i in range(4) for j in range(i + 1, 4)}


def test_known_draw():
    # Guards old studies: if this changes, their trials can no longer be recomputed.
    assert drawn_windows(draw(0.1)) == KNOWN
    assert drawn_windows(draw(0.1, sampling="nested-window")) == KNOWN_NESTED


def test_windows_are_needed_and_of_the_training_videos():
    with pytest.raises(ConfigError, match="'nested-window' needs the windows of the training"):
        draw(sampling="nested-window", windows=None)
    with pytest.raises(DataError, match="windows of 'video_7', which is no training video"):
        draw(train=NAMES[:7])


def test_other_samplings_ignore_the_windows():
    assert draw(sampling="video") == draw(sampling="video", windows=None)


KNOWN = {("video_3", 24), ("video_3", 56), ("video_6", 24), ("video_7", 56)}
KNOWN_NESTED = {("video_1", 20), ("video_1", 24), ("video_3", 32), ("video_3", 56)}
