# SPDX-License-Identifier: Apache-2.0
"""The evaluators in pandas: rules found by the proof, equality, and what falls back."""

from __future__ import annotations

import importlib

import made_originals
import numpy as np
import pytest

from tal_fast import compat

pd = pytest.importorskip("pandas")

AP = "compute_average_precision_detection"
RECALL = "compute_topkx_recall_detection"


def loaded(folder, source: str, **options):
    folder.write("evaluator_made.py", source)
    compat.install(quiet=True, **options)
    return folder.load("evaluator_made")


def tables(seed: int = 0, n: int = 120):
    """Some of few times and scores, so that scores and overlaps tie."""
    rng = np.random.default_rng(seed)

    def make(count: int) -> dict:
        start = np.round(rng.random(count) * 20)
        return {
            "video-id": [f"v{i}" for i in rng.integers(0, 5, count)],
            "t-start": start,
            "t-end": start + np.round(rng.random(count) * 6),
        }

    truth, found = pd.DataFrame(make(n // 3)), pd.DataFrame(make(n))
    found["score"] = np.round(rng.random(n), 1)
    return truth, found


@pytest.mark.parametrize(
    ("union", "rules"), [("union", "activitynet"), ("union.clip(1e-8)", "opentad")]
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the original's 0 / 0
def test_rules_of_matching_are_found(folder, kinds, union, rules):
    module = loaded(folder, made_originals.evaluator(union))
    replaced = kinds("replaced")
    assert {name.split(".")[1] for name in replaced} == {AP, RECALL}
    # Recall has no hit in 0 / 0 under either.
    assert replaced[f"evaluator_made.{AP}"].startswith(f"matches as {rules};")
    for seed in range(4):
        for name, more in ((AP, ()), (RECALL, ((1, 4),))):
            function = getattr(module, name)
            given = (*tables(seed), np.array([0.2, 0.5, 0.7]), *more)
            expected = function.__wrapped__(*given)
            np.testing.assert_allclose(function(*given), expected, rtol=0, atol=1e-12)


def test_defaults_are_the_originals(folder):
    module = loaded(folder, made_originals.evaluator(defaults="0.3, 0.7, 3"))
    truth, found = tables(1)
    expected = module.compute_average_precision_detection(truth, found, [0.3, 0.5, 0.7])
    ours = module.compute_average_precision_detection(ground_truth=truth, prediction=found)
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("error", ["* (1 + 1e-9)", "+ 1e-9", "* (threshold != 0.5)"])
def test_what_is_subtly_wrong_is_left(folder, kinds, error):
    module = loaded(folder, made_originals.evaluator(error=error))
    assert not hasattr(module.compute_average_precision_detection, "__wrapped__")
    assert "differs by" in kinds("left")[f"evaluator_made.{AP}"]
    assert f"evaluator_made.{RECALL}" in kinds("replaced")


def test_one_that_fails_in_the_proof_is_left(folder, kinds):
    module = loaded(
        folder,
        f"def {AP}(ground_truth, prediction, tiou_thresholds):\n"
        "    return ground_truth['no such column']\n",
    )
    assert not hasattr(module.compute_average_precision_detection, "__wrapped__")
    assert kinds("left")[f"evaluator_made.{AP}"].startswith("the original raises KeyError")


def change(table, **columns):
    return table.assign(**{name.replace("_", "-"): value for name, value in columns.items()})


@pytest.mark.parametrize(
    ("bend", "reason"),
    [
        (lambda t, f: (t, f.iloc[:0]), "a table is empty"),
        (lambda t, f: (t, f.iloc[::-1]), "not numbered from 0"),
        (lambda t, f: (t, f.assign(score=np.nan)), "score"),
        (lambda t, f: (change(t, t_start=t["t-end"] + 1), f), "expected end >= start"),
        (lambda t, f: (t, change(f, t_end=f["t-end"].astype(np.float32))), "dtype float32"),
        (lambda t, f: (t, change(f, video_id=[None] * len(f))), "a video has no name"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_what_ours_does_not_take_is_the_originals(folder, kinds, bend, reason):
    module = loaded(folder, made_originals.evaluator())
    function = module.compute_average_precision_detection
    given = (*bend(*tables()), [0.5])
    results = []
    for call in (function, function.__wrapped__):
        try:
            results.append(call(*given))
        except Exception as error:
            results.append(repr(error))
    if isinstance(results[0], str):
        assert results[0] == results[1]
    else:
        np.testing.assert_array_equal(*results)
    assert reason in kinds("fell back")[f"evaluator_made.{AP}"]


@pytest.mark.parametrize(
    ("number", "words"), [("100", "100 cut-offs"), ("max_avg_nr_proposals", "a cut-off per")]
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_average_recall(folder, kinds, number, words):
    module = loaded(folder, made_originals.AVERAGE_RECALL.format(number=number))
    name = "average_recall_vs_avg_nr_proposals"
    assert kinds("replaced")[f"evaluator_made.{name}"].startswith(words)
    function = getattr(module, name)
    truth, found = tables(2)
    for most in (3, 20):
        ours = function(truth, found, most)
        for part, expected in zip(ours, function.__wrapped__(truth, found, most), strict=True):
            np.testing.assert_allclose(part, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("limit", "words"), [("300", "below 300"), ("1e9", "of any length")])
def test_soft_nms_of_a_table(folder, kinds, limit, words):
    module = loaded(folder, made_originals.SOFT_NMS_TABLE.format(limit=limit))
    assert words in kinds("replaced")["evaluator_made.Soft_NMS"]
    rng = np.random.default_rng(4)
    start = rng.random(200) * 3000
    table = pd.DataFrame(
        {"xmin": start, "xmax": start + rng.random(200) * 400 + 1, "score": rng.random(200)}
    )
    for most in (5, 50, 1000):
        ours = module.Soft_NMS(table, 0.5, most)
        theirs = module.Soft_NMS.__wrapped__(table, 0.5, most)
        assert list(ours.columns) == ["score", "xmin", "xmax"]
        np.testing.assert_allclose(ours.to_numpy(), theirs.to_numpy(), rtol=1e-9)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_module_that_names_its_numbers_as_numpy_no_longer_does(folder, kinds):
    # Proofs run the original under the mends, and are not counted.
    source = made_originals.evaluator().replace(
        "np.zeros(len(order))", "np.zeros(len(order), np.float)"
    )
    module = loaded(folder, source)
    assert f"evaluator_made.{AP}" in kinds("replaced")
    module.compute_average_precision_detection.__wrapped__(*tables(), [0.5])
    assert [e.calls for e in compat.report().entries if e.kind == "mended"] == [1]
    importlib.invalidate_caches()
