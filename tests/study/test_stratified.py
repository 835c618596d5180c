# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tal_fast.study.sampling import draw_sample, stratified_order

HELD = st.lists(st.frozensets(st.integers(0, 6), max_size=4), max_size=25)
SINGLE = st.lists(st.integers(0, 5).map(lambda label: frozenset([label])), max_size=40)


def by_the_words(held):
    """The rule as its docstring states it, from the start for every video."""
    classes = sorted(set().union(*held))
    order = []
    while True:
        candidates = []
        for label in classes:
            mine = [video for video in range(len(held)) if label in held[video]]
            left = [video for video in mine if video not in order]
            if left:
                share = Fraction(len(mine) - len(left), len(mine))
                candidates.append((share, len(mine), left[0]))
        if not candidates:
            return order + [video for video in range(len(held)) if video not in order]
        order.append(min(candidates)[2])


class TestOrder:
    @given(HELD)
    @settings(deadline=None)
    def test_is_the_rule(self, held):
        assert stratified_order(held, len(held)) == by_the_words(held)

    @given(HELD, st.integers(0, 25))
    @settings(deadline=None)
    def test_fewer_are_the_first_ones(self, held, count):
        assert stratified_order(held, count) == stratified_order(held, len(held))[:count]

    @given(HELD)
    @settings(deadline=None)
    def test_every_video_brings_a_class_while_one_is_left(self, held):
        everything = set().union(*held)
        seen = set()
        for video in stratified_order(held, len(held)):
            if seen == everything:
                break
            assert held[video] - seen
            seen |= held[video]
        assert seen == everything

    @given(SINGLE)
    @settings(deadline=None)
    def test_shares_stay_within_one_video(self, held):
        """No class is a video ahead of another one's share when each video holds one class."""
        totals = {label: sum(label in one for one in held) for label in set().union(*held)}
        taken = dict.fromkeys(totals, 0)
        for video in stratified_order(held, len(held)):
            (label,) = held[video]
            taken[label] += 1
            least = min(Fraction(taken[other], totals[other]) for other in totals)
            for other, total in totals.items():
                assert Fraction(taken[other] - 1, total) <= least

    def test_rarest_class_first_then_the_order_given(self):
        often, seldom, also = frozenset("o"), frozenset("s"), frozenset("a")
        assert stratified_order([often, often, often, also, seldom, also, seldom], 3) == [3, 4, 0]

    def test_videos_without_an_instance_come_last(self):
        nothing, one = frozenset(), frozenset([0])
        assert stratified_order([nothing, one, nothing, one], 4) == [1, 3, 0, 2]
        assert stratified_order([nothing, one, nothing, one], 3) == [1, 3, 0]
        assert stratified_order([nothing, nothing], 1) == [0]
        assert stratified_order([], 1) == []


# 200 videos of 20 classes, most with one, some with two, as THUMOS14's training videos have.
LABELS = [str(label) for label in range(20)]
RNG = np.random.default_rng(0)
THUMOS_LIKE = {
    f"video_{i:03d}": SimpleNamespace(
        labels=np.array([i % 20] * RNG.integers(1, 30) + [(i + 7) % 20] * (i % 9 == 0))
    )
    for i in range(200)
}


def classes_of(sampling, fraction, repetitions=100):
    names = list(THUMOS_LIKE)
    samples = [
        draw_sample(sampling, names, THUMOS_LIKE, LABELS, fraction=fraction, repetition=r, seed=0)
        for r in range(repetitions)
    ]
    return np.array([len(sample.classes) for sample in samples])


@pytest.mark.parametrize("sampling", ["stratified", "nested-stratified"])
class TestSamples:
    def test_covers_more_classes_than_a_random_draw(self, sampling):
        for fraction in (0.02, 0.03, 0.05, 0.1, 0.2):
            assert (
                classes_of(sampling, fraction).mean() > classes_of("video", fraction).mean() + 0.1
            )

    def test_covers_all_classes_with_a_video_for_each(self, sampling):
        assert (classes_of(sampling, 0.1) == 20).all()
        assert (classes_of("video", 0.1) < 20).all()

    def test_too_small_a_sample_says_what_it_misses(self, sampling):
        sample = draw_sample(
            sampling, list(THUMOS_LIKE), THUMOS_LIKE, LABELS, fraction=0.03, repetition=0, seed=0
        )
        assert len(sample.videos) == 6
        assert 6 <= len(sample.classes) < 20
        assert sorted(sample.classes + sample.missing_classes) == sorted(LABELS)
