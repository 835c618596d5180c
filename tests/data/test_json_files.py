# SPDX-License-Identifier: Apache-2.0
"""The one reader of annotations and results: what it refuses, on every way that leads to it."""

import ast
import gzip
import json
from pathlib import Path

import pytest

import tal_fast
from tal_fast.data import load_annotations, open_dataset
from tal_fast.data.annotation_file import read_annotation_file
from tal_fast.data.json_files import parse_json, parse_with_repeats
from tal_fast.errors import DataError
from tal_fast.evaluation import read_ground_truth, read_results

VIDEO = '{"subset": "t", "duration": 9, "annotations": [{"segment": [0, 1], "label": "run"}]}'
RECORD = '{"segment": [0, 1], "label": "run", "score": 0.5}'

ANNOTATION_READERS = [load_annotations, read_ground_truth, read_annotation_file]
READERS = [*ANNOTATION_READERS, read_results]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{{"database": {{"v": {VIDEO}, "w": {VIDEO}, "v": {VIDEO}}}}}', "video 'v' is listed"),
        (f'{{"database": {{"v": {VIDEO}}}, "database": {{}}}}', "key 'database' is there more"),
        (
            '{"database": {"v": {"duration": 9, "annotations": [], "annotations": []}}}',
            "video 'v': key 'annotations' is there more than once",
        ),
        (
            '{"database": {"v": {"duration": 9, "annotations": [{"label": "a", "label": "b"}]}}}',
            "video 'v', annotation 0: key 'label' is there more than once",
        ),
    ],
)
@pytest.mark.parametrize("read", ANNOTATION_READERS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_repeated_keys_of_annotations(tmp_path, read, text, message, pack):
    path = tmp_path / "merged.json"
    path.write_bytes(pack(text.encode()))
    with pytest.raises(DataError, match=rf"merged\.json: {message}"):
        read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{{"results": {{"v": [{RECORD}], "w": [], "v": [{RECORD}]}}}}', "video 'v' is listed"),
        (f'{{"results": {{"v": [{RECORD}], "v": []}}}}', "video 'v' is listed more than once"),
        (f'{{"results": {{"v": [], "v": [{RECORD}]}}}}', "video 'v' is listed more than once"),
        (f'{{"results": {{}}, "results": {{"v": [{RECORD}]}}}}', "key 'results' is there more"),
        (
            '{"results": {"v": [{"segment": [0, 1], "label": "a", "label": "b", "score": 1}]}}',
            "video 'v', prediction 0: key 'label' is there more than once",
        ),
        (
            '{"results": {"v": [{"segment": [0, 1], "label": "a", "l\\u0061bel": "b", "score": 1}'
            "]}}",
            "video 'v', prediction 0: key 'label' is there more than once",
        ),
        (
            '{"results": {"v": [{"segment": [0, 1], "score": 1, "label": "a", "score": 0}]}}',
            "video 'v', prediction 0: key 'score' is there more than once",
        ),
    ],
)
@pytest.mark.parametrize("quick", [True, False])
def test_repeated_keys_of_results(tmp_path, monkeypatch, quick, text, message):
    if quick:
        pytest.importorskip("msgspec")
    else:
        monkeypatch.setattr("tal_fast.evaluation.fast_json._decoder", lambda: None)
    path = tmp_path / "merged.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"merged\.json: {message}"):
        read_results(path)


def test_what_looks_like_a_repeated_key_is_none(tmp_path):
    """Names like those of fields, brackets and escapes in names: read as they are."""
    names = ["label", "a [b]", "caf\u00e9", 'say "score"', "results"]
    records = [{"segment": [0, 1], "label": name, "score": 0.5, "more": [1]} for name in names]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"results": {"label": records, "[": records}}))
    found = read_results(path)
    assert found.videos == ("label", "[")
    assert found.classes == tuple(names)
    assert len(found) == 10


def test_repeated_key_in_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"video": "v", "video": "w", "segment": [0, 1], "label": "a", "score": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: key 'video' is there more than once"):
        read_results(path)


def test_a_data_directory_names_the_video(tiny):
    tiny.write()
    path = tiny.path / "annotations.json"
    path.write_text(path.read_text().replace('"b": {"subset"', '"a": {"subset"'))
    with pytest.raises(DataError, match="video 'a' is listed more than once"):
        open_dataset(tiny.path)


def test_hidden_objects_are_looked_at_too():
    text = b'{"a": {"x": 1, "x": 2}, "a": {}, "b": [{"y": 1, "y": 1}]}'
    content, repeated = parse_with_repeats("x", text)
    assert content == {"a": {}, "b": [{"y": 1}]}
    assert [(r.key, r.path, r.video) for r in repeated] == [
        ("a", (), True),
        ("y", ("b", 0), False),
        ("x", ("a",), False),
    ]
    with pytest.raises(DataError, match=r"x: video 'a' is listed more than once \(and 2 more\)"):
        parse_json("x", text, bare=True)


@pytest.mark.parametrize("name", [1, "1"])
def test_names_of_a_mapping_that_are_one_as_text(name):
    video = json.loads(VIDEO)
    other = {1: "1", "1": 1}[name]
    with pytest.raises(DataError, match="video '1' is listed more than once"):
        load_annotations({"database": {name: video, other: video}})
    with pytest.raises(DataError, match=r"video '?1'?: expected one of its name"):
        read_ground_truth({"database": {name: video, other: video}})
    with pytest.raises(DataError, match="video '1' is listed more than once"):
        read_results({"results": {name: [], other: []}})


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' * 200_000, "nested too deeply"),
        ('{"database": {"v": {"duration": %s}}}' % ("1" * 5000), "a number that nobody can read"),
        ("", "the file is empty"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, read, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"x\.json: .*{message}"):
        read(path)


@pytest.mark.parametrize("read", ANNOTATION_READERS)
def test_annotations_may_be_gzipped(tmp_path, read):
    plain, packed = tmp_path / "a.json", tmp_path / "a.json.gz"
    text = f'{{"database": {{"v": {VIDEO}}}}}'.encode()
    plain.write_bytes(text)
    packed.write_bytes(gzip.compress(text))
    assert [*read(packed).videos] == [*read(plain).videos]
    packed.write_bytes(gzip.compress(text)[:-9])
    with pytest.raises(DataError, match=r"a\.json\.gz: not a whole gzip file"):
        read(packed)


@pytest.mark.parametrize("read", ANNOTATION_READERS)
@pytest.mark.parametrize(
    ("subset", "expected"), [("null", ""), ('"test"', "test"), ("3", "3"), ("0", "0")]
)
def test_subset_of_a_video(tmp_path, read, subset, expected):
    path = tmp_path / "a.json"
    path.write_text(f'{{"database": {{"v": {VIDEO.replace(chr(34) + "t" + chr(34), subset)}}}}}')
    if read is read_ground_truth:
        assert read(path, expected).videos == ("v",)
    else:
        videos = read(path).videos
        video = videos["v"] if isinstance(videos, dict) else videos[0]
        assert video.subset == expected
    path.write_text(path.read_text().replace(f'"subset": {subset}', '"subset": ["test"]'))
    with pytest.raises(DataError, match=r"video 'v': expected subset as text, got \['test'\]"):
        read(path)


# What reads JSON by itself: text of our own processes, and files that are made again where they are
# damaged. Files that people write go through the one reader.
_OWN = {
    "data/formats/hdf5_probe.py",  # of the process that asks
    "data/formats/hdf5_trust.py",  # of the process that was asked
    "data/json_files.py",  # the reader
    "evaluation/prediction_files.py",  # the beginning of what it has written, before its detections
    "profiling/apart.py",  # of the process that started this one
    "profiling/ceilings.py",  # a cache
    "profiling/external.py",  # what a profiler has just written
    "profiling/interventions.py",  # of a process of ours
    "profiling/op_recorder.py",  # what torch has just written
    "study/adaptive/steering.py",  # the last line, to write none twice
    "study/execution/messages.py",
    "study/execution/ray/driver.py",
    "study/execution/run_trial.py",  # of an unfinished trial, which is begun anew
    "study/execution/worker.py",
    "study/report/page.py",  # a cache
    "study/spec.py",  # through JSON and back, in memory
    "study/trial.py",  # of the driver
}


def test_what_people_write_is_read_by_the_one_reader():
    package = Path(tal_fast.__file__).parent
    readers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.loads", "json.load")
    }
    assert readers == _OWN


def test_a_key_of_an_object_that_is_no_video(tmp_path):
    with pytest.raises(DataError, match="f: key 'a' is there more than once"):
        parse_json("f", b'{"a": {}, "a": {}}')
    with pytest.raises(DataError, match="f: video 'a' is listed more than once"):
        parse_json("f", b'{"a": {}, "a": {}}', bare=True)
