# SPDX-License-Identifier: Apache-2.0
import json
import math

import numpy as np
import pytest

from tal_fast.data.annotations import Annotations, load_annotations, save_annotations
from tal_fast.errors import ConfigError, DataError


def database(*segments, **changes):
    """One video of 10 s with the given annotations."""
    items = [s if isinstance(s, dict) else {"label": "run", "segment": list(s)} for s in segments]
    video = {"subset": "training", "duration": 10.0, "fps": 25.0, "annotations": items}
    return {"database": {"v1": {**video, **changes}}}


def test_reads_what_actionformer_writes(tiny):
    tiny.write()
    got = load_annotations(tiny.path / "annotations.json")
    assert got.classes == ("jump", "run")  # by label_id
    assert list(got.videos) == ["a", "b", "c", "d"]
    assert got.num_instances == 8
    video = got.videos["a"]
    assert (video.name, video.subset, video.duration, video.fps) == ("a", "training", 4.0, 10.0)
    assert video.segments.dtype == np.float64
    assert video.labels.dtype == np.int64
    np.testing.assert_array_equal(video.segments, [[1.0, 2.5], [3.0, 3.5]])
    np.testing.assert_array_equal(video.labels, [1, 0])
    assert got.subsets == ("training", "validation")
    assert list(got.subset("training").videos) == ["a", "b", "c"]
    assert list(got.select(["c", "a"]).videos) == ["c", "a"]


def test_classes_are_sorted_by_name_when_one_annotation_has_no_id():
    got = load_annotations(
        database(
            {"label": "walk", "label_id": 0, "segment": [0, 1]},
            {"label": "run", "segment": [1, 2]},
        )
    )
    assert got.classes == ("run", "walk")
    np.testing.assert_array_equal(got.videos["v1"].labels, [1, 0])


def test_given_classes_rule_over_ids():
    got = load_annotations(
        database({"label": "run", "label_id": 0, "segment": [0, 1]}), classes=["walk", "run"]
    )
    assert got.classes == ("walk", "run")
    assert got.videos["v1"].labels.tolist() == [1]


def test_video_without_instances_and_without_fps():
    content = database(fps=None)
    content["database"]["v2"] = {"subset": "training", "duration": 3}
    got = load_annotations(content, classes=["run"])
    assert got.videos["v2"].segments.shape == (0, 2)
    assert got.videos["v1"].fps is None


def test_written_annotations_read_back_the_same(tmp_path):
    got = load_annotations(database((0.1, 0.30000000000000004), (2, 10)))
    again = load_annotations(save_annotations(got, tmp_path / "a.json"))
    assert again.classes == got.classes
    np.testing.assert_array_equal(again.videos["v1"].segments, got.videos["v1"].segments)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_ignored_labels_are_left_out_and_counted():
    content = database((0, 1), {"label": "Ambiguous", "label_id": 20, "segment": [5, 2]})
    got = load_annotations(content, ignore_labels=["Ambiguous"])
    assert got.classes == ("run",)
    assert got.report.ignored == 1


# ---- faulty segments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ([3, 3], r"annotation 1: segment end 3.0 is not after its start 3.0"),
        ([5, 2], r"annotation 1: segment end 2.0 is not after its start 5.0"),
        ([math.nan, 2], r"annotation 1: segment \[nan, 2.0\] is not finite"),
        ([0, math.inf], r"annotation 1: segment \[0.0, inf\] is not finite"),
        ([1], r"annotation 1: expected segment \[start, end\] in seconds, got \[1\]"),
        (["0", "1"], r"annotation 1: expected segment \[start, end\]"),
        (None, r"annotation 1: expected segment \[start, end\]"),
    ],
)
def test_faulty_segment_names_file_video_and_position(tmp_path, segment, message):
    file = tmp_path / "x.json"
    file.write_text(json.dumps(database((0, 1), {"label": "run", "segment": segment})))
    with pytest.raises(DataError, match=r"x\.json: 1 faulty of 2 segments.*video 'v1'.*" + message):
        load_annotations(file)


def test_all_faults_are_counted():
    with pytest.raises(DataError, match=r"7 faulty of 8 segments.*annotation 5.*; and 2 more"):
        load_annotations(database((0, 1), *[(2, 1)] * 7))


def test_segment_beyond_the_end_is_refused_counted_or_clamped():
    content = database((8, 12), (-1, 2), (11, 12), (0, 10))
    with pytest.raises(DataError, match=r"3 faulty of 4 segments \(3 out of range.*'clamp'"):
        load_annotations(content)
    clamped = load_annotations(content, out_of_range="clamp")
    np.testing.assert_array_equal(clamped.videos["v1"].segments, [[8, 10], [0, 2], [0, 10]])
    report = clamped.report
    assert (report.out_of_range, report.clamped, report.dropped) == (3, 2, 1)
    assert "segment [8.0, 12.0] is not inside the video, [0, 10.0]" in report.examples[0]
    kept = load_annotations(content, out_of_range="keep")
    assert kept.videos["v1"].segments.tolist()[0] == [8.0, 12.0]
    assert (kept.report.out_of_range, kept.report.clamped) == (3, 0)


def test_rounding_at_the_end_is_not_beyond_it():
    assert load_annotations(database((0, 10.0000000001))).report.out_of_range == 0


def test_unknown_rule():
    with pytest.raises(ConfigError, match="out_of_range 'error', 'clamp' or 'keep', got 'cut'"):
        load_annotations(database((0, 1)), out_of_range="cut")


# ---- faulty labels, videos and files --------------------------------------------------------


def test_label_not_in_the_class_list():
    content = database({"label": "Runing", "segment": [0, 1]})
    with pytest.raises(
        DataError, match=r"label 'Runing' is not among the 2 classes.*mean 'Running'"
    ):
        load_annotations(content, classes=["Running", "Walking"])


def test_missing_label():
    with pytest.raises(DataError, match="annotation 0: expected a label, got None"):
        load_annotations(database({"segment": [0, 1]}), classes=["run"])


@pytest.mark.parametrize("second", [("run", 1), ("walk", 0)])
def test_contradicting_label_ids(second):
    label, number = second
    with pytest.raises(DataError, match=f"label '{label}' with label_id {number} contradicts"):
        load_annotations(
            database(
                {"label": "run", "label_id": 0, "segment": [0, 1]},
                {"label": label, "label_id": number, "segment": [1, 2]},
            )
        )


@pytest.mark.parametrize(("label", "shown"), [(3, "3"), (["run"], r"\['run'\]"), (None, "None")])
def test_label_that_is_no_text(label, shown):
    with pytest.raises(DataError, match=f"video 'v1', annotation 0: expected a label, got {shown}"):
        load_annotations(database({"label": label, "segment": [0, 1]}))


def test_numpy_numbers_and_arrays():
    item = {"label": np.str_("run"), "label_id": np.int64(4), "segment": np.array([0, 1.5], "f4")}
    other = {"label": "sit", "label_id": np.uint8(2), "segment": (np.float32(1), np.int16(3))}
    content = database(item, other, duration=np.float32(10), fps=np.int64(25))
    got = load_annotations(content)
    assert got.classes == ("sit", "run")
    assert got.class_ids.numbers == {"run": 4, "sit": 2}
    video = got.videos["v1"]
    assert (video.duration, video.fps) == (10.0, 25.0)
    assert video.segments.tolist() == [[0, 1.5], [1, 3]]
    content["database"]["v1"]["annotations"] = np.array([item, other], dtype=object)
    assert load_annotations(content).videos["v1"].labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"annotation 0: expected segment \[start, end\]"):
        load_annotations(database({"label": "run", "segment": np.zeros((2, 2))}))
    with pytest.raises(DataError, match=r"annotation 0: expected segment \[start, end\]"):
        load_annotations(database((0, 10**400)))


def test_double_class_names():
    with pytest.raises(DataError, match="class names that are all different"):
        load_annotations(database((0, 1)), classes=["run", "run"])


def test_no_label_at_all():
    with pytest.raises(DataError, match="no label in any annotation, and no class list"):
        load_annotations(database())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duration": None}, r"'v1': expected a duration > 0 in seconds, got None"),
        ({"duration": 0}, r"'v1': expected a duration > 0 in seconds, got 0"),
        ({"duration": math.nan}, r"'v1': expected a duration > 0 in seconds, got nan"),
        ({"fps": -1}, r"'v1': expected fps > 0, got -1"),
        ({"annotations": "none"}, r"'v1': expected a list of annotations"),
    ],
)
def test_faulty_video(changes, message):
    with pytest.raises(DataError, match=message):
        load_annotations(database((0, 1), **changes), classes=["run"])


def test_video_that_is_no_object():
    with pytest.raises(DataError, match="'v1': expected an object, got 3"):
        load_annotations({"database": {"v1": 3}}, classes=["run"])


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json: no such file \(annotations\)"):
        load_annotations(tmp_path / "gone.json")


def test_folder_instead_of_a_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read: expected a file, found a dir"):
        load_annotations(tmp_path)


def test_truncated_json(tmp_path):
    file = tmp_path / "x.json"
    text = json.dumps(database((0, 1), (1, 2)))
    for length in (0, 1, len(text) // 2, len(text) - 1):
        file.write_text(text[:length])
        with pytest.raises(DataError, match=r"x\.json: not valid JSON at line 1, column"):
            load_annotations(file)


def test_json_that_is_not_utf8(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(b'{"database": "\xff\xfe\xfa"}')
    with pytest.raises(DataError, match="expected JSON in UTF-8"):
        load_annotations(file)


@pytest.mark.parametrize("content", [{}, {"database": []}, {"database": {}}, {"results": {}}])
def test_json_without_a_database(content):
    with pytest.raises(DataError, match=r"expected an object with a 'database'|at least one video"):
        load_annotations(content)


def test_unknown_subset_and_video():
    got = load_annotations(database((0, 1)))
    with pytest.raises(DataError, match="among 'training', got 'traning'; did you mean 'training'"):
        got.subset("traning")
    with pytest.raises(DataError, match="no video 'v2' among 1"):
        got.select(["v2"])


def test_unwritable_annotations(tmp_path):
    with pytest.raises(DataError, match=r"a\.json: cannot be written: No such file or directory"):
        save_annotations(Annotations({}, ("run",)), tmp_path / "gone" / "a.json")


# ---- the real files -------------------------------------------------------------------------


def test_thumos14_has_its_known_faults(test_data):
    with pytest.raises(DataError, match="30 faulty of 6365 segments"):
        load_annotations(test_data / "thumos14.json")
    got = load_annotations(test_data / "thumos14.json", out_of_range="clamp")
    assert len(got.videos) == 412
    assert len(got.classes) == 20
    assert got.report.out_of_range == 30
    assert got.num_instances == 6365 - got.report.dropped
    assert got.subset("Validation").num_instances + got.subset("Test").num_instances == (
        got.num_instances
    )
