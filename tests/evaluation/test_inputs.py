# SPDX-License-Identifier: Apache-2.0
"""The forms in which predictions come: files of several kinds, videos one by one, shards."""

import doctest
import gzip
import itertools
import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest

from tal_fast.errors import ConfigError, DataError
from tal_fast.evaluation import (
    Detections,
    Evaluator,
    evaluate,
    read_ground_truth,
    read_results,
)

NAMES = ("jump", "run")
INSTANCE = {"segment": [0, 1], "label": "run", "label_id": 4}


@pytest.fixture
def truth():
    rng = np.random.default_rng(0)
    return {
        "database": {
            f"v{v}": {
                "subset": "test",
                "duration": 60,
                "annotations": [
                    {"segment": [s, s + 4], "label": NAMES[n % 2], "label_id": 3 + n % 2}
                    for n, s in enumerate(rng.uniform(0, 50, 5).tolist())
                ],
            }
            for v in range(4)
        }
    }


@pytest.fixture
def found(truth):
    rng = np.random.default_rng(1)
    return {
        "results": {
            video: [
                {
                    "segment": sorted(np.abs(a["segment"] + rng.normal(0, 1, 2)).tolist()),
                    "label": a["label"],
                    "score": float(rng.integers(0, 8)) / 8,
                }
                for a in entry["annotations"] * 4
            ]
            for video, entry in truth["database"].items()
        }
    }


def flat(found):
    return [(video, d) for video, own in found["results"].items() for d in own]


def same(result, expected):
    assert result.ap.tobytes() == expected.ap.tobytes()
    assert result.predictions_per_class.tolist() == expected.predictions_per_class.tolist()


class TestFiles:
    @pytest.fixture
    def expected(self, truth, found):
        return evaluate(truth, found)

    def test_json_and_gzip(self, truth, found, expected, tmp_path):
        text = json.dumps(found).encode()
        (tmp_path / "a.json").write_bytes(text)
        (tmp_path / "b.json.gz").write_bytes(gzip.compress(text))
        (tmp_path / "truth.json.gz").write_bytes(gzip.compress(json.dumps(truth).encode()))
        same(evaluate(truth, tmp_path / "a.json"), expected)
        same(evaluate(tmp_path / "truth.json.gz", str(tmp_path / "b.json.gz")), expected)

    @pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
    def test_json_lines(self, truth, found, expected, tmp_path, name):
        text = "\n\n".join(json.dumps({"video": v, **d}) for v, d in flat(found)).encode() + b"\n"
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        same(evaluate(truth, tmp_path / name), expected)

    def test_labels_by_number(self, truth, found, expected, tmp_path):
        for _, d in flat(found):
            d["label"] = 3 + NAMES.index(d["label"])
        (tmp_path / "a.json").write_text(json.dumps(found))
        same(evaluate(truth, tmp_path / "a.json"), expected)
        assert read_results(found).classes in ((3, 4), (4, 3))

    def columns(self, found):
        rows = flat(found)
        return {
            "video-id": [v for v, _ in rows],
            "t-start": np.array([d["segment"][0] for _, d in rows]),
            "t-end": np.array([d["segment"][1] for _, d in rows]),
            "label": np.array([3 + NAMES.index(d["label"]) for _, d in rows]),
            "score": np.array([d["score"] for _, d in rows], dtype=np.float32),
        }

    @pytest.mark.parametrize("protocol", [2, 4, 5])
    def test_pickled_columns(self, truth, found, expected, tmp_path, protocol):
        columns = self.columns(found)
        path = tmp_path / "eval_results.pkl"
        path.write_bytes(pickle.dumps(columns, protocol=protocol))
        same(evaluate(truth, path, allow_pickle=True), expected)
        same(evaluate(truth, columns), expected)
        with pytest.raises(DataError, match="a pickle is read only with --allow-pickle"):
            evaluate(truth, path)

    def test_columns_as_a_table_keeps_them(self, truth, found, expected):
        columns = self.columns(found)
        names = [NAMES[number - 3] for number in columns["label"].tolist()]
        for label in (np.array(names, dtype=object), np.array(columns["label"], dtype=object)):
            tables = {**columns, "video-id": np.array(columns["video-id"], object), "label": label}
            same(evaluate(truth, tables), expected)
        with pytest.raises(DataError, match="column video-id: expected names, got nan"):
            evaluate(truth, {**columns, "video-id": np.full(len(names), math.nan, dtype=object)})

    def test_a_pickle_cannot_run_anything(self, truth, tmp_path):
        class Bad:
            def __reduce__(self):
                return (open, (str(tmp_path / "made"), "w"))

        path = tmp_path / "bad.pkl"
        path.write_bytes(pickle.dumps(Bad()))
        with pytest.raises(DataError, match=r"it holds .*open, only arrays are read"):
            evaluate(truth, path, allow_pickle=True)
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.pop("score"), "expected columns video-id, t-start"),
            (lambda c: c.update(score=c["score"][:3]), "expected columns of equal length"),
            (lambda c: c.update(label=c["label"] + 0.5), "column label: expected another dtype"),
            (lambda c: c["score"].fill(math.nan), "prediction 0: expected a finite score"),
        ],
    )
    def test_bad_columns(self, truth, found, change, message):
        columns = self.columns(found)
        change(columns)
        with pytest.raises(DataError, match=message):
            evaluate(truth, columns)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.json.gz", gzip.compress(b'{"results": {}}', mtime=0)[:-4], "not a whole gzip file"),
            ("a.json.gz", b"\x1f\x8b12345678901234567890", "not a whole gzip file"),
            ("a.jsonl", b'{"video": "v0"}\n{"vid', "line 2: not valid JSON.*is it truncated"),
            ("a.jsonl", b'{"video": 3}', "line 1: expected an object with video, segment"),
            ("a.jsonl", b'{"video": "v0"}', "video 'v0', prediction 0: no 'label' among"),
            ("a.pkl", b"\x80\x04not a pickle", "cannot be unpickled"),
            ("a.pkl", b"", "cannot be unpickled"),
        ],
    )
    def test_bad_files(self, truth, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            evaluate(truth, tmp_path / name, allow_pickle=True)
        assert str(tmp_path / name) in str(caught.value)

    def test_negative_times(self, truth, found):
        found["results"]["v1"][2]["segment"] = [-0.5, 3.0]
        truth["database"]["v1"]["annotations"].append({**INSTANCE, "segment": [0, 3]})
        result = evaluate(truth, found, (0.75,))
        assert result.notes == (
            "1 of 80 predictions start before 0 s, the earliest at -0.5 s; they are scored as they "
            "are (strict_times refuses)",
        )
        assert result.true_positives.sum() > evaluate(truth, found, (0.9,)).true_positives.sum()
        message = r"'v1', prediction 2: expected a start >= 0 s, got -0.5"
        with pytest.raises(DataError, match=message):
            evaluate(truth, found, strict_times=True)
        evaluator = Evaluator(truth, strict_times=True)
        evaluator.add("v1", [[-0.5, 3]], ["run"], [0.5])
        with pytest.raises(DataError, match=r"expected a start >= 0 s, got -0\.5"):
            evaluator.result()
        truth["database"]["v2"]["annotations"][1]["segment"] = [-2, 3]
        with pytest.raises(DataError, match=r"'v2', annotation 1: expected a start >= 0 s, got -2"):
            evaluate(truth, found)
        evaluate(truth, found, strict=True)

    def test_times_in_other_units_are_noticed(self, truth, found):
        for number, prediction in enumerate(found["results"]["v1"][:3]):
            prediction["segment"] = [59.9 + number, 70.0 + number]
        assert evaluate(truth, found).notes == (
            "2 of 80 predictions start after the end of their video, the first is predictions: "
            "video 'v1', prediction 1: at 60.9 of 60 s; times are in seconds",
        )
        del truth["database"]["v1"]["duration"]
        assert evaluate(truth, found).notes == ()

    def test_videos_that_were_forgotten_are_noticed(self, truth, found):
        """Half of the results of a run in two parts scores low, and looks like a bad model."""
        assert evaluate(truth, found).notes == ()
        videos = list(found["results"])
        found["results"][videos[0]] = []  # looked at, and nothing found
        assert evaluate(truth, found).notes == ()
        for video in videos[1:3]:
            del found["results"][video]
        count = sum(len(truth["database"][video]["annotations"]) for video in videos[1:3])
        (note,) = evaluate(truth, found).notes
        assert note == (
            f"2 of {len(truth['database'])} videos are not in the predictions, and their {count} "
            f"instances count as missed: {videos[1]}, {videos[2]}"
        )
        for video in videos[1:3]:
            truth["database"][video]["annotations"] = []
        (note,) = evaluate(truth, found).notes
        assert note.endswith(f"are not in the predictions: {videos[1]}, {videos[2]}")

    @pytest.mark.parametrize("content", [{"results": {}}, {"results": {"v0": []}}])
    def test_no_prediction_at_all(self, truth, tmp_path, content):
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"a\.json: expected at least one prediction, got none"):
            evaluate(truth, tmp_path / "a.json")
        assert evaluate(truth, tmp_path / "a.json", strict=True).average_map == 0.0
        assert evaluate(truth, read_results(tmp_path / "a.json")).average_map == 0.0


class TestFastJson:
    """Skipped where msgspec, which is optional, is not installed."""

    @pytest.fixture(autouse=True)
    def _msgspec(self):
        pytest.importorskip("msgspec")

    def test_gives_what_the_slow_way_gives(self, found, tmp_path):
        found["results"]["none"] = []
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"version": 1, **found, "external_data": {}}))
        fast, slow = read_results(path), read_results(found)
        assert fast.videos == slow.videos
        assert fast.classes == slow.classes
        for name in ("video", "label", "start", "end", "score"):
            assert getattr(fast, name).tobytes() == getattr(slow, name).tobytes()

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ('{"segment": [0, 1, 2], "label": "run", "score": 1}', "expected segment"),
            ('{"segment": [0, "1"], "label": "run", "score": 1}', "the segment's end as a number"),
            ('{"segment": [0, 1], "label": "run", "score": true}', "expected score as a number"),
            ('{"segment": [0, 1], "label": null, "score": 1}', "expected label"),
            ('{"segment": [0, 1], "label": "run", "score": NaN}', "expected a finite score"),
            ('{"segment": [1, 0], "label": "run", "score": 1}', "ends before it starts"),
            ('{"segment": [0, 1], "label": "run"}', "no 'score' among"),
        ],
    )
    def test_faults_are_named_all_the_same(self, record, message, tmp_path):
        path = tmp_path / "a.json"
        path.write_text(f'{{"results": {{"v0": [{record}]}}}}')
        with pytest.raises(DataError, match=f"video 'v0', prediction 0.*{message}"):
            read_results(path)


class TestEvaluator:
    def fill(self, evaluator, found, videos):
        for video in videos:
            own = found["results"][video]
            evaluator.add(
                video,
                [d["segment"] for d in own],
                [d["label"] for d in own],
                [d["score"] for d in own],
            )
        return evaluator

    def test_any_order_gives_the_same_bits(self, truth, found):
        expected = evaluate(truth, found)
        for order in itertools.permutations(found["results"]):
            same(self.fill(Evaluator(truth), found, order).result(), expected)

    def test_shards_in_any_order(self, truth, found):
        expected = evaluate(truth, found)
        videos = list(found["results"])
        for parts in itertools.permutations([videos[:1], videos[1:3], videos[3:]]):
            shards = [self.fill(Evaluator(truth), found, part) for part in parts]
            # As from other processes.
            first, *others = pickle.loads(pickle.dumps(shards))
            for shard in others:
                first.merge(shard)
            same(first.result(), expected)
            assert len(first) == 80

    def test_labels_by_number(self, truth, found):
        evaluator = Evaluator(truth)
        for video, own in found["results"].items():
            evaluator.add(
                video,
                np.array([d["segment"] for d in own]),
                np.array([3 + NAMES.index(d["label"]) for d in own]),
                np.array([d["score"] for d in own]),
            )
        same(evaluator.result(), evaluate(truth, found))
        named = Evaluator(truth, classes=NAMES)
        named.add("v0", [[0, 1]], [1], [0.5])
        assert named.result().predictions_per_class.tolist() == [0, 1]

    def test_options_are_those_of_evaluate(self, truth, found):
        evaluator = Evaluator(truth, (0.5,), "test", dialect="thumos")
        result = self.fill(evaluator, found, found["results"]).result()
        assert result.average_map == evaluate(truth, found, (0.5,), dialect="thumos").average_map
        assert result.dialect == "thumos"

    def test_the_example_in_its_docstring(self):
        from tal_fast.evaluation import streaming

        assert doctest.testmod(streaming, raise_on_error=True).attempted >= 4

    def test_nothing_and_more_afterwards(self, truth, found):
        evaluator = Evaluator(truth)
        assert evaluator.result().average_map == 0.0
        self.fill(evaluator, found, ["v0"])
        assert evaluator.result().average_map > 0

    def test_errors(self, truth, found):
        evaluator = self.fill(Evaluator(truth), found, ["v0"])
        with pytest.raises(DataError, match="expected each video once, got 'v0' again"):
            evaluator.add("v0", [[0, 1]], ["run"], [0.5])
        with pytest.raises(DataError, match="expected each video once, got 'v0' from both"):
            evaluator.merge(self.fill(Evaluator(truth), found, ["v0", "v1"]))
        with pytest.raises(ConfigError, match="expected an evaluator of the same ground truth"):
            evaluator.merge(Evaluator(truth, (0.5,)))
        with pytest.raises(DataError, match=r"video 'v2'.*expected segments"):
            evaluator.add("v2", [[0, 1]], ["run"], [0.5, 0.6])
        with pytest.raises(DataError, match="video 'v2', prediction 0: expected a finite score"):
            evaluator.add("v2", [[0, 1]], ["run"], [math.inf])
        evaluator.add("v9", [[0, 1]], ["run"], [0.5])
        with pytest.raises(DataError, match="video 'v9' is not in"):
            evaluator.result()


class TestMadeByHand:
    """Constructors only store: what they were given is checked where it is evaluated."""

    def test_detections(self, truth):
        column = np.zeros(2, dtype=np.int64)
        times = np.array([0.0, 3.0]), np.array([1.0, 2.0])
        found = Detections(("v0",), ("run",), column, column, *times, np.ones(2))
        message = r"predictions: video 'v0', prediction 1: segment \[3.0, 2.0\] ends before it"
        with pytest.raises(DataError, match=message):
            evaluate(truth, found)
        found = replace(found, end=np.array([1.0, 4.0]), score=np.array([math.nan, 1]))
        with pytest.raises(DataError, match="'v0', prediction 0: expected a finite score, got nan"):
            evaluate(truth, found)

    def test_ground_truth(self, truth, found):
        read = read_ground_truth(truth)
        late = read.end.copy()
        late[6] = math.inf
        message = r"ground truth: video 'v1', annotation 1: segment .* is not finite"
        with pytest.raises(DataError, match=message):
            evaluate(replace(read, end=late), found)
