# SPDX-License-Identifier: Apache-2.0
"""Recall, bootstrap and comparison, each against a plain computation."""

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_ap import tiou

from tal_fast.errors import ConfigError, DataError
from tal_fast.evaluation import (
    average_recall,
    bootstrap,
    compare,
    evaluate_arrays,
    recall_at_kx,
)

THRESHOLDS = (0.3, 0.5, 0.7)


def run(truth, found, num_classes=3, thresholds=THRESHOLDS, **options):
    gt = np.array(truth, dtype=np.float64).reshape(-1, 4)
    det = np.array(found, dtype=np.float64).reshape(-1, 5)
    return evaluate_arrays(
        gt[:, 0].astype(np.int64), gt[:, 1].astype(np.int64), gt[:, 2:],
        det[:, 0].astype(np.int64), det[:, 1].astype(np.int64), det[:, 2:4], det[:, 4],
        classes=num_classes, tiou_thresholds=thresholds, **options,
    )  # fmt: skip


def random_case(seed, videos=12, classes=3, instances=60, detections=900):
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 60, instances)
    truth = np.stack(
        [
            rng.integers(0, videos, instances),
            rng.integers(0, classes, instances),
            start,
            start + rng.exponential(6, instances) + 0.1,
        ],
        1,
    )
    truth[:videos, 0] = np.arange(videos)  # every video has one
    found = truth[rng.integers(0, instances, detections)]
    found[:, 2:] = np.sort(found[:, 2:] + rng.normal(0, 2, (detections, 2)), axis=1)
    return truth.tolist(), np.column_stack([found, rng.random(detections)]).tolist()


video = st.integers(0, 3)
label = st.integers(0, 2)
times = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted)
score = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
instance = st.tuples(video, label, times).map(lambda t: (t[0], t[1], *t[2]))
detection = st.tuples(video, label, times, score).map(lambda t: (t[0], t[1], *t[2], t[3]))


def recall_twin(truth, found, ks, thresholds, num_classes=3):
    out = [[0.0] * len(ks) for _ in thresholds]
    classes = [c for c in range(num_classes) if any(g[1] == c for g in truth)]
    for t, threshold in enumerate(thresholds):
        for n, k in enumerate(ks):
            recalls = []
            for c in classes:
                hit = 0
                for v in {g[0] for g in truth}:
                    own = [g for g in truth if g[:2] == (v, c)]
                    best = sorted((d for d in found if d[:2] == (v, c)), key=lambda d: -d[4])
                    best = best[: k * len(own)]
                    hit += sum(any(tiou(g[2:], d[2:4]) >= threshold for d in best) for g in own)
                recalls.append(hit / sum(g[1] == c for g in truth))
            out[t][n] = sum(recalls) / len(recalls)
    return out


def average_recall_twin(truth, found, thresholds, most):
    videos = sorted({g[0] for g in truth})
    ratio = most * float(len(videos)) / len(found)
    lists = []
    retrieved = 0
    for v in videos:
        own = sorted((d for d in found if d[0] == v), key=lambda d: -d[4])
        own = own[: min(int(len(own) * ratio), len(own))]
        retrieved += len(own)
        lists.append((own, [g for g in truth if g[0] == v]))
    if retrieved == 0:
        return None
    shares = [n / most * (most * float(len(videos)) / retrieved) for n in range(1, most + 1)]
    recall = [
        [
            sum(
                any(
                    tiou(g[2:], d[2:4]) >= threshold
                    for d in own[: min(int(len(own) * share), len(own))]
                )
                for own, instances in lists
                for g in instances
            )
            / len(truth)
            for share in shares
        ]
        for threshold in thresholds
    ]
    return recall, [share * (retrieved / len(videos)) for share in shares]


class TestRecall:
    @settings(max_examples=150, deadline=None)
    @given(st.lists(instance, min_size=1, max_size=12), st.lists(detection, max_size=30))
    def test_at_kx(self, truth, found):
        result = run(truth, found)
        np.testing.assert_allclose(
            recall_at_kx(result, (1, 2, 5)),
            recall_twin(truth, found, (1, 2, 5), THRESHOLDS),
            rtol=0,
            atol=1e-12,
        )

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(instance, min_size=1, max_size=12),
        st.lists(detection, min_size=1, max_size=30),
        st.integers(1, 12),
    )
    def test_average_recall(self, truth, found, most):
        result = run(truth, found)
        twin = average_recall_twin(truth, found, THRESHOLDS, most)
        if twin is None:
            with pytest.raises(DataError, match="leaves no prediction"):
                average_recall(result, max_proposals=most)
            return
        got = average_recall(result, max_proposals=most)
        np.testing.assert_allclose(got.recall, twin[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.proposals_per_video, twin[1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.average_recall, np.mean(twin[0], axis=0), atol=1e-12)
        assert got.at(most) == got.average_recall[-1]
        if most > 1:
            area = np.trapezoid(got.average_recall, got.proposals_per_video)
            assert got.auc == pytest.approx(area / got.proposals_per_video[-1], abs=1e-12)

    def test_cut_offs_and_float32(self):
        truth, found = random_case(0)
        result = run(truth, found)
        assert average_recall(result, max_proposals=20, cut_offs=100).recall.shape == (3, 100)
        # 7/10 in float32 segments rounds below 0.7.
        one = run([(0, 0, 0, 10)], [(0, 0, 0, 7, 1.0)], thresholds=(0.7,))
        assert average_recall(one, max_proposals=1).recall[0, 0] == 1.0
        rules = {"dialect": "mmaction2"}
        single = run([(0, 0, 0, 10)], [(0, 0, 0, 7, 1.0)], thresholds=(0.7,), **rules)
        assert average_recall(single, max_proposals=1, single_segments=True).recall[0, 0] == 0.0

    def test_ties_as_numpy_has_them(self):
        # Reversed order of equal scores: the second of the input is the best.
        found = [(0, 0, 50, 60, 0.5), (0, 0, 0, 10, 0.5)]
        assert recall_at_kx(run([(0, 0, 0, 10)], found), (1,))[0, 0] == 0.0
        assert recall_at_kx(run([(0, 0, 0, 10)], found, ties="numpy"), (1,))[0, 0] == 1.0

    def test_errors(self):
        result = run([(0, 0, 0, 10)], [])
        with pytest.raises(ConfigError, match="expected positive integers"):
            recall_at_kx(result, (0,))
        with pytest.raises(ConfigError, match="expected numbers >= 1, got 0"):
            average_recall(result, max_proposals=0)
        with pytest.raises(DataError, match="expected at least one prediction, got none"):
            average_recall(result)
        assert recall_at_kx(result).tolist() == [[0.0, 0.0]] * 3


class TestBootstrap:
    @pytest.mark.parametrize("dialect", ["tal_fast", "thumos"])
    def test_a_replicate_is_an_evaluation_of_the_drawn_videos(self, dialect):
        from tal_fast.ops import _C

        truth, found = random_case(1)
        result = run(truth, found, dialect=dialect)
        ap = result.native.resample(25, 7)
        for replicate in range(25):
            drawn = _C.draw_videos(result.num_videos, 7, replicate).tolist()
            assert sum(drawn) == result.num_videos
            # Copies of a video are videos of their own; scores keep their order.
            copies = [
                [(v + 100 * n, *rest) for v, *rest in rows for n in range(drawn[int(v)])]
                for rows in (truth, found)
            ]
            expected = run(*copies, dialect=dialect).ap
            np.testing.assert_allclose(ap[replicate], expected, rtol=0, atol=1e-12)

    def test_thread_count_changes_no_bit(self):
        case = random_case(2)
        one = run(*case, num_threads=1).native.resample(50, 3)
        many = run(*case, num_threads=4).native.resample(50, 3)
        assert one.tobytes() == many.tobytes()

    def test_intervals_hold_the_value_and_shrink_with_more_videos(self):
        few = bootstrap(run(*random_case(3)), replicates=400)
        many = bootstrap(
            run(*random_case(3, videos=200, instances=1000, detections=9000)), replicates=400
        )
        for found in (few, many):
            interval = found.average_map
            assert interval.low < interval.value < interval.high
            assert len(found.samples) == 400
            assert len(found.map_per_threshold) == 3
        width = [i.average_map.high - i.average_map.low for i in (few, many)]
        assert width[1] < width[0] / 2
        assert few.to_dict()["average_map"] == [few.average_map.low, few.average_map.high]

    def test_wider_confidence_is_wider(self):
        result = run(*random_case(4))
        narrow, wide = (bootstrap(result, confidence=c).average_map for c in (0.5, 0.99))
        assert wide.low < narrow.low < narrow.high < wide.high

    def test_a_pickled_result_still_works(self):
        result = run(*random_case(4))
        again = pickle.loads(pickle.dumps(result))
        assert again.native is None
        assert bootstrap(again).average_map == bootstrap(result).average_map

    @pytest.mark.parametrize(
        "options", [{"replicates": 0}, {"confidence": 1.0}, {"confidence": 0}, {"seed": -1}]
    )
    def test_errors(self, options):
        with pytest.raises(ConfigError, match="expected replicates >= 1"):
            bootstrap(run([(0, 0, 0, 10)], []), **options)


class TestCompare:
    def test_a_result_with_itself(self):
        result = run(*random_case(5))
        same = compare(result, result)
        assert same.difference.value == same.difference.low == same.difference.high == 0
        assert not same.larger_than_noise
        assert same.p_value == 1.0

    def test_a_better_one(self):
        truth, found = random_case(6, videos=60, instances=300, detections=3000)
        better = [(*d[:4], d[4] + (d[4] > 0.5)) for d in found]
        hit = {tuple(g[:2]) for g in truth}
        assert hit
        perfect = [(*g, 5.0) for g in truth[::2]]
        comparison = compare(run(truth, found), run(truth, better + perfect))
        assert comparison.larger_than_noise
        assert comparison.difference.low > 0
        assert comparison.p_value < 0.01
        assert "larger than the noise" in str(comparison)
        back = compare(run(truth, better + perfect), run(truth, found))
        assert back.difference.value == -comparison.difference.value
        assert back.difference.high < 0

    def test_the_pairing_takes_out_what_both_share(self):
        truth, found = random_case(7)
        other = copy.deepcopy(found)
        other[0][4] = -1.0
        first, second = run(truth, found), run(truth, other)
        paired = compare(first, second).difference
        alone = bootstrap(first).average_map
        assert paired.high - paired.low < (alone.high - alone.low) / 5

    def test_errors(self):
        result = run([(0, 0, 0, 10)], [])
        with pytest.raises(ConfigError, match="equal tiou_thresholds"):
            compare(result, run([(0, 0, 0, 10)], [], thresholds=(0.5,)))
        with pytest.raises(ConfigError, match="over the same instances"):
            compare(result, run([(0, 0, 0, 11)], []))


def test_metrics_of_no_predictions():
    result = run([(0, 0, 0, 10), (1, 1, 0, 5)], [])
    found = bootstrap(result, replicates=10)
    assert found.average_map.value == found.average_map.high == 0.0
    assert math.isnan(found.ap[0, 2, 0])
