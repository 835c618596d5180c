# SPDX-License-Identifier: Apache-2.0
"""The error analysis against plain loops over detections and instances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_ap import tiou
from reference_dialects import interpolated_area
from test_metrics import THRESHOLDS, detection, instance, random_case, run

from tal_fast.errors import ConfigError
from tal_fast.evaluation import ERRORS, analyse_errors, evaluate


def kinds_twin(truth, found, matched, threshold, floor=0.1):
    out = []
    for i, (video, label, start, end, _) in enumerate(found):
        if matched[i] >= 0:
            out.append(0)
            continue
        overlaps = [(tiou(g[2:], (start, end)), g[1] == label) for g in truth if g[0] == video]
        best, own = max(overlaps, default=(0.0, False))  # of equals the one of the own class
        if best >= threshold:
            out.append(1 if own else 2)
        elif best >= floor:
            out.append(3 if own else 4)
        else:
            out.append(5)
    return out


def bin_ap_twin(found, matched, instances, which, label, normalizer):
    """Normalised AP of the instances `which` of one class, or None."""
    mine = [g for g in which if instances[g][1] == label]
    if not mine:
        return None
    order = sorted((i for i, d in enumerate(found) if d[1] == label), key=lambda i: -found[i][4])
    true = false = 0
    precision = []
    for i in order:
        if matched[i] < 0:
            false += 1
        elif matched[i] in mine:
            true += 1
            scaled = true / len(mine) * normalizer
            precision.append(scaled / (scaled + false))
    return sum(max(precision[n:]) for n in range(len(precision))) / len(mine)


class TestAgainstPlainLoops:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(instance, min_size=1, max_size=12), st.lists(detection, max_size=30))
    def test_everything(self, truth, found):
        result = run(truth, found)
        errors = analyse_errors(result)
        present = [c for c in range(3) if any(g[1] == c for g in truth)]
        normalizer = len(truth) / len(present)
        for k, threshold in enumerate(THRESHOLDS):
            matched = errors.matched[k].tolist()
            expected = kinds_twin(truth, found, matched, threshold)
            assert errors.kinds[k].tolist() == expected
            assert sum(m >= 0 for m in matched) == result.true_positives[:, k].sum()
            lost = [g for g in range(len(truth)) if g not in matched]
            assert errors.missed[k] == pytest.approx(len(lost) / len(truth))
            for e in range(len(ERRORS)):
                kept = [d for d, kind in zip(found, expected, strict=True) if kind != e + 1]
                gained = run(truth, kept).map_per_threshold[k] - result.map_per_threshold[k]
                assert errors.headroom[e, k] == pytest.approx(gained, abs=1e-12)
            only = [g for i, g in enumerate(truth) if i not in lost]
            aps = []
            for c in present:
                order = sorted(
                    (i for i, d in enumerate(found) if d[1] == c), key=lambda i: -found[i][4]
                )
                count = sum(g[1] == c for g in only)
                hits = [matched[i] >= 0 for i in order]
                aps.append(interpolated_area(hits, count) if count else 0.0)
            gained = np.mean(aps) - result.map_per_threshold[k]
            assert errors.headroom[-1, k] == pytest.approx(gained, abs=1e-12)
            for s in errors.sensitivity:
                values = {
                    "length": [g[3] - g[2] for g in truth],
                    "instances": [sum(h[:2] == g[:2] for h in truth) for g in truth],
                }[s.name]
                lows = [-1.0, *s.edges]
                for b in range(len(s.bins)):
                    high = s.edges[b] if b < len(s.edges) else np.inf
                    which = [g for g, x in enumerate(values) if lows[b] < x <= high]
                    assert s.instances[b] == len(which)
                    ap = [
                        bin_ap_twin(found, matched, truth, which, c, normalizer) for c in range(3)
                    ]
                    ap = [x for x in ap if x is not None]
                    if ap:
                        assert s.ap[b, k] == pytest.approx(np.mean(ap), abs=1e-12)
                        share = len(set(which) & set(lost)) / len(which)
                        assert s.missed[b, k] == pytest.approx(share)
                    else:
                        assert np.isnan(s.ap[b, k])

    def test_the_profile_goes_down_the_ranking(self):
        truth, found = random_case(0)
        errors = analyse_errors(run(truth, found), depth=4)
        for k in range(len(THRESHOLDS)):
            expected = np.zeros((4, 6), dtype=int)
            for c in range(3):
                order = sorted(
                    (i for i, d in enumerate(found) if d[1] == c), key=lambda i: -found[i][4]
                )
                size = sum(g[1] == c for g in truth)
                for rank, i in enumerate(order[: 4 * size]):
                    expected[rank // size, errors.kinds[k, i]] += 1
            assert errors.profile[k].tolist() == expected.tolist()

    def test_threads_do_not_matter(self):
        case = random_case(1, detections=20_000)
        one, many = (analyse_errors(run(*case, num_threads=n)) for n in (1, 3))
        assert one.kinds.tobytes() == many.kinds.tobytes()
        assert one.headroom.tobytes() == many.headroom.tobytes()


class TestByHand:
    truth = [(0, 0, 0, 10), (0, 1, 40, 50)]  # noqa: RUF012
    found = [  # noqa: RUF012
        (0, 0, 0, 10, 0.9),  # hit
        (0, 0, 0, 9, 0.8),  # double
        (0, 0, 40, 50, 0.7),  # wrong label
        (0, 0, 0, 4, 0.6),  # localization at 0.5
        (0, 0, 40, 43, 0.5),  # confusion
        (1, 0, 0, 10, 0.4),  # background
    ]

    def test_kinds(self):
        errors = analyse_errors(run(self.truth, self.found, thresholds=(0.5,)))
        assert errors.kinds.tolist() == [[0, 1, 2, 3, 4, 5]]
        assert errors.counts().tolist() == [[1] * 6]
        assert errors.missed.tolist() == [0.5]
        assert errors.best_instance.tolist() == [0, 0, 1, 0, 1, -1]
        assert errors.headroom[-1].tolist() == [0.0]
        text = errors.table()
        assert all(name in text for name in (*ERRORS, "missed"))
        content = errors.to_dict()
        assert content["counts"]["wrong_label"] == [1]
        assert set(content["headroom"]) == {
            "double", "wrong_label", "localization", "confusion", "background", "missed",
        }  # fmt: skip

    def test_bins(self):
        result = run(self.truth, self.found, thresholds=(0.5,))
        errors = analyse_errors(result, bins="thumos14")
        length = errors.sensitivity[0]
        assert (length.name, length.bins) == ("length", ("XS", "S", "M", "L", "XL"))
        assert length.instances.tolist() == [0, 0, 2, 0, 0]  # 6 < 10 <= 12
        own = analyse_errors(result, bins={"length": [10]}).sensitivity[0]
        assert own.instances.tolist() == [2, 0]  # a value on the edge is below it

    def test_coverage_needs_durations(self):
        truth = {
            "database": {
                "a": {"duration": 100, "annotations": [{"segment": [0, 10], "label": "x"}]},
                "b": {"annotations": [{"segment": [0, 10], "label": "x"}]},
            }
        }
        result = evaluate(truth, {"results": {}}, strict=True)
        names = {s.name: s for s in analyse_errors(result, bins="thumos14").sensitivity}
        assert names["coverage"].instances.tolist() == [0, 0, 0, 0, 1]
        del truth["database"]["a"]["duration"]
        result = evaluate(truth, {"results": {}}, strict=True)
        assert [s.name for s in analyse_errors(result).sensitivity] == ["length", "instances"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"floor": 0.3}, "a floor between 0 and the smallest threshold 0.3"),
            ({"depth": 0}, "expected depth >= 1"),
            ({"bins": "thumos"}, "expected bins among quantiles, thumos14, activitynet"),
            ({"bins": {"length": [2, 1]}}, "at most 4 rising edges of length"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ConfigError, match=message):
            analyse_errors(run(self.truth, self.found), **options)
