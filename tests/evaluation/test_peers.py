# SPDX-License-Identifier: Apache-2.0
"""Our dialects against the evaluators that they stand for, where those are on this machine.

``TAL_FAST_PEERS`` names the folder of checkouts (benchmarks/peers); without it nothing runs here.
Ties included: both sides ask the same numpy for the order of equal scores and tIoUs.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from test_dialects import cases

from tal_fast.errors import DataError
from tal_fast.evaluation import EvaluationWarning, average_recall, evaluate, recall_at_kx

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DIALECTS = ("activitynet", "actionformer", "tridet", "opentad", "mmaction2", "tadtr")


@pytest.fixture
def peer(request, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from peers import PeerMissingError, evaluators

    try:
        return request.param, evaluators.evaluator(request.param)
    except PeerMissingError as missing:
        pytest.skip(str(missing))
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "peers"]:
            del sys.modules[name]


def ours(dialect, database, results, thresholds):
    subset = "test"
    truth = {"database": database}
    if dialect == "mmaction2":  # knows no subsets, and its videos are called v_...
        truth = {f"v_{v}": entry for v, entry in database.items() if entry["subset"] == "test"}
        subset = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvaluationWarning)
        return evaluate(
            truth, {"results": results}, thresholds, subset, dialect=dialect, strict=True
        )


def check(peer, case):
    """Returns whether there was something to compare."""
    dialect, make = peer
    database, results, thresholds = case
    # Subsets are told apart by name in the other tests; the peers' own files differ there.
    for entry in database.values():
        entry["subset"] = entry["subset"].lower()
    names = {
        a["label"] for e in database.values() if e["subset"] == "test" for a in e["annotations"]
    }
    if len(thresholds) > 1:  # most of the cases: two of the evaluators stop at other classes
        for own in results.values():
            own[:] = [d for d in own if d["label"] in names]
    if not names:
        return False
    try:
        ap, means = make(database, results, "test", thresholds)()
    except Exception:  # unknown classes, classes of empty instances alone, no predictions: its end
        return False
    try:
        result = ours(dialect, database, results, thresholds)
    except DataError as error:
        if "no instance to evaluate" in str(error):
            return False
        raise
    np.testing.assert_allclose(result.map_per_threshold, means, rtol=0, atol=1e-12)
    for name, values in ap.items():
        c = result.classes.index(name)
        if result.ground_truth_per_class[c]:
            np.testing.assert_allclose(result.ap[c], values, rtol=0, atol=1e-12)
    return True


def run_cases(peer, examples, most):
    compared = 0

    @settings(max_examples=examples, deadline=None)
    @given(cases(most=most))
    def run(case):
        nonlocal compared
        compared += check(peer, case)

    run()
    print(f"{peer[0]}: {compared} of {examples} cases compared")
    assert compared > examples / 4


@pytest.mark.parametrize("peer", DIALECTS, indirect=True)
class TestAgainstPeers:
    def test_any_input(self, peer):
        run_cases(peer, 60, 1)

    @pytest.mark.slow
    def test_many_inputs(self, peer):
        run_cases(peer, 1000, 3)

    @pytest.mark.parametrize("levels", [None, 1000, 20])
    def test_larger(self, peer, levels):
        database, results = larger_case(levels)
        thresholds = [0.3, 0.4, 0.5, 0.6, 0.7]
        dialect, make = peer
        ap, means = make(database, results, "test", thresholds)()
        result = ours(dialect, database, results, thresholds)
        assert 0.05 < result.average_map < 0.95
        np.testing.assert_allclose(result.map_per_threshold, means, rtol=0, atol=1e-12)
        assert len(ap) == 3


def larger_case(levels):
    """18 videos with 60 predictions each; every class of the database is in the subset."""
    rng = np.random.default_rng(11)
    database, results = {}, {}
    for v in range(18):
        start = rng.uniform(10, 60, 6)
        segments = np.stack([start, start + rng.exponential(5, 6) + 0.1], 1).tolist()
        annotations = [
            {"segment": s, "label": f"class {c}", "label_id": c}
            for s, c in zip(segments, rng.permutation([0, 1, 2, 0, 1, 2]).tolist(), strict=True)
        ]
        database[f"video {v}"] = {"subset": "test", "annotations": annotations}
        own = []
        for _ in range(60):
            a = annotations[rng.integers(6)]
            score = float(rng.random())
            own.append(
                {
                    "segment": sorted(x + float(rng.normal(0, 1)) for x in a["segment"]),
                    "label": a["label"],
                    "score": np.floor(score * levels) / levels if levels else score,
                }
            )
        results[f"video {v}"] = own
    return database, results


@pytest.mark.parametrize("peer", ["actionformer", "opentad"], indirect=True)
@pytest.mark.parametrize("levels", [None, 20])
def test_recall_at_kx(peer, levels):
    dialect, make = peer
    database, results = larger_case(levels)
    thresholds = [0.3, 0.5, 0.7]
    expected = make.recall(database, results, "test", thresholds, (1, 5))
    got = recall_at_kx(ours(dialect, database, results, thresholds), (1, 5))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("peer", ["opentad", "mmaction2"], indirect=True)
@pytest.mark.parametrize("levels", [None, 20])
@pytest.mark.parametrize("most", [20, 100])
def test_average_recall(peer, levels, most):
    dialect, make = peer
    database, results = larger_case(levels)
    thresholds = [0.5, 0.7, 0.9]
    recall, auc = make.average_recall(database, results, "test", thresholds, most)
    result = ours(dialect, database, results, thresholds)
    if levels and dialect == "mmaction2":  # stable in detection, numpy's in proposals
        result = evaluate(
            {"database": database}, {"results": results}, thresholds, dialect=dialect, ties="numpy"
        )
    options = {"cut_offs": 100, "single_segments": True} if dialect == "mmaction2" else {}
    got = average_recall(result, max_proposals=most, **options)
    np.testing.assert_allclose(got.recall, recall, rtol=0, atol=1e-12)
    assert got.auc == pytest.approx(auc, abs=1e-12)
