# SPDX-License-Identifier: Apache-2.0
"""Every dialect against its plain Python twin, and each of its rules by hand."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import reference_dialects
from hypothesis import given, settings
from hypothesis import strategies as st

from tal_fast.errors import ConfigError, DataError
from tal_fast.evaluation import DIALECTS, EvaluationWarning, evaluate

NAMES = ("Ambiguous", "jump", "run", "swim", "throw")
VIDEOS = ("v_a", "v_b", "v_c", "video_test_0000270")

# Few values on a coarse raster, so that ties, duplicates, zero lengths and tIoUs that lie exactly
# on a threshold are the rule; some instances lie within or just beyond the tolerance of duplicates.
times = st.tuples(st.integers(0, 8), st.integers(0, 8)).map(sorted)
shift = st.sampled_from([0.0, 0.0, 0.0, 0.0005, 0.001, 0.003])
labels = st.sampled_from(NAMES)
scores = st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1e300])
thresholds = st.lists(
    st.sampled_from([0.1, 0.25, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.7, 0.75, 1.0]),
    min_size=1,
    max_size=5,
    unique=True,
)


@st.composite
def instances(draw):
    (start, end), by = draw(times), draw(shift)
    label = draw(labels)
    return {"segment": [start + by, end + by], "label": label, "label_id": NAMES.index(label)}


@st.composite
def detections(draw):
    return {"segment": draw(times), "label": draw(labels), "score": draw(scores)}


@st.composite
def cases(draw, most=1):
    database = {
        video: {
            "subset": draw(st.sampled_from(["test", "test", "test", "Test", "train"])),
            "annotations": draw(st.lists(instances(), max_size=5 * most)),
        }
        for video in VIDEOS
    }
    # Every name is known to the database, as a class of another subset.
    database["v_known"] = {
        "subset": "train",
        "annotations": [
            {"segment": [0, 1], "label": name, "label_id": i} for i, name in enumerate(NAMES)
        ],
    }
    videos = draw(st.lists(st.sampled_from(VIDEOS), unique=True))
    results = {video: draw(st.lists(detections(), max_size=12 * most)) for video in videos}
    return database, results, draw(thresholds)


def check(dialect, case):
    """Returns whether there were numbers to compare."""
    database, results, tious = case
    names = {
        a["label"] for e in database.values() if e["subset"] == "test" for a in e["annotations"]
    }
    if len(tious) > 1:  # most of the cases: some dialects stop at other classes
        for own in results.values():
            own[:] = [d for d in own if d["label"] in names]
    if dialect == "tal_fast":  # an error of its own, tested elsewhere
        results = {v: own for v, own in results.items() if database[v]["subset"] == "test"}
    if dialect == "mmaction2":
        results = {video[2:]: entries for video, entries in results.items()}
        ours = database
    else:
        ours = {"database": database}
    try:
        ap, means = reference_dialects.evaluate(dialect, database, results, "test", tious)
    except KeyError:
        with pytest.raises(DataError):
            evaluate(ours, {"results": results}, tious, "test", dialect=dialect, strict=True)
        return False
    if not any(e["subset"] in ("test", "Test") and e["annotations"] for e in database.values()):
        return False
    try:
        result = evaluate(ours, {"results": results}, tious, "test", dialect=dialect, strict=True)
    except DataError:  # nothing to evaluate, where a peer gives NaN or 0
        assert not any(math.isfinite(x) and x > 0 for x in means)
        return False
    for name, values in ap.items():
        np.testing.assert_allclose(
            np.nan_to_num(result.ap[result.classes.index(name)], nan=-1.0),
            [-1.0 if math.isnan(x) or not _present(dialect, name, result) else x for x in values],
            rtol=0,
            atol=1e-12,
        )
    np.testing.assert_allclose(result.map_per_threshold, means, rtol=0, atol=1e-12)
    return True


def run_cases(dialect, examples, most):
    compared = 0

    @settings(max_examples=examples, deadline=None)
    @given(cases(most=most))
    def run(case):
        nonlocal compared
        compared += check(dialect, case)

    run()
    print(f"{dialect}: {compared} of {examples} cases compared")
    assert compared > examples / 2


def _present(dialect, name, result):
    return result.ground_truth_per_class[result.classes.index(name)] > 0


@pytest.mark.parametrize("dialect", DIALECTS)
class TestAgainstTheTwin:
    def test_any_input(self, dialect):
        run_cases(dialect, 200, 1)

    @pytest.mark.slow
    def test_many_inputs(self, dialect):
        run_cases(dialect, 4000, 3)

    @pytest.mark.parametrize("levels", [None, 1000])
    def test_larger(self, dialect, levels):
        """Hundreds of detections per class: numpy leaves its insertion sort, ours too."""
        rng = np.random.default_rng(5)
        database = {}
        for v in range(6):
            start = rng.uniform(0, 60, 12)
            segments = np.stack([start, start + rng.exponential(5, 12)], 1).tolist()
            classes = rng.integers(1, 4, 12).tolist()
            database[f"v_{v}"] = {
                "subset": "test",
                "annotations": [
                    {"segment": s, "label": NAMES[c], "label_id": c}
                    for s, c in zip(segments, classes, strict=True)
                ],
            }
        results = {}
        for name, entry in database.items():
            own = []
            for _ in range(230):
                a = entry["annotations"][rng.integers(12)]
                segment = sorted(x + rng.normal(0, 1) for x in a["segment"])
                score = rng.random()
                score = math.floor(score * levels) / levels if levels else score
                own.append({"segment": segment, "label": a["label"], "score": score})
            results[name] = own
        assert check(dialect, (database, results, [0.3, 0.4, 0.5, 0.6, 0.7]))


def truth_of(*rows, subset="test", **more):
    """A database of one video `v_a` with (label, start, end) rows; ids follow NAMES."""
    annotations = [
        {"segment": [s, e], "label": label, "label_id": NAMES.index(label)} for label, s, e in rows
    ]
    return {
        "database": {
            "v_a": {"subset": subset, "annotations": annotations},
            "v_known": {
                "subset": "train",
                "annotations": [
                    {"segment": [0, 1], "label": n, "label_id": i} for i, n in enumerate(NAMES)
                ],
            },
            **more,
        }
    }


def found_of(*rows, video="v_a"):
    return {
        "results": {video: [{"label": c, "segment": [s, e], "score": x} for c, s, e, x in rows]}
    }


def mean(dialect, truth, found, tious=(0.5,), **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvaluationWarning)
        result = evaluate(truth, found, tious, "test", dialect=dialect, **options)
    return result.average_map


class TestRules:
    def test_collision_of_an_absent_class(self):
        # Only classes 1 and 3 have instances; they become 0 and 1. Class 1's ... class 0 is absent
        # and keeps its number, which is now class 1's.
        truth = truth_of(("jump", 0, 10), ("swim", 20, 30))
        found = found_of(("jump", 0, 10, 0.5), ("swim", 20, 30, 0.5), ("Ambiguous", 50, 60, 0.9))
        for dialect in ("actionformer", "tridet"):
            with pytest.warns(EvaluationWarning, match=r"'Ambiguous'.*as 'jump'.*strict=True"):
                result = evaluate(truth, found, (0.5,), "test", dialect=dialect)
            assert result.average_map == 1.0
            strict = evaluate(truth, found, (0.5,), "test", dialect=dialect, strict=True)
            assert strict.average_map == 0.75
            assert any("count for other classes" in note for note in strict.notes)
        assert mean("opentad", truth, found) == 1.0
        assert mean("tal_fast", truth, found) == 1.0

    def test_class_without_instances_in_the_mean(self):
        truth = truth_of(("jump", 0, 10))
        found = found_of(("jump", 0, 10, 0.5), ("run", 0, 10, 0.5))
        with pytest.warns(EvaluationWarning, match="'Ambiguous' .and 3 more. has no instance"):
            assert evaluate(truth, found, (0.5,), "test", dialect="tadtr").average_map == 1.0
        strict = evaluate(truth, found, (0.5,), "test", dialect="tadtr", strict=True)
        assert math.isnan(strict.average_map)
        assert strict.to_dict()["average_map"] is None
        no_run = found_of(("jump", 0, 10, 0.5))
        assert mean("tadtr", truth, no_run, strict=True) == 1 / 5
        listed = {**truth, "classes": ["jump", "run"]}
        assert mean("tadtr", listed, no_run, strict=True) == 1 / 2

    @pytest.mark.parametrize(
        ("dialect", "hit"), [("activitynet", 1), ("mmaction2", 1), ("opentad", 0), ("tal_fast", 0)]
    )
    def test_two_points_match(self, dialect, hit):
        truth = truth_of(("jump", 0, 10), ("run", 5, 5))
        found = found_of(("jump", 0, 10, 0.5), ("run", 70, 70, 0.9))
        if dialect == "mmaction2":
            truth, found = truth["database"], found_of(*_rows(found), video="a")
            truth["v_known"]["annotations"] = []
        strict = evaluate(truth, found, (0.5,), "test", dialect=dialect, strict=True)
        assert strict.true_positives[strict.classes.index("run")].tolist() in ([hit], [0])
        assert strict.true_positives.sum() == 1 + hit
        assert strict.native is not None
        if hit:
            with pytest.warns(EvaluationWarning, match="length zero.*strict=True"):
                loose = evaluate(truth, found, (0.5,), "test", dialect=dialect)
            assert loose.true_positives.sum() == 1

    @pytest.mark.parametrize(
        ("dialect", "second", "kept"),
        [
            ("tal_fast", 0.0, 2),
            ("activitynet", 0.0, 2),
            ("mmaction2", 0.0, 2),
            ("tadtr", 0.0, 2),
            ("actionformer", 0.0005, 1),
            ("actionformer", 0.002, 2),
            ("tridet", 0.0005, 1),
            ("opentad", 0.0005, 1),
            ("opentad", 0.002, 2),
        ],
    )
    def test_duplicates(self, dialect, second, kept):
        truth = truth_of(("jump", 0, 10), ("jump", second, 10 + second))
        found = found_of(("jump", 0, 10, 0.5))
        if dialect == "mmaction2":
            truth, found = truth["database"], found_of(*_rows(found), video="a")
        assert mean(dialect, truth, found) == pytest.approx(1 / kept, abs=1e-15)

    def test_duplicates_on_request(self):
        truth, found = truth_of(("jump", 0, 10), ("jump", 0, 10)), found_of(("jump", 0, 10, 0.5))
        rules = dataclasses.replace(DIALECTS["tal_fast"], duplicate_tolerance=1e-3)
        result = evaluate(truth, found, (0.5,), "test", dialect=rules)
        assert result.average_map == 1.0
        assert result.notes == ("1 of 2 instances left out: duplicates within 0.001 s",)

    @pytest.mark.parametrize(
        ("dialect", "length", "kept"),
        [
            ("actionformer", 0.0009, 1),
            ("actionformer", 0.002, 2),
            ("tridet", 0.0009, 2),
            ("tridet", 0.0, 1),
            ("opentad", 0.0009, 2),
            ("opentad", 0.0, 1),
            ("activitynet", 0.0, 2),
        ],
    )
    def test_short_instances(self, dialect, length, kept):
        truth, found = (
            truth_of(("jump", 0, 10), ("jump", 20, 20 + length)),
            found_of(("jump", 0, 10, 0.5)),
        )
        result = evaluate(truth, found, (0.5,), "test", dialect=dialect)
        assert result.num_ground_truth == kept

    def test_single_precision_of_mmaction2(self):
        # 0.7 in float32 lies below 0.7, so a tIoU of exactly 0.7 does not reach it there.
        truth, found = truth_of(("jump", 0, 10)), found_of(("jump", 0, 7, 0.5))
        assert float(np.float32(0.7)) < 0.7
        assert mean("activitynet", truth, found, (0.7,)) == 1.0
        assert mean("mmaction2", truth["database"], found_of(*_rows(found), video="a"), (0.7,)) == 0

    def test_names_of_videos(self):
        both = truth_of(("jump", 0, 10)), found_of(("jump", 0, 10, 0.5))
        assert mean("mmaction2", *both) == 1.0
        truth = truth_of(("jump", 0, 10))["database"]
        found = found_of(("jump", 0, 10, 0.5), video="a")
        assert mean("mmaction2", truth, found) == 1.0
        plain = {"clip": truth["v_a"]}
        assert mean("mmaction2", plain, found_of(("jump", 0, 10, 0.5), video="clip")) == 1.0
        assert (
            mean("mmaction2", plain, found_of(("jump", 0, 10, 0.5), video="ip"), strict=True) == 1
        )
        with pytest.raises(DataError, match="object 'database'"):
            evaluate(truth, found, (0.5,), "test")

    @pytest.mark.parametrize(
        ("dialect", "name", "fits"),
        [
            ("tal_fast", "test", True),
            ("tal_fast", "Test", False),
            ("actionformer", "Test", True),
            ("tridet", "TEST", True),
            ("opentad", "Test", False),
            ("tadtr", "es", True),
            ("tadtr", "testing", False),
        ],
    )
    def test_subsets(self, dialect, name, fits):
        truth, found = truth_of(("jump", 0, 10), subset=name), found_of(("jump", 0, 10, 0.5))
        if fits:
            assert mean(dialect, truth, found) == 1.0
        else:
            with pytest.raises(DataError, match="expected a subset among"):
                evaluate(truth, found, (0.5,), "test", dialect=dialect)

    def test_predictions_elsewhere(self):
        empty = {"subset": "test", "annotations": []}
        truth = truth_of(("jump", 0, 10), v_b=empty)
        found = found_of(("jump", 0, 10, 0.5))
        found["results"]["v_b"] = [{"label": "jump", "segment": [0, 10], "score": 0.9}]
        assert mean("tal_fast", truth, found) == 0.5
        assert mean("activitynet", truth, found) == 0.5
        assert mean("tadtr", truth, found) == 1.0
        found["results"]["v_other"] = found["results"].pop("v_b")
        for dialect in DIALECTS:
            if dialect != "mmaction2":
                with pytest.raises(DataError, match="video 'v_other' is not in"):
                    mean(dialect, truth, found)
        assert mean("activitynet", truth, found, strict=True) == 0.5
        assert mean("thumos", truth, found, strict=True) == 0.5
        with pytest.raises(DataError, match="video 'v_other' is not in"):
            mean("tal_fast", truth, found, strict=True)

    def test_labels_that_nobody_knows(self):
        truth = truth_of(("jump", 0, 10))
        found = found_of(("jump", 0, 10, 0.5), ("dance", 0, 10, 0.9))
        for dialect in DIALECTS:
            if dialect != "mmaction2":
                with pytest.raises(DataError, match="label 'dance' is not among the 5 classes"):
                    mean(dialect, truth, found)
        assert mean("opentad", truth, found, strict=True) == 1.0
        with pytest.raises(DataError, match="label 'dance' is not among"):
            mean("activitynet", truth, found, strict=True)
        numbers = found_of((1, 0, 10, 0.5), (77, 0, 10, 0.9))
        with pytest.raises(DataError, match="label 77 is not among the 5 classes"):
            mean("actionformer", truth, numbers)
        assert mean("actionformer", truth, numbers, strict=True) == 1.0

    def test_a_known_class_without_instances(self):
        truth = truth_of(("jump", 0, 10))
        found = found_of(("jump", 0, 10, 0.5), ("swim", 0, 10, 0.9))
        with pytest.warns(EvaluationWarning, match="activitynet stops there"):
            assert evaluate(truth, found, (0.5,), "test", dialect="activitynet").average_map == 1
        with pytest.raises(DataError, match="prediction 1: class 'swim' has no instance"):
            evaluate(truth, found, (0.5,), "test", dialect="activitynet", strict=True)

    def test_blocked_and_ignored_videos(self):
        ignored = truth_of(("jump", 0, 10))["database"]["v_a"]
        truth = truth_of(("jump", 0, 10), video_test_0000270=ignored)
        found = found_of(("jump", 0, 10, 0.5))
        found["results"][
            "video_test_0001292"
        ] = []  # not in this ground truth: ignored all the same
        assert mean("activitynet", truth, found_of(("jump", 0, 10, 0.5))) == 0.5
        assert mean("tadtr", truth, found) == 1.0
        blocked = {"blocked_videos": ["video_test_0000270"]}
        result = evaluate(truth, found_of(("jump", 0, 10, 0.5)), (0.5,), "test", **blocked)
        assert result.average_map == 1.0
        assert "1 of 2 instances left out: their videos are ignored" in result.notes

    def test_best_per_video(self):
        rows = [("jump", 50, 60, 1 + i) for i in range(200)]
        truth = truth_of(("jump", 0, 10))
        found = found_of(("jump", 0, 10, 0.5), *rows)
        assert mean("activitynet", truth, found) == pytest.approx(1 / 201)
        assert mean("tadtr", truth, found) == 0.0

    def test_thumos(self):
        # Detection-driven: the better-ranked detection takes the instance with tIoU 0.6, the other
        # is double. Instance-driven: the one with tIoU 0.9 is taken.
        truth = truth_of(("jump", 0, 10))
        found = found_of(("jump", 0, 6, 0.9), ("jump", 0, 9, 0.5))
        assert mean("activitynet", truth, found) == 1.0
        assert mean("thumos", truth, found) == 0.5
        # A tIoU on the threshold is not above it.
        on = found_of(("jump", 0, 5, 0.9))
        assert mean("activitynet", truth, on) == 1.0
        assert mean("thumos", truth, on) == 0.0
        # No interpolation: precision 1/2 and 2/3, not 2/3 twice.
        two = truth_of(("jump", 0, 10), ("jump", 20, 30))
        rows = [("jump", 50, 60, 0.9), ("jump", 0, 10, 0.8), ("jump", 20, 30, 0.7)]
        assert mean("thumos", two, found_of(*rows)) == pytest.approx((1 / 2 + 2 / 3) / 2)
        assert mean("activitynet", two, found_of(*rows)) == pytest.approx(2 / 3)
        # The wrong one lies over an ambiguous region: removed.
        ambiguous = truth_of(("jump", 0, 10), ("jump", 20, 30), ("Ambiguous", 55, 80))
        assert mean("thumos", ambiguous, found_of(*rows)) == 1.0
        assert mean("tadtr", ambiguous, found_of(*rows)) == pytest.approx(2 / 3)

    def test_thumos_takes_videos_by_name(self):
        entry = truth_of(("jump", 0, 10))["database"]["v_a"]
        truth = truth_of(("jump", 20, 30), a_first=entry)
        found = found_of(("jump", 50, 60, 0.5))
        found["results"]["a_first"] = [{"label": "jump", "segment": [0, 10], "score": 0.5}]
        assert mean("tal_fast", truth, found) == 0.25
        assert mean("thumos", truth, found) == 0.5

    def test_ties(self):
        truth = truth_of(("jump", 0, 10))
        found = found_of(("jump", 50, 60, 0.5), ("jump", 0, 10, 0.5))
        assert mean("tal_fast", truth, found) == 0.5
        assert mean("tal_fast", truth, found, ties="numpy") == 1.0
        assert mean("activitynet", truth, found) == 1.0
        assert mean("activitynet", truth, found, ties="stable") == 0.5
        with pytest.raises(ConfigError, match="expected ties among stable, numpy, got 'random'"):
            mean("tal_fast", truth, found, ties="random")

    @pytest.mark.parametrize(
        ("answer", "error", "message"),
        [
            ([0, 0], ValueError, "each index once"),
            ([0], ValueError, "one index per overlap"),
            (RuntimeError("no order today"), RuntimeError, "no order today"),
        ],
    )
    def test_an_order_of_ties_that_is_none(self, monkeypatch, answer, error, message):
        # Whatever is asked for the order, from whichever thread, its faults come out here.
        rules = dataclasses.replace(DIALECTS["tal_fast"], tiou_ties="numpy")
        result = evaluate(
            truth_of(("jump", 0, 10), ("jump", 0, 10)), found_of(("jump", 0, 10, 0.5)),
            (0.5,), "test", dialect=rules, num_threads=2,
        )  # fmt: skip

        class Wrong:
            def __getitem__(self, _):
                if isinstance(answer, Exception):
                    raise answer
                return np.array(answer, dtype=np.int64)

        monkeypatch.setattr(np, "argsort", lambda *_, **__: Wrong())
        native = result.source.native((0.5,))
        with pytest.raises(error, match=message):
            native.match()

    def test_unknown_dialect(self):
        with pytest.raises(ConfigError, match=r"expected a dialect among .* did you mean 'tridet'"):
            evaluate(truth_of(), found_of(), dialect="tridett")

    def test_numbers_are_labels_too(self):
        truth = truth_of(("jump", 0, 10), ("swim", 20, 30))
        assert mean("tal_fast", truth, found_of((1, 0, 10, 0.5), ("swim", 20, 30, 0.5))) == 1.0

    def test_every_dialect_is_described(self):
        for name, dialect in DIALECTS.items():
            assert dialect.name == name
            assert dialect.subset_match in ("equal", "lower", "within")
            assert dialect.unknown_label in ("error", "own", "ignored", "collides")


def _rows(found):
    return [
        (d["label"], *d["segment"], d["score"]) for own in found["results"].values() for d in own
    ]
