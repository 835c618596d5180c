# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

from tal_fast.data.annotations import load_annotations
from tal_fast.data.dataset import DatasetSpec, FeatureSpec, open_dataset, save_spec
from tal_fast.data.validation import validate_dataset
from tal_fast.errors import ConfigError, DataError


def test_opens(tiny):
    data = open_dataset(tiny.write())
    assert data.name == "tiny"
    assert data.classes == ("jump", "run")
    assert (data.num_classes, data.channels) == (2, 4)
    assert data.splits == {"train": ["a", "b", "c"], "test": ["d"]}
    assert data.features["c"].rows == 333
    assert data.grid("a").to_grid(1.0) == 10.0
    assert open_dataset(tiny.path / "dataset.yaml").splits == data.splits


def test_written_spec_reads_back_the_same(tiny):
    tiny.write()
    spec = DatasetSpec(
        name="tiny",
        feature=FeatureSpec(channels=4, fps=12.5),
        classes=("jump", "run"),
        ignore_labels=("Ambiguous",),
        citation="Somebody, Straße 1",
    )
    save_spec(spec, tiny.path)
    data = open_dataset(tiny.path)
    assert data.spec == spec
    assert data.grid("a").fps == 12.5


def test_channels_first_layout(tiny):
    tiny.features = {k: np.ascontiguousarray(v.T) for k, v in tiny.features.items()}
    tiny.spec["feature"]["layout"] = "CT"
    data = open_dataset(tiny.write())
    assert (data.channels, data.features["c"].rows) == (4, 333)


def test_split_of_several_subsets(tiny):
    tiny.database["b"]["subset"] = "extra"
    tiny.spec["splits"]["train"] = ["training", "extra"]
    assert open_dataset(tiny.write()).splits["train"] == ["a", "b", "c"]


def test_video_of_no_split_needs_no_features(tiny):
    tiny.database["e"] = {"subset": "testing", "duration": 5}
    assert "e" not in open_dataset(tiny.write()).annotations.videos


def test_features_without_annotation(tiny):
    tiny.features["x"] = tiny.features["a"]
    tiny.write()
    with pytest.raises(DataError, match="features: 1 feature files without annotation: x"):
        open_dataset(tiny.path)
    assert "x" not in open_dataset(tiny.path, unmatched="skip").features


def test_annotation_without_features(tiny):
    tiny.write()
    tiny.file("b").unlink()
    with pytest.raises(DataError, match=r"video 'b': .*b\.npy: no such feature file"):
        open_dataset(tiny.path)
    data = open_dataset(tiny.path, unmatched="skip")
    assert data.splits["train"] == ["a", "c"]
    assert "b" not in data.annotations.videos
    tiny.file("d").unlink()
    with pytest.raises(DataError, match="split 'test' has no video with features"):
        open_dataset(tiny.path, unmatched="skip")


@pytest.mark.parametrize(
    ("exclude", "why"),
    [
        (["d2", "b"], "excluded by name (exclude)"),
        ({"camera fell": ["d2", "b"], "none": []}, "camera fell (exclude)"),
    ],
)
def test_excluded_videos_are_left_out_and_stay_in_the_truth(tiny, exclude, why):
    tiny.database["d2"] = {**tiny.database["d"]}
    tiny.database["unused"] = {**tiny.database["d"], "subset": "other"}
    tiny.spec["exclude"] = exclude
    path = tiny.write()
    data = open_dataset(path)  # also without features of d2
    assert data.splits == {"train": ["a", "c"], "test": ["d"]}
    assert set(data.annotations.videos) == set(data.features) == {"a", "c", "d"}
    assert data.left_out == {why: ("d2", "b")}
    assert data.notes() == [
        f"2 of the 5 videos of {path} left out of training and prediction, {why}: d2, b"
    ]
    assert set(load_annotations(path / "annotations.json").videos) == {*"abcd", "d2", "unused"}
    save_spec(data.spec, path)
    assert open_dataset(path).spec == data.spec
    # A lost file of another video is an error all the same.
    tiny.file("c").unlink()
    with pytest.raises(DataError, match=r"video 'c': .*no such feature file"):
        open_dataset(path)


def test_many_videos_left_out_are_counted_and_the_first_named(tiny):
    for i in range(7):
        tiny.database[f"x\n{i}"] = {**tiny.database["a"]}
    tiny.spec["unmatched"] = "skip"
    (note,) = open_dataset(tiny.write()).notes()
    first = ", ".join(rf"'x\n{i}'" for i in range(5))
    assert note == (
        f"7 of the 11 videos of {tiny.path} left out of training and prediction, without features "
        f"(unmatched: skip): {first}, …"
    )


def test_unknown_rule_for_unmatched(tiny):
    with pytest.raises(ConfigError, match="expected unmatched 'error' or 'skip', got 'skp'"):
        open_dataset(tiny.write(), unmatched="skp")


def test_no_feature_folder(tiny):
    tiny.spec["features"] = "feats"
    with pytest.raises(DataError, match="feats: no such feature folder"):
        open_dataset(tiny.write())


def test_segments_beyond_the_end_only_on_request(tiny):
    tiny.database["a"]["annotations"][0]["segment"] = [1.0, 7.0]
    tiny.write()
    with pytest.raises(DataError, match="1 out of range"):
        open_dataset(tiny.path)
    data = open_dataset(tiny.path, out_of_range="clamp")
    assert data.annotations.report.clamped == 1
    assert data.annotations.videos["a"].segments[0].tolist() == [1.0, 4.0]
    assert data.truth.videos["a"].segments[0].tolist() == [1.0, 7.0]  # scores are against this
    assert list(data.truth.videos) == list(data.annotations.videos)
    tiny.spec["out_of_range"] = "clamp"
    assert open_dataset(tiny.write()).annotations.report.clamped == 1


@pytest.mark.parametrize(
    ("where", "key", "message"),
    [
        ("", "citaton", "unknown key 'citaton'; did you mean 'citation'"),
        ("feature", "strid", "unknown key 'feature.strid'; did you mean 'stride'"),
        ("", "zzz", r"unknown key 'zzz' \(known: name, format"),
    ],
)
def test_unknown_key(tiny, where, key, message):
    (tiny.spec[where] if where else tiny.spec)[key] = 1
    with pytest.raises(DataError, match=r"dataset\.yaml: " + message):
        open_dataset(tiny.write())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "expected format 1, got 2"),
        ({"name": None}, "expected a key 'name'"),
        ({"splits": {}}, "expected splits to be {train: <subset>, …}, .* got {}"),
        ({"splits": {"train": "trainin"}}, "splits.train: .*'trainin'; did you mean 'training'"),
        ({"splits": {"train": "training", "test": "training"}}, "'a' is in splits train and test"),
        ({"splits": {"train": 1, "test": 2}}, "expected splits to be .*, got {'train': 1, 'test'"),
        ({"classes": "run"}, "expected classes to be a list of class names .*, got 'run'"),
        ({"classes": ["run", "run"]}, "expected each item of classes once, got 'run' twice"),
        ({"exclude": {"a": ["x"], "b": ["x"]}}, "each item of exclude once, got 'x' twice"),
        ({"exclude": ["dd"]}, "exclude: expected annotated videos, got 'dd'; did you mean 'd'"),
        ({"classes": ["run"]}, "label 'jump' is not among the 1 class"),
        ({"unmatched": "skp"}, "expected unmatched 'error' or 'skip', got 'skp'"),
        ({"feature": 3}, "expected feature to hold keys"),
        ({"feature": {"layout": "TD"}}, "feature.layout 'TC' or 'CT', got 'TD'"),
        ({"feature": {"suffix": ".pt"}}, "4 videos without a feature file <video>.pt"),
        ({"feature": {"template": "x"}}, "dataset.yaml: features: expected a template with one %s"),
        ({"feature": {"prefix": "%s"}}, "dataset.yaml: features: expected a template with one %s"),
        ({"feature": {"suffix": "\0.npy"}}, "expected a template that the name of a file can have"),
        ({"feature": {"template": 3}}, "expected feature.template to be text or a list of it"),
        ({"feature": {"key": [3]}}, r"expected feature.key to be text or a list of it, got \[3\]"),
        ({"features": 3}, "expected features to be a path or a list of paths, got 3"),
        (
            {"features": ["x", "y"], "feature": {"template": ["%s", "%s", "%s"]}},
            "2, one per folder",
        ),
        ({"feature": {"stride": 0}}, "expected feature.stride > 0, got 0"),
        ({"feature": {"channels": "x"}}, "expected feature.channels > 0, a whole number, got 'x'"),
        ({"feature": {"channels": 5}}, "expected 5 channels, got 4"),
    ],
)
def test_faulty_spec(tiny, changes, message):
    tiny.spec.update(changes)
    tiny.spec = {k: v for k, v in tiny.spec.items() if v is not None}
    with pytest.raises(DataError, match=message):
        open_dataset(tiny.write())


# What is no value for any key but those beside it.
WRONG = {
    None: ("exclude", "classes", "ignore_labels", "citation", "feature.channels", "feature.fps",
           "feature.template", "feature.key"),
    3: ("feature.channels", "feature.stride", "feature.frames", "feature.fps"),
    -1: (),
    True: (),
    math.nan: (),
    math.inf: (),
    10**400: (),
    "": ("citation", "feature.prefix", "feature.suffix", "feature.template", "feature.key"),
    "a\0b": ("name", "citation", "feature.prefix", "feature.suffix", "feature.template",
              "feature.key"),
    (): ("exclude", "ignore_labels"),
    (3,): (),
    (None, "a"): (),
    (("a", 1),): (),
}  # fmt: skip
KEYS = [
    *(f.name for f in dataclasses.fields(DatasetSpec) if f.name != "feature"),
    *(f"feature.{f.name}" for f in dataclasses.fields(FeatureSpec)),
]


@pytest.mark.parametrize("key", KEYS)
def test_every_value_of_a_wrong_type_is_named(tiny, key):
    tiny.write()
    section, name = key.split(".") if "." in key else ("", key)
    for value, right in WRONG.items():
        if key in right:
            continue
        given = dict(value) if value and isinstance(value, tuple) and value[0] == ("a", 1) else (
            list(value) if isinstance(value, tuple) else value)  # fmt: skip
        spec = copy.deepcopy(tiny.spec)
        (spec[section] if section else spec)[name] = given
        (tiny.path / "dataset.yaml").write_text(yaml.safe_dump(spec))
        with pytest.raises(DataError) as raised:
            open_dataset(tiny.path)
        found = re.escape(repr(given)[:200])
        assert re.search(rf"dataset\.yaml: expected {key} .*, got {found}$", str(raised.value))


def test_keys_left_empty_are_as_if_not_there(tiny):
    tiny.spec |= dict.fromkeys(["exclude", "classes", "ignore_labels", "citation"])
    tiny.spec["feature"] |= dict.fromkeys(["channels", "fps", "template", "key"])
    assert open_dataset(tiny.write()).spec == DatasetSpec(name="tiny")


def test_fps_nowhere(tiny):
    del tiny.database["b"]["fps"]
    with pytest.raises(DataError, match=r"1 video has no fps in annotations.json, first 'b'"):
        open_dataset(tiny.write())
    tiny.spec["feature"]["fps"] = 10
    assert open_dataset(tiny.write()).grid("b").fps == 10


def test_not_a_data_directory(tiny, tmp_path):
    with pytest.raises(DataError, match=r"expected a data directory, with a dataset\.yaml"):
        open_dataset(tmp_path)
    tiny.write()
    (tiny.path / "dataset.yaml").write_text("a: [1")
    with pytest.raises(DataError, match=r"dataset\.yaml: not valid YAML"):
        open_dataset(tiny.path)
    (tiny.path / "dataset.yaml").write_text("name: x\nname: y\n")
    with pytest.raises(DataError, match=r"yaml: expected each key once, got 'name' in line 1"):
        open_dataset(tiny.path)
    (tiny.path / "dataset.yaml").write_text("")
    with pytest.raises(DataError, match="expected the file to hold keys"):
        open_dataset(tiny.path)


def test_unknown_video_has_no_grid(tiny):
    with pytest.raises(DataError, match="no video 'z' in data set 'tiny'"):
        open_dataset(tiny.write()).grid("z")


def test_unwritable_spec(tmp_path):
    with pytest.raises(DataError, match="cannot be written: No such file"):
        save_spec(DatasetSpec(name="x"), tmp_path / "gone")


def test_opening_data_does_not_import_torch(tiny):
    tiny.write()
    code = (
        "import sys, tal_fast.data, tal_fast.data.prepare, tal_fast.data.synthetic\n"
        "tal_fast.data.open_dataset(sys.argv[1])\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, os.fspath(tiny.path)], check=True)


def test_class_without_a_training_video(tiny):
    for name in ("a", "b", "c"):
        tiny.database[name]["annotations"] = [{"label": "run", "label_id": 1, "segment": [1, 2]}]
    data = open_dataset(tiny.write())
    data.require_every_class(["d"], "test")
    with pytest.raises(DataError, match=r"no training video has an instance of jump \(1 of 2"):
        data.require_every_class(data.splits["train"], "training")


def test_a_path_that_the_system_refuses():
    with pytest.raises(DataError, match="xxx: cannot be read: File name too long"):
        open_dataset("x" * 5000)
    with pytest.raises(DataError, match=r"a\\x00b.*: cannot be read: embedded null"):
        open_dataset("a\0b")


@pytest.mark.parametrize("device", ["/dev/zero", "pipe"])
def test_annotations_that_have_no_end(tiny, device):
    path = tiny.write()
    if device == "pipe":
        os.mkfifo(path / device)
    spec = yaml.safe_load((path / "dataset.yaml").read_text()) | {"annotations": device}
    (path / "dataset.yaml").write_text(yaml.safe_dump(spec))
    for read in (open_dataset, validate_dataset):
        with pytest.raises(DataError, match="expected a file of annotations, got a device or a"):
            read(path)
