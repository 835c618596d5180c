# SPDX-License-Identifier: Apache-2.0
"""THUMOS14 and ActivityNet in the layouts of other codebases; and the real annotations."""

import json
import os

import numpy as np
import pytest
import torch
from feature_files import write

from tal_fast.data.annotations import load_annotations
from tal_fast.data.dataset import open_dataset
from tal_fast.data.extents import read_array
from tal_fast.data.prepare import (
    FeatureChoice,
    Repairs,
    prepare_activitynet13,
    prepare_thumos14,
)
from tal_fast.errors import ConfigError, DataError

CHANNELS = 6


class Small:
    """Ten videos in a form of a codebase; ``database`` may be bent before ``write``."""

    def __init__(self, path, names, stride, frames, fps):
        self.path = path
        self.rng = np.random.default_rng(0)
        self.names = names
        self.videos = {name: {"seconds": 12.0 + 5 * i, "fps": fps} for i, name in enumerate(names)}
        self.rows = {
            name: int((v["seconds"] * v["fps"] - frames) // stride) + 1
            for name, v in self.videos.items()
        }
        self.features = {
            name: self.rng.normal(size=(rows, CHANNELS)).astype(np.float32)
            for name, rows in self.rows.items()
        }
        self.segments = {name: [("Diving", 1.0, 3.0), ("HighJump", 4.0, 6.0)] for name in names}
        self.folder = path / "features"
        self.folder.mkdir()

    def save(self, template="%s.npy", kind="npy"):
        for name, array in self.features.items():
            write(self.folder / (template % name), kind, array)

    def annotations(self, subsets, *, fps=True, frame=False, ids=True):
        database = {}
        for i, name in enumerate(self.names):
            video = self.videos[name]
            entry = {"subset": subsets[i % 2], "duration": video["seconds"]}
            if fps:
                entry["fps"] = video["fps"]
            if frame:
                entry["frame"] = round(video["seconds"] * video["fps"])
            entry["annotations"] = [
                {"label": label, "segment": [a, b], **({"label_id": len(label)} if ids else {})}
                for label, a, b in self.segments[name]
            ]
            database[name] = entry
        file = self.path / "annotations.json"
        file.write_text(json.dumps({"version": "x", "database": database}))
        return file


@pytest.fixture
def thumos(tmp_path):
    names = [f"video_{'validation' if i % 2 == 0 else 'test'}_{i:07d}" for i in range(10)]
    return Small(tmp_path, names, 4, 16, 30.0)


def check(data, small, found):
    for name, extent in data.features.items():
        np.testing.assert_array_equal(read_array(extent), small.features[name])
    assert found.channels == data.channels == CHANNELS
    assert found.rows == sum(small.rows[name] for name in data.features)


class TestThumos14:
    def test_as_actionformer(self, thumos, tmp_path):
        thumos.save()
        choice = FeatureChoice([thumos.folder])
        report = prepare_thumos14(
            thumos.annotations(("Validation", "Test")), choice, tmp_path / "out"
        )
        assert (report.splits, report.instances, report.fitting) == ({"train": 5, "test": 5}, 20, 1)
        data = open_dataset(tmp_path / "out")
        check(data, thumos, report)
        assert data.splits["train"] == thumos.names[::2]
        assert data.classes == ("Diving", "HighJump")
        assert data.spec.out_of_range == "error"
        # The features stay where they are.
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
            "annotations.json", "dataset.yaml",
        ]  # fmt: skip
        assert (
            "rows agree with stride and fps in 100.0 % of the videos whose duration is known"
            in report.lines()[2]
        )

    def test_as_opentad(self, thumos, tmp_path):
        thumos.save()
        annotations = thumos.annotations(
            ("training", "validation"), fps=False, frame=True, ids=False
        )
        report = prepare_thumos14(annotations, FeatureChoice([thumos.folder]), tmp_path / "out")
        data = open_dataset(tmp_path / "out")
        check(data, thumos, report)
        assert data.splits["train"] == thumos.names[::2]
        assert data.annotations.videos[thumos.names[0]].fps == 30

    def test_as_tadtr(self, thumos, tmp_path):
        """Torch files without an ending, and Ambiguous segments."""
        thumos.save("%s", "torch")
        thumos.segments[thumos.names[1]].append(("Ambiguous", 7.0, 8.0))
        annotations = thumos.annotations(("val", "test"), ids=False)
        choice = FeatureChoice([thumos.folder], "%s")
        with pytest.raises(DataError, match=r"torch files cannot be read .*tal-fast pack"):
            prepare_thumos14(annotations, choice, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        calls = []
        report = prepare_thumos14(
            annotations, FeatureChoice([thumos.folder], "%s", pack="float32"), tmp_path / "out",
            progress=lambda *args: calls.append(args),
        )  # fmt: skip
        assert len(calls) == 10
        data = open_dataset(tmp_path / "out")
        check(data, thumos, report)
        assert data.spec.features == "features"
        assert data.spec.ignore_labels == ("Ambiguous",)
        assert data.classes == ("Diving", "HighJump")
        assert data.annotations.report.ignored == 1

    def test_two_streams(self, thumos, tmp_path):
        for name, array in thumos.features.items():
            for stream, part in (("rgb", array[:, :2]), ("flow", array[:, 2:])):
                (tmp_path / stream).mkdir(exist_ok=True)
                np.save(tmp_path / stream / f"{name}.npy", part)
        choice = FeatureChoice([tmp_path / "rgb", tmp_path / "flow"])
        report = prepare_thumos14(
            thumos.annotations(("Validation", "Test")), choice, tmp_path / "out"
        )
        check(open_dataset(tmp_path / "out"), thumos, report)

    def test_wrong_stride_is_noticed(self, thumos, tmp_path):
        thumos.save()
        annotations = thumos.annotations(("Validation", "Test"))
        message = (
            r"stride 8 and frames 16 agree with the durations of only 0\.0 % of the videos; "
            r"settings that fit better: stride 4, each video's own fps, frames 16"
        )
        with pytest.raises(DataError, match=message):
            prepare_thumos14(annotations, FeatureChoice([thumos.folder], stride=8), tmp_path / "o")
        assert not (tmp_path / "o").exists()

    def test_faults_need_a_word(self, thumos, tmp_path):
        thumos.save()
        first, second = thumos.names[:2]
        thumos.segments[first].append(("Diving", 2.0, 99.0))
        thumos.segments[second].append(("Diving", 2.0, 2.0))
        os.unlink(thumos.folder / f"{thumos.names[3]}.npy")
        annotations = thumos.annotations(("Validation", "Test"))
        choice = FeatureChoice([thumos.folder])

        def prepare(**repairs):
            return prepare_thumos14(
                annotations, choice, tmp_path / "out", repairs=Repairs(**repairs)
            )

        with pytest.raises(DataError, match=f"no features .* of 10 videos: {thumos.names[3]}"):
            prepare()
        with pytest.raises(DataError, match=f"1 segment has no length .* in video '{second}'"):
            prepare(missing="skip")
        with pytest.raises(
            DataError, match=f"^{annotations}: .*1 out of range.*'{first}', annotation 2"
        ):
            prepare(missing="skip", non_positive="drop")
        report = prepare(missing="skip", non_positive="drop", out_of_range="clamp")
        assert (report.dropped, report.out_of_range) == (1, 1)
        assert report.missing == (thumos.names[3],)
        text = "\n".join(report.lines())
        assert "1 segment without length left out (end <= start)" in text
        assert "1 segment reaches beyond the video: for training " in text
        assert "1 of 10 annotated videos left out of training and prediction for want of" in text
        assert f"(exclude in dataset.yaml), and counted by scoring: {thumos.names[3]}" in text
        data = open_dataset(tmp_path / "out")
        assert data.left_out == {"without features (exclude)": (thumos.names[3],)}
        truth = load_annotations(tmp_path / "out/annotations.json", out_of_range="keep")
        assert set(truth.videos) == set(thumos.names), "scoring counts what has no features"
        # Another one that is lost later is no longer left out unasked, and the lost one that is
        # back stays excluded.
        missing, lost = thumos.names[3], thumos.names[4]
        os.rename(thumos.folder / f"{lost}.npy", thumos.folder / f"{missing}.npy")
        with pytest.raises(DataError, match=f"video '{lost}': .* no such feature file"):
            open_dataset(tmp_path / "out")
        assert data.annotations.videos[first].segments[2].tolist() == [2.0, 12.0]

    def test_a_video_listed_twice(self, thumos, tmp_path):
        thumos.save()
        path = thumos.annotations(("Validation", "Test"))
        name = thumos.names[1]
        path.write_text(path.read_text().replace(f'"{name}"', f'"{thumos.names[3]}"'))
        with pytest.raises(DataError, match=f"'{thumos.names[3]}'"):
            prepare_thumos14(path, FeatureChoice([thumos.folder]), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_excluded_videos(self, thumos, tmp_path):
        thumos.save()
        name = thumos.names[5]
        thumos.segments[name].append(("Diving", 1.0, 1e4))
        annotations = thumos.annotations(("Validation", "Test"))
        choice = FeatureChoice([thumos.folder])
        report = prepare_thumos14(
            annotations, choice, tmp_path / "out", repairs=Repairs(exclude=[name])
        )
        assert report.excluded == (name,)
        assert report.splits == {"train": 5, "test": 4}
        with pytest.raises(DataError, match="no video 'nobody' to exclude"):
            prepare_thumos14(
                annotations, choice, tmp_path / "o", repairs=Repairs(exclude=["nobody"])
            )

    def test_the_real_annotations(self, test_data, tmp_path):
        source = test_data / "thumos14.json"
        if not source.is_file():
            pytest.skip(f"no {source}")
        (tmp_path / "i3d").mkdir()
        for name, video in json.loads(source.read_bytes())["database"].items():
            rows = int((video["duration"] * video["fps"] - 16) // 4) + 1
            np.save(tmp_path / "i3d" / f"{name}.npy", np.ones((max(rows, 1), 2), np.float16))
        choice = FeatureChoice([tmp_path / "i3d"])
        with pytest.raises(DataError, match=r"30 faulty of 6365 segments.*clamp"):
            prepare_thumos14(source, choice, tmp_path / "out")
        report = prepare_thumos14(
            source, choice, tmp_path / "out", repairs=Repairs(out_of_range="clamp")
        )
        assert report.splits == {"train": 200, "test": 212}
        assert (report.classes, report.out_of_range, report.fitting) == (20, 30, 1)


class TestActivityNet13:
    @pytest.fixture
    def anet(self, tmp_path):
        return Small(tmp_path, [f"id{i:03d}" for i in range(10)], 16, 16, 25.0)

    def bmn(self, anet):
        """Annotations of BMN and mmaction2: no subsets, ids with v_, and the table beside them."""
        content, lines = {}, ["video,numFrame,seconds,fps,rfps,subset,featureFrame"]
        for i, name in enumerate(anet.names):
            seconds = anet.videos[name]["seconds"]
            content[f"v_{name}"] = {
                "duration_second": seconds,
                "duration_frame": round(25 * seconds),
                "annotations": [
                    {"segment": [a, b], "label": label} for label, a, b in anet.segments[name]
                ],
                "feature_frame": round(25 * seconds) // 16 * 16,
            }
            subset = ("training", "validation", "testing")[i % 3]
            lines.append(f"v_{name},{round(25 * seconds)},{seconds},25.0,25.0,{subset},0")
        (anet.path / "anno.json").write_text(json.dumps(content))
        (anet.path / "info.csv").write_text("\n".join(lines) + "\n")
        return anet.path / "anno.json", anet.path / "info.csv"

    def test_as_actionformer(self, anet, tmp_path):
        """Names with v_ where the annotations have none, fps given, as the official file."""
        anet.save("v_%s.npy")
        annotations = anet.annotations(("training", "validation"), fps=False)
        choice = FeatureChoice([anet.folder], stride=16, frames=16, fps=25)
        report = prepare_activitynet13(annotations, choice, tmp_path / "out")
        assert report.template == "v_%s.npy"
        check(open_dataset(tmp_path / "out"), anet, report)

    def test_one_hdf5_file(self, anet, tmp_path):
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "tsp.h5", "w") as file:
            for name, array in anet.features.items():
                file[f"v_{name}"] = array
        choice = FeatureChoice([tmp_path / "tsp.h5"], stride=16, frames=16, fps=25)
        report = prepare_activitynet13(
            anet.annotations(("training", "validation")), choice, tmp_path / "out"
        )
        assert report.template == "v_%s"
        check(open_dataset(tmp_path / "out"), anet, report)

    def test_as_mmaction2(self, anet, tmp_path):
        """CSV files of a fixed number of rows, whatever the duration."""
        annotations, table = self.bmn(anet)
        anet.rows = dict.fromkeys(anet.names, 20)
        anet.features = {
            name: anet.rng.normal(size=(20, CHANNELS)).astype(np.float32) for name in anet.names
        }
        anet.save("v_%s.csv", "csv")
        choice = FeatureChoice([anet.folder], resized=True, pack="float32")
        report = prepare_activitynet13(annotations, choice, tmp_path / "out", subsets=table)
        assert report.splits == {"train": 4, "test": 3}
        assert report.fitting is None
        data = open_dataset(tmp_path / "out")
        for name, video in data.annotations.videos.items():
            np.testing.assert_array_equal(
                read_array(data.features[name]), anet.features[name.removeprefix("v_")]
            )
            grid = data.grid(name)
            assert grid.to_grid(0.0) == pytest.approx(0)
            assert grid.to_grid(video.duration) == pytest.approx(20)
        with pytest.raises(DataError, match=r"stride 4 and frames 16 agree .*every video has 20"):
            prepare_activitynet13(
                annotations, FeatureChoice([anet.folder], pack="float32"), tmp_path / "o",
                subsets=table,
            )  # fmt: skip

    def test_resized_ones_of_two_lengths(self, anet, tmp_path):
        anet.save()
        with pytest.raises(DataError, match="expected resized features of one number of rows, got"):
            prepare_activitynet13(
                anet.annotations(("training", "validation")),
                FeatureChoice([anet.folder], resized=True), tmp_path / "out",
            )  # fmt: skip

    def test_the_real_annotations(self, test_data, tmp_path):
        folder = test_data / "anet13"
        if not folder.is_dir():
            pytest.skip(f"no {folder}")
        annotations = folder / "anet_anno_action.json"
        names = json.loads(annotations.read_bytes())
        # All videos in one file: 19,228 tensors of 100 rows.
        import safetensors.torch

        row = torch.ones((100, 2), dtype=torch.bfloat16)
        safetensors.torch.save_file(
            {name: row.clone() for name in names}, tmp_path / "tsn.safetensors"
        )
        choice = FeatureChoice([tmp_path / "tsn.safetensors"], resized=True)
        table = folder / "video_info_new.csv"

        def prepare(**repairs):
            return prepare_activitynet13(
                annotations, choice, tmp_path / "out", subsets=table, repairs=Repairs(**repairs)
            )

        with pytest.raises(DataError, match="12 segments have no length"):
            prepare()
        with pytest.raises(DataError, match="215 out of range"):
            prepare(non_positive="drop")
        report = prepare(non_positive="drop", out_of_range="clamp")
        assert report.splits == {"train": 9649, "test": 4728}
        assert report.instances == 14859 + 7293 - 12
        assert (report.dropped, report.out_of_range, report.classes) == (12, 215, 200)


@pytest.mark.parametrize(
    ("choice", "repairs", "message"),
    [
        ({"layout": "X"}, {}, "expected layout among TC, CT, got 'X'"),
        ({"stride": 0}, {}, "expected stride > 0, got 0"),
        ({"frames": -1}, {}, "expected frames > 0, got -1"),
        ({}, {"out_of_range": "cut"}, "expected out_of_range among error, clamp, keep, got 'cut'"),
        ({}, {"non_positive": "clamp"}, "expected non_positive among error, drop, got 'clamp'"),
        ({}, {"missing": "drop"}, "expected missing among error, skip, got 'drop'"),
    ],
)
def test_bad_arguments(thumos, tmp_path, choice, repairs, message):
    thumos.save()
    with pytest.raises(ConfigError, match=message):
        prepare_thumos14(
            thumos.annotations(("Validation", "Test")),
            FeatureChoice([thumos.folder], **choice),
            tmp_path / "out",
            repairs=Repairs(**repairs),
        )


def test_subsets_and_folders_that_are_not_there(thumos, tmp_path):
    thumos.save()
    choice = FeatureChoice([thumos.folder])
    with pytest.raises(DataError, match="expected a subset test or testing for split 'test', got"):
        prepare_thumos14(thumos.annotations(("Validation", "other")), choice, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "empty" / "other.npy", np.ones((2, 2)))
    with pytest.raises(DataError, match="no annotated video has features"):
        prepare_thumos14(
            thumos.annotations(("Validation", "Test")),
            FeatureChoice([tmp_path / "empty"]), tmp_path / "out",
            repairs=Repairs(missing="skip"),
        )  # fmt: skip
