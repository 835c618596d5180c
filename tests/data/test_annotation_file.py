# SPDX-License-Identifier: Apache-2.0
"""The one reader of annotation files, and its three views side by side."""

import json
import math

import pytest

from tal_fast.data import load_annotations
from tal_fast.data.annotation_file import read_annotation_file
from tal_fast.data.validation import validate
from tal_fast.errors import DataError
from tal_fast.evaluation import read_ground_truth


def content_of(*items, **changes):
    video = {"subset": "train", "duration": 10.0, "annotations": list(items)}
    return {"database": {"v": {**video, **changes}}}


def item(label, number=None, segment=(0, 1)):
    own = {} if number is None else {"label_id": number}
    return {"label": label, "segment": list(segment), **own}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ((item("c", 0), item("a", 2), item("b", 1)), ("c", "b", "a")),
        ((item("c", 0), item("a", 2), item("b")), ("a", "b", "c")),
        ((item("c", 0), item("c"), item("a", 2), item("b", 1)), ("a", "b", "c")),
        ((item("c"), item("a"), item("b")), ("a", "b", "c")),
    ],
    ids=["by number", "a class without", "an annotation without", "none"],
)
def test_the_views_have_one_order_of_classes(tmp_path, items, expected):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content_of(*items)))
    assert load_annotations(path).classes == expected
    assert read_ground_truth(path).classes == expected
    assert validate(path).classes == expected


def test_what_is_there_is_taken_up_and_nothing_is_judged():
    items = [
        item("run", 3, (2, 1)),
        item("run", "3", (0, math.nan)),
        item(7, True, (0, "1")),
        "no object",
        {"segment": [0, 1, 2]},
    ]
    (video,) = read_annotation_file(content_of(*items)).videos
    assert [i.position for i in video.instances] == [0, 1, 2, 3, 4]
    assert [i.label for i in video.instances] == ["run", "run", None, None, None]
    assert [i.label_id for i in video.instances] == [3, None, None, None, None]
    first, second, *others = (i.segment for i in video.instances)
    assert first == (2.0, 1.0)
    assert second[0] == 0
    assert math.isnan(second[1])
    assert others == [None] * 3
    assert [i.span for i in video.instances] == [(2.0, 1.0), None, None, None, None]
    assert [i.value("label") for i in video.instances] == ["run", "run", 7, None, None]


@pytest.mark.parametrize(
    ("changes", "duration", "fps", "rate", "faults"),
    [
        ({"fps": 25}, 10, 25, 25, set()),
        ({"fps": 25, "frame": 100}, 10, 25, 25, set()),
        ({"frame": 100}, 10, None, 10, set()),
        ({"duration_frame": 300}, 10, None, 30, set()),
        ({"fps": 0}, 10, None, None, {"fps"}),
        ({"fps": "25"}, 10, None, None, {"fps"}),
        ({"duration": math.inf}, None, None, None, {"duration"}),
        ({"duration": -1, "frame": 5}, None, None, None, {"duration"}),
        ({"annotations": None}, 10, None, None, {"null annotations"}),
        ({"annotations": {}}, 10, None, None, {"annotations"}),
    ],
)
def test_a_video_and_its_faults(changes, duration, fps, rate, faults):
    file = read_annotation_file(content_of(item("run"), **changes))
    (video,) = file.videos
    assert (video.duration, video.fps, video.rate) == (duration, fps, rate)
    assert set(video.faults) == faults
    for fault in faults:
        with pytest.raises(DataError, match="annotations: video 'v': expected"):
            file.refuse(fault)
    file.refuse()


def test_null_is_no_annotation_to_training_and_no_truth():
    content = content_of(annotations=None)
    assert len(load_annotations(content, classes=["run"]).videos["v"].labels) == 0
    with pytest.raises(DataError, match="'v': expected a list of annotations, got NoneType"):
        read_ground_truth(content)


def test_files_without_database_around_the_videos():
    timed, bare = {"v": {"duration_second": 9}}, {"v": {"annotations": [item("run")]}}
    assert read_annotation_file(timed, bare="timed").videos[0].duration == 9
    assert len(read_annotation_file(bare, bare="any").videos[0].instances) == 1
    for content in (timed, bare):
        with pytest.raises(DataError, match=r"with a 'database' object, got .* among \['v'\]"):
            read_annotation_file(content)
    with pytest.raises(DataError, match="video 'v': expected duration_second"):
        read_annotation_file(bare, bare="timed")
    for form in ("no", "timed", "any"):
        with pytest.raises(DataError, match=r"expected an object .*'database'"):
            read_annotation_file({"database": 3}, bare=form)
        with pytest.raises(DataError, match="expected at least one video"):
            read_annotation_file({"database": {}}, bare=form)


@pytest.mark.parametrize(
    ("names", "listed", "fault"),
    [
        (["b", "a", "b"], ("b", "a"), ""),
        (None, None, ""),
        ({"a": {}}, None, ""),
        (["a", 3], None, r"expected 'classes' as a list of names, got ['a', 3]"),
    ],
)
def test_the_list_of_classes(names, listed, fault):
    content = {**content_of(item("a")), "classes": names}
    file = read_annotation_file(content)
    assert (file.listed, file.listed_fault) == (listed, fault)
    if fault:
        with pytest.raises(DataError, match="ground truth: expected 'classes' as a list of names"):
            read_ground_truth(content)
    else:
        assert read_ground_truth(content).listed == listed
