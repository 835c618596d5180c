# SPDX-License-Identifier: Apache-2.0
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tal_fast.errors import DataError
from tal_fast.evaluation import Detections, predicting_model, read_results, write_results

CLASSES = ("run", "jump")


def two_videos():
    return {
        "a": (np.array([[0.1, 0.7], [1 / 3, 2.5]]), np.array([1, 0]), np.array([0.9, 1e-300])),
        "b": (np.zeros((0, 2)), np.zeros(0, dtype=np.int64), np.zeros(0)),
    }


def columns(detections):
    names = [detections.classes[label] for label in detections.label]
    return (
        detections.videos,
        names,
        detections.video.tolist(),
        detections.start.tolist(),
        detections.end.tolist(),
        detections.score.tolist(),
    )


class TestRoundTrip:
    def test_every_bit_returns(self, tmp_path):
        path = write_results(tmp_path / "found.json", two_videos(), CLASSES)
        expected = Detections.from_videos(two_videos(), CLASSES)
        assert columns(read_results(path)) == columns(expected)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3), max_size=5))
    def test_any_number(self, tmp_path_factory, rows):
        path = tmp_path_factory.mktemp("results") / "found.json"
        segments = [sorted(row[:2]) for row in rows]
        scores = [row[2] for row in rows]
        write_results(path, {"v": (segments, ["run"] * len(rows), scores)}, CLASSES)
        again = read_results(path)
        assert np.column_stack([again.start, again.end]).tolist() == segments
        assert again.score.tolist() == scores

    def test_float32_is_widened_exactly(self, tmp_path):
        score = np.array([0.1], dtype=np.float32)
        path = write_results(tmp_path / "f.json", {"v": ([[0, 1]], [0], score)}, CLASSES)
        assert read_results(path).score[0] == float(score[0])

    def test_form_of_the_file(self, tmp_path):
        path = write_results(tmp_path / "found.json", two_videos(), CLASSES, version="7")
        assert json.loads(path.read_text()) == {
            "version": "7",
            "results": {
                "a": [
                    {"segment": [0.1, 0.7], "label": "jump", "score": 0.9},
                    {"segment": [1 / 3, 2.5], "label": "run", "score": 1e-300},
                ],
                "b": [],
            },
            "external_data": {},
        }

    def test_the_model_stands_before_the_results(self, tmp_path):
        path = tmp_path / "found.json"
        write_results(path, two_videos(), CLASSES, model="my.py:Model")
        assert predicting_model(path) == "my.py:Model"
        assert json.loads(path.read_text())["model"] == "my.py:Model"
        assert len(read_results(path)) == 2
        write_results(path, two_videos(), CLASSES)
        assert predicting_model(path) is None

    @pytest.mark.parametrize(
        "content",
        [b"", b"\x80\x04K\x01.", b"[1]", b'{"results": {"a": []}, "model": "x"}', b'{"model": "x"}',
         b'{"model": 3, "results": {}}', b'{"model": "", "results": {}}'],
    )  # fmt: skip
    def test_files_that_tell_no_model(self, tmp_path, content):
        path = tmp_path / "found.json"
        path.write_bytes(content)
        assert predicting_model(path) is None

    def test_names_and_indices_are_the_same(self, tmp_path):
        by_name = {"v": ([[0, 1], [1, 2]], ["jump", "run"], [0.5, 0.4])}
        by_index = {"v": ([[0, 1], [1, 2]], [1, 0], [0.5, 0.4])}
        first = write_results(tmp_path / "1.json", by_name, CLASSES).read_text()
        assert first == write_results(tmp_path / "2.json", by_index, CLASSES).read_text()

    def test_detections_object(self, tmp_path):
        detections = Detections.from_videos(two_videos(), CLASSES)
        first = write_results(tmp_path / "1.json", detections).read_text()
        again = write_results(tmp_path / "2.json", read_results(tmp_path / "1.json")).read_text()
        assert first == again

    def test_no_video(self, tmp_path):
        assert len(read_results(write_results(tmp_path / "f.json", {}, CLASSES))) == 0


@pytest.mark.parametrize("text", [b'"\x80"', b'["\xff"]'])
def test_a_field_that_nobody_reads_must_be_text_as_well(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_bytes(b'{"version": ' + text + b', "results": {"v": []}}')
    with pytest.raises(DataError, match=r"r\.json: expected JSON in UTF-8"):
        read_results(path)


class TestWriting:
    def test_replaces_and_leaves_nothing_behind(self, tmp_path):
        path = tmp_path / "found.json"
        path.write_text("old")
        write_results(path, two_videos(), CLASSES)
        assert [p.name for p in tmp_path.iterdir()] == ["found.json"]

    def test_a_bad_record_keeps_the_old_file(self, tmp_path):
        path = tmp_path / "found.json"
        path.write_text("old")
        with pytest.raises(DataError, match="expected a finite score"):
            write_results(path, {"v": ([[0, 1]], [0], [math.nan])}, CLASSES)
        assert path.read_text() == "old"

    def test_unwritable(self, tmp_path):
        with pytest.raises(DataError, match="cannot be written: No such file or directory"):
            write_results(tmp_path / "none" / "found.json", two_videos(), CLASSES)

    def test_classes_are_needed(self, tmp_path):
        with pytest.raises(DataError, match="expected classes with a mapping, got None"):
            write_results(tmp_path / "found.json", two_videos())

    @pytest.mark.parametrize(
        "labels",
        [
            np.array(["jump", "run"], dtype=object),
            np.array(["jump", "run"], dtype=np.dtypes.StringDType()),
            np.array([1, 0], dtype=object),
            np.array([1, 0], dtype=np.uint8),
            np.array([1, 0], dtype=np.int16),
            torch.tensor([1, 0], dtype=torch.int32),
            [torch.tensor(1), torch.tensor(0)],
        ],
        ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', '')}",
    )
    @pytest.mark.parametrize(
        "segments",
        [
            np.array([[0, 1], [1, 2]], dtype=np.int32),
            torch.tensor([[0.0, 1.0], [1.0, 2.0]], requires_grad=True),
            [torch.tensor([0, 1], dtype=torch.bfloat16), torch.tensor([1, 2])],
            np.array([[0, 1.0], [np.float32(1), 2]], dtype=object),
        ],
        ids=["int32", "with gradients", "list of tensors", "objects"],
    )
    def test_labels_and_times_of_all_kinds(self, labels, segments):
        scores = torch.tensor([0.5, 0.25], dtype=torch.bfloat16, requires_grad=True)
        found = Detections.from_videos({"v": (segments, labels, scores)}, CLASSES)
        assert found.label.tolist() == [1, 0]
        assert found.start.tolist() == [0.0, 1.0]
        assert found.end.tolist() == [1.0, 2.0]
        assert found.score.tolist() == [0.5, 0.25]

    @pytest.mark.parametrize(
        ("classes", "written"), [(np.array([3, 4]), 4), (np.array(["a", "b"]), "b"), ((3, 4), 4)]
    )
    def test_classes_may_be_an_array(self, tmp_path, classes, written):
        path = write_results(tmp_path / "f.json", {"v": ([[0, 1]], [1], [0.5])}, classes)
        assert json.loads(path.read_text())["results"]["v"][0]["label"] == written

    @pytest.mark.parametrize("classes", [[1.5], [True], [None], np.array([0.5])])
    def test_classes_of_another_kind(self, classes):
        with pytest.raises(DataError, match="expected classes as names or their numbers, got"):
            Detections.from_videos({}, classes)

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (
                ([[0, 1]], np.array([None]), [0.5]),
                "'v', prediction 0: expected a label as a name or an integer, got None",
            ),
            (([[0, 1], [1]], [0], [0.5]), "'v': segments: expected an array of numbers, got list"),
            (([[0, 1 + 1j]], [0], [0.5]), "'v': segments: expected numbers, got dtype complex128"),
            (([["0", "1"]], [0], [0.5]), "'v': segments: expected numbers, got dtype <U1"),
            (([[0, 1]], [0], [True]), "'v': scores: expected numbers, got dtype bool"),
            (
                ([[0, 1]], [0], np.array(["1"], object)),
                "'v': scores: expected numbers, got dtype o",
            ),
            (([[0, 1]], [2], [0.5]), r"'v', prediction 0: expected a label in \[0, 2\), got 2"),
            (([[0, 1]], ["jmup"], [0.5]), "'v', prediction 0: label 'jmup' .*did you mean 'jump'"),
            (([[0, 1]], [0.5], [0.5]), "'v': expected labels as names or integers, got float64"),
            (([[1, 0]], [0], [0.5]), "'v', prediction 0: segment .* ends before it starts"),
            (([[0, math.inf]], [0], [0.5]), "'v', prediction 0: segment .* is not finite"),
            (([[0, 1]], [0], [math.inf]), "'v', prediction 0: expected a finite score, got inf"),
            (
                ([[0, 1, 2]], [0], [0.5]),
                r"expected segments \[n, 2\].*got \[1, 3\], \[1\] and \[1\]",
            ),
            (([[0, 1]], [0, 1], [0.5]), r"got \[1, 2\], \[2\] and \[1\]"),
            (([[0, 1]], [0], 0.5), r"got \[1, 2\], \[1\] and \[\]"),
            (([["a", 1]], [0], [0.5]), "'v': segments: expected numbers, got dtype <U"),
            (([[0, 1]], [0]), r"'v': expected \(segments, labels, scores\), got tuple"),
        ],
    )
    def test_bad_arrays(self, entry, message):
        with pytest.raises(DataError, match=message):
            Detections.from_videos({"u": ([], [], []), "v": entry}, CLASSES)
