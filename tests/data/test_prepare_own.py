# SPDX-License-Identifier: Apache-2.0
"""One's own segments (CSV, JSON) and features made a data directory, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from own_files import RATE, SECONDS

from tal_fast import cli
from tal_fast.cli.feature_options import named_subsets
from tal_fast.data import open_dataset, validation
from tal_fast.data.prepare import FeatureChoice, Repairs, prepare_csv, prepare_json
from tal_fast.data.prepare.segment_table import read_segment_table
from tal_fast.data.validation.doubts import lookalikes
from tal_fast.errors import ConfigError, DataError


def subset(number: int) -> str:
    return "train" if number < 7 else "test"


class TestCsv:
    def test_the_least_one_can_say(self, own):
        report = own.prepare()
        assert (report.splits, report.instances, report.classes) == ({"train": 8, "test": 2}, 20, 2)
        lines = "\n".join(report.lines())
        assert "split test: 2 of 10 videos, drawn with seed 0" in lines
        assert "the rate is not checked: durations are those of the rows, so that any" in lines
        assert "too low" not in lines
        assert "rows agree" not in lines, "with durations that were made of them"
        data = open_dataset(own.path / "out")
        assert data.name == "out"
        assert data.classes == ("run", "walk")
        video = data.annotations.videos["clip_03"]
        assert video.duration == SECONDS
        assert video.segments.tolist() == [[4.0, 6.5], [14.0, 16.5]]
        assert data.grid("clip_03").to_grid(np.array([[4.0, 6.5]])).tolist() == [[20.0, 32.5]]
        assert data.spec.features == str(own.path / "features"), "features stay where they are"
        assert validation.validate_dataset(own.path / "out").ok

    def test_a_rate_that_is_too_low_is_doubted(self, own):
        choice = FeatureChoice.at_rate([own.path / "features"], RATE / 2)
        lines = "\n".join(prepare_csv(own.write(), choice, own.path / "out").lines())
        assert "Is 2.5 rows per second too low? No segment ends in the last 59 % of any" in lines
        assert "with up to 6.061 rows per second all would still end within their videos" in lines
        own.column("duration", lambda number: 20.0 if number < 4 else "")
        report = own.prepare(overwrite=True)
        assert report.fitting == 1.0
        assert "the rate is not checked for 6 of 10 videos" in "\n".join(report.lines())
        with pytest.raises(DataError, match=r"agree with the durations of only 0\.0 %"):
            prepare_csv(own.write(), choice, own.path / "out", overwrite=True)

    def test_validate_says_that_durations_of_rows_check_no_rate(self, own):
        own.prepare()
        result = validation.validate_dataset(own.path / "out")
        assert "the rate is not checked: durations are those of the rows" in result.table()
        own.column("duration", "20.01")
        own.prepare(overwrite=True)
        result = validation.validate_dataset(own.path / "out")
        assert "not checked" not in result.table()

    def test_validate_says_what_prepare_doubts(self, own):
        own.lines[3][3] = "Walk"
        own.lines[1][2] = 20.15  # after the last row, so this duration is that of its segment
        choice = FeatureChoice.at_rate([own.path / "features"], RATE / 1.5)
        report = prepare_csv(own.write(), choice, own.path / "out", test_share=0.1)
        doubts = [note for note in report.notes if "looks like" in note or "too low" in note]
        result = validation.validate_dataset(own.path / "out")
        told = [*result.doubts, *(text for item in result.findings for text in item.examples)]
        assert len(doubts) == 2
        assert all(note in told for note in doubts)
        assert "too low" in " ".join(result.table().split())

    def test_all_columns(self, own):
        own.column("Subset", subset)
        own.column("duration", "20.0")
        own.column("fps", "30")
        own.column("annotator", "me")
        report = prepare_csv(
            own.write(),
            FeatureChoice([own.path / "features"], stride=6, frames=6),
            own.path / "out",
        )
        assert report.splits == {"train": 7, "test": 3}
        assert report.fitting == 1.0
        assert report.notes == ("columns that are not used: annotator",)
        assert open_dataset(own.path / "out").annotations.videos["clip_00"].fps == 30.0

    @pytest.mark.parametrize(
        ("separator", "start"), [(",", "\ufeff"), (";", ""), ("\t", ""), (" , ", "")]
    )
    def test_as_spreadsheets_write_it(self, own, separator, start):
        table = read_segment_table(own.write(separator, start))
        assert table.segments["clip_03"][1].label == "walk"
        assert table.segments["clip_03"][1].line == 9

    def test_columns_of_other_names(self, own):
        own.header[:] = ["File", "t0", "t1", "class"]
        names = {"video": "file", "start": "t0", "end": "t1", "label": "class"}
        assert own.prepare(columns=names).instances == 20

    def test_frames(self, own):
        for line in own.lines:
            line[1], line[2] = round(25 * line[1]), round(25 * line[2])
        choice = FeatureChoice([own.path / "features"], stride=5, frames=5, fps=25)
        prepare_csv(own.write(), choice, own.path / "out", unit="frames")
        data = open_dataset(own.path / "out")
        assert data.annotations.videos["clip_03"].segments[1].tolist() == [14.0, 16.48]

    def test_a_video_without_segments(self, own):
        own.lines = [line for line in own.lines if line[0] != "clip_09"] + [["clip_09", "", "", ""]]
        own.column("subset", subset)
        report = own.prepare()
        assert (report.splits["test"], report.instances) == (3, 18)

    def test_the_end_of_a_video_that_no_row_shows(self, own):
        """Less than a stride may follow the last row: a segment that ends there is inside."""
        own.lines[1][2] = 20.15
        own.prepare()
        data = open_dataset(own.path / "out")
        assert data.annotations.videos["clip_00"].duration == 20.15
        own.lines[1][2] = 20.25
        with pytest.raises(DataError, match=r"'clip_00', line 3: .*not inside the video"):
            own.prepare(overwrite=True)
        own.prepare(overwrite=True, repairs=Repairs(out_of_range="clamp"))
        data = open_dataset(own.path / "out")
        assert data.annotations.videos["clip_00"].segments[1].tolist() == [14.0, 20.0]

    def test_packed(self, own):
        for name in own.names:
            file = own.path / "features" / f"{name}.npy"
            np.savez(file.with_suffix(".npz"), np.load(file))
            file.unlink()
        with pytest.raises(DataError, match="tal-fast pack"):
            own.prepare()
        choice = own.features(pack="float16")
        prepare_csv(own.write(), choice, own.path / "out")
        assert open_dataset(own.path / "out").annotations.videos["clip_00"].duration == SECONDS

    def test_classes_in_an_order(self, own):
        own.prepare(classes=["walk", "run", "jump"])
        assert open_dataset(own.path / "out").classes == ("walk", "run", "jump")

    def test_labels_that_look_alike_are_told(self, own):
        own.lines[3][3] = "Walk"
        notes = own.prepare(test_share=0.1).notes
        assert "label 'Walk' (1) looks like 'walk' (9): the same class?" in notes

    def test_lookalikes(self):
        counts = {"walking": 200, "wakling": 1, "stand_to_sit": 80, "sit_to_stand": 79, "run": 9}
        assert lookalikes(counts) == [("wakling", "walking")]
        assert lookalikes({"high jump": 3, "HighJump": 3}) == [("high jump", "HighJump")]


class TestSplits:
    @pytest.mark.parametrize(
        ("names", "splits"),
        [
            (("training", "validation"), {"train": 7, "test": 3}),
            (("Train", "Testing"), {"train": 7, "test": 3}),
            (("Train", "Test"), {"train": 7, "test": 3}),
            (("trainval", "test"), {"train": 7, "test": 3}),
        ],
    )
    def test_usual_names(self, own, names, splits):
        own.column("split", lambda number: names[number >= 7])
        assert own.prepare().splits == splits

    def test_three(self, own):
        own.column("split", lambda number: ("train", "val", "test")[(number >= 6) + (number >= 8)])
        assert own.prepare().splits == {"train": 6, "val": 2, "test": 2}

    def test_a_test_without_labels_is_none(self, own):
        own.column("split", lambda number: ("train", "val", "test")[(number >= 6) + (number >= 8)])
        own.lines = [
            [line[0], "", "", "", "test"] if line[-1] == "test" else line for line in own.lines
        ]
        report = own.prepare()
        assert report.splits == {"train": 6, "test": 2}
        assert "subset test has no segment and is left out" in report.notes
        assert "split test is the subset val" in report.notes

    def test_of_other_names(self, own):
        own.column("split", lambda number: ("monday", "tuesday", "friday")[min(number // 4, 2)])
        with pytest.raises(DataError, match=r"subset 'monday' is none of .* --split train=SUB"):
            own.prepare()
        splits = {"train": ["monday", "tuesday"], "test": ["friday"]}
        report = own.prepare(splits=splits)
        assert report.splits == {"train": 8, "test": 2}
        with pytest.raises(DataError, match="got 'fryday' for test; did you mean 'friday'"):
            own.prepare(splits={"train": ["monday"], "test": ["fryday"]})

    @pytest.mark.parametrize(
        ("names", "advice"),
        [
            (("trainval", "holdout"), {"train": ["trainval"], "test": ["holdout"]}),
            (("train_1", "train_2", "Test Set"), {"train": 2, "test": ["Test Set"]}),
            (("validation", "test"), {"train": ["validation"], "test": ["test"]}),
            (("train", "training", "test"), {"train": 2, "test": ["test"]}),
            (("train", "val", "test", "extra"), {"train": ["train"], "val": ["val"], "test": 1}),
        ],
    )
    def test_the_advice_names_all_splits_and_works(self, own, names, advice):
        """A split that is named makes all others be named: advice for one alone is none."""
        own.column("subset", lambda number: names[number % len(names)])
        with pytest.raises(DataError, match="say which are which, all of them: ") as caught:
            own.prepare()
        text = str(caught.value).partition("all of them: ")[2]
        words = shlex.split(text.partition(" (")[0])
        chosen = named_subsets(words[1::2])
        assert set(words[::2]) == {"--split"}
        assert f"(splits={chosen!r})" in text
        for split, subsets in advice.items():
            assert chosen[split] == subsets or len(chosen[split]) == subsets
        assert set(own.prepare(splits=chosen).splits) == set(advice)

    def test_the_draw_is_that_of_its_seed(self, own):
        first = own.prepare(seed=1)
        names = open_dataset(first.path).splits["test"]
        assert open_dataset(own.prepare(seed=1, overwrite=True).path).splits["test"] == names
        drawn = {
            tuple(open_dataset(own.prepare(seed=seed, overwrite=True).path).splits["test"])
            for seed in range(4)
        }
        assert len(drawn) > 1
        assert own.prepare(test_share=0.5, overwrite=True).splits == {"train": 5, "test": 5}

    def test_every_class_is_trained(self, own):
        """A class of a single video: that video is never drawn."""
        own.lines[0][3] = "jump"
        for seed in range(6):
            own.prepare(seed=seed, test_share=0.5, overwrite=True)
            assert "clip_00" in open_dataset(own.path / "out").splits["train"]

    def test_where_no_draw_leaves_every_class(self, own):
        own.lines = [[*line[:3], f"class {line[0]}"] for line in own.lines]
        with pytest.raises(DataError, match="none of 1000 draws of 2 test videos leaves every"):
            own.prepare()

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (lambda number: "train", "no split 'test': expected subsets for train and test, got"),
            (
                lambda number: "" if number == 4 else "train",
                "line 10: expected a subset as for other videos, got an empty",
            ),
            (lambda number: ("train", "Train")[number % 2], "differ in case alone"),
            (
                lambda number: ("a", "train", "b")[number % 3],
                "'a' is none of .*; subset 'b' is none",
            ),
            (lambda number: ("train", "training")[number % 2], "both look like split 'train'"),
        ],
    )
    def test_bad_subsets(self, own, value, message):
        own.column("subset", value)
        with pytest.raises(DataError, match=message):
            own.prepare()
        assert not (own.path / "out").exists()

    def test_subsets_that_are_asked_for_and_not_there(self, own):
        own.column("subset", subset)
        message = r"expected subsets among train, test, got 'trian' for train; .*'b' for test"
        with pytest.raises(DataError, match=message):
            own.prepare(splits={"train": ["trian"], "test": ["test", "b"]})
        message = r"no split 'train' and no 'test': .* --split train=SUBSET --split test=test "
        with pytest.raises(DataError, match=message):
            own.prepare(splits={"other": ["train"]})

    def test_bad_arguments(self, own):
        for share in (0.0, 1.0, 0.01, float("nan")):
            with pytest.raises(ConfigError, match=r"--test-share .*: expected a share"):
                own.prepare(test_share=share)
        with pytest.raises(ConfigError, match=r"--split .*: .* has no subsets"):
            own.prepare(splits={"train": ["a"]})
        own.column("subset", subset)
        with pytest.raises(ConfigError, match=r"--test-share .*: .* has subsets, so no"):
            own.prepare(test_share=0.3)


class TestFaults:
    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [
            (
                2,
                0.5,
                r"1 faulty line: line 2: video 'clip_00': expected end > start, got 1 and 0.5",
            ),
            (2, 1.0, "expected end > start, got 1 and 1"),
            (1, "0:05", r"line 2: start: expected a number, got '0:05' \(a clock time"),
            (1, "nan", "line 2: start: expected a number, got 'nan'"),
            (1, "", "line 2: start: expected a number, got an empty cell"),
            (1, "1_0", "line 2: start: expected a number, got '1_0'"),
            (1, "9e999", "line 2: start: expected a number, got '9e999'"),
            (0, "", "line 2: expected a video, got an empty cell"),
            (3, "", "line 2: expected a label, got an empty cell"),
            (1, "-3", "not inside the video"),
            (2, "999", "not inside the video"),
            (0, "clip_00.mp4", "there are features of 'clip_00': does the name have the ending"),
            (0, "clip_0O", "no features .*did you mean 'clip_0"),
        ],
    )
    def test_of_lines(self, own, place, value, message):
        own.lines[0][place] = value
        with pytest.raises(DataError, match=message):
            own.prepare()
        assert not (own.path / "out").exists()

    def test_all_are_counted(self, own):
        for line in own.lines:
            line[2] = line[1]
        with pytest.raises(DataError, match=r"20 faulty lines: line 2: .*; and 15 more"):
            own.prepare()

    def test_labels_beside_a_list_of_classes(self, own):
        own.lines[0][3] = "rnu"
        message = "line 2: label 'rnu' is not among the 2 classes; did you mean 'run'"
        with pytest.raises(DataError, match=message):
            own.prepare(classes=["run", "walk"])

    def test_a_semicolon_file_with_decimal_commas(self, own):
        own.lines[0][1] = "1,5"
        own.write(";")
        with pytest.raises(DataError, match="a decimal comma: write a point"):
            read_segment_table(own.path / "segments.csv")

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            (
                ["video", "start", "end", "class"],
                r"'class' may be meant: say so with --column label=class \(columns=",
            ),
            (["id", "start", "end", "label"], r"no video; 'id' may be meant"),
            (["video", "start", "stretch", "label"], "got video, start, stretch, label; no end"),
            (["video", "start", "start", "label"], "expected each column once, got 'start' twice"),
            (
                ["id", "t_start", "start", "start"],
                r"'start' twice; .* no video and no end and no label; 'id' may be meant",
            ),
            (
                ["0001", "1.0", "2.0", "run"],
                "line 1: expected the names of the columns, got what looks like a segment: 0001, "
                "1.0, 2.0, run; .*, in the order of the columns, such as 'video,start,end,label'$",
            ),
        ],
    )
    def test_of_the_header(self, own, header, message):
        own.header[:] = header
        with pytest.raises(DataError, match=message):
            own.prepare()

    def test_of_several_kinds_are_told_at_once(self, own):
        own.column("subset", subset)
        own.lines[0][2] = "x"
        own.lines[4][-1] = own.lines[5][-1] = ""
        with pytest.raises(
            DataError, match=r"2 faulty lines: line 2: .* 'x'; line 6: expected a s"
        ):
            own.prepare()

    def test_of_the_file(self, own, tmp_path):
        with pytest.raises(DataError, match=r"gone\.csv: no such file"):
            read_segment_table(tmp_path / "gone.csv")
        file = tmp_path / "x.csv"
        file.write_bytes(b"")
        with pytest.raises(DataError, match="got an empty file"):
            read_segment_table(file)
        file.write_text("video,start,end,label\n")
        with pytest.raises(DataError, match="expected at least one segment, got none"):
            read_segment_table(file)
        file.write_text("video,start,end,label\na,1,2\n")
        with pytest.raises(DataError, match="line 2: expected 4 cells as in line 1, got 3"):
            read_segment_table(file)
        file.write_bytes(b"video,start,end,label\na,1,2,\xff\n")
        with pytest.raises(DataError, match="expected CSV in UTF-8"):
            read_segment_table(file)
        file.write_text("a;1;2;run\nb;1;2;run\n")
        with pytest.raises(DataError, match=r"looks like a segment.*'video;start;end;label'"):
            read_segment_table(file)

    @pytest.mark.parametrize("column", ["subset", "duration", "fps"])
    def test_lines_that_contradict_each_other(self, own, column):
        own.column(column, 3)
        own.lines[1][-1] = 4
        message = f"line 3: {column} of video 'clip_00': expected .*3.* as in line 2, got .*4"
        with pytest.raises(DataError, match=message):
            own.prepare()

    def test_of_what_is_asked_for(self, own):
        with pytest.raises(ConfigError, match="got 'lable'; did you mean 'label'"):
            own.prepare(columns={"lable": "class"})
        with pytest.raises(DataError, match="no column 'lable' for label; did you mean 'label'"):
            own.prepare(columns={"label": "lable"})
        with pytest.raises(ConfigError, match="unit: expected 'seconds' or 'frames', got 'ms'"):
            own.prepare(unit="ms")
        choice = FeatureChoice([own.path / "features"], stride=6, frames=6)
        with pytest.raises(DataError, match="10 videos have no fps, first 'clip_00': say how many"):
            prepare_csv(own.write(), choice, own.path / "out")
        with pytest.raises(ConfigError, match="expected fps for video 'clip_00'"):
            prepare_csv(own.write(), choice, own.path / "out", unit="frames")

    def test_a_rate_that_leaves_segments_beyond_their_videos(self, own):
        """Clamping them, which would end the error, is not what is wanted: the rate is wrong."""
        choice = FeatureChoice.at_rate([own.path / "features"], 25.0)
        with pytest.raises(DataError, match=r"how many there are per second\? With at most 6\.061"):
            prepare_csv(own.write(), choice, own.path / "out")

    def test_a_rate_that_is_not_that_of_the_durations(self, own):
        own.column("duration", 10.0)
        own.lines = [[name, 1.0, 2.0, label, 10.0] for name, _, _, label, _ in own.lines]
        with pytest.raises(DataError, match=r"agree with the durations of only 0\.0 %"):
            own.prepare()

    def test_videos_without_features(self, own):
        (own.path / "features" / "clip_03.npy").unlink()
        with pytest.raises(DataError, match=r"no features \(%s\.npy\) for 1 of 10 videos: clip_03"):
            own.prepare()
        skip = Repairs(missing="skip")
        with pytest.raises(DataError, match="no features and no duration for 1 video: clip_03"):
            own.prepare(repairs=skip)
        own.column("duration", SECONDS)
        assert own.prepare(repairs=skip).missing == ("clip_03",)


class TestJson:
    def annotations(self, own, **entry) -> Path:
        database = {
            name: {
                "duration": float(SECONDS),
                "annotations": [
                    {"segment": [start, end], "label": label}
                    for video, start, end, label in own.lines
                    if video == name
                ],
                **{key: value(i) if callable(value) else value for key, value in entry.items()},
            }
            for i, name in enumerate(own.names)
        }
        file = own.path / "annotations.json"
        file.write_text(json.dumps({"database": database}))
        return file

    def test_with_subsets(self, own):
        file = self.annotations(own, subset=subset)
        report = prepare_json(file, own.features(), own.path / "out")
        assert report.splits == {"train": 7, "test": 3}
        assert validation.validate_dataset(own.path / "out").ok

    def test_without(self, own):
        report = prepare_json(self.annotations(own), own.features(), own.path / "out")
        assert report.splits == {"train": 8, "test": 2}

    def test_durations_are_needed(self, own):
        file = self.annotations(own, duration=None)
        with pytest.raises(DataError, match=r"'clip_00': expected a duration > 0 in seconds, got"):
            prepare_json(file, own.features(), own.path / "out")


class TestCommands:
    def run(self, capsys, *arguments):
        status = cli.main(["prepare", *map(str, arguments)])
        return status, *capsys.readouterr()

    def csv(self, own, *more):
        own.write()
        files = ["--segments", own.path / "segments.csv", "--features", own.path / "features"]
        return ["csv", *files, "--out", own.path / "out", *more]

    def test_csv(self, own, capsys):
        own.header[3] = "class"
        own.column("day", lambda number: ("monday", "friday")[number >= 7])
        (own.path / "classes.txt").write_text("walk\nrun\n")
        more = ["--rate", "5", "--column", "label=class", "--column", "subset=day"]
        more += ["--split", "train=monday", "--split", "test=friday"]
        more += ["--classes", own.path / "classes.txt"]
        status, out, err = self.run(capsys, *self.csv(own, *more))
        assert status == 0, err
        assert "10 videos (7 train, 3 test), 20 instances of 2 classes" in out
        assert err == f"next: tal-fast validate --data {own.path / 'out'}\n"
        assert open_dataset(own.path / "out").classes == ("walk", "run")
        assert cli.main(["validate", "--data", str(own.path / "out")]) == 0

    def test_rows_by_frames(self, own, capsys):
        more = ["--stride", "6", "--fps", "30", "--test-share", "0.3", "--seed", "2"]
        assert self.run(capsys, *self.csv(own, *more))[0] == 0
        feature = open_dataset(own.path / "out").spec.feature
        assert (feature.stride, feature.frames, feature.fps) == (6, 6, 30)

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ([], "expected how rows of features lie in time: --rate ROWS_PER_SECOND, or --stride"),
            (
                ["--rate", "5", "--fps", "30"],
                "--fps: --rate already says how rows lie in time; got 30 as well",
            ),
            (["--rate", "0"], "--rate: expected rows per second above 0, got 0"),
            (["--rate", "5", "--column", "label"], "--column: expected COLUMN=NAME, got 'label'"),
            (
                ["--rate", "5", "--classes", "a,a"],
                "--classes: expected one or more names",
            ),
            (["--rate", "5", "--split", "train"], "--split: expected NAME=SUBSET, got 'train'"),
        ],
    )
    def test_wrong_usage(self, own, capsys, more, message):
        status, _, err = self.run(capsys, *self.csv(own, *more))
        assert status == 2
        assert message in err
        assert not (own.path / "out").exists()

    def test_json(self, own, capsys):
        file = TestJson().annotations(own, subset=subset)
        features = own.path / "features"
        status, out, err = self.run(
            capsys, "json", "--annotations", file, "--features", features, "--rate", "5", "--out",
            own.path / "out",
        )  # fmt: skip
        assert status == 0, err
        assert "7 train, 3 test" in out
