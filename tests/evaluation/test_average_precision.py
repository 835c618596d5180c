# SPDX-License-Identifier: Apache-2.0
import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_ap import average_precision, tiou

from tal_fast.errors import ConfigError, DataError
from tal_fast.evaluation import DIALECTS, evaluate_arrays

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)


def run(ground_truth, detections, num_classes=None, thresholds=THRESHOLDS, **options):
    """Calls evaluate_arrays with rows (video, label, start, end[, score])."""
    gt = np.array(ground_truth, dtype=np.float64).reshape(-1, 4)
    det = np.array(detections, dtype=np.float64).reshape(-1, 5)
    return evaluate_arrays(
        gt[:, 0].astype(np.int64),
        gt[:, 1].astype(np.int64),
        gt[:, 2:],
        det[:, 0].astype(np.int64),
        det[:, 1].astype(np.int64),
        det[:, 2:4],
        det[:, 4],
        classes=num_classes,
        tiou_thresholds=thresholds,
        **options,
    )


def random_case(seed, videos=30, classes=7, instances=200, detections=3000, score_levels=None):
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 100, instances)
    truth = np.stack(
        [
            rng.integers(0, videos, instances),
            rng.integers(0, classes, instances),
            start,
            start + rng.exponential(6, instances),
        ],
        1,
    )
    found = truth[rng.integers(0, instances, detections)]
    found[:, 2:] = np.sort(found[:, 2:] + rng.normal(0, 1.5, (detections, 2)), axis=1)
    score = rng.permutation(detections) / detections
    if score_levels:
        score = np.floor(score * score_levels)
    return truth.tolist(), np.column_stack([found, score]).tolist()


class TestAgainstTheTwin:
    # Few values on a coarse raster, so that ties, duplicates, zero lengths and tIoUs that lie
    # exactly on a threshold are the rule and not the exception.
    video = st.integers(0, 3)
    label = st.integers(0, 3)
    times = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted)
    score = st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1e300])
    instance = st.tuples(video, label, times).map(lambda t: (t[0], t[1], *t[2]))
    detection = st.tuples(video, label, times, score).map(lambda t: (t[0], t[1], *t[2], t[3]))
    threshold = st.sampled_from([0.1, 0.25, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.7, 0.75, 1.0])

    @staticmethod
    def check(ground_truth, detections, thresholds, num_classes):
        result = run(ground_truth, detections, num_classes, thresholds)
        ap, true = average_precision(ground_truth, detections, num_classes, thresholds)
        np.testing.assert_array_equal(result.true_positives, true)
        np.testing.assert_allclose(result.ap, ap, rtol=0, atol=1e-12)
        present = [row for row in ap if not math.isnan(row[0])]
        assert result.average_map == pytest.approx(np.mean(present), abs=1e-12)

    @settings(max_examples=400, deadline=None)
    @given(
        st.lists(instance, min_size=1, max_size=15),
        st.lists(detection, max_size=40),
        st.lists(threshold, min_size=1, max_size=5, unique=True),
    )
    def test_any_input(self, ground_truth, detections, thresholds):
        self.check(ground_truth, detections, thresholds, 4)

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 2**32), st.integers(0, 60))
    def test_continuous_times(self, seed, size):
        ground_truth, detections = random_case(seed, 4, 3, 12, size)
        self.check(ground_truth, detections, THRESHOLDS, 4)

    @pytest.mark.parametrize("score_levels", [None, 20])
    def test_larger(self, score_levels):
        self.check(*random_case(3, score_levels=score_levels), THRESHOLDS, 7)

    @pytest.mark.slow
    @settings(max_examples=10_000, deadline=None)
    @given(
        st.lists(instance, min_size=1, max_size=25),
        st.lists(detection, max_size=60),
        st.lists(threshold, min_size=1, max_size=9, unique=True),
    )
    def test_many_inputs(self, ground_truth, detections, thresholds):
        self.check(ground_truth, detections, thresholds, 4)


class TestByHand:
    def test_perfect_is_exactly_one(self):
        ground_truth = [(v, c, 10 * v, 10 * v + 3) for v in range(7) for c in range(3)]
        result = run(ground_truth, [(*g, i) for i, g in enumerate(ground_truth)])
        assert result.average_map == 1.0
        assert (result.ap == 1.0).all()

    def test_two_of_three_found(self):
        ground_truth = [(0, 0, 0, 10), (0, 0, 20, 30), (1, 0, 0, 10)]
        detections = [(0, 0, 0, 10, 0.9), (0, 0, 50, 60, 0.8), (1, 0, 0, 10, 0.7)]
        # Hits at ranks 1 and 3: precision 1 and 2/3, each over a recall step of 1/3.
        result = run(ground_truth, detections, thresholds=(0.5,))
        assert result.ap[0, 0] == pytest.approx((1 + 2 / 3) / 3, abs=1e-15)

    def test_envelope_takes_the_larger_precision_to_the_right(self):
        ground_truth = [(0, 0, 0, 10), (0, 0, 20, 30)]
        detections = [(0, 0, 50, 60, 0.9), (0, 0, 0, 10, 0.8), (0, 0, 20, 30, 0.7)]
        # Precision 0, 1/2, 2/3: the envelope is 2/3 everywhere.
        result = run(ground_truth, detections, thresholds=(0.5,))
        assert result.ap[0, 0] == pytest.approx(2 / 3, abs=1e-15)

    def test_one_instance_is_matched_once(self):
        result = run([(0, 0, 0, 10)], [(0, 0, 0, 10, 0.9), (0, 0, 0, 10, 0.8)], thresholds=(0.5,))
        assert result.true_positives[0, 0] == 1

    def test_second_best_is_taken_when_the_best_is(self):
        ground_truth = [(0, 0, 0, 10), (0, 0, 2, 12)]
        detections = [(0, 0, 0, 10, 0.9), (0, 0, 0, 10, 0.8)]
        result = run(ground_truth, detections, thresholds=(0.5, 0.7))
        assert result.true_positives.tolist() == [[2, 1]]

    def test_locks_hold_per_threshold(self):
        # The first detection takes the instance at 0.3 only, the second at 0.7 only.
        detections = [(0, 0, 0, 5, 0.9), (0, 0, 0, 10, 0.8)]
        result = run([(0, 0, 0, 10)], detections, thresholds=(0.3, 0.7))
        assert result.ap.tolist() == [[1.0, 0.5]]

    @pytest.mark.parametrize(("threshold", "reached"), [(0.5, 1), (0.5000000000000001, 0)])
    def test_tiou_on_the_threshold_reaches_it(self, threshold, reached):
        assert tiou((0, 10), (0, 5)) == 0.5
        result = run([(0, 0, 0, 10)], [(0, 0, 0, 5, 1)], thresholds=(threshold,))
        assert result.true_positives[0, 0] == reached

    def test_thresholds_are_used_as_given_and_in_that_order(self):
        # np.linspace(0.3, 0.7, 5)[1] lies below 0.4; this tIoU lies between the two.
        below = np.linspace(0.3, 0.7, 5)[1]
        assert below < 0.4
        length = 10 * below
        assert tiou((0, 10), (0, length)) == below
        result = run([(0, 0, 0, 10)], [(0, 0, 0, length, 1)], thresholds=(0.4, below))
        assert result.ap.tolist() == [[0.0, 1.0]]
        assert result.tiou_thresholds == (0.4, below)

    def test_other_video_and_other_class_are_false_positives(self):
        ground_truth = [(0, 0, 0, 10), (1, 1, 0, 10)]
        detections = [(1, 0, 0, 10, 0.9), (2, 0, 0, 10, 0.8), (0, 0, 0, 10, 0.7)]
        result = run(ground_truth, detections, thresholds=(0.5,))
        assert result.ap[:, 0] == pytest.approx([1 / 3, 0])

    def test_class_without_ground_truth_counts_in_no_mean(self):
        result = run([(0, 1, 0, 10)], [(0, 1, 0, 10, 0.9), (0, 2, 0, 10, 0.9)], 4)
        assert np.isnan(result.ap[[0, 2, 3]]).all()
        assert result.average_map == 1.0
        assert result.absent_classes == ("0", "2", "3")
        assert result.predictions_per_class.tolist() == [0, 1, 1, 0]
        assert result.ground_truth_per_class.tolist() == [0, 1, 0, 0]

    def test_class_without_prediction_has_ap_zero(self):
        result = run([(0, 0, 0, 10), (0, 1, 0, 10)], [(0, 0, 0, 10, 0.9)])
        assert result.ap[1].tolist() == [0.0] * 5
        assert result.average_map == 0.5

    def test_no_prediction_at_all(self):
        result = run([(0, 0, 0, 10)], [])
        assert result.average_map == 0.0
        assert result.num_predictions == 0
        assert evaluate_arrays([0], [0], [[0, 10]], [], [], [], []).average_map == 0.0

    def test_zero_length_ground_truth_is_never_hit(self):
        result = run([(0, 0, 5, 5)], [(0, 0, 5, 5, 0.9), (0, 0, 4, 6, 0.8)])
        assert result.average_map == 0.0

    def test_duplicate_ground_truth_stays(self):
        result = run([(0, 0, 0, 10)] * 2, [(0, 0, 0, 10, 0.9)], thresholds=(0.5,))
        assert result.ap.tolist() == [[0.5]]

    def test_equal_scores_keep_the_input_order(self):
        wrong, right = (1, 0, 0, 10, 0.5), (0, 0, 0, 10, 0.5)
        assert run([(0, 0, 0, 10)], [wrong, right]).average_map == 0.5
        assert run([(0, 0, 0, 10)], [right, wrong]).average_map == 1.0

    def test_equal_tiou_goes_to_the_first_instance(self):
        # The first detection overlaps both by 1/3; the second reaches only the second instance.
        ground_truth = [(0, 0, 0, 2), (0, 0, 2, 4)]
        detections = [(0, 0, 1, 3, 0.9), (0, 0, 2, 4, 0.8)]
        assert tiou((0, 2), (1, 3)) == tiou((2, 4), (1, 3))
        assert run(ground_truth, detections, thresholds=(0.3,)).true_positives[0, 0] == 2
        swapped = run(ground_truth[::-1], detections, thresholds=(0.3,))
        assert swapped.true_positives[0, 0] == 1


class TestDeterminism:
    @pytest.mark.parametrize("threads", [0, 2, 3, 8, 100])
    def test_thread_count_changes_no_bit(self, threads):
        case = random_case(1, score_levels=50)
        one = run(*case, num_threads=1)
        many = run(*case, num_threads=threads)
        assert one.ap.tobytes() == many.ap.tobytes()
        assert one.average_map == many.average_map

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_nor_does_it_in_any_dialect(self, dialect):
        truth, found = random_case(1, detections=30_000, score_levels=50)
        truth += truth[:40]  # equal tIoUs, so that the order of ties is asked for
        one = run(truth, found, dialect=dialect, strict=True, num_threads=1)
        for threads in (2, 5):
            many = run(truth, found, dialect=dialect, strict=True, num_threads=threads)
            assert one.ap.tobytes() == many.ap.tobytes()
            assert one.native.hits.tobytes() == many.native.hits.tobytes()

    def test_order_of_videos_does_not_matter_without_ties(self):
        truth, found = random_case(2)
        first = run(truth, found)
        new_number = np.random.default_rng(0).permutation(30)
        truth2 = sorted((int(new_number[int(v)]), *rest) for v, *rest in truth)
        found2 = sorted((int(new_number[int(v)]), *rest) for v, *rest in found)
        assert first.ap.tobytes() == run(truth2, found2).ap.tobytes()

    def test_video_numbers_may_be_any_integers(self):
        truth, found = random_case(4)
        first = run(truth, found)
        far = run(
            [(v * 10**12 - 5, *rest) for v, *rest in truth],
            [(v * 10**12 - 5, *rest) for v, *rest in found],
        )
        assert first.ap.tobytes() == far.ap.tobytes()
        assert first.num_videos == far.num_videos == 30


class TestErrors:
    good: ClassVar = {
        "gt_video": [0],
        "gt_label": [0],
        "gt_segments": [[0.0, 1.0]],
        "video": [0, 0],
        "label": [0, 0],
        "segments": [[0.0, 1.0], [1.0, 2.0]],
        "scores": [0.5, 0.4],
    }

    def call(self, **changed):
        return evaluate_arrays(**{**self.good, **changed})

    def test_good_is_good(self):
        assert self.call().average_map == 1.0

    @pytest.mark.parametrize(
        "convert",
        [
            lambda key, values: torch.tensor(values),
            lambda key, values: torch.tensor(values, requires_grad=isinstance(values[0], float)),
            lambda key, values: torch.tensor(values, dtype=torch.bfloat16).float().requires_grad_()
            if key == "scores" else torch.tensor(values, dtype=torch.int32),
            lambda key, values: torch.tensor(values, dtype=torch.bfloat16)
            if "segments" in key else np.array(values, dtype=np.float16)
            if key == "scores" else np.array(values, dtype=np.uint8),
            lambda key, values: [torch.tensor(value) for value in values],
            lambda key, values: np.array(values, dtype=np.float32 if key == "scores" else np.int16),
        ],
        ids=["tensors", "gradients", "int32", "bfloat16", "lists of tensors", "int16"],
    )  # fmt: skip
    def test_arrays_of_all_kinds(self, convert):
        changed = {key: convert(key, values) for key, values in self.good.items()}
        assert self.call(**changed, classes=np.int64(1)).average_map == 1.0

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"scores": [0.5, math.nan]}, "detection 1: expected a finite score, got nan"),
            ({"scores": [0.5, math.inf]}, "detection 1: expected a finite score, got inf"),
            ({"segments": [[0, 1], [2, 1]]}, r"detection 1: expected end >= start, got \[2"),
            ({"segments": [[math.nan, 1], [0, 1]]}, "detection 0: expected finite times"),
            ({"gt_segments": [[1, 0]]}, "ground truth 0: expected end >= start"),
            ({"gt_segments": [[0, math.inf]]}, "ground truth 0: expected finite times"),
            ({"label": [0, -1]}, r"detection 1: expected a label in \[0, 1\), got -1"),
            ({"label": [0, 2], "classes": 2}, r"detection 1: expected a label in \[0, 2\), got 2"),
            ({"gt_label": [3], "classes": ["a"]}, r"ground truth 0: expected a label in \[0, 1\)"),
            ({"scores": [0.5]}, r"expected scores of shape \[2\], got \[1\]"),
            ({"segments": [[0, 1, 2]] * 2}, r"expected segments of shape \[2, 2\], got \[2, 3\]"),
            ({"gt_label": [[0]]}, r"expected gt_label of shape \[1\], got \[1, 1\]"),
            ({"video": [[0, 0]]}, r"expected video of shape \[N\], got \[1, 2\]"),
            ({"label": [0.0, 1.0]}, "expected label of integers, got dtype float64"),
            ({"scores": ["0.5", "0.4"]}, "expected scores of numbers, got dtype <U3"),
            ({"scores": [True, False]}, "expected scores of numbers, got dtype bool"),
            ({"gt_video": [], "gt_label": [], "gt_segments": []}, "at least one instance"),
            ({"segments": [[0, 1], [2]]}, "evaluate_arrays: segments: expected an array of number"),
            ({"label": torch.ones(2)}, "expected label of integers, got dtype float64"),
            ({"scores": torch.empty(2, device="meta")}, "evaluate_arrays: scores: expected an arr"),
        ],
    )
    def test_bad_arrays(self, changed, message):
        with pytest.raises(DataError, match=message):
            self.call(**changed)

    @pytest.mark.parametrize(
        ("thresholds", "message"),
        [
            ((), "expected 1 to 64 tiou_thresholds, got 0"),
            (tuple(k / 65 for k in range(1, 66)), "expected 1 to 64 tiou_thresholds, got 65"),
            ((0.5, 0.0), r"in \(0, 1\], got 0.0"),
            ((1.5,), r"in \(0, 1\], got 1.5"),
            ((math.nan,), r"in \(0, 1\], got nan"),
            ((0.5, 0.3, 0.5), "expected different tiou_thresholds"),
            (("a",), "as a sequence of numbers"),
            (0.5, "as a sequence of numbers, got 0.5"),
        ],
    )
    def test_bad_thresholds(self, thresholds, message):
        with pytest.raises(ConfigError, match=message):
            self.call(tiou_thresholds=thresholds)

    def test_64_thresholds_are_fine(self):
        result = self.call(tiou_thresholds=tuple(k / 64 for k in range(1, 65)))
        assert (result.ap == 1.0).all()
